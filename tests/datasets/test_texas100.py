from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from oakum.datasets import base, texas100

FEATURES = 6169


def rows(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(6).integers(0, 2, size=(count, FEATURES)).astype(np.uint8)
    return x, np.resize([0, 99, 50, 3], count)


def texts() -> dict[str, bytes]:
    x, y = rows()
    return {
        "feats": "".join(",".join(map(str, line)) + "\n" for line in x.tolist()).encode(),
        "labels": "".join(f"{label + 1}\n" for label in y).encode(),
        "feats_desc": b"what a feature means\n",
    }


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"texas/100/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("layout", [".", "100", "texas/100", "archive", "labels first", "folder with archive"])
def test_official_layouts(data_home: Path, tmp_path: Path, layout: str) -> None:
    source = tmp_path / "mine"
    if "archive" in layout or "first" in layout:
        source.mkdir()
        files = dict(reversed(texts().items())) if layout == "labels first" else texts()
        archive = write_archive(source / "dataset_texas.tgz", files)
        source = source if "folder" in layout else archive
    else:
        write_folder(source / layout, texts())
    prepared = base.prepare("texas100", data_home, source)
    samples = base.load_samples("texas100", data_home)
    x, y = rows()
    np.testing.assert_array_equal(samples.x, x)
    np.testing.assert_array_equal(samples.y, y)
    assert (prepared.kind, prepared.shape, prepared.num_classes) == ("tabular", (6169,), 100)
    assert not prepared.public
    assert prepared.matches_official is False


def test_the_published_number_of_rows_proves_nothing(
    data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texas100, "_ROWS", 12)
    source = write_folder(tmp_path / "mine", texts())
    assert base.prepare("texas100", data_home, source).matches_official is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("feats", texts()["feats"].replace(b"\n", b",1\n"), "feats, line 1: expected 6169 zeros and ones"),
        ("feats", texts()["feats"][:-5], "feats, line 12: expected 6169 zeros and ones"),
        ("feats", texts()["feats"].replace(b"0,", b"3,", 1), "feats, line 1: expected 6169 zeros and ones"),
        ("feats", b"", "feats is empty"),
        ("feats", texts()["feats"][: 2 * FEATURES], "1 lines of feats and 12 of labels do not belong together"),
        ("labels", b"1\n2\n", "12 lines of feats and 2 of labels do not belong together"),
        ("labels", texts()["labels"].replace(b"100", b"101"), r"labels must be whole numbers of 1\.\.100"),
        ("labels", texts()["labels"].replace(b"100", b"0"), r"labels must be whole numbers of 1\.\.100"),
        ("labels", texts()["labels"].replace(b"100", b"x"), "labels is not 1 whole numbers"),
        ("labels", texts()["labels"].replace(b"100", b"300"), "labels is not 1 whole numbers"),
        ("labels", b"", "labels holds nothing"),
    ],
)
def test_damaged_files_are_named(data_home: Path, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    source = write_folder(tmp_path / "mine", {**texts(), name: data})
    with pytest.raises(base.DataError, match=message):
        base.prepare("texas100", data_home, source)
    assert not (data_home / "texas100").exists()


def test_missing_files(data_home: Path, tmp_path: Path) -> None:
    without = {name: data for name, data in texts().items() if name != "labels"}
    with pytest.raises(base.DataError, match="100 holds no file 'labels'"):
        base.prepare("texas100", data_home, write_folder(tmp_path / "mine" / "100", without).parent)
    with pytest.raises(base.DataError, match="holds no file 'labels'"):
        base.prepare("texas100", data_home, write_archive(tmp_path / "dataset_texas.tgz", without))


def test_a_truncated_archive(data_home: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "dataset_texas.tgz", texts())
    archive.write_bytes(archive.read_bytes()[:4000])
    with pytest.raises(base.DataError, match=r"dataset_texas\.tgz is not a whole tar archive"):
        base.prepare("texas100", data_home, archive)


def test_no_source_says_what_to_get(data_home: Path) -> None:
    with pytest.raises(base.DataError, match=r"oakum data prepare texas100 --source dataset_texas\.tgz"):
        base.prepare("texas100", data_home)
