"""LFW at 64x64: press photographs of 5,749 people, deep-funneled, the middle of each picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oakum.datasets._download import Progress, find_packed
from oakum.datasets._images import decode
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source

_PACKED = "lfw64.npz"
_SIZE = 64
_ORIGINAL_SIZE = (250, 250)
_CROP = (65, 65, 185, 185)
_REPORT_EVERY = 500


class Lfw64(DataSource):
    """13,233 pictures, 64x64 RGB; the class is the person.

    From 250x250 originals: crop (65, 65, 185, 185), Lanczos to 64x64. The packed file went through JPEG (quality 92)
    afterwards, so that its pixels differ a little from those of the originals.
    """

    source: ClassVar[Source | None] = Source(
        title="Labeled Faces in the Wild: A Database for Studying Face Recognition in Unconstrained Environments",
        authors="Huang, Ramesh, Berg, Learned-Miller",
        venue="University of Massachusetts Amherst, Technical Report 07-49",
        year=2007,
        link="https://vis-www.cs.umass.edu/lfw/",
    )
    summary = "13,233 photographs of 5,749 people, 64x64 RGB, class = person"
    public = False
    license_note = "Published for research, no formal license; press photographs of real people: do not publish them."
    packed_sha256: ClassVar[str] = "aa0f53378d8ccece3cb526d94cfbfc6656d35d3182700ff571c941e7fab38b40"

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read a folder `Name/Name_0001.jpg` ... of deep-funneled pictures, or the packed `lfw64.npz`."""
        packed = find_packed(_PACKED, cls.packed_sha256, source)
        if packed is not None:
            return _read_packed(packed, progress)
        if source is None:
            raise DataError(
                "lfw64 needs files of yours: get lfw-deepfunneled.tgz (Labeled Faces in the Wild), unpack it and run: "
                "oakum data prepare lfw64 --source lfw-deepfunneled "
                f"(or set OAKUM_SHARED_DATA to the folder of {_PACKED})"
            )
        return _read_official(source, progress)


def _read_packed(packed: Path, progress: Progress) -> Content:
    with np.load(packed, allow_pickle=False) as file:
        jpeg, offsets = file["jpeg"].tobytes(), file["offsets"].tolist()
        identity, names = file["identity"].astype(np.int64), file["names"].tolist()
    x = np.empty((len(identity), _SIZE, _SIZE, 3), dtype=np.uint8)
    for i in range(len(identity)):
        x[i] = np.asarray(decode(jpeg[offsets[i] : offsets[i + 1]], "RGB", f"{packed}: picture {i}"))
        if i % _REPORT_EVERY == 0:
            progress("decoding lfw64", i / len(identity))
    return _content(x, identity, names, str(packed), official=True)


def _read_official(source: Path, progress: Progress) -> Content:
    files = _official_files(source)
    x = np.empty((len(files), _SIZE, _SIZE, 3), dtype=np.uint8)
    for i, (_, _, file) in enumerate(files):
        picture = decode(file.read_bytes(), "RGB", file)
        if picture.size != _ORIGINAL_SIZE:
            raise DataError(f"{file} is {picture.width}x{picture.height}, expected 250x250 (deep-funneled LFW)")
        x[i] = np.asarray(picture.crop(_CROP).resize((_SIZE, _SIZE), Image.Resampling.LANCZOS))
        if i % _REPORT_EVERY == 0:
            progress("decoding lfw64", i / len(files))
    names = sorted({name for name, _, _ in files})
    index = {name: i for i, name in enumerate(names)}
    identity = np.asarray([index[name] for name, _, _ in files], dtype=np.int64)
    return _content(x, identity, names, str(source), official=None)


def _official_files(source: Path) -> list[tuple[str, int, Path]]:
    """Return (name, number, file) in the order of names and numbers."""
    found = []
    for root in (source, source / "lfw-deepfunneled"):
        for folder in root.iterdir() if root.is_dir() else ():
            pattern = re.compile(re.escape(folder.name) + r"_(\d{4})\.jpg")
            for file in folder.iterdir() if folder.is_dir() else ():
                if match := pattern.fullmatch(file.name):
                    found.append((folder.name, int(match[1]), file))
        if found:
            return sorted(found)
    raise DataError(f"{source} holds no pictures named Name/Name_0001.jpg; give the unpacked lfw-deepfunneled folder")


def _content(
    x: NDArray[np.uint8], identity: NDArray[np.int64], names: list[str], origin: str, official: bool | None
) -> Content:
    return Content(
        x=np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
        y=identity,
        part=np.full(len(identity), "all"),
        identity=identity.copy(),
        class_names=tuple(names),
        max_value=255,
        origin=origin,
        matches_official=official,
    )
