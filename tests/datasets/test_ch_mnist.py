from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oakum.datasets import base, ch_mnist

FOLDERS = ("01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO", "05_DEBRIS", "06_MUCOSA", "07_ADIPOSE", "08_EMPTY")


def tile(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=(150, 150, 3), dtype=np.uint8)


def write_tiles(root: Path) -> Path:
    """Two tiles a folder; their numbers are 10 * class and 10 * class + 1."""
    for label, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        for i in (1, 0):
            Image.fromarray(tile(10 * label + i)).save(root / folder / f"{i}_CRC-Prim-HE.tif_Row_1_Col_1.tif")
    return root


def table(labels: list[int]) -> tuple[np.ndarray, bytes]:
    """Return (N, 784) pixels, and Kaggle's CSV of them."""
    pixels = np.random.default_rng(2).integers(0, 256, size=(len(labels), 784))
    header = ",".join([*(f"pixel{i:04d}" for i in range(784)), "label"])
    lines = [",".join(map(str, [*row, label])) for row, label in zip(pixels.tolist(), labels, strict=True)]
    return pixels, "\n".join([header, *lines, ""]).encode()


@pytest.mark.parametrize("layout", [".", "Kather_texture_2016_image_tiles_5000"])
def test_folders_of_tiles(data_home: Path, tmp_path: Path, layout: str) -> None:
    write_tiles(tmp_path / "mine" / layout)
    prepared = base.prepare("ch_mnist", data_home, tmp_path / "mine")
    samples = base.load_samples("ch_mnist", data_home)
    assert samples.x.shape == (16, 1, 28, 28)
    assert samples.y.tolist() == [label for label in range(8) for _ in range(2)]
    for row, number in ((0, 0), (1, 1), (15, 71)):
        gray = Image.fromarray(tile(number)).convert("L")
        expected = gray.resize((28, 28), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(samples.x[row, 0], np.asarray(expected))
    assert prepared.class_names == ("tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose", "empty")
    assert not prepared.public
    assert prepared.matches_official is False


@pytest.mark.parametrize("is_folder", [True, False])
def test_kaggles_table(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool) -> None:
    monkeypatch.setattr(ch_mnist, "_ROWS", 9)
    labels = [8, 1, 2, 3, 4, 5, 6, 7, 1]
    pixels, text = table(labels)
    file = tmp_path / "hmnist_28_28_L.csv"
    file.write_bytes(text)
    prepared = base.prepare("ch_mnist", data_home, file.parent if is_folder else file)
    samples = base.load_samples("ch_mnist", data_home)
    np.testing.assert_array_equal(samples.x.reshape(9, 784), pixels)
    assert samples.y.tolist() == [label - 1 for label in labels]
    assert prepared.matches_official is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table([0, 1, 6])[1], r"labels must be 1\.\.8, found 0\.\.6 \(the skin data HAM10000"),
        (table([1, 9])[1], r"labels must be 1\.\.8, found 1\.\.9"),
        (table([1, 2])[1].split(b"\n", 1)[1], "does not begin with the header"),
        (table([1, 2])[1].split(b"\n", 1)[0], "holds nothing"),
        (table([1, 2])[1].replace(b"\n", b",5\n"), "holds 786 numbers a line, expected 785"),
        (table([1, 2])[1][:-9], "is not 785 whole numbers"),
        (b"", "does not begin with the header"),
    ],
)
def test_a_damaged_table_is_named(data_home: Path, tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "hmnist_28_28_L.csv"
    file.write_bytes(text)
    with pytest.raises(base.DataError, match=rf"hmnist_28_28_L\.csv.*{message}"):
        base.prepare("ch_mnist", data_home, file)


def test_damaged_folders_are_named(data_home: Path, tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "mine")
    bad = root / "03_COMPLEX" / "0_CRC-Prim-HE.tif_Row_1_Col_1.tif"
    Image.fromarray(tile(0)[:149]).save(bad)
    with pytest.raises(base.DataError, match=rf"{bad.name} is 150x149, expected 150x150"):
        base.prepare("ch_mnist", data_home, root)
    bad.write_bytes(b"x")
    with pytest.raises(base.DataError, match=rf"{bad.name} is not a readable picture"):
        base.prepare("ch_mnist", data_home, root)
    for file in bad.parent.iterdir():
        file.unlink()
    with pytest.raises(base.DataError, match="03_COMPLEX holds no pictures"):
        base.prepare("ch_mnist", data_home, root)
    bad.parent.rmdir()
    with pytest.raises(base.DataError, match="03_COMPLEX holds no pictures"):
        base.prepare("ch_mnist", data_home, root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(base.DataError, match=r"holds neither the folders 01_TUMOR \.\.\. 08_EMPTY nor hmnist"):
        base.prepare("ch_mnist", data_home, tmp_path / "empty")


def test_no_source_says_what_to_get(data_home: Path) -> None:
    with pytest.raises(base.DataError, match=r"10\.5281/zenodo\.53169.*oakum data prepare ch_mnist --source"):
        base.prepare("ch_mnist", data_home)
