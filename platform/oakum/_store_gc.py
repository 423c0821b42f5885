"""Maintenance: check every byte of a store, and remove what nothing needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from oakum._store_documents import DamagedDocumentError, open_document
from oakum._store_files import Files, Item, measure, read_bytes, store_clock
from oakum._store_manifest import DamagedManifestError, Manifest, manifest_path, payload_folder, read_manifest
from oakum._store_names import TEMPORARY, StoreError, is_key, is_kind
from oakum._store_work import work_folder
from oakum.records import StageRef

# Documents that keep what they name: plans, pins, registered models, events that are still to be delivered, searches.
ROOT_FOLDERS = ("plans", "pins", "models", "outbox", "searches")
_OBJECT = re.compile(r"objects/(?P<key>[0-9a-f]{64})/(?P<attempt>[0-9a-f]{16})/.+")
_WORK = re.compile(r"work/(?P<key>[0-9a-f]{64})/.+")
_MANIFEST = re.compile(r"manifests/(?P<kind>[^/]+)/(?P<key>[0-9a-f]{64})\.json")


@dataclass(frozen=True)
class Problem:
    """Something wrong with an entry: the file inside it (`manifest` for the manifest itself) and why."""

    kind: str
    key: str
    name: str
    why: str


@dataclass(frozen=True)
class GcReport:
    """What a collection removed, or would remove in a dry run.

    Attributes:
        dry_run: nothing was removed.
        entries: published entries that no plan, pin, model or event leads to.
        orphans: `<key>/<attempt>` of payloads without a manifest.
        work: keys whose unfinished work goes: they are published, or nothing leads to them.
        temporaries: temporary files that a killed process left.
        bytes: size of all that.
        kept: number of entries that stay.
        usage: bytes by stage kind of the entries that stay.
    """

    dry_run: bool
    entries: tuple[StageRef, ...]
    orphans: tuple[str, ...]
    work: tuple[str, ...]
    temporaries: int
    bytes: int
    kept: int
    usage: dict[str, int]


def manifest_items(files: Files, kind: str | None = None) -> list[tuple[str, str, Item]]:
    """Return (kind, key, item) of every manifest, from one listing, in a fixed order."""
    items = files.listing("manifests" if kind is None else f"manifests/{kind}")
    found = [(match["kind"], match["key"], item) for item in items if (match := _MANIFEST.fullmatch(item.path))]
    return sorted(found, key=lambda entry: entry[:2])


def usage_by_kind(manifests: Iterable[Manifest]) -> dict[str, int]:
    """Return the bytes of the entries' files by stage kind."""
    usage: Counter[str] = Counter()
    for manifest in manifests:
        usage[manifest.kind] += payload_bytes(manifest)
    return dict(sorted(usage.items()))


def payload_bytes(manifest: Manifest) -> int:
    """Return the size of an entry's files."""
    return sum(fact["bytes"] for fact in manifest.files.values())


def find_problems(files: Files, kind: str | None, key: str | None) -> list[Problem]:
    """Read every byte of the chosen entries and return what is wrong; changes nothing.

    An entry that was made from other bytes of an input than the store holds is a problem too.
    """
    problems: list[Problem] = []
    current: dict[tuple[str, str], Manifest] = {}
    for found_kind, found_key, _ in manifest_items(files, kind):
        if key is not None and found_key != key:
            continue
        try:
            manifest = read_manifest(files, found_kind, found_key)
        except DamagedManifestError as error:
            problems.append(Problem(found_kind, found_key, "manifest", str(error)))
        except FileNotFoundError:
            continue
        else:
            current[found_kind, found_key] = manifest
            problems += _payload_problems(files, manifest)
    for manifest in current.values():
        problems += _stale_inputs(files, manifest, current)
    return problems


def collect_garbage(files: Files, *, dry_run: bool, min_age_seconds: float) -> GcReport:
    """Remove what nothing leads to and what is older than `min_age_seconds` by the store's own clock.

    Listings go from payloads to manifests to roots, the reverse of the order in which a run writes them, so that
    whatever is published meanwhile is either seen whole or not at all. Manifests go before payloads.

    Raises:
        StoreError: the store cannot be read or written, or a root document is damaged (what it keeps is unknown).
    """
    objects, work = files.listing("objects"), files.listing("work")
    items = {(kind, key): item for kind, key, item in manifest_items(files)}
    manifests = {place: manifest for place in items if (manifest := _intact(files, *place)) is not None}
    reachable = _reachable(_roots(files), manifests)
    ages = _Ages(store_clock(files), min_age_seconds)

    unreachable = [m for place, m in manifests.items() if place not in reachable and ages.is_old([items[place]])]
    committed = {(manifest.key, manifest.attempt) for manifest in manifests.values()}
    needed = {key for _, key in reachable} - {key for _, key in manifests}
    orphans = _grouped(objects, _OBJECT, "key", "attempt")
    idle = _grouped(work, _WORK, "key")
    garbage = _Garbage(
        entries=unreachable,
        orphans={place: group for place, group in orphans.items() if place not in committed and ages.is_old(group)},
        work={key: group for (key,), group in idle.items() if key not in needed and ages.is_old(group)},
        temporaries=[item for item in _temporaries(files) if ages.is_old([item])],
    )
    if not dry_run:
        garbage.remove(files)
    gone = {(manifest.kind, manifest.key) for manifest in unreachable}
    return garbage.report(dry_run, [manifest for place, manifest in manifests.items() if place not in gone])


@dataclass(frozen=True)
class _Garbage:
    entries: list[Manifest]
    orphans: dict[tuple[str, ...], list[Item]]
    work: dict[str, list[Item]]
    temporaries: list[Item]

    def remove(self, files: Files) -> None:
        for manifest in self.entries:
            files.delete(manifest_path(manifest.kind, manifest.key))
            files.delete_tree(payload_folder(manifest.key, manifest.attempt))
        for key, attempt in self.orphans:
            files.delete_tree(payload_folder(key, attempt))
        for key in self.work:
            files.delete_tree(work_folder(key))
        for item in self.temporaries:
            files.delete(item.path)

    def report(self, dry_run: bool, kept: list[Manifest]) -> GcReport:
        loose = [item for group in (*self.orphans.values(), *self.work.values(), self.temporaries) for item in group]
        return GcReport(
            dry_run=dry_run,
            entries=tuple(StageRef(manifest.kind, manifest.key) for manifest in self.entries),
            orphans=tuple(sorted("/".join(place) for place in self.orphans)),
            work=tuple(sorted(self.work)),
            temporaries=len(self.temporaries),
            bytes=sum(item.bytes for item in loose) + sum(payload_bytes(manifest) for manifest in self.entries),
            kept=len(kept),
            usage=usage_by_kind(kept),
        )


@dataclass(frozen=True)
class _Ages:
    """Decides whether files are old enough by the store's clock; without times nothing is."""

    clock: float | None
    min_age_seconds: float

    def is_old(self, items: list[Item]) -> bool:
        newest = max((item.modified if item.modified is not None else float("inf") for item in items), default=0.0)
        return self.clock is not None and self.clock - newest >= self.min_age_seconds


def _payload_problems(files: Files, manifest: Manifest) -> Iterator[Problem]:
    for name, fact in sorted(manifest.files.items()):
        try:
            found = measure(files, manifest.object_path(name))
        except FileNotFoundError:
            yield Problem(manifest.kind, manifest.key, name, "it is missing")
            continue
        except StoreError as error:
            yield Problem(manifest.kind, manifest.key, name, str(error))
            continue
        if found.bytes != fact["bytes"]:
            yield Problem(manifest.kind, manifest.key, name, f"{found.bytes:,} bytes instead of {fact['bytes']:,}")
        elif found.sha256 != fact["sha256"]:
            yield Problem(manifest.kind, manifest.key, name, "its SHA-256 does not fit")


def _stale_inputs(files: Files, manifest: Manifest, current: dict[tuple[str, str], Manifest]) -> Iterator[Problem]:
    for name, place, content in _inputs(manifest):
        held = current.get(place) or _intact(files, *place)
        if held is not None and content and held.content != content:
            why = f"made from other bytes of its input {name} ({place[0]}/{place[1]}) than the store holds: stale"
            yield Problem(manifest.kind, manifest.key, "manifest", why)


def _inputs(manifest: Manifest) -> Iterator[tuple[str, tuple[str, str], str]]:
    """Yield (input name, (kind, key), content) of a manifest's inputs that are stages."""
    inputs = manifest.provenance.get("inputs")
    for name, value in inputs.items() if isinstance(inputs, dict) else ():
        for ref in _stage_refs(value):
            yield name, ref, str(value.get("content", "")) if isinstance(value, dict) else ""


def _temporaries(files: Files) -> list[Item]:
    """Return temporary files; those of processes that are at work are young."""
    folders = ("manifests", "documents", "damaged", "work")
    items = [item for folder in folders for item in files.listing(folder)]
    return [item for item in items if TEMPORARY.fullmatch(item.path.rpartition("/")[2])]


def _intact(files: Files, kind: str, key: str) -> Manifest | None:
    try:
        return read_manifest(files, kind, key)
    except (FileNotFoundError, DamagedManifestError):
        return None


def _roots(files: Files) -> set[tuple[str, str]]:
    roots: set[tuple[str, str]] = set()
    for folder in ROOT_FOLDERS:
        for item in files.listing(f"documents/{folder}"):
            if TEMPORARY.fullmatch(item.path.rpartition("/")[2]):
                continue
            try:
                roots.update(_stage_refs(open_document(item.path, read_bytes(files, item.path))))
            except FileNotFoundError:
                continue
            except DamagedDocumentError as error:
                raise StoreError(
                    f"{files.place(item.path)} is damaged ({error}), so what it keeps is unknown: remove that file, "
                    "run the experiment again to write its plan anew, then collect"
                ) from error
    return roots


def _stage_refs(data: Any) -> Iterator[tuple[str, str]]:
    """Yield every {"kind", "key"} in plain data, at any depth."""
    if isinstance(data, dict):
        kind, key = data.get("kind"), data.get("key")
        if isinstance(kind, str) and isinstance(key, str) and is_kind(kind) and is_key(key):
            yield kind, key
        for value in data.values():
            yield from _stage_refs(value)
    elif isinstance(data, list):
        for value in data:
            yield from _stage_refs(value)


def _reachable(roots: set[tuple[str, str]], manifests: dict[tuple[str, str], Manifest]) -> set[tuple[str, str]]:
    reachable: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        place = waiting.pop()
        if place in reachable:
            continue
        reachable.add(place)
        if place in manifests:
            waiting += [ref for _, ref, _ in _inputs(manifests[place])]
    return reachable


def _grouped(items: list[Item], pattern: re.Pattern[str], *fields: str) -> dict[tuple[str, ...], list[Item]]:
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        if match := pattern.fullmatch(item.path):
            groups.setdefault(tuple(match[field] for field in fields), []).append(item)
    return groups
