"""Texas100: hospital discharge records of Texas; 6,169 yes/no features, the 100 most frequent procedures."""

from __future__ import annotations

from pathlib import Path
from typing import IO, ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.config import FrozenConfig
from oakum.datasets._archives import parse_source
from oakum.datasets._binary_rows import read_binary_rows
from oakum.datasets._download import Progress
from oakum.datasets._packages import parse_integer_csv
from oakum.datasets._prepared import Content, DataError, Kind
from oakum.datasets._row_count import matches_row_count
from oakum.datasets.base import DataSource
from oakum.registry import Source

_ROWS = 67_330
_FEATURES = 6_169
_CLASSES = 100
_LARGEST_LABELS = 8 << 20
_ARCHIVE = "dataset_texas.tgz"
_FOLDERS = (".", "100", "texas/100")


class Texas100(DataSource):
    """67,330 rows of 6,169 binary features, 100 classes.

    No checksum of the published files is known to us: `matches_official` is None for 67,330 rows, else False.
    """

    source: ClassVar[Source | None] = Source(
        title="Membership Inference Attacks Against Machine Learning Models",
        authors="Shokri, Stronati, Song, Shmatikov",
        venue="IEEE Symposium on Security and Privacy",
        year=2017,
        link="https://arxiv.org/abs/1610.05820",
    )
    summary = "67,330 hospital stays, 6,169 binary features, 100 classes (your own files)"
    kind: ClassVar[Kind] = "tabular"
    public = False
    license_note = (
        "Research use; from the Texas Department of State Health Services' hospital discharge data, whose terms "
        "forbid identifying patients: cite Shokri et al. (2017)."
    )

    class Config(FrozenConfig):
        """Tabular rows have nothing to choose."""

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `dataset_texas.tgz`, or a folder with `feats` and `labels` (also in `100` or `texas/100`).

        A line of `feats` holds 6,169 zeros and ones, a line of `labels` a number of 1..100, which is stored minus 1.
        """
        if source is None:
            raise DataError(
                f"texas100 needs files of yours: get {_ARCHIVE} from "
                f"https://www.comp.nus.edu.sg/~reza/files/{_ARCHIVE} or https://github.com/privacytrustlab/datasets "
                f"and run: oakum data prepare texas100 --source {_ARCHIVE}"
            )

        def parse(name: str, file: IO[bytes]) -> NDArray[np.uint8]:
            if name == "feats":
                return read_binary_rows(file, _FEATURES, f"{source}: {name}")
            return parse_integer_csv(file.read(_LARGEST_LABELS), 1, source / name)[:, 0]

        parsed = parse_source(source, ["feats", "labels"], _ARCHIVE, _FOLDERS, parse, progress)
        x, labels = parsed["feats"], parsed["labels"]
        if len(x) != len(labels):
            raise DataError(f"{source}: {len(x)} lines of feats and {len(labels)} of labels do not belong together")
        if labels.min() < 1 or labels.max() > _CLASSES:
            raise DataError(f"{source}: labels must be whole numbers of 1..{_CLASSES}; get the file again")
        return Content(
            x=x,
            y=labels.astype(np.int64) - 1,
            part=np.full(len(x), "all"),
            identity=None,
            class_names=tuple(f"procedure {i + 1}" for i in range(_CLASSES)),
            max_value=1,
            origin=str(source),
            matches_official=matches_row_count("texas100", len(x), _ROWS, progress),
        )
