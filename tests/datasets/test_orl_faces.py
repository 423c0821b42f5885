from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oakum.datasets import base
from oakum.datasets.orl_faces import OrlFaces


def write_faces(folder: Path, suffix: str = "pgm") -> np.ndarray:
    """Write s1 ... s11 with 1 ... 10 each; return the pictures in that order."""
    pictures = np.random.default_rng(5).integers(0, 256, size=(110, 112, 92), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        file = folder / f"s{i // 10 + 1}" / f"{i % 10 + 1}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    (folder / "README").write_text("about")
    return pictures


@pytest.mark.parametrize("suffix", ["pgm", "png"])
def test_official_layout_in_numeric_order(data_home: Path, tmp_path: Path, suffix: str) -> None:
    pictures = write_faces(tmp_path / "att_faces", suffix)
    prepared = base.prepare("orl_faces", data_home, tmp_path / "att_faces")
    samples = base.load_samples("orl_faces", data_home)
    np.testing.assert_array_equal(samples.x[:, 0], pictures)
    np.testing.assert_array_equal(samples.y, np.arange(110) // 10)
    np.testing.assert_array_equal(samples.identity, samples.y)
    assert prepared.class_names[-1] == "s11"
    assert prepared.matches_official is None
    assert not prepared.public
    assert base.load_samples("orl_faces", data_home, 32).x.shape == (110, 1, 32, 32)


@pytest.mark.parametrize("damage", ["cut", "text", "size", "no pictures"])
def test_damaged_picture_is_named(data_home: Path, tmp_path: Path, damage: str) -> None:
    write_faces(tmp_path)
    file = tmp_path / "s3" / "4.pgm"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "text":
        file.write_text("hello")
    elif damage == "size":
        Image.new("L", (10, 10)).save(file)
    else:
        for picture in (tmp_path / "s3").iterdir():
            picture.unlink()
    with pytest.raises(base.DataError, match="s3" if damage == "no pictures" else r"s3/4\.pgm"):
        base.prepare("orl_faces", data_home, tmp_path)
    assert not (data_home / "orl_faces").exists()


def test_packed_file(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.random.default_rng(6).integers(0, 256, size=(4, 112, 92), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pictures.reshape(-1, 92)).save(buffer, "PNG")
    packed = tmp_path / "orl_faces.npz"
    labels = np.array([0, 0, 1, 1], dtype=np.uint8)
    np.savez(packed, png=np.frombuffer(buffer.getvalue(), np.uint8), labels=labels, shape=pictures.shape)
    monkeypatch.setattr(OrlFaces, "packed_sha256", hashlib.sha256(packed.read_bytes()).hexdigest())
    monkeypatch.setenv("OAKUM_SHARED_DATA", str(tmp_path))
    prepared = base.prepare("orl_faces", data_home)
    np.testing.assert_array_equal(base.load_samples("orl_faces", data_home).x[:, 0], pictures)
    assert prepared.matches_official is True


@pytest.mark.usefixtures("no_shared_data")
def test_no_source_says_what_to_get(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(base.DataError, match="oakum data prepare orl_faces --source FOLDER"):
        base.prepare("orl_faces", data_home)
    with pytest.raises(base.DataError, match=r"s1/1\.pgm"):
        base.prepare("orl_faces", data_home, tmp_path)


@pytest.mark.usefixtures("shared_data")
def test_real_data(data_home: Path) -> None:
    prepared = base.prepare("orl_faces", data_home)
    samples = base.load_samples("orl_faces", data_home)
    assert prepared.matches_official
    assert samples.x.shape == (400, 1, 112, 92)
    assert np.bincount(samples.y).tolist() == [10] * 40
    assert len(np.unique(samples.x.reshape(400, -1), axis=0)) == 400
