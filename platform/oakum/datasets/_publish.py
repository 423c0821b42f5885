"""A prepared folder appears whole or not at all, also when the process is killed or another one does the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from oakum.datasets._download import Progress

_REPLACED = "replaced"


@contextmanager
def exclusive(name: str, data_home: Path, progress: Progress) -> Iterator[Path]:
    """Hold the lock of a data set and yield an empty work folder beside it, which is removed at the end.

    The lock ends with its process, however that ends, so a work folder that is found under it belongs to nobody: it
    is removed, after the earlier prepared form is put back if the process died while it replaced that.
    """
    data_home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(data_home / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that prepares {name}", None)
        lock.acquire()
    try:
        _clean_stale(name, data_home)
        work = Path(tempfile.mkdtemp(prefix=_work_prefix(name), dir=data_home))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.release()


def publish_folder(work: Path, target: Path) -> None:
    """Rename `work/ready` to `target`; an earlier target is moved into `work` first and put back on failure."""
    replaced = work / _REPLACED
    if target.exists():
        target.rename(replaced)
    try:
        (work / "ready").rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    _flush_folder(target.parent)


def _clean_stale(name: str, data_home: Path) -> None:
    for stale in data_home.glob(_work_prefix(name) + "*"):
        replaced = stale / _REPLACED
        if replaced.exists() and not (data_home / name).exists():
            replaced.rename(data_home / name)
        shutil.rmtree(stale)


def _work_prefix(name: str) -> str:
    return f".{name}.preparing-"


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
