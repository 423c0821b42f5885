"""Files of published packages: fetched by name through npm and pip, never installed or run, each with its checksum."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from oakum.config import ConfigError

Progress = Callable[[str, float | None], None]

_TIMEOUT_SECONDS = 900.0
_LARGEST_FILE = 512 << 20
_ZIP_ENDINGS = (".whl", ".zip")
_TAR_ENDINGS = (".tgz", ".tar.gz", ".tar")


class PackageError(ConfigError):
    """A package or a file of it cannot be had, or is not what it should be."""


def npm_archive(package: str, scratch: Path, progress: Progress) -> Path:
    """Fetch an npm package's archive into `scratch` and return its path.

    Raises:
        PackageError: npm is missing, or could not fetch the package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(f"npm package {package}: the command npm is not installed")
    progress(f"npm pack {package}", None)
    command = [npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", str(scratch)]
    return _fetch(f"npm package {package}", command, scratch, "*.tgz")


def pip_wheel(requirement: str, scratch: Path, progress: Progress) -> Path:
    """Fetch the wheel of a PyPI package (`name==version`) into `scratch` and return its path.

    Raises:
        PackageError: pip is missing, or could not fetch the package.
    """
    progress(f"pip download {requirement}", None)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    return _fetch(f"PyPI package {requirement}", command, scratch, "*.whl")


def _fetch(what: str, command: list[str], scratch: Path, pattern: str) -> Path:
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"{what}: {error}") from error
    archives = sorted(scratch.glob(pattern))
    if done.returncode != 0 or not archives:
        reason = (done.stderr.strip() or done.stdout.strip() or "no archive was written").splitlines()[-1]
        raise PackageError(f"{what}: {reason}")
    return archives[-1]


def read_published(place: Path, name: str, sha256: str) -> bytes:
    """Return the file `name` that a package published, unchanged.

    Args:
        place: the package's archive, a folder that holds the file, or the file itself under any name.
        sha256: its checksum.

    Raises:
        PackageError: no such file, a damaged archive, or another checksum.
    """
    data = _read(place, name)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        where = f"{place}: {name}" if place.name != name else str(place)
        raise PackageError(f"{where} has SHA-256 {found}, expected {sha256}: it is damaged or another version")
    return data


def _read(place: Path, name: str) -> bytes:
    try:
        if place.is_dir():
            return (place / name).read_bytes()
        if place.name.endswith(_ZIP_ENDINGS):
            return _read_zip(place, name)
        if place.name.endswith(_TAR_ENDINGS):
            return _read_tar(place, name)
        return place.read_bytes()
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PackageError(f"{place}: cannot read {name} ({reason}); get it again") from error


def _read_tar(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.rsplit("/", 1)[-1] == name:
                _check_size(archive, name, member.size)
                file = tar.extractfile(member)
                assert file is not None, "regular members can be read"
                return file.read()
    raise PackageError(f"{archive} holds no file {name!r}")


def _read_zip(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            if member.filename.rsplit("/", 1)[-1] == name:
                _check_size(archive, name, member.file_size)
                return bundle.read(member)
    raise PackageError(f"{archive} holds no file {name!r}")


def _check_size(archive: Path, name: str, size: int) -> None:
    if size > _LARGEST_FILE:
        raise PackageError(f"{archive}: {name} has {size:,} bytes, more than the {_LARGEST_FILE:,} that are read")
