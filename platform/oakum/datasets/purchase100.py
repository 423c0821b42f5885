"""Purchase100: which products people bought, from Kaggle's Acquire Valued Shoppers; 600 yes/no features, 100 groups."""

from __future__ import annotations

from pathlib import Path
from typing import IO, ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.config import FrozenConfig
from oakum.datasets._archives import parse_source
from oakum.datasets._binary_rows import read_labeled_binary_rows
from oakum.datasets._download import Progress
from oakum.datasets._prepared import Content, DataError, Kind
from oakum.datasets._row_count import matches_row_count
from oakum.datasets.base import DataSource
from oakum.registry import Source

_ROWS = 197_324
_FEATURES = 600
_CLASSES = 100
_FILE = "dataset_purchase"
_ARCHIVE = "dataset_purchase.tgz"
_GZIP = b"\x1f\x8b"


class Purchase100(DataSource):
    """197,324 rows of 600 binary features, 100 classes.

    No checksum of the published file is known to us: `matches_official` is None for 197,324 rows, else False.
    """

    source: ClassVar[Source | None] = Source(
        title="Membership Inference Attacks Against Machine Learning Models",
        authors="Shokri, Stronati, Song, Shmatikov",
        venue="IEEE Symposium on Security and Privacy",
        year=2017,
        link="https://arxiv.org/abs/1610.05820",
    )
    summary = "197,324 shoppers' purchases, 600 binary features, 100 classes (your own file)"
    kind: ClassVar[Kind] = "tabular"
    public = False
    license_note = "Research use; from Kaggle's Acquire Valued Shoppers Challenge: cite Shokri et al. (2017)."

    class Config(FrozenConfig):
        """Tabular rows have nothing to choose."""

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `dataset_purchase`, `dataset_purchase.tgz`, or a folder that holds one of them.

        Each line: a label of 1..100, then 600 zeros and ones. Labels are stored minus 1.
        """
        if source is None:
            raise DataError(
                f"purchase100 needs a file of yours: get {_ARCHIVE} from "
                f"https://www.comp.nus.edu.sg/~reza/files/{_ARCHIVE} or https://github.com/privacytrustlab/datasets "
                f"and run: oakum data prepare purchase100 --source {_ARCHIVE}"
            )
        x, y = _read_rows(source, progress)
        return Content(
            x=x,
            y=y,
            part=np.full(len(y), "all"),
            identity=None,
            class_names=tuple(f"group {i + 1}" for i in range(_CLASSES)),
            max_value=1,
            origin=str(source),
            matches_official=matches_row_count("purchase100", len(y), _ROWS, progress),
        )


def _read_rows(source: Path, progress: Progress) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if source.is_file():
        with source.open("rb") as file:
            if file.read(len(_GZIP)) != _GZIP:
                file.seek(0)
                return read_labeled_binary_rows(file, _FEATURES, _CLASSES, str(source))

    def parse(name: str, file: IO[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return read_labeled_binary_rows(file, _FEATURES, _CLASSES, f"{source}: {name}")

    return parse_source(source, [_FILE], _ARCHIVE, (".",), parse, progress)[_FILE]
