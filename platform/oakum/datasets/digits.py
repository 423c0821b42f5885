"""Digits: the 8x8 digits bundled with scikit-learn, for tests and first steps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from oakum.datasets._download import Progress
from oakum.datasets._packages import bundled_file, read_integer_csv
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source

_LEVELS = 16


class Digits(DataSource):
    """1,797 digits, 8x8 gray, from the test part of the UCI optical digits."""

    source: ClassVar[Source | None] = Source(
        title="Optical Recognition of Handwritten Digits",
        authors="Alpaydin, Kaynak",
        venue="UCI Machine Learning Repository",
        year=1998,
        link="https://doi.org/10.24432/C50P49",
    )
    summary = "1,797 digits bundled with scikit-learn, 8x8 gray, 10 classes"
    public = True
    license_note = "UCI data, CC BY 4.0; bundled with scikit-learn (BSD-3)."
    embedded = True
    official_digest = "050b21e63c9f7f1e45bf48bedbb46e23c831addc922192268a673037a0be171c"

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `digits.csv.gz`: 64 values of 0..16 and the label a line; values are spread to 0..255, rounded."""
        file = source or bundled_file("sklearn", "datasets/data/digits.csv.gz")
        if file.is_dir():
            file = file / "digits.csv.gz"
        table = read_integer_csv(file, 65)
        levels, labels = table[:, :-1], table[:, -1]
        if levels.max() > _LEVELS or labels.max() > 9:
            raise DataError(f"{file}: expected 64 values of 0..16 and a digit on each line")
        x = (levels.astype(np.uint16) * 255 + _LEVELS // 2) // _LEVELS
        return Content(
            x=x.astype(np.uint8).reshape(-1, 1, 8, 8),
            y=labels.astype(np.int64),
            part=np.full(len(labels), "all"),
            identity=None,
            class_names=tuple("0123456789"),
            max_value=255,
            origin=f"scikit-learn {file.name}" if source is None else str(file),
        )
