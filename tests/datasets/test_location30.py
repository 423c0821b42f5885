from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from oakum.config import validate
from oakum.datasets import base
from oakum.datasets._folds import FoldsConfig, draw_folds
from oakum.datasets.location30 import Location30

MEMBERSHIP = {
    "rules": [
        {"take": {"train": 1000, "test": 1000, "shadow_train": 1000, "shadow_test": 1000, "reference": "rest"}},
    ]
}


def rows(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return generator.integers(0, 2, size=(count, 446)).astype(np.uint8), np.arange(count) % 30


def bangkok(quoted: bool = False) -> bytes:
    x, y = rows()
    quote = '"' if quoted else ""
    return "".join(
        f"{quote}{label + 1}{quote},{','.join(map(str, line))}\n" for line, label in zip(x.tolist(), y, strict=True)
    ).encode()


def archive(path: Path, name: str = "bangkok") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(bangkok())
        tar.addfile(info, io.BytesIO(bangkok()))
    return path


@pytest.mark.parametrize("layout", ["file", "quoted", "folder", "archive", "folder with archive"])
def test_official_layouts(data_home: Path, tmp_path: Path, layout: str) -> None:
    file = tmp_path / "bangkok"
    if "archive" in layout:
        source = archive(tmp_path / "dataset_location.tgz")
    else:
        file.write_bytes(bangkok(quoted=layout == "quoted"))
        source = file
    prepared = base.prepare("location30", data_home, source.parent if "folder" in layout else source)
    samples = base.load_samples("location30", data_home)
    x, y = rows()
    np.testing.assert_array_equal(samples.x, x)
    np.testing.assert_array_equal(samples.y, y)
    assert prepared.kind == "tabular"
    assert prepared.shape == (446,)
    assert prepared.num_classes == 30
    assert not prepared.public
    assert samples.tensor(np.array([1])).max() == 1.0
    assert prepared.matches_official is False


@pytest.mark.parametrize(
    ("old", "new"), [(b"\n", b",1\n"), (b"0,", b"2,"), (b"30,", b"31,"), (b"1,", b"x,"), (b"\n", b"")]
)
def test_damaged_text(data_home: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
    file = tmp_path / "bangkok"
    file.write_bytes(bangkok().replace(old, new))
    with pytest.raises(base.DataError, match="bangkok"):
        base.prepare("location30", data_home, file)


def test_archive_without_the_file(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(base.DataError, match="holds no file 'bangkok'"):
        base.prepare("location30", data_home, archive(tmp_path / "dataset_location.tgz", "tokyo"))
    with pytest.raises(base.DataError, match="holds neither bangkok"):
        (tmp_path / "empty").mkdir()
        base.prepare("location30", data_home, tmp_path / "empty")


def test_packed_file_needs_its_checksum(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows()
    packed = tmp_path / "location30.npz"
    np.savez(packed, features_packed=np.packbits(x, axis=1), n_features=446, labels=y.astype(np.uint8))
    found = hashlib.sha256(packed.read_bytes()).hexdigest()
    with pytest.raises(base.DataError, match=f"{packed}: SHA-256 is {found}, expected {Location30.packed_sha256}"):
        base.prepare("location30", data_home, packed)
    monkeypatch.setattr(Location30, "packed_sha256", found)
    base.prepare("location30", data_home, packed)
    np.testing.assert_array_equal(base.load_samples("location30", data_home).x, x)


@pytest.mark.usefixtures("no_shared_data")
def test_no_source_says_what_to_get(data_home: Path) -> None:
    with pytest.raises(base.DataError, match=r"oakum data prepare location30 --source dataset_location\.tgz"):
        base.prepare("location30", data_home)


@pytest.mark.usefixtures("shared_data")
def test_real_data_and_the_five_folds(data_home: Path) -> None:
    prepared = base.prepare("location30", data_home)
    assert prepared.matches_official
    labels = base.load_labels("location30", data_home)
    counts = np.bincount(labels.y)
    assert (len(labels), counts.min(), counts.max()) == (5010, 97, 308)
    samples = base.load_samples("location30", data_home)
    assert samples.x.sum(axis=1).mean() == pytest.approx(53.7, abs=0.05)
    assert len(np.unique(samples.x, axis=0)) == 5010
    config = validate(FoldsConfig, MEMBERSHIP, "location30.yaml: data.folds")
    folds = draw_folds(config, labels.y, labels.part, None, 0, 0)
    assert {fold: len(rows) for fold, rows in folds.items()} == {
        "train": 1000,
        "test": 1000,
        "shadow_train": 1000,
        "shadow_test": 1000,
        "reference": 1010,
    }
    assert len(np.unique(np.concatenate(list(folds.values())))) == 5010
