"""The pickled files of CIFAR-10 and CIFAR-100, written here as Python 2 wrote the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oakum import registry
from oakum.datasets import base
from oakum.datasets._cifar import decode_batch

NAMES = ("cifar10", "cifar100")
TRAIN_ROWS, TEST_ROWS = 6, 4


class Python2Pickler(pickle._Pickler):
    """Writes protocol 2 with text and bytes as 8-bit strings, which Python 3 cannot do otherwise."""

    def save_string(self, value: str | bytes) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)

    dispatch = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}  # noqa: RUF012


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def dataset(name: str) -> Any:
    return registry.load("datasets", name)


def contents(name: str) -> dict[str, dict[str, Any]]:
    """Return file -> its dictionary, with keys that the reader does not need beside those that it does."""
    layout = dataset(name).layout
    generator = np.random.default_rng(5)
    found = {}
    for number, file in enumerate(layout.checksums):
        rows = TEST_ROWS if file.startswith("test") else TRAIN_ROWS
        labels = [(3 * number + 7 * i) % layout.num_classes for i in range(rows)]
        found[file] = {
            "batch_label": f"batch {number}",
            layout.label_key: labels,
            "coarse_labels": [0] * rows,
            "data": generator.integers(0, 256, size=(rows, 3072), dtype=np.uint8),
            "filenames": [f"picture_{i}.png" for i in range(rows)],
        }
    return found


def files(name: str) -> dict[str, bytes]:
    return {file: python2_pickle(content) for file, content in contents(name).items()}


def write_folder(folder: Path, data: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for file, content in data.items():
        (folder / file).write_bytes(content)
    return folder


def write_archive(path: Path, folder: str, data: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for file, content in {"batches.meta": b"x", **dict(reversed(data.items()))}.items():
            info = tarfile.TarInfo(f"{folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def forge(name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Change the layout of a data set, and forget what its published content is."""
    cls = dataset(name)
    monkeypatch.setattr(cls, "layout", dataclasses.replace(cls.layout, **changes))
    monkeypatch.setattr(cls, "official_digest", None)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_written_files_are_what_an_ordinary_unpickler_reads(name: str) -> None:
    for file, content in contents(name).items():
        found = pickle.loads(files(name)[file], encoding="latin1")
        np.testing.assert_array_equal(found.pop("data"), content.pop("data"))
        assert found == content


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["unpacked", "parent of unpacked", "archive", "parent of archive"])
def test_users_files(data_home: Path, tmp_path: Path, name: str, place: str) -> None:
    layout = dataset(name).layout
    if "archive" in place:
        source = write_archive(tmp_path / "mine" / layout.archive, layout.folder, files(name))
    else:
        source = write_folder(tmp_path / "mine" / layout.folder, files(name))
    prepared = base.prepare(name, data_home, source.parent if "parent" in place else source)
    samples = base.load_samples(name, data_home)
    expected = list(contents(name).values())
    assert samples.y.tolist() == [label for content in expected for label in content[layout.label_key]]
    rows = np.concatenate([content["data"] for content in expected])
    for i, channel, row, column in ((0, 0, 0, 1), (1, 2, 31, 0), (len(rows) - 1, 1, 7, 30)):
        assert samples.x[i, channel, row, column] == rows[i, 1024 * channel + 32 * row + column]
    assert samples.x.reshape(len(rows), -1).tolist() == rows.tolist()
    train = len(rows) - TEST_ROWS
    assert samples.part.tolist() == ["train"] * train + ["test"] * TEST_ROWS
    assert prepared.shape == (3, 32, 32)
    assert prepared.num_classes == len(set(prepared.class_names)) == layout.num_classes
    assert prepared.matches_official is False


def test_class_names_are_in_the_published_order() -> None:
    names = dataset("cifar10").classes
    assert (names[0], names[6], names[9]) == ("airplane", "frog", "truck")


def test_fine_labels_of_cifar100_are_known_by_their_checksums(
    data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = {file: hashlib.md5(data).hexdigest() for file, data in files("cifar100").items()}
    forge("cifar100", monkeypatch, checksums=sums)
    folder = write_folder(tmp_path / "mine", files("cifar100"))
    prepared = base.prepare("cifar100", data_home, folder)
    assert prepared.matches_official is True
    assert [prepared.class_names[i] for i in (0, 11, 99)] == ["apple", "boy", "worm"]
    assert list(prepared.class_names) == sorted(prepared.class_names)
    forge("cifar100", monkeypatch, checksums={**sums, "test": "0" * 32})
    assert base.prepare("cifar100", data_home, folder, force=True).matches_official is False


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(data_home: Path, tmp_path: Path, name: str) -> None:
    last = list(files(name))[-1]
    data = {file: content for file, content in files(name).items() if file != last}
    with pytest.raises(base.DataError, match=f"holds no file '{last}'"):
        base.prepare(name, data_home, write_folder(tmp_path / "mine", data))
    archive = write_archive(tmp_path / "mine.tar.gz", "x", data)
    with pytest.raises(base.DataError, match=f"holds no file '{last}'"):
        base.prepare(name, data_home, archive)
    (tmp_path / "empty").mkdir()
    with pytest.raises(base.DataError, match=f"holds neither {dataset(name).layout.archive} nor its files"):
        base.prepare(name, data_home, tmp_path / "empty")


def test_a_truncated_archive(data_home: Path, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "mine.tar.gz", "x", files("cifar100"))
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(base.DataError, match=r"mine\.tar\.gz is not a whole tar archive .*; get the file again"):
        base.prepare("cifar100", data_home, archive)
    archive.write_bytes(b"<html>not found</html>")
    with pytest.raises(base.DataError, match=r"mine\.tar\.gz is not a whole tar archive"):
        base.prepare("cifar100", data_home, archive)
    assert not (data_home / "cifar100").exists()


def batch(**changes: Any) -> bytes:
    content = {"labels": [0, 9, 5], "data": np.zeros((3, 3072), dtype=np.uint8)}
    return python2_pickle({**content, **changes})


def test_arrays_in_column_order_are_read_right() -> None:
    data = np.arange(3 * 3072).reshape(3, 3072).astype(np.uint8)
    for order in ("C", "F"):
        found = decode_batch(batch(data=np.asarray(data, order=order)), "labels", 10, "here")
        assert found.x.reshape(3, 3072).tolist() == data.tolist()
        assert found.y.tolist() == [0, 9, 5]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "here is not a whole pickled CIFAR batch"),
        (batch()[:-3000], "here is not a whole pickled CIFAR batch"),
        (b"\x89PNG\r\n", "here is not a whole pickled CIFAR batch"),
        (python2_pickle([1, 2]), "here is not a whole pickled CIFAR batch"),
        (python2_pickle({"labels": [1]}), "here is not a whole pickled CIFAR batch"),
        (batch(data=[1, 2]), "here is not a whole pickled CIFAR batch"),
        (batch(data=np.zeros((3, 3072))), "numbers of type b'f8' instead of bytes"),
        (batch(data=np.zeros((3, 3072), dtype=object)), "numbers of type b'O8' instead of bytes"),
        (batch(data=np.zeros((3, 3071), dtype=np.uint8)), r"here: its data has shape \(3, 3071\)"),
        (batch(data=np.zeros(9216, dtype=np.uint8)), r"here: its data has shape \(9216,\)"),
        (batch(labels=[0, 1]), "here: 'labels' is not one label for each of 3 pictures"),
        (batch(labels="012"), "here: 'labels' is not one label for each of 3 pictures"),
        (batch(labels=[], data=np.zeros((0, 3072), dtype=np.uint8)), "not one label for each of 0 pictures"),
        (batch(labels=[0, 1, 10]), r"here: 'labels' must hold whole numbers of 0\.\.9"),
        (batch(labels=[0, 1, -1]), r"here: 'labels' must hold whole numbers of 0\.\.9"),
        (batch(labels=[0, 1, 2.0]), r"here: 'labels' must hold whole numbers of 0\.\.9"),
        (batch(labels=[0, 1, True]), r"here: 'labels' must hold whole numbers of 0\.\.9"),
    ],
)
def test_a_damaged_batch_is_named(data: bytes, message: str) -> None:
    with pytest.raises(base.DataError, match=message):
        decode_batch(data, "labels", 10, "here")


class Runs:
    """Asks an unpickler to call something."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.mkdir, exec, getattr, np.load, np.frombuffer, pickle.loads])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, function: Any, protocol: int) -> None:
    marker = tmp_path / "ran"
    argument = f"import os; os.mkdir({str(marker)!r})" if function is exec else str(marker)
    bad = pickle.dumps({"data": Runs(function, argument)}, protocol=protocol)
    with pytest.raises(base.DataError, match=r"the pickle asks for \S+, which may run code; .* was not run"):
        decode_batch(bad, "labels", 10, "here")
    assert not marker.exists()


@pytest.mark.parametrize(
    "bad",
    [
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R}b.",
        b"\x80\x02cnumpy\ndtype\nU\x02u1\x85RU\x01xb.",
        b"\x80\x02U\x01xQ.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["class", "object", "array without state", "type", "persistent id", "extension"],
)
def test_what_is_allowed_is_of_no_use_alone(bad: bytes) -> None:
    with pytest.raises(base.DataError, match="here is not a whole pickled CIFAR batch"):
        decode_batch(bad, "labels", 10, "here")


@pytest.mark.parametrize("name", NAMES)
def test_download(data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    archive = write_archive(tmp_path / "www.tar.gz", dataset(name).layout.folder, files(name))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    sums = {file: hashlib.md5(data).hexdigest() for file, data in files(name).items()}
    forge(name, monkeypatch, url=archive.as_uri(), archive_md5=md5, checksums=sums)
    prepared = base.prepare(name, data_home)
    assert prepared.source == archive.as_uri()
    assert prepared.matches_official is True


@pytest.mark.parametrize("name", NAMES)
def test_a_download_with_another_checksum_is_refused(
    data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    archive = write_archive(tmp_path / "www.tar.gz", dataset(name).layout.folder, files(name))
    forge(name, monkeypatch, url=archive.as_uri())
    with pytest.raises(base.DataError) as caught:
        base.prepare(name, data_home)
    message = str(caught.value)
    assert hashlib.md5(archive.read_bytes()).hexdigest() in message
    assert dataset(name).layout.archive_md5 in message
    assert f"oakum data prepare {name} --source {dataset(name).layout.archive}" in message


def test_no_connection_says_what_to_do(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge("cifar100", monkeypatch, url="http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(base.DataError, match=r"could not be fetched: .*\nTry again, or give cifar-100-python\.tar\.gz"):
        base.prepare("cifar100", data_home)
