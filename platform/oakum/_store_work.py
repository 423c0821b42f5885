"""Unfinished work: checkpoints of a stage that is not published yet."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from oakum._store_files import FileFact, Files, read_bytes
from oakum._store_manifest import payload_names
from oakum._store_names import StoreError, check_key, check_name, new_token
from oakum._store_scratch import Scratch, copy_out
from oakum.faults import fault_point
from oakum.records import canonical_json, sha256_hex

_MARKER = re.compile(r"work/[0-9a-f]{64}/[0-9a-f]{16}/(?P<step>\d{12})-[0-9a-f]{16}\.json")
_KEPT = 2


def work_folder(key: str) -> str:
    """Return the folder of a key's unfinished work inside the store."""
    return f"work/{check_key(key)}"


class WorkFolder:
    """The checkpoints of one key, written by this attempt and read from all.

    A checkpoint is a folder of files and, written after them, a marker with their checksums: without a whole marker it
    does not exist. Two processes may hold one key, each writes below its own attempt. Not for two threads at once.
    """

    def __init__(self, files: Files, scratch: Scratch, key: str) -> None:
        """Open the work of `key`; nothing is written yet."""
        self._files = files
        self._scratch = scratch
        self._folder = work_folder(key)
        self._attempt = new_token()
        self._saved: list[tuple[int, str]] = []
        self._copies: list[Path] = []

    def save(self, step: int, folder: Path) -> None:
        """Keep a copy of the files in `folder` as the state after `step`; keep this attempt's two newest.

        Once this attempt has two, what other attempts left at earlier steps goes. Saving a step again replaces it.

        Raises:
            ValueError: a negative step, or a folder that cannot be kept (as in `Store.publish`).
            StoreError: full disk and the like; earlier checkpoints are as before.
        """
        if not 0 <= step < 10**12:
            raise ValueError(f"a step is a whole number from 0 to 10^12 - 1, not {step}")
        place = f"{self._folder}/{self._attempt}/{step:012d}-{new_token()}"
        try:
            facts = {name: asdict(self._files.add(f"{place}/{name}", folder / name)) for name in payload_names(folder)}
        except StoreError:
            with suppress(StoreError):
                self._files.delete_tree(place)
            raise
        fault_point("store.after_work_payload")
        document = {"step": step, "files": facts}
        marker = canonical_json({**document, "check": sha256_hex(canonical_json(document))})
        self._files.put(f"{place}.json", marker)
        fault_point("store.after_work_marker")
        self._drop_older(step, place)

    def latest(self) -> tuple[int, Path] | None:
        """Return the highest whole step of any attempt and a verified copy of its files, or None.

        The copy is in this machine's scratch folder and the caller's to change; `clear` removes it. A damaged
        checkpoint is skipped for the one before it.

        Raises:
            StoreError: the store cannot be read, or scratch cannot be written.
        """
        for _ in range(3):
            markers = self._markers()
            for step, path in markers:
                copy = self._copy(step, path)
                if copy is not None:
                    return step, copy
            # Another attempt may have dropped what this listing held, and saved later steps.
            if markers == self._markers():
                return None
        return None

    def clear(self) -> None:
        """Remove every checkpoint of this key, other attempts' included, and this attempt's scratch copies.

        Raises:
            StoreError: the store cannot be written.
        """
        for copy in self._copies:
            shutil.rmtree(copy, ignore_errors=True)
        self._copies.clear()
        self._saved.clear()
        self._files.delete_tree(self._folder)

    def _markers(self) -> list[tuple[int, str]]:
        """Return (step, path) of every marker, highest step first."""
        found = [(match, item) for item in self._files.listing(self._folder) if (match := _MARKER.fullmatch(item.path))]
        found.sort(key=lambda pair: (int(pair[0]["step"]), pair[1].modified or 0.0), reverse=True)
        return [(int(match["step"]), item.path) for match, item in found]

    def _copy(self, step: int, marker: str) -> Path | None:
        """Return a verified scratch copy of a checkpoint, or None when it is damaged or gone."""
        try:
            facts = _read_marker(read_bytes(self._files, marker), step)
        except (FileNotFoundError, ValueError):
            return None
        target = self._scratch.new_path()
        target.mkdir()
        try:
            whole = all(
                copy_out(self._files, f"{marker.removesuffix('.json')}/{name}", target / name) == fact
                for name, fact in facts.items()
            )
        except FileNotFoundError:
            whole = False
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        if not whole:
            shutil.rmtree(target, ignore_errors=True)
            return None
        self._copies.append(target)
        return target

    def _drop_older(self, step: int, place: str) -> None:
        own = [*self._saved, (step, place)]
        self._saved = sorted([*(entry for entry in self._saved if entry[0] != step), (step, place)])[-_KEPT:]
        dropped = {path for _, path in own} - {path for _, path in self._saved}
        if len(self._saved) == _KEPT:
            lowest = self._saved[0][0]
            dropped |= {path.removesuffix(".json") for found, path in self._markers() if found < lowest}
        for path in sorted(dropped):
            self._files.delete(f"{path}.json")
            self._files.delete_tree(path)


def _read_marker(raw: bytes, step: int) -> dict[str, FileFact]:
    """Return the files of a marker.

    Raises:
        ValueError: it is damaged.
    """
    try:
        document = json.loads(raw)
        check = document.pop("check", None)
        if check != sha256_hex(canonical_json(document)) or document.get("step") != step:
            raise ValueError("its checksum does not fit")
        return {check_name(name): FileFact(**fact) for name, fact in document["files"].items()}
    except (TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"not the JSON of a marker: {error}") from error
