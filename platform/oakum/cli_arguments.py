"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the experiment's file and what changes it."""
    parser.add_argument("file", type=Path, help="experiment YAML")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="PATH=VALUE",
        help="change one value (settings.relaxloss.alpha=0.5)",
    )
    parser.add_argument("--seeds", type=seeds, metavar="N-M", help="seeds to run: 0-4 or 0,3,7")


def seeds(text: str) -> list[int]:
    """Read `0-4` or `0,3,7`."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write 0-4 or 0,3,7") from error
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no seed")
    return found


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
