"""Location-30: which kinds of places a person visited in Bangkok; 446 yes/no features, 30 groups."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.config import FrozenConfig
from oakum.datasets._download import Progress, find_packed, read_member
from oakum.datasets._packages import parse_integer_csv
from oakum.datasets._prepared import Content, DataError, Kind
from oakum.datasets.base import DataSource
from oakum.registry import Source

_FEATURES = 446
_CLASSES = 30
_LARGEST_FILE = 64 << 20
_FILE = "bangkok"
_ARCHIVE = "dataset_location.tgz"
_PACKED = "location30.npz"


class Location30(DataSource):
    """5,010 rows of 446 binary features, 30 classes."""

    source: ClassVar[Source | None] = Source(
        title="Membership Inference Attacks Against Machine Learning Models",
        authors="Shokri, Stronati, Song, Shmatikov",
        venue="IEEE Symposium on Security and Privacy",
        year=2017,
        link="https://arxiv.org/abs/1610.05820",
    )
    summary = "5,010 people's visited places in Bangkok, 446 binary features, 30 classes"
    kind: ClassVar[Kind] = "tabular"
    public = False
    license_note = "Research use; from Foursquare check-ins of Yang et al. (2016): cite them and Shokri et al. (2017)."
    official_digest = "aabd1e8c3b661b5b75478114041651d39d4e98734f1ddfb13fd679586136f227"
    packed_sha256: ClassVar[str] = "4b12a3a89e019edc5b35423c2f037443df4494a37f9e7e2e280ff1254fc9bd3f"

    class Config(FrozenConfig):
        """Tabular rows have nothing to choose."""

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `bangkok`, `dataset_location.tgz`, a folder that holds one of them, or the packed `location30.npz`."""
        packed = find_packed(_PACKED, cls.packed_sha256, source)
        if packed is not None:
            with np.load(packed, allow_pickle=False) as file:
                x = np.unpackbits(file["features_packed"], axis=1)[:, : int(file["n_features"])]
                return _content(x, file["labels"].astype(np.int64), str(packed))
        if source is None:
            raise DataError(
                f"location30 needs a file of yours: get {_ARCHIVE} from https://github.com/privacytrustlab/datasets "
                f"and run: oakum data prepare location30 --source {_ARCHIVE} "
                f"(or set OAKUM_SHARED_DATA to the folder of {_PACKED})"
            )
        return _read_official(source)


def _read_official(source: Path) -> Content:
    if source.is_dir():
        inside = [source / name for name in (_FILE, _ARCHIVE) if (source / name).is_file()]
        if not inside:
            raise DataError(f"{source} holds neither {_FILE}, {_ARCHIVE} nor {_PACKED}")
        source = inside[0]
    text = source.read_bytes()
    if text[:2] == b"\x1f\x8b":
        text = read_member(source, _FILE, _LARGEST_FILE)
    table = parse_integer_csv(text, 1 + _FEATURES, source)
    labels, x = table[:, 0].astype(np.int64) - 1, np.ascontiguousarray(table[:, 1:])
    if labels.min() < 0 or labels.max() >= _CLASSES or x.max() > 1:
        raise DataError(f"{source}: each line must be a label of 1..{_CLASSES} and {_FEATURES} zeros and ones")
    return _content(x, labels, str(source))


def _content(x: NDArray[np.uint8], y: NDArray[np.int64], origin: str) -> Content:
    return Content(
        x=np.ascontiguousarray(x),
        y=y,
        part=np.full(len(y), "all"),
        identity=None,
        class_names=tuple(f"group {i + 1}" for i in range(_CLASSES)),
        max_value=1,
        origin=origin,
    )
