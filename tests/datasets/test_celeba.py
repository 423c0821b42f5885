from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oakum.config import validate
from oakum.datasets import base
from oakum.datasets._folds import FoldsConfig, draw_folds, private_classes
from oakum.datasets.celeba import CelebA
from oakum.datasets.celeba_vmi import CelebaVmi

# Official number of the person on each picture; the names are 000001, 000002, ...
PEOPLE = [2880, 2937, 2880, 9295, 2880, 2937, 8692, 2937, 5805, 9295, 8692, 2880]
NAMES = [f"{number:06d}" for number in range(1, len(PEOPLE) + 1)]
# Two private people (labels 0 and 1), not in the order of their numbers.
TRAIN = {"000002": 0, "000006": 0, "000001": 1, "000003": 1}
TEST = {"000008": 0, "000012": 1}
PUBLIC = ["000009", "000004", "000007"]

Damage = Callable[[Path], object]


def picture(number: int) -> Image.Image:
    shades = np.random.default_rng(number).integers(0, 256, size=(9, 8, 3), dtype=np.uint8)
    return Image.fromarray(shades).resize((178, 218))


def write_lines(path: Path, rows: dict[str, int] | list[str], suffix: str = ".jpg") -> None:
    """Write `name number` or `name` lines."""
    words = [(name, str(rows[name])) if isinstance(rows, dict) else (name,) for name in rows]
    path.write_text("".join(f"{name}{suffix} {' '.join(rest)}".rstrip() + "\n" for name, *rest in words))


def write_celeba(folder: Path, pictures: str = "img_align_celeba", suffix: str = ".jpg") -> Path:
    (folder / pictures).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        picture(number).save(folder / pictures / f"{name}{suffix}")
    write_lines(folder / "identity_CelebA.txt", dict(zip(NAMES, PEOPLE, strict=True)))
    return folder


def write_released(folder: Path) -> Path:
    """Add the lists of the BiDO code, which name PNG files."""
    write_lines(folder / "trainset.txt", TRAIN, ".png")
    write_lines(folder / "testset.txt", TEST, ".png")
    write_lines(folder / "ganset.txt", PUBLIC, ".png")
    return folder


@pytest.fixture
def tiny_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of the lists that these tests write."""
    monkeypatch.setattr(CelebA, "released_counts", {"trainset.txt": 4, "testset.txt": 2, "ganset.txt": 3})
    monkeypatch.setattr(CelebA, "released_people", 2)


@pytest.fixture
def tiny_vmi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two private people with two training pictures each."""
    monkeypatch.setattr(CelebaVmi, "private_people", 2)
    monkeypatch.setattr(CelebaVmi, "train_pictures", 2)


def expected_pixels(file: Path, crop: tuple[int, int, int, int]) -> np.ndarray:
    small = Image.open(file).crop(crop).resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("pictures", "suffix"),
    [("img_align_celeba", ".jpg"), ("img_align_celeba_png", ".png"), ("Img/img_align_celeba", ".jpg"), ("Img", ".png")],
)
def test_whole_data_without_lists(data_home: Path, tmp_path: Path, pictures: str, suffix: str) -> None:
    folder = write_celeba(tmp_path / "CelebA", pictures, suffix)
    prepared = base.prepare("celeba", data_home, folder)
    samples = base.load_samples("celeba", data_home)
    assert prepared.class_names == ("2880", "2937", "5805", "8692", "9295")
    assert [prepared.class_names[label] for label in samples.y] == [str(person) for person in PEOPLE]
    np.testing.assert_array_equal(samples.identity, samples.y)
    assert set(samples.part) == {"all"}
    assert samples.x.shape == (12, 3, 64, 64)
    expected = expected_pixels(folder / pictures / f"000005{suffix}", (35, 55, 143, 163))
    np.testing.assert_array_equal(samples.x[4], expected)
    assert not prepared.public and prepared.matches_official is False
    base.verify("celeba", data_home)
    assert {path.name for path in data_home.iterdir()} == {"celeba", ".celeba.lock"}


def test_the_official_partition(data_home: Path, tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    (folder / "Anno").mkdir()
    (folder / "Eval").mkdir()
    (folder / "identity_CelebA.txt").rename(folder / "Anno" / "identity_CelebA.txt")
    partition = {name: person % 3 for name, person in zip(NAMES, PEOPLE, strict=True)}
    write_lines(folder / "Eval" / "list_eval_partition.txt", partition)
    prepared = base.prepare("celeba", data_home, folder)
    labels = base.load_labels("celeba", data_home)
    assert labels.part.tolist() == [("train", "val", "test")[person % 3] for person in PEOPLE]
    assert prepared.parts == {part: labels.part.tolist().count(part) for part in set(labels.part.tolist())}
    write_lines(folder / "Eval" / "list_eval_partition.txt", partition | {"000004": 3})
    with pytest.raises(base.DataError, match=r"list_eval_partition\.txt: 000004 has no partition of 0 \(train\)"):
        base.prepare("celeba", data_home, folder, force=True)


def test_a_lossless_picture_is_preferred(data_home: Path, tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    lossless = folder / "img_align_celeba" / "000001.png"
    picture(99).save(lossless)
    base.prepare("celeba", data_home, folder)
    found = base.load_samples("celeba", data_home).x[0]
    np.testing.assert_array_equal(found, expected_pixels(lossless, (35, 55, 143, 163)))


@pytest.mark.usefixtures("tiny_split")
def test_the_split_of_the_paper(data_home: Path, tmp_path: Path) -> None:
    folder = write_released(write_celeba(tmp_path))
    prepared = base.prepare("celeba", data_home, folder)
    samples = base.load_samples("celeba", data_home)
    assert samples.part.tolist() == ["train"] * 4 + ["test"] * 2 + ["public"] * 3
    assert samples.y.tolist() == [0, 0, 1, 1, 0, 1, 2, 4, 3]
    assert prepared.class_names == ("2937", "2880", "5805", "8692", "9295")
    assert prepared.source.endswith("(the split of BiDO)")
    for row, name in enumerate([*TRAIN, *TEST, *PUBLIC]):
        file = folder / "img_align_celeba" / f"{name}.jpg"
        np.testing.assert_array_equal(samples.x[row], expected_pixels(file, (35, 55, 143, 163)))
    rules = [
        {"from": {"part": "train"}, "take": {"train": "rest"}},
        {"from": {"part": "test"}, "take": {"test": "rest"}},
        {"from": {"part": "public"}, "take": {"public": "rest"}},
    ]
    config = validate(FoldsConfig, {"rules": rules}, "celeba.yaml")
    folds = draw_folds(config, samples.y, samples.part, samples.identity, 0, 0)
    assert {fold: sorted(rows.tolist()) for fold, rows in folds.items()} == {
        "train": [0, 1, 2, 3],
        "test": [4, 5],
        "public": [6, 7, 8],
    }
    assert private_classes(config, samples.y, samples.part, samples.identity) == (0, 1)


def test_the_published_counts_are_demanded(data_home: Path, tmp_path: Path) -> None:
    assert sum(CelebA.released_counts.values()) == 60_027
    folder = write_released(write_celeba(tmp_path))
    with pytest.raises(base.DataError, match=r"trainset\.txt has 4 lines, that of BiDO 27,018"):
        base.prepare("celeba", data_home, folder)


def rewrite(name: str, rows: dict[str, int] | list[str]) -> Damage:
    return lambda folder: write_lines(folder / name, rows)


@pytest.mark.usefixtures("tiny_split")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "ganset.txt").unlink(), "holds testset.txt but no ganset.txt"),
        (rewrite("testset.txt", {"000008": 0}), r"testset\.txt has 1 lines, that of BiDO 2"),
        (rewrite("testset.txt", {"000008": 0, "000012": 2}), "2 labels from 0 to 2; expected each of 0 to 1"),
        (rewrite("testset.txt", {"000002": 0, "000012": 1}), r"000002 is in .*trainset\.txt and in .*testset\.txt"),
        (rewrite("ganset.txt", [*PUBLIC[:2], "000012"]), r"000012 is in .*testset\.txt and in .*ganset\.txt"),
        (rewrite("testset.txt", {"000008": 1, "000012": 0}), r"label 1 .* has pictures of two people \(2880 and 2937"),
        (rewrite("ganset.txt", [*PUBLIC[:2], "000005"]), "ganset.txt: 000005 shows person 2880, who is private"),
        (rewrite("ganset.txt", [*PUBLIC[:2], "000099"]), "has no picture for 000099"),
        (rewrite("ganset.txt", [*PUBLIC[:2], PUBLIC[0]]), "line 3: 000009.jpg comes twice"),
        (rewrite("ganset.txt", dict.fromkeys(PUBLIC, 1)), r"line 1: '000009.jpg 1'; expected a picture's name"),
    ],
)
def test_lists_that_are_not_those_of_the_paper(data_home: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    folder = write_released(write_celeba(tmp_path))
    damage(folder)
    with pytest.raises(base.DataError, match=message):
        base.prepare("celeba", data_home, folder)
    assert not (data_home / "celeba").exists()


def test_two_labels_of_one_person_are_refused(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CelebA, "released_counts", {"trainset.txt": 2, "testset.txt": 2, "ganset.txt": 3})
    monkeypatch.setattr(CelebA, "released_people", 2)
    folder = write_released(write_celeba(tmp_path))
    write_lines(folder / "trainset.txt", {"000001": 0, "000003": 1})
    write_lines(folder / "testset.txt", {"000005": 0, "000012": 1})
    with pytest.raises(base.DataError, match="two labels have pictures of one person"):
        base.prepare("celeba", data_home, folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:900])


@pytest.mark.usefixtures("tiny_vmi")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: picture(0).resize((64, 64)).save(f / "img_align_celeba/000003.jpg"),
            "000003.jpg is 64x64, expected",
        ),
        (lambda f: cut(f / "img_align_celeba/000003.jpg"), "000003.jpg is not a readable picture"),
        (lambda f: (f / "img_align_celeba/000003.jpg").unlink(), "has no picture for 000003"),
        (lambda f: picture(0).save(f / "img_align_celeba/000077.jpg"), "has no line in identity_CelebA.txt for 000077"),
        (lambda f: (f / "identity_CelebA.txt").unlink(), "holds no identity_CelebA.txt"),
        (lambda f: (f / "identity_CelebA.txt").write_text(""), "identity_CelebA.txt is empty"),
        (lambda f: (f / "identity_CelebA.txt").write_text("000001.jpg\n"), "line 1: '000001.jpg'; expected"),
        (lambda f: (f / "identity_CelebA.txt").write_text("000001.jpg -3\n"), "line 1: '-3' is not a whole number"),
        (lambda f: (f / "identity_CelebA.txt").write_bytes(b"\xff\xd8\xff\xe0"), "not a list in plain text"),
        (lambda f: shutil.rmtree(f / "img_align_celeba"), "holds no pictures in img_align_celeba"),
    ],
)
def test_damaged_files_are_named(data_home: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    folder = write_celeba(tmp_path)
    damage(folder)
    for name in ("celeba", "celeba_vmi"):
        with pytest.raises(base.DataError, match=message):
            base.prepare(name, data_home, folder)
    assert not (data_home / "celeba").exists()


@pytest.mark.parametrize("name", ["celeba", "celeba_vmi"])
def test_no_source_says_what_to_get(data_home: Path, name: str) -> None:
    with pytest.raises(base.DataError, match=f"oakum data prepare {name} --source FOLDER"):
        base.prepare(name, data_home)


@pytest.mark.usefixtures("tiny_vmi")
def test_the_split_of_vmi(data_home: Path, tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    prepared = base.prepare("celeba_vmi", data_home, folder)
    samples = base.load_samples("celeba_vmi", data_home)
    # Four pictures of 2880, three of 2937; then two each of 8692 and 9295, the lower number first.
    assert prepared.class_names == ("2880", "2937", "8692", "9295", "5805")
    assert [prepared.class_names[label] for label in samples.y] == [str(person) for person in PEOPLE]
    by_part = {part: [NAMES[i] for i in np.flatnonzero(samples.part == part)] for part in ("train", "test", "public")}
    assert by_part == {
        "train": ["000001", "000002", "000003", "000006"],
        "test": ["000005", "000008", "000012"],
        "public": ["000004", "000007", "000009", "000010", "000011"],
    }
    file = folder / "img_align_celeba" / "000002.jpg"
    np.testing.assert_array_equal(samples.x[1], expected_pixels(file, (25, 45, 153, 173)))
    assert not prepared.public


def test_vmi_needs_enough_pictures_of_each_person(data_home: Path, tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    with pytest.raises(base.DataError, match="needs 1,000 people with more than 25 pictures each"):
        base.prepare("celeba_vmi", data_home, folder)
