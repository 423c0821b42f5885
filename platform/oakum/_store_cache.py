"""Copies of a bucket's payloads on this machine, which all processes of a user share.

Every stage reads its inputs by key from the store. What lies in a bucket is downloaded once to a machine and read from
there by all its workers. A copy is called by the SHA-256 of its bytes and held against it before its first use in a
process, so that what stands in the folder cannot change a result. The folder may be cleared at any time.

`OAKUM_CACHE` says where the folder is (default: `oakum-cache-<user id>` in the temporary folder), `OAKUM_CACHE_GB` how
large it may grow (default 20; 0: nothing is kept beyond a process).
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from oakum._store_files import FileFact, LocalFiles, measure
from oakum._store_names import explain, new_token
from oakum.config import ConfigError

FOLDER_VARIABLE = "OAKUM_CACHE"
SIZE_VARIABLE = "OAKUM_CACHE_GB"
_DEFAULT_GB = 20.0
# What was used so recently may be about to be opened.
_IN_USE_SECONDS = 3600.0
_PART = ".part"


class MachineCache:
    """The folder of copies.

    Args:
        folder: where; made with mode 0700.
        most_bytes: the least recently used copies beyond this go.
    """

    def __init__(self, folder: Path, most_bytes: float) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    @classmethod
    def of_user(cls) -> MachineCache | None:
        """Return the cache that the environment asks for, or None: no room, or the folder could be another user's.

        Raises:
            ConfigError: `OAKUM_CACHE_GB` is no number.
        """
        text = os.environ.get(SIZE_VARIABLE, "")
        try:
            most_bytes = float(text or _DEFAULT_GB) * 1e9
        except ValueError as error:
            raise ConfigError(f"{SIZE_VARIABLE}={text!r}: write a number of gigabytes, 0 for no cache") from error
        default = Path(tempfile.gettempdir()) / f"oakum-cache-{os.getuid()}"
        folder = Path(os.environ.get(FOLDER_VARIABLE) or default)
        if not most_bytes > 0:
            return None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = folder.lstat()
        except OSError as error:
            raise explain(str(folder), error) from error
        # In a temporary folder anybody may have been first.
        is_own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022
        return cls(folder, most_bytes) if is_own else None

    def get(self, fact: FileFact, download: Callable[[Path], FileFact]) -> tuple[Path, FileFact]:
        """Return a copy and what its bytes are, after a look into the cache or else a download.

        Args:
            fact: what is wanted. A download of other bytes is returned with what they are, and not kept for others.
            download: writes the file to a path.

        Raises what `download` raises.
        """
        kept = self._folder / fact.sha256
        if self._holds(kept, fact):
            return kept, fact
        arriving = self._folder / f"{new_token()}{_PART}"
        try:
            found = download(arriving)
            if found == fact:
                arriving.replace(kept)
        finally:
            arriving.unlink(missing_ok=True)
        if found == fact:
            self._shrink()
        return kept, found

    def _holds(self, kept: Path, fact: FileFact) -> bool:
        try:
            os.utime(kept)
            if kept.stat().st_size == fact.bytes and measure(LocalFiles(self._folder), kept.name) == fact:
                return True
        except FileNotFoundError:
            return False
        kept.unlink(missing_ok=True)
        return False

    def _shrink(self) -> None:
        """Remove the least recently used copies beyond the limit; those in use and of others' downloads stay."""
        now, copies = time.time(), []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                facts = path.stat()
                copies.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in copies)
        for used, size, path in sorted(copies, key=lambda copy: copy[0]):
            if total <= self._most_bytes or now - used < _IN_USE_SECONDS:
                return
            path.unlink(missing_ok=True)
            total -= size
