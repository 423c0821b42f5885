"""CelebA in the official layout: lists of names and numbers, and pictures cropped and made small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oakum.datasets._download import Progress
from oakum.datasets._images import decode
from oakum.datasets._prepared import Content, DataError
from oakum.registry import Source

CELEBA = Source(
    title="Deep Learning Face Attributes in the Wild",
    authors="Liu, Luo, Wang, Tang",
    venue="ICCV",
    year=2015,
    link="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
)
LICENSE_NOTE = "Non-commercial research only, not to be passed on; photographs of real people: do not publish them."
PICTURES = 202_599
SIDE = 64
IDENTITY_LIST = "identity_CelebA.txt"
_ORIGINAL_SIZE = (178, 218)
_PICTURE_FOLDERS = ("img_align_celeba", "img_align_celeba_png", "Img")
_LIST_FOLDERS = (".", "Anno", "Eval")
# Where a picture lies there twice, the later kind is read: PNG is lossless, and the BiDO and VMI code read it.
_KINDS = (".jpg", ".png")
_REPORT_EVERY = 2000


@dataclass(frozen=True)
class CelebaFolder:
    """A user's copy. Pictures are named without their ending, which the lists and the files need not share.

    Attributes:
        root: the folder that was given.
        pictures: name -> file.
        identities: name -> official number of the person.
    """

    root: Path
    pictures: dict[str, Path]
    identities: dict[str, int]

    def files_of(self, names: list[str], where: str | Path) -> list[Path]:
        """Return the pictures of `names`, each of which has a picture and an identity.

        Raises:
            DataError: one has not; `where` says who asks for it.
        """
        for known, what in ((self.pictures, "picture"), (self.identities, f"line in {IDENTITY_LIST}")):
            missing = [name for name in names if name not in known]
            if missing:
                raise DataError(
                    f"{where}: {self.root} has no {what} for {missing[0]} (and {len(missing) - 1} more); "
                    "complete the files"
                )
        return [self.pictures[name] for name in names]

    def all_names(self) -> list[str]:
        """Return every name in order; there is a picture for each identity and an identity for each picture.

        Raises:
            DataError: there is not.
        """
        self.files_of(sorted(self.pictures), self.root)
        names = sorted(self.identities)
        self.files_of(names, IDENTITY_LIST)
        return names


@dataclass(frozen=True)
class Split:
    """What is read of a folder.

    Attributes:
        names: pictures in the order of rows.
        people: official number of each class.
        part: (N,) of each picture.
        origin, matches_official: see `Content`.
    """

    names: list[str]
    people: list[int]
    part: NDArray[np.str_]
    origin: str
    matches_official: bool | None


def open_folder(source: Path | None, name: str) -> CelebaFolder:
    """Find pictures and identities of the data set `name`; no picture is opened.

    Raises:
        DataError: nothing was given, or pictures or identities are missing.
    """
    if source is None:
        raise DataError(
            f"{name} needs files of yours: get img_align_celeba (178x218, .jpg or .png) and {IDENTITY_LIST} from "
            f"{CELEBA.link}, put them into one folder and run: oakum data prepare {name} --source FOLDER"
        )
    pictures = _find_pictures(source)
    path = find_list(source, IDENTITY_LIST)
    if path is None:
        raise DataError(f"{source} holds no {IDENTITY_LIST} (nor do its folders Anno and Eval); get it from CelebA")
    return CelebaFolder(source, pictures, read_numbers(path))


def find_list(source: Path, file_name: str) -> Path | None:
    """Return the list of this name in the folder, or in its `Anno` or `Eval`."""
    candidates = (source / folder / file_name for folder in _LIST_FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def read_numbers(path: Path) -> dict[str, int]:
    """Return name -> number of a list with one `name number` a line.

    Raises:
        DataError: another line, a name that comes twice, or no line.
    """
    rows = _read_rows(path, 2, "a picture's name and a whole number")
    for line, (_, number) in enumerate(rows, start=1):
        if not (number.isascii() and number.isdecimal()):
            raise DataError(f"{path}, line {line}: {number!r} is not a whole number")
    return {name: int(number) for name, number in rows}


def read_names(path: Path) -> list[str]:
    """Return the names of a list with one a line.

    Raises:
        DataError: another line, a name that comes twice, or no line.
    """
    return [row[0] for row in _read_rows(path, 1, "a picture's name")]


def read_pictures(folder: CelebaFolder, split: Split, crop: int, scratch: Path, progress: Progress) -> Content:
    """Return the pictures of a split; class c is the person `split.people[c]`.

    Raises:
        DataError: a picture that is missing, damaged or not 178x218.
        OSError: no space in `scratch`.
    """
    class_of = {person: index for index, person in enumerate(split.people)}
    files = folder.files_of(split.names, folder.root)
    y = np.asarray([class_of[folder.identities[name]] for name in split.names], dtype=np.int64)
    return Content(
        x=_crop_all(files, crop, scratch, progress),
        y=y,
        part=split.part,
        identity=y.copy(),
        class_names=tuple(str(person) for person in split.people),
        max_value=255,
        origin=split.origin,
        matches_official=split.matches_official,
    )


def _crop_all(files: list[Path], crop: int, scratch: Path, progress: Progress) -> NDArray[np.uint8]:
    """Return (N, 3, 64, 64) uint8: the middle square of `crop` pixels, made small by Pillow's bilinear filter.

    The array lies in a file of `scratch`, because all of CelebA has 2.5 GB. It is written by ordinary writes, which
    report a full disk; a store into mapped memory would kill the process instead.
    """
    path = scratch / "pixels"
    with path.open("wb") as pixels:
        for i, file in enumerate(files):
            pixels.write(_cropped(file, crop).tobytes())
            if i % _REPORT_EVERY == 0:
                progress("reading CelebA", i / len(files))
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(len(files), 3, SIDE, SIDE))


def _cropped(file: Path, crop: int) -> NDArray[np.uint8]:
    picture = decode(file.read_bytes(), "RGB", file)
    if picture.size != _ORIGINAL_SIZE:
        raise DataError(
            f"{file} is {picture.width}x{picture.height}, expected 178x218: give the aligned and cropped pictures"
        )
    left, top = ((side - crop) // 2 for side in _ORIGINAL_SIZE)
    square = picture.crop((left, top, left + crop, top + crop))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _find_pictures(source: Path) -> dict[str, Path]:
    folders = [root / name for root in (source, source / "Img") for name in _PICTURE_FOLDERS]
    for folder in folders:
        listed = sorted(folder.iterdir()) if folder.is_dir() else []
        found = {file.stem: file for kind in _KINDS for file in listed if file.suffix == kind}
        if found:
            return found
    raise DataError(
        f"{source} holds no pictures in {', '.join(_PICTURE_FOLDERS)} (.jpg or .png); give the folder that holds "
        f"img_align_celeba and {IDENTITY_LIST}"
    )


def _read_rows(path: Path, columns: int, expected: str) -> list[tuple[str, ...]]:
    """Return the lines' words; the first is a name without its ending."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a list in plain text; get it again") from error
    rows: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != columns:
            raise DataError(f"{path}, line {number}: {line[:60]!r}; expected {expected}")
        name = Path(words[0]).stem
        if name in rows:
            raise DataError(f"{path}, line {number}: {words[0]} comes twice")
        rows[name] = (name, *words[1:])
    if not rows:
        raise DataError(f"{path} is empty; get it again")
    return list(rows.values())
