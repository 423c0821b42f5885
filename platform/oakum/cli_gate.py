"""The command `oakum gate`: a pipeline stops here unless a defended model keeps its bounds."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from oakum.session_home import Home

EXIT_FAILED_GATE = 4


def add_gate(commands: Any) -> None:
    """Add the command to the subparsers of `oakum`."""
    text = "pass (exit 0) or fail (exit 4) a confirmed setting by bounds on its metrics, for release pipelines"
    parser = commands.add_parser(
        "gate",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="A bound is compared with the unfavorable end of the metric's interval over all seeds. What is missing, "
        "unresolved, flagged as suspicious, incomplete or measured on validation data fails.",
    )
    parser.add_argument(
        "model",
        metavar="NAME[:SETTING]",
        help="a search (SETTING: a confirmed one's label, or trial-N), else an experiment's name (its latest plan)",
    )
    parser.add_argument(
        "--max",
        action="append",
        default=[],
        dest="maxima",
        metavar="KEY<=NUMBER",
        help="upper bound, such as 'membership/loss/tpr_at_fpr_0.01<=0.05'; may be repeated",
    )
    parser.add_argument(
        "--min",
        action="append",
        default=[],
        dest="minima",
        metavar="KEY>=NUMBER",
        help="lower bound, such as 'utility/test_accuracy>=0.9'; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON on standard output")
    parser.set_defaults(command="gate")


def gate(options: argparse.Namespace) -> int:
    """Print the verdicts and return 0 if all bounds are kept, else `EXIT_FAILED_GATE`.

    Raises:
        ConfigError: see `run_gate`.
    """
    from oakum.session_gate import run_gate

    result = run_gate(options.model, options.maxima, options.minima, Home.of_environment())
    if result.note:
        sys.stderr.write(f"oakum: {result.note}\n")
    if options.json:
        sys.stdout.write(json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    else:
        sys.stdout.write(_text(result))
    return 0 if result.passed else EXIT_FAILED_GATE


def _text(result: Any) -> str:
    lines = [f"{'PASS' if each.passed else 'FAIL'}  {each.bound.key}: {each.reason}" for each in result.verdicts]
    failed = sum(not verdict.passed for verdict in result.verdicts)
    model = result.model if result.setting is None else f"{result.model}:{result.setting}"
    last = f"{failed} of {len(lines)} bounds failed" if failed else f"all bounds kept ({len(lines)})"
    return "\n".join([*lines, f"gate {'failed' if failed else 'passed'}: {model}: {last}"]) + "\n"
