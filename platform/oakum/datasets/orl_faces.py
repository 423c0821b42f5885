"""ORL (AT&T) faces: 40 people, ten pictures each, 92x112 gray."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._download import Progress, find_packed
from oakum.datasets._images import decode
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source

_PACKED = "orl_faces.npz"
_HEIGHT, _WIDTH = 112, 92


class OrlFaces(DataSource):
    """400 pictures; the class is the person."""

    source: ClassVar[Source | None] = Source(
        title="Parameterisation of a stochastic model for human face identification",
        authors="Samaria, Harter",
        venue="IEEE Workshop on Applications of Computer Vision",
        year=1994,
        link="https://doi.org/10.1109/ACV.1994.341300",
    )
    summary = "400 photographs of 40 people, 92x112 gray, class = person"
    public = False
    license_note = "AT&T Laboratories Cambridge: free with credit. Photographs of real people: do not publish them."
    packed_sha256: ClassVar[str] = "29dc8be72f658b13a25730033bab0b51b4058414abee5d2bb0f7c0c822981921"

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read a folder `s1/1.pgm` ... (.pgm or .png), or the packed `orl_faces.npz`."""
        packed = find_packed(_PACKED, cls.packed_sha256, source)
        if packed is not None:
            with np.load(packed, allow_pickle=False) as file:
                shape = tuple(int(size) for size in file["shape"])
                x = np.asarray(decode(file["png"].tobytes(), "L", packed)).reshape(shape)
                return _content(x, file["labels"].astype(np.int64), str(packed), official=True)
        if source is None:
            raise DataError(
                "orl_faces needs files of yours: get att_faces (AT&T Laboratories Cambridge), unpack it and run: "
                f"oakum data prepare orl_faces --source FOLDER (or set OAKUM_SHARED_DATA to the folder of {_PACKED})"
            )
        return _read_official(source)


def _read_official(source: Path) -> Content:
    people = sorted(
        (int(match[1]), folder)
        for folder in (source.iterdir() if source.is_dir() else ())
        if folder.is_dir() and (match := re.fullmatch(r"s(\d+)", folder.name))
    )
    images, labels = [], []
    for label, (_, folder) in enumerate(people):
        for file in _numbered_pictures(folder):
            picture = decode(file.read_bytes(), "L", file)
            if picture.size != (_WIDTH, _HEIGHT):
                raise DataError(f"{file} is {picture.width}x{picture.height}, expected {_WIDTH}x{_HEIGHT}")
            images.append(np.asarray(picture))
            labels.append(label)
    if not images:
        raise DataError(f"{source} holds no pictures named s1/1.pgm, s1/2.pgm, ...; give the unpacked att_faces folder")
    return _content(np.stack(images), np.asarray(labels, dtype=np.int64), str(source), official=None)


def _numbered_pictures(folder: Path) -> list[Path]:
    pictures = [file for file in folder.iterdir() if file.suffix in {".pgm", ".png"} and file.stem.isdigit()]
    if not pictures:
        raise DataError(f"{folder} holds no pictures named 1.pgm, 2.pgm, ...")
    return sorted(pictures, key=lambda file: int(file.stem))


def _content(
    x: NDArray[np.uint8],
    y: NDArray[np.int64],
    origin: str,
    official: bool | None,
) -> Content:
    return Content(
        x=np.ascontiguousarray(x)[:, None],
        y=y,
        part=np.full(len(y), "all"),
        identity=y.copy(),
        class_names=tuple(f"s{i + 1}" for i in range(int(y.max()) + 1)),
        max_value=255,
        origin=origin,
        matches_official=official,
    )
