from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from oakum.datasets import _binary_rows, base, purchase100

FEATURES = 600


def rows(count: int = 25) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    x = generator.integers(0, 2, size=(count, FEATURES)).astype(np.uint8)
    return x, np.resize([0, 99, 41, 7, 98], count)


def text(quoted: bool = False, end: str = "\n") -> bytes:
    x, y = rows()
    quote = '"' if quoted else ""
    lines = [f"{quote}{label + 1}{quote},{','.join(map(str, line))}" for line, label in zip(x.tolist(), y, strict=True)]
    return "".join(line + end for line in lines).encode()


def write_archive(path: Path, name: str = "dataset_purchase") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(text())
        tar.addfile(info, io.BytesIO(text()))
    return path


@pytest.mark.parametrize("layout", ["file", "quoted", "windows", "folder", "archive", "folder with archive"])
def test_official_layouts(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(_binary_rows, "_LINES_AT_ONCE", 7)
    if "archive" in layout:
        source = write_archive(tmp_path / "dataset_purchase.tgz")
    else:
        source = tmp_path / "dataset_purchase"
        source.write_bytes(text(quoted=layout == "quoted", end="\r\n" if layout == "windows" else "\n"))
    prepared = base.prepare("purchase100", data_home, source.parent if "folder" in layout else source)
    samples = base.load_samples("purchase100", data_home)
    x, y = rows()
    np.testing.assert_array_equal(samples.x, x)
    np.testing.assert_array_equal(samples.y, y)
    assert set(samples.part) == {"all"}
    assert (prepared.kind, prepared.shape, prepared.num_classes) == ("tabular", (600,), 100)
    assert not prepared.public
    assert samples.tensor(np.array([1])).max() == 1.0


def test_row_count_is_all_that_can_be_checked(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "dataset_purchase"
    file.write_bytes(text())
    messages: list[str] = []
    prepared = base.prepare("purchase100", data_home, file, progress=lambda message, fraction: messages.append(message))
    assert prepared.matches_official is False
    assert "purchase100: 25 rows, the published data has 197,324" in messages
    monkeypatch.setattr(purchase100, "_ROWS", 25)
    assert base.prepare("purchase100", data_home, file, force=True).matches_official is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line + b",1", r"line 3: expected a label of 1\.\.100 and 600 zeros and ones"),
        (lambda line: line[:-2], "line 3: expected 600 zeros and ones"),
        (lambda line: line + b"0" * 100, "line 3: expected 600 zeros and ones"),
        (lambda line: line[:400], "line 3: expected 600 zeros and ones"),
        (lambda line: line[:-1] + b"2", "line 3: expected 600 zeros and ones"),
        (lambda line: line[:-1] + b"x", "line 3: expected 600 zeros and ones"),
        (lambda line: line[:-2] + b";1", "line 3: expected 600 zeros and ones"),
        (lambda line: b"0" + line[2:], r"line 3: expected a label of 1\.\.100"),
        (lambda line: b"101" + line[2:], r"line 3: expected a label of 1\.\.100"),
        (lambda line: b"-1" + line[2:], r"line 3: expected a label of 1\.\.100"),
        (lambda line: b"", "line 3: expected 600 zeros and ones"),
    ],
)
def test_a_damaged_line_is_named(data_home: Path, tmp_path: Path, change, message: str) -> None:
    lines = text().splitlines()
    assert lines[2].startswith(b"42,")
    lines[2] = change(lines[2])
    file = tmp_path / "dataset_purchase"
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(base.DataError, match=f"dataset_purchase, {message}"):
        base.prepare("purchase100", data_home, file)
    assert not (data_home / "purchase100").exists()


def test_other_files(data_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "dataset_purchase"
    file.write_bytes(b"")
    with pytest.raises(base.DataError, match="dataset_purchase is empty"):
        base.prepare("purchase100", data_home, file)
    file.write_bytes(bytes(5_000_000))
    with pytest.raises(base.DataError, match="dataset_purchase, line 1: expected 600 zeros and ones"):
        base.prepare("purchase100", data_home, file)


def test_damaged_archives(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(base.DataError, match="holds no file 'dataset_purchase'"):
        base.prepare("purchase100", data_home, write_archive(tmp_path / "dataset_purchase.tgz", "other"))
    archive = write_archive(tmp_path / "dataset_purchase.tgz")
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(base.DataError, match=r"dataset_purchase\.tgz is not a whole tar archive"):
        base.prepare("purchase100", data_home, archive)
    (tmp_path / "empty").mkdir()
    with pytest.raises(base.DataError, match=r"holds neither dataset_purchase\.tgz nor its files"):
        base.prepare("purchase100", data_home, tmp_path / "empty")


def test_no_source_says_what_to_get(data_home: Path) -> None:
    with pytest.raises(base.DataError, match=r"oakum data prepare purchase100 --source dataset_purchase\.tgz"):
        base.prepare("purchase100", data_home)
