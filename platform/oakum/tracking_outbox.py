"""What a run tells the tracking server: events that wait in the store until they are delivered, and their ledger.

An event is deterministic: the same run, owner and stage give the same id, so that a retried stage or a resumed run
writes the same document again. The ledger of a destination lists the ids that arrived there. MLflow is not imported.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from oakum.records import CellRecord, RunRecord, SharedRecord, StageRef, canonical_json, sha256_hex
from oakum.store import Manifest, Store

SCHEMA = 1
EventType = Literal["open", "stage", "finish"]
# Documents are delivered in the order of their names: a run is opened, then filled, then finished.
_RANK: dict[EventType, int] = {"open": 1, "stage": 2, "finish": 3}
_SECONDS_OF_START = 2.0


@dataclass(frozen=True)
class RunHeader:
    """What is known of a run before anything ran; the fields are those of `RunRecord`."""

    name: str
    description: str
    run_key: str
    plan_key: str
    config: dict[str, Any]
    data: dict[str, Any]
    code: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.run_key.isalnum():
            raise ValueError(f"run_key {self.run_key!r} is not a hash")

    @classmethod
    def of(cls, record: RunRecord) -> RunHeader:
        return cls(
            record.name, record.description, record.run_key, record.plan_key, record.config, record.data, record.code
        )


@dataclass(frozen=True)
class CellHeader:
    """Names a cell: one defense setting under one seed."""

    setting: str
    seed: int
    defense: str
    parameters: dict[str, Any]

    level: Literal["cell"] = field(default="cell", init=False)

    @property
    def owner(self) -> str:
        return f"{self.setting}|{self.seed}"

    @classmethod
    def of(cls, cell: CellRecord) -> CellHeader:
        return cls(cell.setting, cell.seed, cell.defense, cell.parameters)


@dataclass(frozen=True)
class SharedHeader:
    """Names a stage that all cells share: a prior, an evaluation model, a pool of shadow models."""

    role: str
    parameters: dict[str, Any]

    level: Literal["shared"] = field(default="shared", init=False)

    @property
    def owner(self) -> str:
        return self.role

    @classmethod
    def of(cls, shared: SharedRecord) -> SharedHeader:
        return cls(shared.role, shared.parameters)


Owner = CellHeader | SharedHeader


@dataclass(frozen=True)
class Event:
    """One thing to deliver.

    Attributes:
        type: `open`, `stage` or `finish`.
        run: {name, run_key, plan_key, data (name), public}.
        body: what the type needs, plain JSON; a stage's is {owner, role, stage: {kind, key}}.
        id: 32 hex digits that depend on what happened, not on when or where.
        driver: the process that reported it (`this_driver`).
        created: Unix time of the report.
    """

    type: EventType
    run: dict[str, Any]
    body: dict[str, Any]
    id: str
    driver: str
    created: float
    schema: int = SCHEMA

    @property
    def run_key(self) -> str:
        key: str = self.run["run_key"]
        return key

    @property
    def name(self) -> str:
        """The document's name in the store."""
        return f"outbox/{self.run_key}/{_RANK[self.type]}-{self.id}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Event:
        """Restore an event from its document.

        Raises:
            ValueError: it was written by another schema, or is no event.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"tracking event of schema {data.get('schema')!r}; this oakum delivers schema {SCHEMA}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not a tracking event: {error}") from error


def open_event(header: RunHeader) -> Event:
    """Return the event that a driver begins or resumes a plan."""
    body = {"header": asdict(header)}
    return _event("open", header, body, [header.plan_key])


def stage_event(header: RunHeader, owner: Owner, role: str, stage: StageRef) -> Event:
    """Return the event that a stage of a cell, or a shared stage, is published under `stage.key`."""
    body = {"owner": asdict(owner), "role": role, "stage": asdict(stage)}
    return _event("stage", header, body, [owner.level, owner.owner, role, stage.kind, stage.key])


def finish_event(record: RunRecord, artifacts: Iterable[Path]) -> Event:
    """Return the event that a plan is complete. Its id ignores what differs from one execution to the next."""
    plain = record.to_json()
    lasting = {name: plain[name] for name in ("description", "config", "data", "chance", "cells", "shared")}
    body = {"record": plain, "artifacts": [str(path.absolute()) for path in artifacts]}
    return _event("finish", RunHeader.of(record), body, [record.plan_key, lasting])


def stage_events(record: RunRecord) -> list[Event]:
    """Return the stage events of everything that a record names."""
    header = RunHeader.of(record)
    owned: list[tuple[Owner, str, StageRef]] = [
        (CellHeader.of(cell), role, stage) for cell in record.cells for role, stage in sorted(cell.stages.items())
    ]
    owned += [(SharedHeader.of(shared), shared.role, shared.stage) for shared in record.shared]
    return [stage_event(header, owner, role, stage) for owner, role, stage in owned]


def stage_ref(manifest: Manifest) -> StageRef:
    return StageRef(manifest.kind, manifest.key)


def _event(type_: EventType, header: RunHeader, body: dict[str, Any], identity: list[Any]) -> Event:
    run = {
        "name": header.name,
        "run_key": header.run_key,
        "plan_key": header.plan_key,
        "data": str(header.data.get("name", "data")),
        # Whoever leaves the word out keeps the data private.
        "public": header.data.get("public") is True,
    }
    digest = sha256_hex(canonical_json([type_, header.run_key, *identity]))
    return Event(type_, run, body, digest[:32], this_driver(), time.time())


class Outbox:
    """The events in the store that were not delivered yet."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, event: Event) -> None:
        """Keep an event until it is removed; raises StoreError when the store cannot take it."""
        self._store.put_document(event.name, asdict(event))

    def names(self) -> list[str]:
        """Return the names of all waiting events, in the order of delivery inside each run."""
        return self._store.list_documents("outbox")

    def get(self, name: str) -> Event | None:
        """Return an event, or None when somebody else delivered it meanwhile.

        Raises:
            ValueError: written by another schema.
            StoreError: unreadable.
        """
        document = self._store.get_document(name)
        return None if document is None else Event.from_json(document)

    def remove(self, name: str) -> None:
        self._store.delete_document(name)


class Ledger:
    """What arrived at one destination, as one document a run. Safe to use from several threads."""

    def __init__(self, store: Store, destination: str) -> None:
        """`destination` identifies a server or one database file; equal strings share the ledger."""
        self._store = store
        self._folder = f"delivered/{sha256_hex(destination.encode())[:16]}"
        self._known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def has(self, event: Event) -> bool:
        """Tell whether an event arrived; raises StoreError."""
        with self._lock:
            return event.id in self._of(event.run_key)["events"]

    def is_finished(self, run_key: str, plan_key: str) -> bool:
        """Tell whether a plan was delivered to its end; raises StoreError."""
        with self._lock:
            return plan_key in self._of(run_key)["finished"]

    def refresh(self, run_key: str) -> None:
        """Read a run's document again at the next question: other processes write it, too."""
        with self._lock:
            self._known.pop(run_key, None)

    def add(self, event: Event) -> None:
        """Note that an event arrived. The caller holds the lock of deliveries, so that no other process writes."""
        with self._lock:
            self._known.pop(event.run_key, None)
            document = self._of(event.run_key)
            events = sorted({*document["events"], event.id})
            finished = {*document["finished"], *([event.run["plan_key"]] if event.type == "finish" else [])}
            document = {"schema": SCHEMA, "events": events, "finished": sorted(finished)}
            self._store.put_document(f"{self._folder}/{event.run_key}", document)
            self._known[event.run_key] = document

    def _of(self, run_key: str) -> dict[str, Any]:
        if run_key not in self._known:
            found = self._store.get_document(f"{self._folder}/{run_key}")
            usable = found is not None and found.get("schema") == SCHEMA
            self._known[run_key] = found if usable and found is not None else {"events": [], "finished": []}
        return self._known[run_key]


def this_driver() -> str:
    """Return `<host>/<pid>/<start of the process>`: who to ask whether a run is still being worked on."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(psutil.Process()):.0f}"


def _started(process: psutil.Process) -> float:
    """Return when a process started; on Linux in seconds since boot, which setting the clock does not change."""
    return float(process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0))


def is_dead(driver: str) -> bool:
    """Tell whether a driver certainly ended. A driver on another machine is not known to have."""
    host, pid, start = (["", "", "", *driver.rsplit("/", 2)])[-3:]
    if host != socket.gethostname() or not pid.isdigit() or not start.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        is_other = abs(_started(process) - float(start)) > _SECONDS_OF_START
        return is_other or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
