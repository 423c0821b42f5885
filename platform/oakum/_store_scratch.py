"""Copies of a store's files on this machine, in a private folder that goes when the process ends."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path

from oakum._store_files import FileFact, Files
from oakum._store_names import explain, new_token


class Scratch:
    """A folder under the system's temporary one (`TMPDIR`), made at the first use with mode 0700."""

    def __init__(self) -> None:
        """Nothing is made yet."""
        self._lock = threading.Lock()
        self._path: Path | None = None

    def new_path(self) -> Path:
        """Return a path in scratch that does not exist yet.

        Raises:
            StoreError: scratch cannot be written.
        """
        with self._lock:
            if self._path is None:
                try:
                    self._path = Path(tempfile.mkdtemp(prefix="oakum-"))
                except OSError as error:
                    raise explain(tempfile.gettempdir(), error) from error
                # With its owner: a forked child that ends must not take its parent's folder along.
                atexit.register(_remove, self._path, os.getpid())
        return self._path / new_token()


def copy_out(files: Files, path: str, target: Path) -> FileFact:
    """Copy a file of the store to `target` on this machine and return its size and hash.

    Raises:
        FileNotFoundError: the store has no such file.
        StoreError: it cannot be read, or `target` cannot be written.
    """
    digest, total = hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = target.open("wb", buffering=0)
    except OSError as error:
        raise explain(str(target), error) from error
    with stream:
        for chunk in files.chunks(path):
            digest.update(chunk)
            total += len(chunk)
            view = memoryview(chunk)
            try:
                while view:
                    view = view[stream.write(view) :]
            except OSError as error:
                raise explain(str(target), error) from error
    return FileFact(total, digest.hexdigest())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
