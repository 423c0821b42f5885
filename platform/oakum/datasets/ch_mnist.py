"""CH-MNIST: tissue of colorectal cancer under the microscope, 28x28 gray, 8 kinds of texture."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._download import Progress
from oakum.datasets._images import decode, resize_square
from oakum.datasets._packages import parse_integer_csv
from oakum.datasets._prepared import Content, DataError
from oakum.datasets._row_count import matches_row_count
from oakum.datasets.base import DataSource
from oakum.registry import Source

_FOLDERS = ("01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO", "05_DEBRIS", "06_MUCOSA", "07_ADIPOSE", "08_EMPTY")
_ARCHIVE_FOLDER = "Kather_texture_2016_image_tiles_5000"
_CSV = "hmnist_28_28_L.csv"
_ROWS = 5_000
_ORIGINAL_SIDE, _SIDE = 150, 28
_REPORT_EVERY = 500


class ChMnist(DataSource):
    """5,000 tiles of 150x150 pixels, made gray and resized to 28x28 by Pillow's averaging bilinear filter.

    No checksum is known to us: `matches_official` is None for 5,000 rows, else False. The 28x28 gray form is the one
    of the RelaxLoss experiments; Kaggle's CSV of that size was resized by other software, so that its pixels differ
    a little from those of the pictures.
    """

    source: ClassVar[Source | None] = Source(
        title="Collection of textures in colorectal cancer histology",
        authors="Kather, Zöllner, Bianconi, Melchers, Schad, Gaiser, Marx, Weis",
        venue="Zenodo",
        year=2016,
        link="https://doi.org/10.5281/zenodo.53169",
    )
    summary = "5,000 microscope tiles of colorectal cancer, 28x28 gray, 8 classes (your own files)"
    public = False
    license_note = "CC BY 4.0; tissue of patients, anonymized: cite Kather et al. (2016)."

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read the folders `01_TUMOR` ... `08_EMPTY` of pictures, or `hmnist_28_28_L.csv` (784 pixels and a label)."""
        if source is None:
            raise DataError(
                f"ch_mnist needs files of yours: get {_ARCHIVE_FOLDER}.zip from https://doi.org/10.5281/zenodo.53169, "
                f"unpack it and run: oakum data prepare ch_mnist --source {_ARCHIVE_FOLDER} "
                f"(or give {_CSV} of Kaggle's kmader/colorectal-histology-mnist)"
            )
        if source.is_file():
            x, y = _read_csv(source)
        else:
            x, y = _read_folders(source, progress)
        return Content(
            x=x,
            y=y,
            part=np.full(len(y), "all"),
            identity=None,
            class_names=tuple(folder[3:].lower() for folder in _FOLDERS),
            max_value=255,
            origin=str(source),
            matches_official=matches_row_count("ch_mnist", len(y), _ROWS, progress),
        )


def _read_folders(source: Path, progress: Progress) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    roots = (source, source / _ARCHIVE_FOLDER)
    root = next((root for root in roots if (root / _FOLDERS[0]).is_dir()), None)
    if root is None:
        if (source / _CSV).is_file():
            return _read_csv(source / _CSV)
        raise DataError(f"{source} holds neither the folders {_FOLDERS[0]} ... {_FOLDERS[-1]} nor {_CSV}")
    files, labels = [], []
    for label, folder in enumerate(_FOLDERS):
        tiles = sorted((root / folder).glob("*.tif"))
        if not tiles:
            raise DataError(f"{root / folder} holds no pictures (*.tif); unpack {_ARCHIVE_FOLDER}.zip again")
        files += tiles
        labels += [label] * len(tiles)
    x = np.empty((len(files), 1, _SIDE, _SIDE), dtype=np.uint8)
    for i, file in enumerate(files):
        tile = np.asarray(decode(file.read_bytes(), "L", file))
        if tile.shape != (_ORIGINAL_SIDE, _ORIGINAL_SIDE):
            raise DataError(f"{file} is {tile.shape[1]}x{tile.shape[0]}, expected {_ORIGINAL_SIDE}x{_ORIGINAL_SIDE}")
        x[i] = resize_square(tile[None, None], _SIDE)[0]
        if i % _REPORT_EVERY == 0:
            progress("reading ch_mnist", i / len(files))
    return x, np.asarray(labels, dtype=np.int64)


def _read_csv(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read Kaggle's table: a header, then 784 pixels and a label of 1..8 a line."""
    text = file.read_bytes()
    header, _, body = text.partition(b"\n")
    if not header.lstrip(b'"').startswith(b"pixel"):
        raise DataError(f"{file} does not begin with the header pixel0000,...; give {_CSV}")
    table = parse_integer_csv(body, _SIDE * _SIDE + 1, file)
    labels = table[:, -1]
    if labels.min() < 1 or labels.max() > len(_FOLDERS):
        raise DataError(
            f"{file}: labels must be 1..{len(_FOLDERS)}, found {labels.min()}..{labels.max()} "
            f"(the skin data HAM10000 has a table of the same name)"
        )
    x = np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, _SIDE, _SIDE)
    return x, labels.astype(np.int64) - 1
