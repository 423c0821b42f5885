"""The file operations of a store on S3, GCS or any other `pyarrow.fs` file system.

Nothing is ever renamed. A `put` is one stream with one write, which object stores show whole at its end or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
from pyarrow.fs import FileSelector, FileSystem, FileType

from oakum._store_files import CHUNK, FileFact, Item
from oakum._store_names import StoreError, explain
from oakum.config import ConfigError, hide_credentials, without_credentials

Result = TypeVar("Result")


def open_arrow(uri: str) -> ArrowFiles:
    """Open the store at a `pyarrow.fs` URI such as `s3://bucket/folder?region=...`.

    Raises:
        ConfigError: not an address that pyarrow understands.
        StoreError: the service does not answer.
    """
    address = without_credentials(uri)
    try:
        filesystem, root = FileSystem.from_uri(uri)
    except OSError as error:
        raise StoreError(
            f"{address}: {hide_credentials(str(error), uri)}: check that the store can be reached"
        ) from None
    except pyarrow.ArrowException as error:
        reason = hide_credentials(str(error), uri)
        raise ConfigError(
            f"{address} is not the address of a store: {reason}; write a folder, s3://bucket/folder or gs://bucket/folder"
        ) from None
    return ArrowFiles(filesystem, root, address)


class ArrowFiles:
    """A store on a `pyarrow.fs` file system with an object store's manners: no rename, whole puts, last writer wins."""

    is_local = False

    def __init__(self, filesystem: FileSystem, root: str, address: str) -> None:
        """Use the folder `root` of `filesystem`; `address` stands for it in messages."""
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._address = address.rstrip("/")

    def place(self, path: str) -> str:
        return f"{self._address}/{path}"

    def local_path(self, path: str) -> Path | None:
        return None

    def chunks(self, path: str) -> Iterator[bytes]:
        with self._guard(path), self._filesystem.open_input_stream(self._full(path), compression=None) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk

    def put(self, path: str, data: bytes) -> None:
        with self._guard(path):
            self._with_folder(path, lambda full: self._write(full, iter([data])))

    def put_first(self, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True

    def add(self, path: str, source: Path) -> FileFact:
        with self._guard(path):
            return self._with_folder(path, lambda full: self._write(full, _read_chunks(source)))

    def names(self, folder: str) -> list[str]:
        # An empty file is never whole: some file systems leave one when a write dies.
        return [item.path.rpartition("/")[2] for item in self._list(folder, recursive=False) if item.bytes]

    def listing(self, folder: str) -> list[Item]:
        return self._list(folder, recursive=True)

    def delete(self, path: str) -> None:
        with self._guard(path), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._full(path))

    def delete_tree(self, folder: str) -> None:
        with self._guard(folder), suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._full(folder))

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if self._root else path

    def _list(self, folder: str, *, recursive: bool) -> list[Item]:
        selector = FileSelector(self._full(folder), allow_not_found=True, recursive=recursive)
        start = len(self._root) + 1 if self._root else 0
        with self._guard(folder):
            return [
                Item(info.path[start:], info.size or 0, None if info.mtime_ns is None else info.mtime_ns / 1e9)
                for info in self._filesystem.get_file_info(selector)
                if info.type == FileType.File
            ]

    def _with_folder(self, path: str, write: Callable[[str], Result]) -> Result:
        """Write; make the folder and write again when the file system turns out to have real folders."""
        full = self._full(path)
        try:
            return write(full)
        except FileNotFoundError:
            self._filesystem.create_dir(full.rpartition("/")[0], recursive=True)
        try:
            return write(full)
        except FileNotFoundError as error:
            raise explain(self.place(path), error) from error

    def _write(self, full: str, chunks: Iterator[bytes]) -> FileFact:
        digest, total = hashlib.sha256(), 0
        with self._filesystem.open_output_stream(full, compression=None) as stream:
            for chunk in chunks:
                digest.update(chunk)
                total += len(chunk)
                stream.write(chunk)
        return FileFact(total, digest.hexdigest())

    @contextmanager
    def _guard(self, path: str) -> Iterator[None]:
        failures: tuple[Any, ...] = (OSError, pyarrow.ArrowException)
        try:
            yield
        except FileNotFoundError:
            raise
        except failures as error:
            raise explain(self.place(path), error) from error


def _read_chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
