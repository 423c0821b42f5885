"""Copies of all manifests of a kind in one file, so that a bucket is not asked for them one by one.

`index/<kind>` holds the bytes of manifests, each with the time of its file. A copy counts only while a listing shows a
file of the same time and size; what has no such copy is read, and copied when it is much. The index is a cache: lost,
outdated, damaged or overwritten by another process it costs reads and nothing else. Workers, `gc` and `verify` read the
manifests themselves. A local store has no index: reading a file there costs less than finding out whether a copy holds.

A bucket's times may be whole seconds, so a file that is younger than `MARGIN_SECONDS` when its reading begins is not
copied: it could be overwritten within the same second. What remains: a second writer whose upload began within the
second of the first one's, and took longer than the margin, may hide behind the copy of the first. Both attempts are
whole.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from oakum._store_files import Files, Item, read_bytes, store_clock
from oakum._store_gc import manifest_items
from oakum._store_manifest import DamagedManifestError, Manifest
from oakum._store_names import StoreError, is_key
from oakum.records import StageRef, canonical_json

# An object store answers one request in tens of milliseconds: so many are under way at a time.
PARALLEL = 16
# So many manifests are read without asking an index, and so many that it lacks do not make it worth writing.
FEW = 32
MARGIN_SECONDS = 2.0
# A million manifests; what claims to be more is no index.
_LARGEST = 2 * 1024**3
_SCHEMA = 1

Found = dict[StageRef, Manifest]
Listed = dict[StageRef, Item]


@dataclass(frozen=True)
class Copy:
    """The bytes of a manifest, and the time of its file as listings give it."""

    modified: float
    raw: bytes

    def fits(self, item: Item) -> bool:
        """Tell whether a file in a listing is the one that was copied."""
        return self.modified == item.modified and len(self.raw) == item.bytes


class ManifestIndex:
    """The index of one store. What was loaded or copied once is kept in memory; several threads may use it at once."""

    def __init__(self, files: Files) -> None:
        """Nothing is loaded yet."""
        self._files = files
        self._copies: dict[str, dict[str, Copy]] = {}

    def manifests(self, wanted: Iterable[StageRef], read: Callable[[list[StageRef]], Found]) -> Found:
        """Return the manifests that are stored: from copies that a listing confirms, the others by `read`.

        Requests: a listing for each kind and 1,000 of its names, and an index for each kind that is not in memory.

        Raises:
            StoreError: a folder cannot be listed, and what `read` raises; never for the index.
        """
        wanted = list(wanted)
        with ThreadPoolExecutor(PARALLEL) as pool:
            listings = pool.map(self._list, sorted({ref.kind for ref in wanted}))
            listed = {ref: item for listing in listings for ref, item in listing.items()}
            stored = [ref for ref in wanted if ref in listed]
            if len(stored) > FEW:
                list(pool.map(self._load, sorted({ref.kind for ref in stored} - self._copies.keys())))
        found = {ref: copied for ref in stored if (copied := self._copied(ref, listed[ref])) is not None}
        unread = [ref for ref in stored if ref not in found]
        # Asked before anything is read: what is overwritten later is younger than this.
        clock = self._clock() if len(unread) > FEW else None
        found |= read(unread)
        if clock is not None:
            self._keep({ref: found[ref] for ref in unread if ref in found}, listed, clock)
        return {ref: found[ref] for ref in stored if ref in found}

    def _list(self, kind: str) -> Listed:
        # An empty file is never whole: some file systems leave one when a write dies.
        return {StageRef(kind, key): item for _, key, item in manifest_items(self._files, kind) if item.bytes}

    def _load(self, kind: str) -> None:
        try:
            self._copies[kind] = unpack(read_bytes(self._files, _path(kind)))
        except (FileNotFoundError, StoreError, ValueError):
            # Without an index, or with a damaged one, the manifests are read, and it is written anew.
            self._copies[kind] = {}

    def _copied(self, ref: StageRef, item: Item) -> Manifest | None:
        copy = self._copies.get(ref.kind, {}).get(ref.key)
        if copy is None or not copy.fits(item):
            return None
        try:
            return Manifest.from_bytes(copy.raw, ref.kind, ref.key)
        except DamagedManifestError:
            return None

    def _clock(self) -> float | None:
        """Return the time by the store's own clock; None where it has none, or nothing can be written."""
        try:
            return store_clock(self._files)
        except StoreError:
            return None

    def _keep(self, fresh: Found, listed: Listed, clock: float) -> None:
        """Copy manifests that were read after `clock` into the indexes of their kinds; drop copies of what is gone."""
        copies: dict[str, dict[str, Copy]] = {}
        for ref, manifest in fresh.items():
            item = listed[ref]
            if item.modified is not None and item.modified <= clock - MARGIN_SECONDS:
                copies.setdefault(ref.kind, {})[ref.key] = Copy(item.modified, manifest.to_bytes())
        for kind, own in copies.items():
            known = self._copies.get(kind, {})
            held = {key: copy for key, copy in known.items() if StageRef(kind, key) in listed}
            self._copies[kind] = {**held, **own}
            # A store that cannot be written now can be read all the same.
            with suppress(StoreError):
                self._files.put(_path(kind), pack(self._copies[kind]))


def pack(copies: Mapping[str, Copy]) -> bytes:
    """Return the content of an index file."""
    rows = {key: [copy.modified, copy.raw.decode()] for key, copy in copies.items()}
    return zlib.compress(canonical_json({"schema": _SCHEMA, "manifests": rows}), level=1)


def unpack(data: bytes) -> dict[str, Copy]:
    """Return the copies that an index file holds; each manifest has a checksum of its own.

    Raises:
        ValueError: damaged, or of another schema.
    """
    try:
        document = json.loads(_inflate(data))
        if document["schema"] != _SCHEMA:
            raise ValueError(f"an index of schema {document['schema']!r}")
        rows = document["manifests"].items()
        return {key: Copy(float(modified), text.encode()) for key, (modified, text) in rows if is_key(key)}
    except (zlib.error, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an index: {error}") from error


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    raw = inflater.decompress(data, _LARGEST)
    if not inflater.eof:
        raise zlib.error(f"cut off, or more than {_LARGEST:,} bytes")
    return raw


def _path(kind: str) -> str:
    return f"index/{kind}"
