"""Copies of a bucket's payloads on this machine: shared, verified, bounded, and of no influence on results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from oakum._store_arrow import ArrowFiles
from oakum._store_cache import FOLDER_VARIABLE, SIZE_VARIABLE, MachineCache
from oakum._store_files import FileFact
from oakum.config import ConfigError
from oakum.records import sha256_hex
from oakum.store import DamagedEntryError, Manifest, Store

KEY = sha256_hex(b"entry")
LONG_AGO = 1_000_000.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "copies"))
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    return tmp_path / "copies"


def bucket(root: Path) -> Store:
    """Return a store that a new process would have opened, on a folder that acts as a bucket."""
    (root / "bucket").mkdir(exist_ok=True)
    return Store(
        ArrowFiles(SubTreeFileSystem(str(root / "bucket"), LocalFileSystem()), "", "bucket://store"), "bucket://"
    )


def publish(root: Path, data: bytes) -> Manifest:
    (root / "payload").mkdir()
    (root / "payload" / "model").write_bytes(data)
    documents: dict[str, Any] = {"key_document": {}, "summary": {}, "provenance": {}}
    return bucket(root).publish("train", KEY, root / "payload", label="", **documents)


def writes(data: bytes, calls: list[Path]) -> Callable[[Path], FileFact]:
    """Return a download that writes `data`, and notes where."""

    def download(target: Path) -> FileFact:
        calls.append(target)
        target.write_bytes(data)
        return fact_of(data)

    return download


def fact_of(data: bytes) -> FileFact:
    return FileFact(len(data), sha256_hex(data))


def own_cache() -> MachineCache:
    cache = MachineCache.of_user()
    assert cache is not None
    return cache


def test_a_second_process_does_not_ask_the_bucket(tmp_path: Path) -> None:
    manifest = publish(tmp_path, b"weights")
    first = bucket(tmp_path).fetch(manifest, "model")
    (tmp_path / "bucket" / manifest.object_path("model")).unlink()
    second = bucket(tmp_path).fetch(manifest, "model")
    assert second == first
    assert second.read_bytes() == b"weights"


def test_a_changed_copy_is_replaced(tmp_path: Path, folder: Path) -> None:
    manifest = publish(tmp_path, b"weights")
    bucket(tmp_path).fetch(manifest, "model").write_bytes(b"WEIGHTS")
    assert bucket(tmp_path).fetch(manifest, "model").read_bytes() == b"weights"
    assert [path.name for path in folder.iterdir()] == [sha256_hex(b"weights")]


def test_a_damaged_payload_is_refused_and_not_kept(tmp_path: Path, folder: Path) -> None:
    manifest = publish(tmp_path, b"weights")
    (tmp_path / "bucket" / manifest.object_path("model")).write_bytes(b"changed")
    with pytest.raises(DamagedEntryError):
        bucket(tmp_path).fetch(manifest, "model")
    assert list(folder.iterdir()) == []


def test_a_download_that_fails_leaves_nothing(folder: Path) -> None:
    def fails(target: Path) -> FileFact:
        target.write_bytes(b"half")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        own_cache().get(fact_of(b"whole"), fails)
    assert list(folder.iterdir()) == []


def test_the_least_recently_used_copies_go_and_recent_ones_stay(folder: Path) -> None:
    cache = MachineCache(folder, most_bytes=25)
    folder.mkdir()
    contents = [bytes([65 + number]) * 10 for number in range(3)]
    for age, data in zip((30, 10, 20), contents[:2] + contents[2:], strict=True):
        path, _ = MachineCache(folder, most_bytes=1e9).get(fact_of(data), writes(data, []))
        os.utime(path, (LONG_AGO - age, LONG_AGO - age))
    newest = b"n" * 10
    cache.get(fact_of(newest), writes(newest, []))
    assert {path.read_bytes() for path in folder.iterdir()} == {contents[1], newest}
    more = b"m" * 20
    cache.get(fact_of(more), writes(more, []))
    assert {path.read_bytes() for path in folder.iterdir()} == {newest, more}


def test_use_counts_as_recent(folder: Path) -> None:
    calls: list[Path] = []
    path, _ = own_cache().get(fact_of(b"old"), writes(b"old", calls))
    os.utime(path, (LONG_AGO, LONG_AGO))
    own_cache().get(fact_of(b"old"), writes(b"old", calls))
    assert len(calls) == 1
    assert path.stat().st_mtime > LONG_AGO


def test_no_room_means_no_cache(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "0")
    manifest = publish(tmp_path, b"weights")
    assert bucket(tmp_path).fetch(manifest, "model").read_bytes() == b"weights"
    assert not folder.exists()


def test_a_size_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "much")
    with pytest.raises(ConfigError, match="OAKUM_CACHE_GB='much': write a number of gigabytes"):
        MachineCache.of_user()


def test_the_folder_is_private(folder: Path) -> None:
    own_cache()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert MachineCache.of_user() is None


def test_a_link_in_the_place_of_the_folder_is_not_used(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert MachineCache.of_user() is None


def test_a_manifest_cannot_name_a_file_outside_the_folder(tmp_path: Path) -> None:
    publish(tmp_path, b"weights")
    own = tmp_path / "precious"
    own.write_bytes(b"weights")
    place = tmp_path / "bucket" / "manifests" / "train" / f"{KEY}.json"
    sealed = Manifest.from_bytes(place.read_bytes(), "train", KEY)
    sealed.files["model"]["sha256"] = "../precious"
    place.write_bytes(sealed.to_bytes())
    assert bucket(tmp_path).manifest("train", KEY) is None
    assert own.exists()
