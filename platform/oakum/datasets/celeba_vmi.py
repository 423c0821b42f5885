"""CelebA at 64x64 as VMI splits and crops it: the 1,000 people with the most pictures are private."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np

from oakum.datasets._celeba import CELEBA, LICENSE_NOTE, PICTURES, CelebaFolder, Split, open_folder, read_pictures
from oakum.datasets._download import Progress
from oakum.datasets._prepared import Content, DataError
from oakum.datasets._row_count import matches_row_count
from oakum.datasets.base import DataSource
from oakum.registry import Source

_CROP = 128


class CelebaVmi(DataSource):
    """The user's own `img_align_celeba/` and `identity_CelebA.txt`; class = rank of the person by number of pictures.

    Each picture: the middle 128x128 (top 45, left 25), made 64x64 by Pillow's bilinear filter, stored as uint8. Of
    classes 0 to 999 the first 25 pictures in the order of names are part `train`, the others `test`; everybody else is
    `public`. All pictures are read; see `celeba` for the space and memory that takes.

    Differs from the released code: people with equally many pictures are ranked by ascending official number, where
    its order is not known; the people at the edge of the 1,000 may therefore be others.
    """

    source: ClassVar[Source | None] = CELEBA
    summary = "CelebA in VMI's split: 1,000 private people, 9,177 public ones, 64x64 RGB (your own files)"
    public = False
    license_note = LICENSE_NOTE
    private_people: ClassVar[int] = 1000
    train_pictures: ClassVar[int] = 25

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read a folder in the official layout."""
        folder = open_folder(source, "celeba_vmi")
        return read_pictures(folder, cls._split(folder, progress), _CROP, scratch, progress)

    @classmethod
    def _split(cls, folder: CelebaFolder, progress: Progress) -> Split:
        names = folder.all_names()
        pictures = defaultdict(list)
        for name in names:
            pictures[folder.identities[name]].append(name)
        people = sorted(pictures, key=lambda person: (-len(pictures[person]), person))
        if len(people) < cls.private_people or len(pictures[people[cls.private_people - 1]]) <= cls.train_pictures:
            raise DataError(
                f"{folder.root}: VMI's split needs {cls.private_people:,} people with more than {cls.train_pictures} "
                f"pictures each; give all of CelebA ({PICTURES:,} pictures)"
            )
        part = dict.fromkeys(names, "public")
        for person in people[: cls.private_people]:
            for position, name in enumerate(pictures[person]):
                part[name] = "train" if position < cls.train_pictures else "test"
        return Split(
            names=names,
            people=people,
            part=np.asarray([part[name] for name in names]),
            origin=str(folder.root),
            matches_official=matches_row_count("celeba_vmi", len(names), PICTURES, progress),
        )
