"""The manifest of a published entry: the one small file that commits it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oakum._store_files import FileFact, Files, read_bytes
from oakum._store_names import TOKEN, StoreError, check_name, explain, is_key, shown
from oakum.records import canonical_json, sha256_hex

HISTORY_FILE = "history.json"
SCHEMA = 1


class DamagedManifestError(ValueError):
    """The bytes are not a whole manifest of the entry whose place they take."""


@dataclass(frozen=True)
class Manifest:
    """What a published entry holds and where it comes from.

    Attributes:
        schema: of the store.
        kind, key: the stage.
        attempt: 16 hex digits; the payload lies under `objects/<key>/<attempt>/`.
        created: Unix time by the writer's clock, for people only.
        key_document: the data whose canonical JSON was hashed to `key`.
        label: a short text for people.
        summary: small results as JSON.
        files: file name -> {"bytes": int, "sha256": str}.
        provenance: fingerprint, commit, versions, device, seconds, and
            inputs: {input name: {"kind", "key", "content"}}.
    """

    schema: int
    kind: str
    key: str
    attempt: str
    created: float
    key_document: dict[str, Any]
    label: str
    summary: dict[str, Any]
    files: dict[str, dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def content(self) -> str:
        """SHA-256 over the names and hashes of the files: equal for entries with equal bytes.

        `history.json` does not count: it holds wall times, which no execution repeats, and no stage reads it.
        """
        counted = {name: fact["sha256"] for name, fact in self.files.items() if name != HISTORY_FILE}
        return sha256_hex(canonical_json(counted))

    def object_path(self, name: str) -> str:
        """Return the path of a file of this entry inside the store.

        Raises:
            KeyError: the entry has no such file.
        """
        if name not in self.files:
            held = ", ".join(sorted(self.files)) or "no files"
            raise KeyError(f"{self.kind}/{self.key} has no file {shown(name)} (it has {held})")
        return f"{payload_folder(self.key, self.attempt)}/{name}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` restores an equal manifest."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Restore a manifest from `to_json`'s data. Tuples become lists and keys text, as in any JSON.

        Raises:
            ValueError: the data is no JSON (NaN included), misses a field, or names a file outside its entry.
        """
        try:
            plain = json.loads(canonical_json(data))
        except (TypeError, ValueError) as error:
            raise ValueError(f"not the JSON of a manifest: {error}") from error
        return cls._from_plain(plain)

    @classmethod
    def _from_plain(cls, data: dict[str, Any]) -> Manifest:
        """Restore a manifest from data that comes from JSON and is the manifest's to keep; raises as `from_json`."""
        try:
            manifest = cls(**data)
            _check_types(manifest)
            facts = {name: FileFact(**fact) for name, fact in manifest.files.items()}
            is_ours = TOKEN.fullmatch(manifest.attempt) and all(fact.bytes >= 0 for fact in facts.values())
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"not the JSON of a manifest: {error}") from error
        if not is_ours:
            raise ValueError("not a manifest that oakum writes")
        for name in facts:
            check_name(name)
        return manifest

    def to_bytes(self) -> bytes:
        """Return the file's content: JSON with a checksum of its own."""
        data = self.to_json()
        return canonical_json({**data, "check": sha256_hex(canonical_json(data))}) + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes, kind: str, key: str) -> Manifest:
        """Read the manifest that lies at the place of `kind` and `key`.

        Raises:
            DamagedManifestError: cut, changed, or of another entry.
            StoreError: written by a later oakum.
        """
        data = _checked_json(raw)
        schema = data.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise StoreError(
                f"{kind}/{key} was written by a later oakum (store schema {schema}, this one reads {SCHEMA}): "
                "upgrade oakum, or choose another store with OAKUM_HOME"
            )
        try:
            manifest = cls._from_plain(data)
        except ValueError as error:
            raise DamagedManifestError(str(error)) from error
        if (manifest.kind, manifest.key) != (kind, key):
            raise DamagedManifestError(f"it belongs to {shown(manifest.kind)}/{shown(manifest.key)}")
        return manifest


def _check_types(manifest: Manifest) -> None:
    """Raise TypeError where a field is not of the type that readers rely on."""
    mappings = (manifest.key_document, manifest.summary, manifest.files, manifest.provenance)
    texts = (manifest.kind, manifest.key, manifest.attempt, manifest.label)
    if not all(isinstance(each, dict) for each in mappings) or not all(isinstance(each, str) for each in texts):
        raise TypeError("a field has another type than oakum writes")
    if isinstance(manifest.created, bool) or not isinstance(manifest.created, int | float):
        raise TypeError("`created` is no time")
    for fact in manifest.files.values():
        # Copies on this machine are called by the hash.
        if not isinstance(fact["bytes"], int) or not isinstance(fact["sha256"], str) or not is_key(fact["sha256"]):
            raise TypeError("the size or the hash of a file has another form than oakum writes")


def manifest_path(kind: str, key: str) -> str:
    """Return the path of a manifest inside the store."""
    return f"manifests/{kind}/{key}.json"


def payload_folder(key: str, attempt: str) -> str:
    """Return the folder of an attempt's files inside the store."""
    return f"objects/{key}/{attempt}"


def read_manifest(files: Files, kind: str, key: str) -> Manifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: there is none.
        DamagedManifestError: it is damaged.
        StoreError: it cannot be read, or is a later oakum's.
    """
    return Manifest.from_bytes(read_bytes(files, manifest_path(kind, key)), kind, key)


def payload_names(folder: Path) -> list[str]:
    """Return the sorted relative names of the files in `folder` and below.

    Raises:
        ValueError: not a folder, or it holds a link or something that is no plain file.
        ConfigError: a name that a store cannot hold.
        StoreError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder to publish")
    try:
        return sorted(check_name(path.relative_to(folder).as_posix()) for path in _plain_files(folder))
    except OSError as error:
        raise explain(str(folder), error) from error


def _plain_files(folder: Path) -> Iterator[Path]:
    # Without `onerror` os.walk leaves out what it cannot list, and half an entry would be published.
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path} is a link or no plain file; only plain files can be published")
            if path.is_file():
                yield path


def _raise(error: OSError) -> None:
    raise error


def _checked_json(raw: bytes) -> dict[str, Any]:
    """Return the data without its checksum once that fits; a later schema may have other checks."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DamagedManifestError(f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise DamagedManifestError("it is not a JSON object")
    check = data.pop("check", None)
    later = isinstance(data.get("schema"), int) and data["schema"] > SCHEMA
    try:
        intact = check == sha256_hex(canonical_json(data))
    except (ValueError, RecursionError):
        intact = False
    if not intact and not later:
        raise DamagedManifestError("its checksum does not fit")
    return data
