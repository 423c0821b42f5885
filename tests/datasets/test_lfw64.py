from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oakum.config import validate
from oakum.datasets import base
from oakum.datasets._folds import FoldsConfig, draw_folds, private_classes
from oakum.datasets.lfw64 import Lfw64

FACES = {
    "rules": [
        {"from": {"min_images": 20}, "take": {"evaluation": 1000, "test": 400, "train": "rest"}},
        {"from": {"max_images": 9}, "take": {"public": "rest"}},
    ]
}


def jpeg(size: int, seed: int) -> bytes:
    shades = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shades).resize((size, size)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_faces(folder: Path) -> list[Path]:
    files = []
    for name, count in (("Zoe_B", 1), ("Ann_C", 11), ("Bob", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(1, count + 1):
            file = folder / name / f"{name}_{number:04d}.jpg"
            file.write_bytes(jpeg(250, len(files)))
            files.append(file)
    return files


@pytest.mark.parametrize("inside", [True, False])
def test_official_layout(data_home: Path, tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "lfw-deepfunneled"
    files = write_faces(folder)
    prepared = base.prepare("lfw64", data_home, tmp_path if inside else folder)
    samples = base.load_samples("lfw64", data_home)
    assert prepared.class_names == ("Ann_C", "Bob", "Zoe_B")
    assert samples.y.tolist() == [0] * 11 + [1] * 2 + [2]
    np.testing.assert_array_equal(samples.identity, samples.y)
    expected = Image.open(files[1]).crop((65, 65, 185, 185)).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(samples.x[0], np.asarray(expected).transpose(2, 0, 1))
    assert prepared.shape == (3, 64, 64)
    assert not prepared.public
    assert prepared.matches_official is None


@pytest.mark.parametrize("damage", ["cut", "size"])
def test_damaged_picture_is_named(data_home: Path, tmp_path: Path, damage: str) -> None:
    file = write_faces(tmp_path)[3]
    file.write_bytes(file.read_bytes()[:700] if damage == "cut" else jpeg(64, 0))
    with pytest.raises(base.DataError, match=r"Ann_C_0003\.jpg"):
        base.prepare("lfw64", data_home, tmp_path)


def test_packed_file(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [jpeg(64, seed) for seed in range(3)]
    packed = tmp_path / "lfw64.npz"
    np.savez(
        packed,
        jpeg=np.frombuffer(b"".join(pictures), np.uint8),
        offsets=np.cumsum([0, *map(len, pictures)]),
        identity=np.array([0, 1, 1], dtype=np.int16),
        names=np.array(["Ann", "Bob"]),
    )
    monkeypatch.setattr(Lfw64, "packed_sha256", hashlib.sha256(packed.read_bytes()).hexdigest())
    prepared = base.prepare("lfw64", data_home, tmp_path)
    samples = base.load_samples("lfw64", data_home)
    assert prepared.matches_official is True
    assert samples.y.tolist() == [0, 1, 1]
    expected = np.asarray(Image.open(io.BytesIO(pictures[2]))).transpose(2, 0, 1)
    np.testing.assert_array_equal(samples.x[2], expected)


@pytest.mark.usefixtures("no_shared_data")
def test_no_source_says_what_to_get(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(base.DataError, match="oakum data prepare lfw64 --source lfw-deepfunneled"):
        base.prepare("lfw64", data_home)
    with pytest.raises(base.DataError, match=r"Name/Name_0001\.jpg"):
        base.prepare("lfw64", data_home, tmp_path)


@pytest.mark.usefixtures("shared_data")
def test_real_data_and_a_split_by_identity(data_home: Path) -> None:
    prepared = base.prepare("lfw64", data_home)
    assert prepared.matches_official
    labels = base.load_labels("lfw64", data_home)
    assert (len(labels), prepared.num_classes) == (13233, 5749)
    config = validate(FoldsConfig, FACES, "faces.yaml: data.folds")
    folds = draw_folds(config, labels.y, labels.part, labels.identity, 0, 0)
    assert {fold: len(rows) for fold, rows in folds.items()} == {
        "evaluation": 1000,
        "test": 400,
        "train": 1623,
        "public": 8909,
    }
    assert len(private_classes(config, labels.y, labels.part, labels.identity)) == 62
    assert labels.identity is not None
    assert not set(labels.identity[folds["public"]]) & set(labels.identity[folds["train"]])
