"""The pickled batches of CIFAR-10 and CIFAR-100, decoded without running what a pickle asks for."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._archives import parse_source
from oakum.datasets._download import Progress, SourceUnavailableError, download
from oakum.datasets._prepared import Content, DataError

_PIXELS = (3, 32, 32)
_LARGEST_FILE = 256 << 20
_LARGEST_ARCHIVE = 256 << 20


@dataclass(frozen=True)
class Batch:
    """One decoded file.

    Attributes:
        x: (N, 3, 32, 32) uint8.
        y: (N,) int64.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How one of the two data sets is packed.

    Attributes:
        archive: name of the published archive.
        url: its address.
        archive_md5: its MD5.
        folder: the folder inside it.
        checksums: file -> MD5, in the order of the rows; the last file is the test part.
        label_key: key of the labels in the pickled dictionary.
        num_classes: labels are in [0, num_classes).
    """

    archive: str
    url: str
    archive_md5: str
    folder: str
    checksums: dict[str, str]
    label_key: str
    num_classes: int


def read_batches(source: Path, layout: Layout, progress: Progress) -> tuple[list[Batch], bool]:
    """Read the batches of a folder or archive in the order of `layout.checksums`.

    Returns:
        the batches, and whether every file has its published MD5.

    Raises:
        DataError: a missing or damaged file, or a pickle that holds anything but the published content.
    """

    def parse(name: str, file: IO[bytes]) -> tuple[Batch, bool]:
        data = file.read(_LARGEST_FILE)
        batch = decode_batch(data, layout.label_key, layout.num_classes, f"{source}: {name}")
        return batch, _md5(data) == layout.checksums[name]

    names = list(layout.checksums)
    parsed = parse_source(source, names, layout.archive, (".", layout.folder), parse, progress)
    return [parsed[name][0] for name in names], all(is_published for _, is_published in parsed.values())


def fetch_archive(layout: Layout, scratch: Path, progress: Progress) -> Path:
    """Download the published archive into `scratch`, check its MD5, and return its path.

    Raises:
        SourceUnavailableError: no connection, or another checksum.
    """
    data = download(layout.url, _LARGEST_ARCHIVE, progress)
    found = _md5(data)
    if found != layout.archive_md5:
        reason = f"MD5 is {found}, expected {layout.archive_md5}: the file is damaged or changed"
        raise SourceUnavailableError(f"{layout.url}: {reason}")
    path = scratch / layout.archive
    path.write_bytes(data)
    return path


def batches_content(
    batches: Sequence[Batch], layout: Layout, class_names: tuple[str, ...], origin: str, official: bool | None
) -> Content:
    """Join the batches; the last one is the part `test`, all others are `train`."""
    parts = ["train"] * (len(batches) - 1) + ["test"]
    assert len(class_names) == layout.num_classes
    return Content(
        x=np.concatenate([batch.x for batch in batches]),
        y=np.concatenate([batch.y for batch in batches]),
        part=np.concatenate([np.full(len(batch.y), part) for batch, part in zip(batches, parts, strict=True)]),
        identity=None,
        class_names=class_names,
        max_value=255,
        origin=origin,
        matches_official=official,
    )


def decode_batch(data: bytes, label_key: str, num_classes: int, where: str) -> Batch:
    """Decode one pickled batch.

    The published files are Python 2 pickles of a dictionary with `data` (N, 3072) uint8, one row a picture in the
    order channel, row, column, and a list of labels.

    Raises:
        DataError: not such a pickle, or one that names any other code than NumPy's arrays of bytes.
    """
    try:
        found = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = found[b"data"].values, found[label_key.encode()]
    except _ForbiddenError as error:
        raise DataError(f"{where}: {error}; it is not the published file and was not run") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{where} is not a whole pickled CIFAR batch ({reason}); get the file again") from error
    if pixels.ndim != 2 or pixels.shape[1] != np.prod(_PIXELS):
        raise DataError(f"{where}: its data has shape {pixels.shape}, expected (N, 3072); get the file again")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not len(pixels):
        raise DataError(f"{where}: {label_key!r} is not one label for each of {len(pixels)} pictures")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise DataError(f"{where}: {label_key!r} must hold whole numbers of 0..{num_classes - 1}; get the file again")
    return Batch(np.ascontiguousarray(pixels).reshape(-1, *_PIXELS), np.asarray(labels, dtype=np.int64))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class _ForbiddenError(Exception):
    """A pickle names code that the published files do not use."""


class _ArrayType:
    """Stands for `numpy.dtype`; only bytes are known."""

    def __init__(self, name: bytes, *_: object) -> None:
        if name.lstrip(b"|") != b"u1":
            raise ValueError(f"numbers of type {name!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for bytes."""


class _Array:
    """Stands for `numpy.ndarray` and for the function that makes an empty one."""

    values: NDArray[np.uint8]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[int, tuple[int, ...], _ArrayType, bool, bytes]) -> None:
        _, shape, kind, is_column_major, raw = state
        if not isinstance(kind, _ArrayType) or not isinstance(raw, bytes):
            raise ValueError("an array of something else than bytes")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if is_column_major else "C")


class _BatchUnpickler(pickle.Unpickler):
    """Makes numbers, text, bytes, lists, dictionaries and arrays of bytes, and refuses to look up anything else."""

    _allowed: ClassVar[dict[tuple[str, str], type[Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _ArrayType,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _ForbiddenError(f"the pickle asks for {module}.{name}, which may run code")
        return self._allowed[module, name]
