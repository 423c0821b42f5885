"""Comma-separated files of zeros and ones, read line by line: memory holds the result and a little more."""

from __future__ import annotations

import re
from typing import IO

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._prepared import DataError

_LINES_AT_ONCE = 4096
_LONGEST_PREFIX = 64
_LABEL = re.compile(rb"\s*(\d{1,3}),")


def read_binary_rows(file: IO[bytes], columns: int, where: str) -> NDArray[np.uint8]:
    """Read lines of `columns` zeros and ones (quoted or not); return (N, columns) uint8.

    Raises:
        DataError: a line of another form (its number is named), or no line at all.
    """
    x, prefixes = _read_lines(file, columns, where)
    for number, prefix in enumerate(prefixes, start=1):
        if prefix:
            raise _bad_line(where, number, f"expected {columns} zeros and ones")
    return x


def read_labeled_binary_rows(
    file: IO[bytes], columns: int, num_classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read lines of a label in 1..num_classes and `columns` zeros and ones; return (N, columns) uint8, labels minus 1.

    Raises:
        DataError: a line of another form (its number is named), or no line at all.
    """
    x, prefixes = _read_lines(file, columns, where)
    labels = np.empty(len(prefixes), dtype=np.int64)
    for i, prefix in enumerate(prefixes):
        match = _LABEL.fullmatch(prefix)
        if match is None or not 1 <= int(match[1]) <= num_classes:
            raise _bad_line(where, i + 1, f"expected a label of 1..{num_classes} and {columns} zeros and ones")
        labels[i] = int(match[1]) - 1
    return x, labels


def _read_lines(file: IO[bytes], columns: int, where: str) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Return the last `columns` values of each line, and what stands before them."""
    width = 2 * columns - 1
    longest = 4 * columns + _LONGEST_PREFIX
    packed: list[NDArray[np.uint8]] = []
    prefixes: list[bytes] = []
    block: list[bytes] = []
    while line := file.readline(longest):
        text = line.rstrip(b"\r\n").replace(b'"', b"")
        if not width <= len(text) <= width + _LONGEST_PREFIX:
            raise _bad_line(where, len(prefixes) + 1, f"expected {columns} zeros and ones")
        prefixes.append(text[:-width])
        block.append(text[-width:])
        if len(block) == _LINES_AT_ONCE:
            packed.append(_pack(block, width, len(prefixes) - len(block) + 1, where))
            block = []
    if block:
        packed.append(_pack(block, width, len(prefixes) - len(block) + 1, where))
    if not packed:
        raise DataError(f"{where} is empty; get the file again")
    return np.unpackbits(np.concatenate(packed), axis=1, count=columns), prefixes


def _pack(lines: list[bytes], width: int, first_number: int, where: str) -> NDArray[np.uint8]:
    """Return the values of some lines as bits, eight in a byte."""
    text = np.frombuffer(b"".join(lines), dtype=np.uint8).reshape(len(lines), width)
    bits, commas = text[:, ::2] - ord("0"), text[:, 1::2]
    is_bad = (bits > 1).any(axis=1) | (commas != ord(",")).any(axis=1)
    if is_bad.any():
        raise _bad_line(where, first_number + int(is_bad.argmax()), f"expected {bits.shape[1]} zeros and ones")
    return np.packbits(bits, axis=1)


def _bad_line(where: str, number: int, reason: str) -> DataError:
    return DataError(f"{where}, line {number}: {reason}; the file is damaged or another one, get it again")
