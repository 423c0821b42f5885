"""The commands `oakum weights ...`: the folder of published weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from oakum import registry, weights
from oakum.session_home import Home


def _folder() -> Path:
    return weights.weights_folder(Home.of_environment().data)


def list_all(*, as_json: bool) -> int:
    """Print the extractors and whether their weights are there, then all other weights in the folder."""
    found = {entry.name: entry for entry in weights.list_weights(_folder())}
    extractors = registry.available("extractors")
    rows: list[dict[str, Any]] = []
    for name in [*extractors, *sorted(set(found) - set(extractors))]:
        entry = found.get(name)
        facts = entry.file.facts if entry is not None and entry.file is not None else None
        problem = entry.problem if entry is not None else ""
        rows.append({"name": name, "extractor": name in extractors, "facts": facts, "problem": problem})
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2, allow_nan=False) + "\n")
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        sys.stdout.write(f"{row['name']:<{width}}  {_state(row)}\n")
    return 0


def _state(row: dict[str, Any]) -> str:
    facts = row["facts"]
    if facts is not None:
        return f"{facts['bytes']:,} bytes, SHA-256 {facts['sha256'][:16]}, from {facts['origin']}"
    return str(row["problem"]) or f"oakum weights prepare {row['name']}"


def prepare(name: str, source: Path | None, *, force: bool) -> int:
    """Get the weights of an extractor.

    Raises:
        ConfigError: no such extractor, no source, or other bytes than the published ones.
    """

    def show(text: str, fraction: float | None) -> None:
        sys.stderr.write(f"{text}\n" if fraction is None else f"{text} {fraction:.0%}\n")

    file = weights.prepare(_folder(), name, source, force, progress=show)
    sys.stdout.write(f"{file.name}: {file.facts['bytes']:,} bytes, SHA-256 {file.sha256}, {file.facts['origin']}\n")
    sys.stdout.write(f"{file.facts['license_note']}\n")
    return 0


def verify(name: str) -> int:
    """Read weights and check their checksum.

    Raises:
        ConfigError: not there, or damaged.
    """
    file = weights.verify(_folder(), name)
    sys.stdout.write(f"{file.name}: {file.facts['bytes']:,} bytes are as they were written (SHA-256 {file.sha256})\n")
    return 0
