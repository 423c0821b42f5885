"""CelebA at 64x64: photographs of 10,177 celebrities, aligned, cropped as by GMI, KED-MI and BiDO."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._celeba import (
    CELEBA,
    LICENSE_NOTE,
    PICTURES,
    CelebaFolder,
    Split,
    find_list,
    open_folder,
    read_names,
    read_numbers,
    read_pictures,
)
from oakum.datasets._download import Progress
from oakum.datasets._prepared import Content, DataError
from oakum.datasets._row_count import matches_row_count
from oakum.datasets.base import DataSource
from oakum.registry import Source

_CROP = 108
_PARTITION_LIST = "list_eval_partition.txt"
_PARTITIONS = ("train", "val", "test")
_TRAIN, _TEST, _PUBLIC = "trainset.txt", "testset.txt", "ganset.txt"


class CelebA(DataSource):
    """The user's own files: `img_align_celeba/`, `identity_CelebA.txt`, and lists that are optional; class = person.

    Each picture: the middle 108x108 (top 55, left 35), made 64x64 by Pillow's bilinear filter, stored as uint8.

    With the lists of the BiDO code in the folder (`trainset.txt` and `testset.txt`: a name and a label a line;
    `ganset.txt`: a name a line) only their pictures are read, in their order, and parts are `train`, `test` and
    `public`: the split of the paper. Classes 0 to 999 are then the labels of the lists, so that published weights
    number people alike; the people of `public` follow by ascending official number.

    Without these lists all pictures are read, in the order of their names. Classes are the people by ascending number,
    and parts are `train`, `val` and `test` where `list_eval_partition.txt` is there, else `all`. The pixels have
    2.5 GB: preparing needs that much space beside the result but not that much memory; loading needs twice that much
    memory for a moment (0.7 GB of pixels with the lists).

    No checksum is known to us: `matches_official` is None where the number of pictures is right, else False.
    """

    source: ClassVar[Source | None] = CELEBA
    summary = "photographs of 10,177 celebrities, 64x64 RGB, class = person (your own files)"
    public = False
    license_note = LICENSE_NOTE
    released_counts: ClassVar[dict[str, int]] = {_TRAIN: 27_018, _TEST: 3_009, _PUBLIC: 30_000}
    released_people: ClassVar[int] = 1000

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read a folder in the official layout."""
        folder = open_folder(source, "celeba")
        found = {name: find_list(folder.root, name) for name in cls.released_counts}
        lists = {name: path for name, path in found.items() if path is not None}
        if not lists:
            return read_pictures(folder, _whole(folder, progress), _CROP, scratch, progress)
        if missing := sorted(found.keys() - lists.keys()):
            raise DataError(
                f"{folder.root} holds {min(lists)} but no {missing[0]}; the split of BiDO needs {', '.join(found)}: "
                "complete them, or take all of them away to read the whole of CelebA"
            )
        return read_pictures(folder, cls._released_split(folder, lists), _CROP, scratch, progress)

    @classmethod
    def _released_split(cls, folder: CelebaFolder, lists: dict[str, Path]) -> Split:
        train, test = (read_numbers(lists[name]) for name in (_TRAIN, _TEST))
        public = read_names(lists[_PUBLIC])
        for name, found in ((_TRAIN, len(train)), (_TEST, len(test)), (_PUBLIC, len(public))):
            if found != cls.released_counts[name]:
                expected = cls.released_counts[name]
                raise DataError(f"{lists[name]} has {found:,} lines, that of BiDO {expected:,}; get it again")
        for name, labels in ((_TRAIN, train), (_TEST, test)):
            if set(labels.values()) != set(range(cls.released_people)):
                raise DataError(
                    f"{lists[name]} has {len(set(labels.values()))} labels from {min(labels.values())} to "
                    f"{max(labels.values())}; expected each of 0 to {cls.released_people - 1}"
                )
        names = [*train, *test, *public]
        folder.files_of(names, "the lists of BiDO")
        _refuse_repeated(lists, {_TRAIN: set(train), _TEST: set(test), _PUBLIC: set(public)})
        private = _people_of_labels(folder, {**train, **test}, lists)
        return Split(
            names=names,
            people=[*private, *_public_people(folder, public, private, lists[_PUBLIC])],
            part=np.repeat(["train", "test", "public"], [len(train), len(test), len(public)]),
            origin=f"{folder.root} (the split of BiDO)",
            matches_official=None,
        )


def _whole(folder: CelebaFolder, progress: Progress) -> Split:
    names = folder.all_names()
    return Split(
        names=names,
        people=sorted(set(folder.identities.values())),
        part=_partition(folder.root, names),
        origin=str(folder.root),
        matches_official=matches_row_count("celeba", len(names), PICTURES, progress),
    )


def _partition(root: Path, names: list[str]) -> NDArray[np.str_]:
    path = find_list(root, _PARTITION_LIST)
    if path is None:
        return np.full(len(names), "all")
    partition = read_numbers(path)
    for name in names:
        if partition.get(name, len(_PARTITIONS)) >= len(_PARTITIONS):
            raise DataError(f"{path}: {name} has no partition of 0 (train), 1 (val) or 2 (test); get it again")
    return np.asarray([_PARTITIONS[partition[name]] for name in names])


def _refuse_repeated(lists: dict[str, Path], names: dict[str, set[str]]) -> None:
    for first, second in ((_TRAIN, _TEST), (_TRAIN, _PUBLIC), (_TEST, _PUBLIC)):
        if common := names[first] & names[second]:
            raise DataError(f"{min(common)} is in {lists[first]} and in {lists[second]}; get both again")


def _people_of_labels(folder: CelebaFolder, labels: dict[str, int], lists: dict[str, Path]) -> list[int]:
    """Return the official number of each label, in the order of labels."""
    people: dict[int, int] = {}
    for name, label in labels.items():
        person = folder.identities[name]
        if people.setdefault(label, person) != person:
            raise DataError(
                f"label {label} of {lists[_TRAIN]} and {lists[_TEST]} has pictures of two people ({people[label]} and "
                f"{person} in identity_CelebA.txt): these lists belong to other pictures"
            )
    if len(set(people.values())) != len(people):
        raise DataError(f"{lists[_TRAIN]}: two labels have pictures of one person: this list belongs to other pictures")
    return [people[label] for label in sorted(people)]


def _public_people(folder: CelebaFolder, names: list[str], private: list[int], path: Path) -> list[int]:
    """Return the official numbers of the people of `names`, ascending."""
    known = set(private)
    for name in names:
        if folder.identities[name] in known:
            raise DataError(
                f"{path}: {name} shows person {folder.identities[name]}, who is private: get the lists again"
            )
    return sorted({folder.identities[name] for name in names})
