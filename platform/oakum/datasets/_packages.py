"""Data files inside installed packages, found without importing the packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._download import gunzip
from oakum.datasets._prepared import DataError


def bundled_file(package: str, path: str) -> Path:
    """Return the path of a data file of an installed package.

    Raises:
        DataError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {package} is not installed; run: pip install {package}")
    file = Path(spec.origin).parent / path
    if not file.is_file():
        raise DataError(f"{file} is missing; install the package again: pip install --force-reinstall {package}")
    return file


def read_integer_csv(file: Path, columns: int) -> NDArray[np.uint8]:
    """Read a (gzipped) CSV file with `parse_integer_csv`."""
    data = file.read_bytes()
    return parse_integer_csv(gunzip(data, file) if data[:2] == b"\x1f\x8b" else data, columns, file)


def parse_integer_csv(text: bytes, columns: int, where: Path) -> NDArray[np.uint8]:
    """Parse a CSV of whole numbers in 0..255 (quoted or not) without a header; return (N, columns) uint8.

    Raises:
        DataError: damaged, another number of columns, or other values.
    """
    lines = text.decode("latin-1").splitlines()
    try:
        table = (
            np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2, quotechar='"', comments=None) if lines else None
        )
    except (ValueError, OverflowError) as error:
        message = f"{where} is not {columns} whole numbers of 0..255 a line ({error}); get the file again"
        raise DataError(message) from error
    if table is None or table.shape[1] != columns:
        found = "nothing" if table is None else f"{table.shape[1]} numbers a line"
        raise DataError(f"{where} holds {found}, expected {columns} numbers a line; get the file again")
    return table
