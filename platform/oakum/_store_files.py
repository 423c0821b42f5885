"""The few file operations a store is made of, and their form for a local folder.

A local folder is served by the operating system's own calls because they can do what `pyarrow.fs` cannot: create
exclusively and link. Every other address goes through `pyarrow.fs` (`_store_arrow.py`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from oakum._store_names import StoreError, explain, new_token
from oakum.config import ConfigError

CHUNK = 1 << 20
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_VANISHED = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}


@dataclass(frozen=True)
class FileFact:
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Item:
    """A file in a listing: path inside the store, size in bytes, time of change by the store's clock if it has one."""

    path: str
    bytes: int
    modified: float | None


class Files(Protocol):
    """File operations inside one store. Paths are relative to its root, with `/`.

    Every method raises StoreError when the operating system or the network fails, and FileNotFoundError (reading
    only) when there is no such file.
    """

    @property
    def is_local(self) -> bool:
        """Whether the first writer of a manifest wins here, and paths can be handed out."""
        ...

    def place(self, path: str) -> str:
        """Return the full path for messages, without credentials."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Return the file's path on this machine, or None on a remote store."""
        ...

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield the file's bytes in pieces of at most 1 MiB."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write a small file whole; the last writer wins."""
        ...

    def put_first(self, path: str, data: bytes) -> bool:
        """Write a small file whole. Local: keep what is there already and return False."""
        ...

    def add(self, path: str, source: Path) -> FileFact:
        """Copy a local file to a path that nobody else writes; return its size and hash, taken on the way."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names of the files directly in `folder` with one listing ([] when there is no such folder)."""
        ...

    def listing(self, folder: str) -> list[Item]:
        """Return every file below `folder` ([] when there is no such folder)."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        ...

    def delete_tree(self, folder: str) -> None:
        """Remove a folder and all below it; it may be gone already."""
        ...


def read_bytes(files: Files, path: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: no such file.
        StoreError: it cannot be read.
    """
    return b"".join(files.chunks(path))


def measure(files: Files, path: str) -> FileFact:
    """Read a file and return its size and hash; raises as `read_bytes`."""
    digest, total = hashlib.sha256(), 0
    for chunk in files.chunks(path):
        digest.update(chunk)
        total += len(chunk)
    return FileFact(total, digest.hexdigest())


def store_clock(files: Files) -> float | None:
    """Return the time by the store's own clock, or None where the store keeps no times.

    Ages are differences of two of the store's times: the clocks of two machines are never compared.
    """
    folder = f"clock/{new_token()}"
    files.put(f"{folder}/probe", b"\n")
    items = files.listing(folder)
    files.delete_tree(folder)
    return items[0].modified if items else None


class LocalFiles:
    """A folder on this machine or on a shared file system.

    By default nothing is flushed to the disk before `publish` returns: a power failure may lose or truncate the last
    entries, which their checksums show, and they are computed again. `fsync=True` flushes every file and folder.
    """

    is_local = True

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        """Use `root`, created with mode 0700 when it is missing.

        Raises:
            ConfigError: the path cannot be a folder.
            StoreError: it cannot be created for another reason, such as a full disk.
        """
        self._root = str(root)
        self._fsync = fsync
        try:
            os.makedirs(self._root, mode=0o700, exist_ok=True)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
                raise explain(self._root, error) from error
            shown_root = self._root if len(self._root) < 300 else f"{self._root[:100]}..."
            reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
            raise ConfigError(
                f"cannot keep a store at {shown_root}: {reason}; choose another folder with OAKUM_HOME"
            ) from error

    def place(self, path: str) -> str:
        return f"{self._root}/{path}"

    def local_path(self, path: str) -> Path | None:
        return Path(self.place(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        with self._guard(path), open(self.place(path), "rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def put(self, path: str, data: bytes) -> None:
        with self._written_aside(path, data) as temporary:
            os.replace(temporary, self.place(path))

    def put_first(self, path: str, data: bytes) -> bool:
        final = self.place(path)
        with self._written_aside(path, data) as temporary:
            try:
                os.link(temporary, final)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._rename_first(temporary, final)
        return True

    def add(self, path: str, source: Path) -> FileFact:
        digest, total = hashlib.sha256(), 0
        with self._guard(path), open(source, "rb", buffering=0) as stream:
            descriptor = self._create(self.place(path))
            try:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    total += len(chunk)
                    _write_all(descriptor, chunk)
                # `fetch` hands out this very file: nobody may write to it by accident.
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~0o222)
                if self._fsync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._flush_folder(self.place(path))
        return FileFact(total, digest.hexdigest())

    def names(self, folder: str) -> list[str]:
        try:
            with self._guard(folder):
                return os.listdir(self.place(folder))
        except FileNotFoundError:
            return []

    def listing(self, folder: str) -> list[Item]:
        with self._guard(folder):
            return list(_walk(self.place(folder), folder))

    def delete(self, path: str) -> None:
        with self._guard(path), suppress(FileNotFoundError):
            os.unlink(self.place(path))

    def delete_tree(self, folder: str) -> None:
        top = self.place(folder)
        with self._guard(folder):
            for parent, _, names in os.walk(top, topdown=False, onerror=_raise_unless_vanished):
                for name in names:
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(parent, name))
                _remove_folder(parent)
            _remove_folder(os.path.dirname(top))

    @contextmanager
    def _guard(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain(self.place(path), error) from error

    @contextmanager
    def _written_aside(self, path: str, data: bytes) -> Iterator[str]:
        """Yield a whole temporary file beside `path`; remove it afterwards if it is still there."""
        final = self.place(path)
        temporary = f"{os.path.dirname(final)}/.{new_token()}.tmp"
        with self._guard(path):
            try:
                descriptor = self._create(temporary)
                try:
                    _write_all(descriptor, data)
                    if self._fsync:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                yield temporary
                self._flush_folder(final)
            except FileNotFoundError as error:
                raise explain(final, error) from error
            finally:
                with suppress(OSError):
                    os.unlink(temporary)

    def _create(self, path: str) -> int:
        """Create a file and return its descriptor. Another process may remove emptied folders meanwhile."""
        for _ in range(10):
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                os.makedirs(self._root, mode=0o700, exist_ok=True)
                with suppress(FileNotFoundError):
                    os.makedirs(os.path.dirname(path), exist_ok=True)
        raise StoreError(f"{path}: its folder disappears as soon as it is made; let nothing else clean the store")

    def _rename_first(self, temporary: str, final: str) -> bool:
        """The form of `put_first` for file systems without hard links: look and rename under one lock."""
        lock = os.open(f"{self._root}/.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.lexists(final):
                return False
            os.rename(temporary, final)
            return True
        finally:
            os.close(lock)

    def _flush_folder(self, path: str) -> None:
        if not self._fsync:
            return
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _walk(folder: str, name: str) -> Iterator[Item]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, path)
            continue
        with suppress(FileNotFoundError):
            facts = entry.stat(follow_symlinks=False)
            yield Item(path, facts.st_size, facts.st_mtime)


def _remove_folder(path: str) -> None:
    """Remove a folder unless it is gone or somebody writes to it."""
    try:
        os.rmdir(path)
    except OSError as error:
        _raise_unless_vanished(error)


def _raise_unless_vanished(error: OSError) -> None:
    if error.errno not in _VANISHED:
        raise error
