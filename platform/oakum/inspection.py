"""Looking into the store: the commands `oakum store ...` and `oakum why`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from oakum.config import ConfigError
from oakum.session_home import Home
from oakum.store import Manifest, Store


def _open() -> Store:
    return Store.open(Home.of_environment().store_uri)


def _printable(label: str) -> str:
    """Return a label that a terminal shows and does not obey; the store may be another's."""
    return label if label.isprintable() else ascii(label)


def list_entries(kind: str | None, *, as_json: bool) -> int:
    """Print one line for each stored stage, the oldest first."""
    entries = [entry for entry in _open().entries() if kind is None or entry.kind == kind]
    entries.sort(key=lambda entry: (entry.created, entry.key))
    if as_json:
        rows = [
            {"kind": e.kind, "key": e.key, "label": e.label, "created": e.created, "bytes": _size(e)} for e in entries
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created))
        sys.stdout.write(
            f"{entry.key[:12]}  {entry.kind:<10}  {when}  {_size(entry):>10,}  {_printable(entry.label)}\n"
        )
    sys.stdout.write(f"{len(entries)} entries, {sum(map(_size, entries)):,} bytes\n")
    return 0


def show_entry(key: str) -> int:
    """Print a manifest as JSON.

    Raises:
        ConfigError: no entry, or several, whose key begins so.
    """
    entry = _find(_open(), key)
    sys.stdout.write(json.dumps(asdict(entry), indent=2, sort_keys=True) + "\n")
    return 0


def verify_entries(kind: str | None) -> int:
    """Check every stored byte; prints the problems and returns 3 if there is one."""
    store = _open()
    problems = store.verify(kind)
    for problem in problems:
        sys.stdout.write(f"{problem.kind} {problem.key[:12]} {problem.name}: {problem.why}\n")
    checked = sum(1 for entry in store.entries() if kind is None or entry.kind == kind)
    sys.stdout.write(f"{checked} entries checked, {len(problems)} problems\n")
    if problems:
        sys.stdout.write("a run that reads a damaged entry sets it aside and computes it again\n")
    return 3 if problems else 0


def collect_garbage(*, delete: bool, min_age_hours: float, as_json: bool) -> int:
    """Print what a collection removes (or would remove), and remove it when asked to."""
    report = _open().gc(dry_run=not delete, min_age_seconds=3600 * min_age_hours)
    if as_json:
        sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
        return 0
    verb = "removed" if delete else "would remove"
    sys.stdout.write(
        f"{verb} {len(report.entries)} entries, {len(report.orphans)} payloads without a manifest "
        f"and the unfinished work of {len(report.work)} stages: {report.bytes:,} bytes; {report.kept} entries stay\n"
    )
    for kind, size in sorted(report.usage.items()):
        sys.stdout.write(f"  {kind:<10} {size:>14,} bytes stay\n")
    if not delete:
        sys.stdout.write("nothing was removed; add --delete to do it\n")
    return 0


def explain_key(key: str) -> int:
    """Print which parts of an entry's key differ from the stored entry of its kind that is most like it.

    The same stage of an earlier run (one with the same label) comes before others.

    Raises:
        ConfigError: no entry, or several, whose key begins so.
    """
    store = _open()
    entry = _find(store, key)
    own = flatten(entry.key_document)
    relatives = [other for other in store.entries() if other.kind == entry.kind and other.key != entry.key]
    sys.stdout.write(f"{entry.kind} {entry.key[:12]}  {entry.label}\n")
    if not relatives:
        sys.stdout.write("no other entry of this kind is stored\n")
        return 0
    nearest = min(relatives, key=lambda other: _distance(entry, other))
    sys.stdout.write(f"nearest: {nearest.key[:12]}  {nearest.label}\n")
    for path, (mine, other) in _differences(own, flatten(nearest.key_document)).items():
        sys.stdout.write(f"  {path}: {_short(mine)} here, {_short(other)} there{_meaning(path)}\n")
    return 0


def flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Return {dotted path: leaf} of nested mappings; lists are leaves."""
    if not isinstance(data, dict):
        return {path: data}
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat.update(flatten(value, f"{path}.{name}" if path else str(name)))
    return flat


def _distance(entry: Manifest, other: Manifest) -> tuple[bool, int, float]:
    differences = _differences(flatten(entry.key_document), flatten(other.key_document))
    return other.label != entry.label, len(differences), -other.created


def _differences(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    paths = sorted({*mine, *other})
    return {path: (mine.get(path), other.get(path)) for path in paths if mine.get(path) != other.get(path)}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:14]}..." if isinstance(value, str) and len(value) == 64 else text


def _meaning(path: str) -> str:
    if path == "code":
        return " (the method's code changed)"
    if path.startswith("inputs."):
        return " (another input: ask `oakum why` about it)"
    if path.startswith("folds."):
        return " (other samples)"
    return ""


def _find(store: Store, key: str) -> Manifest:
    found = [entry for entry in store.entries() if entry.key.startswith(key.lower())]
    if not found:
        raise ConfigError(f"no stored stage has a key that begins with {key!r} (`oakum store ls` shows them)")
    if len(found) > 1:
        shown = ", ".join(entry.key[:16] for entry in found[:5])
        raise ConfigError(f"{len(found)} stored stages begin with {key!r}: {shown}; write more of the key")
    return found[0]


def _size(entry: Manifest) -> int:
    return sum(int(file["bytes"]) for file in entry.files.values())
