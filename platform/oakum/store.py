"""The store: finished stages by key, unfinished work, and small documents, in a folder or on an object store.

Layout: `objects/<key>/<attempt>/` (payloads), `manifests/<kind>/<key>.json` (the only commit marker, written last),
`work/<key>/<attempt>/` (checkpoints), `documents/<name>.json`, `damaged/` (manifests set aside), and on object stores
`index/<kind>` (copies of manifests, which only save reads and may be removed).

On a local folder the first writer of a key wins; on object stores the last one, and both attempts are whole. Nothing is
renamed on object stores. Payloads and manifests are flushed to the disk only on request (`fsync=True` or
`OAKUM_FSYNC=1`): after a power failure checksums show what was lost, and it is computed again.

Fault tests kill a process at `store.after_payload`, `store.after_manifest`, `store.after_work_payload` and
`store.after_work_marker` (see `oakum.faults`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from oakum._store_cache import MachineCache
from oakum._store_documents import DamagedDocumentError, document_path, open_document, seal_document
from oakum._store_files import FileFact, Files, LocalFiles, measure, read_bytes
from oakum._store_gc import GcReport, Problem, collect_garbage, find_problems, manifest_items, usage_by_kind
from oakum._store_index import FEW, PARALLEL, ManifestIndex
from oakum._store_manifest import (
    SCHEMA,
    DamagedManifestError,
    Manifest,
    manifest_path,
    payload_folder,
    payload_names,
    read_manifest,
)
from oakum._store_names import (
    DamagedEntryError,
    StoreError,
    check_key,
    check_kind,
    check_name,
    explain,
    is_key,
    new_token,
    shown,
)
from oakum._store_scratch import Scratch, copy_out
from oakum._store_work import WorkFolder
from oakum.config import ConfigError, without_credentials
from oakum.faults import fault_point
from oakum.records import StageRef, sha256_hex

__all__ = ["SCHEMA", "DamagedEntryError", "GcReport", "Manifest", "Problem", "Store", "StoreError", "WorkFolder"]

_DAY = 86_400.0


class Store:
    """One store. Safe to use from several threads and processes; pickled as its address.

    Every method raises ConfigError for a name that cannot be stored and StoreError when the store cannot be read or
    written.
    """

    def __init__(self, files: Files, uri: str) -> None:
        """Use ready file operations; `Store.open` is the usual way."""
        self.uri = uri
        self._files = files
        self._index = ManifestIndex(files)
        self._scratch = Scratch()
        self._verified: set[str] = set()
        self._fetched: dict[str, Path] = {}

    @classmethod
    def open(cls, uri: str | Path, *, fsync: bool | None = None) -> Store:
        """Open a folder (created with mode 0700), a `file://` URI, or any `pyarrow.fs` URI (`s3://`, `gs://`).

        `fsync` flushes everything that is published to the disk (local stores; default: `OAKUM_FSYNC=1`).

        Raises:
            ConfigError: no usable address.
            StoreError: the disk is full, or the service does not answer.
        """
        address = str(uri)
        if not address.strip() or not address.isprintable():
            where = shown(without_credentials(address))
            raise ConfigError(f"{where} is not the address of a store: write a folder or a URI")
        if "://" in address and not isinstance(uri, Path):
            if not address.startswith("file://"):
                # pyarrow takes 0.2 s to import, and a local store needs none of it.
                from oakum._store_arrow import open_arrow

                return cls(open_arrow(address), address)
            host, slash, path = address.removeprefix("file://").partition("/")
            if host not in {"", "localhost"} or not slash:
                raise ConfigError(f"{shown(without_credentials(address))}: write file:///path/to/folder")
            address = unquote(f"/{path}")
            if not address.isprintable():
                raise ConfigError(f"{shown(address)} is not the address of a store: write a folder or a URI")
        folder = os.path.abspath(os.path.expanduser(address))
        wanted = os.environ.get("OAKUM_FSYNC") == "1" if fsync is None else fsync
        return cls(LocalFiles(Path(folder), fsync=wanted), folder)

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return Store.open, (self.uri,)

    def published(self, kind: str) -> set[str]:
        """Return the keys of the stages of `kind` that have a manifest, with one listing.

        The manifests are not read: `manifest` may still find one damaged.
        """
        names = self._files.names(f"manifests/{check_kind(kind)}")
        return {key for name in names if name.endswith(".json") and is_key(key := name.removesuffix(".json"))}

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """Return an entry's manifest, or None. A damaged manifest is set aside and counts as absent."""
        check_kind(kind)
        check_key(key)
        try:
            return read_manifest(self._files, kind, key)
        except FileNotFoundError:
            return None
        except DamagedManifestError as error:
            self.set_aside(kind, key, f"damaged manifest: {error}")
            return None

    def manifests(self, refs: Iterable[StageRef]) -> dict[StageRef, Manifest]:
        """Return the manifests of those stages that are stored, in the order of `refs`; damaged ones are set aside.

        For many stages this costs an object store little more than a listing (`_store_index.py`), and what has to be
        read there is read side by side.
        """
        wanted = list(dict.fromkeys(refs))
        for ref in wanted:
            check_kind(ref.kind)
            check_key(ref.key)
        if len(wanted) <= FEW:
            return self._read_manifests(wanted)
        if not self._files.is_local:
            return self._index.manifests(wanted, self._read_manifests)
        published = {kind: self.published(kind) for kind in {ref.kind for ref in wanted}}
        return self._read_manifests([ref for ref in wanted if ref.key in published[ref.kind]])

    def publish(
        self,
        kind: str,
        key: str,
        folder: Path,
        *,
        key_document: dict[str, Any],
        label: str,
        summary: dict[str, Any],
        provenance: dict[str, Any],
    ) -> Manifest:
        """Copy the files of `folder` (left as it is) into the store and commit them with a manifest.

        Returns the manifest that readers see: on a local store that of the first writer, whose bytes may differ. After
        an error nothing is published, or, when only the answer of an object store was lost, the whole entry;
        publishing again is always right.

        Raises:
            ValueError: the documents are no JSON, or `folder` holds anything but plain files.
            StoreError: full disk and the like.
        """
        check_kind(kind)
        check_key(key)
        winner = self.manifest(kind, key) if self._files.is_local else None
        if winner is not None:
            return winner
        attempt = new_token()
        names = payload_names(Path(folder))
        document = {
            "schema": SCHEMA,
            "kind": kind,
            "key": key,
            "attempt": attempt,
            "created": time.time(),
            "key_document": key_document,
            "label": label,
            "summary": summary,
            "files": {},
            "provenance": provenance,
        }
        Manifest.from_json(document)
        try:
            facts = self._add_payload(payload_folder(key, attempt), Path(folder), names)
        except BaseException:
            self._discard(key, attempt)
            raise
        fault_point("store.after_payload")
        files = {name: asdict(fact) for name, fact in facts.items()}
        published = self._commit(Manifest.from_json({**document, "files": files}))
        fault_point("store.after_manifest")
        return published

    def read(self, manifest: Manifest, name: str) -> bytes:
        """Return a file's bytes; each object's hash is verified once per process.

        Raises:
            KeyError: the entry has no such file.
            DamagedEntryError: the file is missing or changed.
        """
        path = manifest.object_path(name)
        try:
            data = read_bytes(self._files, path)
        except FileNotFoundError:
            raise _damaged(manifest, name, "it is missing") from None
        known = path in self._verified
        sha256 = manifest.files[name]["sha256"] if known else sha256_hex(data)
        _require(manifest, name, FileFact(len(data), sha256))
        self._verified.add(path)
        return data

    def fetch(self, manifest: Manifest, name: str) -> Path:
        """Return a verified file on this machine: the object itself, or a copy. Never write to it.

        Copies of a bucket's files are kept for all processes of the user on this machine (`_store_cache.py`), or else
        until the process ends. Raises as `read`.
        """
        path = manifest.object_path(name)
        local = self._files.local_path(path)
        known = local if path in self._verified else self._fetched.get(path)
        if known is not None and known.is_file():
            return known
        try:
            target, found = (local, measure(self._files, path)) if local else self._copy(manifest, name)
        except FileNotFoundError:
            raise _damaged(manifest, name, "it is missing") from None
        _require(manifest, name, found)
        if local is None:
            self._fetched[path] = target
        else:
            self._verified.add(path)
        return target

    def _copy(self, manifest: Manifest, name: str) -> tuple[Path, FileFact]:
        """Return a copy on this machine of a bucket's file, and what its bytes are."""

        def download(target: Path) -> FileFact:
            return copy_out(self._files, manifest.object_path(name), target)

        cache = MachineCache.of_user()
        if cache is not None:
            return cache.get(FileFact(**manifest.files[name]), download)
        target = self._scratch.new_path() / name
        return target, download(target)

    def set_aside(self, kind: str, key: str, reason: str, *, attempt: str = "") -> None:
        """Move an entry's manifest under `damaged/` with the reason: the entry counts as absent from here on.

        With `attempt` (of the DamagedEntryError) a manifest of another attempt, published meanwhile, stays.
        """
        path = manifest_path(check_kind(kind), check_key(key))
        try:
            raw = read_bytes(self._files, path)
        except FileNotFoundError:
            return
        if attempt:
            with suppress(DamagedManifestError):
                if Manifest.from_bytes(raw, kind, key).attempt != attempt:
                    return
        text = raw.decode("utf-8", "backslashreplace")
        document = {"kind": kind, "key": key, "reason": reason, "set_aside": time.time(), "manifest": text}
        self._files.put(f"damaged/{kind}/{key}.{new_token()}.json", json.dumps(document).encode())
        self._files.delete(path)

    def work(self, key: str) -> WorkFolder:
        """Return the unfinished work of a key, as a new attempt."""
        return WorkFolder(self._files, self._scratch, check_key(key))

    def put_document(self, name: str, document: dict[str, Any]) -> None:
        """Write a small JSON document whole; the last writer wins.

        Raises:
            ValueError: not JSON (NaN included).
        """
        path = document_path(check_name(name))
        try:
            data = seal_document(path, document)
        except TypeError as error:
            raise ValueError(f"the document {shown(name)} is not JSON: {error}") from error
        self._files.put(path, data)

    def get_document(self, name: str) -> dict[str, Any] | None:
        """Return a document, or None when there is none.

        Raises:
            StoreError: it is damaged.
        """
        path = document_path(check_name(name))
        try:
            return open_document(path, read_bytes(self._files, path))
        except FileNotFoundError:
            return None
        except DamagedDocumentError as error:
            place = self._files.place(path)
            raise StoreError(f"{place} is damaged ({error}): remove that file and run again") from error

    def list_documents(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all documents below the folder `prefix` (`plans` or `plans/`), "" for all."""
        folder = prefix.rstrip("/")
        items = self._files.listing(f"documents/{check_name(folder)}" if folder else "documents")
        paths = [item.path.removeprefix("documents/") for item in items]
        return sorted(
            path.removesuffix(".json")
            for path in paths
            if path.endswith(".json") and not path.rpartition("/")[2].startswith(".")
        )

    def delete_document(self, name: str) -> None:
        """Remove a document; it may be gone already."""
        self._files.delete(document_path(check_name(name)))

    def entries(self) -> list[Manifest]:
        """Return every manifest, sorted by kind and key; damaged ones are set aside."""
        refs = [StageRef(kind, key) for kind, key, _ in manifest_items(self._files)]
        return list(self.manifests(refs).values())

    def verify(self, kind: str | None = None, key: str | None = None) -> list[Problem]:
        """Read every byte of the entries (of one kind, of one key) and return what is wrong; changes nothing."""
        return find_problems(
            self._files, None if kind is None else check_kind(kind), None if key is None else check_key(key)
        )

    def gc(self, *, dry_run: bool = True, min_age_seconds: float = _DAY) -> GcReport:
        """Remove what nothing needs and is older than `min_age_seconds` by the store's own clock.

        Kept: every {"kind", "key"} in documents under `plans/`, `pins/`, `models/`, `outbox/` and `searches/`, and the
        inputs that their manifests name, and theirs. Removed: other entries, payloads without a manifest, work of
        published or unneeded keys, temporary files. Damaged manifests that were set aside stay.

        Raises:
            StoreError: also when a document that keeps entries is damaged.
        """
        return collect_garbage(self._files, dry_run=dry_run, min_age_seconds=min_age_seconds)

    def usage(self) -> dict[str, int]:
        """Return the bytes of published files by stage kind."""
        return usage_by_kind(self.entries())

    def _read_manifests(self, refs: list[StageRef]) -> dict[StageRef, Manifest]:
        if self._files.is_local:
            found = [self.manifest(ref.kind, ref.key) for ref in refs]
        else:
            with ThreadPoolExecutor(PARALLEL) as pool:
                found = list(pool.map(lambda ref: self.manifest(ref.kind, ref.key), refs))
        return {ref: manifest for ref, manifest in zip(refs, found, strict=True) if manifest is not None}

    def _add_payload(self, place: str, folder: Path, names: list[str]) -> dict[str, FileFact]:
        facts = {name: self._files.add(f"{place}/{name}", folder / name) for name in names}
        arrived = {item.path.removeprefix(f"{place}/"): item.bytes for item in self._files.listing(place)}
        for name, fact in facts.items():
            if arrived.get(name) != fact.bytes:
                raise explain(self._files.place(f"{place}/{name}"), OSError(f"{arrived.get(name)} bytes arrived"))
        return facts

    def _commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest; where another attempt won, drop this one's payload and return the winner's manifest.

        When writing fails the payload stays: the answer may be lost and the manifest there.
        """
        path = manifest_path(manifest.kind, manifest.key)
        for _ in range(3):
            if self._files.put_first(path, manifest.to_bytes()):
                return manifest
            winner = self.manifest(manifest.kind, manifest.key)
            if winner is not None:
                if winner.attempt != manifest.attempt:
                    self._discard(manifest.key, manifest.attempt)
                return winner
        self._discard(manifest.key, manifest.attempt)
        raise StoreError(f"{self._files.place(path)}: damaged again and again; check the disk, then run again")

    def _discard(self, key: str, attempt: str) -> None:
        with suppress(StoreError, FileNotFoundError):
            self._files.delete_tree(payload_folder(key, attempt))


def _damaged(manifest: Manifest, name: str, why: str) -> DamagedEntryError:
    return DamagedEntryError(manifest.kind, manifest.key, name, why, manifest.attempt)


def _require(manifest: Manifest, name: str, found: FileFact) -> None:
    """Raise DamagedEntryError unless a file is what its manifest says."""
    fact = manifest.files[name]
    if found.bytes != fact["bytes"]:
        raise _damaged(manifest, name, f"{found.bytes:,} bytes instead of {fact['bytes']:,}")
    if found.sha256 != fact["sha256"]:
        raise _damaged(manifest, name, "its SHA-256 does not fit")
