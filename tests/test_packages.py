"""Packages are fetched by name through their clients, and only known bytes are read from them."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oakum import packages
from oakum.packages import PackageError, npm_archive, pip_wheel, read_published

DATA = b"published bytes"
SHA256 = hashlib.sha256(DATA).hexdigest()


def silent(message: str, fraction: float | None) -> None:
    pass


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Replace npm and Python (for `python -m pip`) by a shell script; its arguments go to the returned file."""

    def install(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("npm", "python"):
            command = folder / name
            command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n{script}\n')
            command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        return tmp_path / "arguments"

    return install


def test_npm_packs_without_running_anything_of_the_package(scratch: Path, client: Callable[[str], Path]) -> None:
    arguments = client("echo x > some-1.0.tgz")
    assert npm_archive("some@1.0", scratch, silent) == scratch / "some-1.0.tgz"
    assert arguments.read_text().startswith("pack some@1.0 --ignore-scripts ")


def test_pip_downloads_the_wheel_alone(scratch: Path, client: Callable[[str], Path]) -> None:
    arguments = client("echo x > some-1.0-py3-none-any.whl")
    assert pip_wheel("some==1.0", scratch, silent) == scratch / "some-1.0-py3-none-any.whl"
    assert arguments.read_text().startswith("-m pip download --no-deps --only-binary=:all: ")
    assert arguments.read_text().endswith(f"--dest {scratch} some==1.0\n")


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo first >&2; echo E404 not found >&2; exit 1", "E404 not found"), ("exit 0", "no archive was written")],
)
def test_clients_that_fail(scratch: Path, client: Callable[[str], Path], script: str, said: str) -> None:
    client(script)
    with pytest.raises(PackageError, match=f"npm package some: {said}"):
        npm_archive("some", scratch, silent)
    with pytest.raises(PackageError, match=f"PyPI package some: {said}"):
        pip_wheel("some", scratch, silent)


def test_clients_that_hang_or_are_missing(
    scratch: Path, client: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client("exec sleep 20")
    monkeypatch.setattr(packages, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(PackageError, match="timed out"):
        pip_wheel("some", scratch, silent)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PackageError, match="npm is not installed"):
        npm_archive("some", scratch, silent)


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return path


def test_published_files_are_read_from_archives_folders_and_by_themselves(tmp_path: Path) -> None:
    files = {"package/models/other.bin": b"", "package/models/w.bin": DATA}
    (tmp_path / "w.bin").write_bytes(DATA)
    (tmp_path / "renamed").write_bytes(DATA)
    places = [tar_of(tmp_path / "a.tgz", files), zip_of(tmp_path / "a.whl", files), tmp_path, tmp_path / "renamed"]
    for place in places:
        assert read_published(place, "w.bin", SHA256) == DATA


def test_other_bytes_are_refused_with_both_checksums(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.whl", {"w.bin": b"changed"})
    with pytest.raises(PackageError, match=rf"a\.whl: w\.bin has SHA-256 {hashlib.sha256(b'changed').hexdigest()}, "):
        read_published(archive, "w.bin", SHA256)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PackageError, match=r"holds no file 'w\.bin'"):
        read_published(tar_of(tmp_path / "a.tgz", {"v.bin": DATA}), "w.bin", SHA256)
    with pytest.raises(PackageError, match=r"holds no file 'w\.bin'"):
        read_published(zip_of(tmp_path / "a.whl", {"v.bin": DATA}), "w.bin", SHA256)
    for name in ("broken.tgz", "broken.whl"):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(PackageError, match=rf"{name}: cannot read w\.bin .* get it again"):
            read_published(tmp_path / name, "w.bin", SHA256)
    with pytest.raises(PackageError, match=r"cannot read w\.bin"):
        read_published(tmp_path, "w.bin", SHA256)
    monkeypatch.setattr(packages, "_LARGEST_FILE", 3)
    with pytest.raises(PackageError, match="has 15 bytes, more than the 3"):
        read_published(zip_of(tmp_path / "b.whl", {"w.bin": DATA}), "w.bin", SHA256)
