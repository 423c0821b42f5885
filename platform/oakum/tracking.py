"""Tracking: what a run found goes to MLflow, and nothing of it is lost or doubled.

The driver puts events in an outbox in the store and goes on; one thread delivers them. What could not be delivered
(the server is away, the driver was killed) waits there for the next run or for `sync`. MLflow takes seconds to import:
only the thread does it, and only when there is something to deliver or its database is missing.

Names of MLflow's runs, their tags and how a repetition stays harmless: `tracking_runs.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from oakum.records import RunRecord
from oakum.store import Manifest, Store, StoreError
from oakum.tracking_delivery import Delivery, delivery_errors
from oakum.tracking_destination import Destination, UnreachableError, tracking_uri, ui_command, where_to_look
from oakum.tracking_outbox import (
    CellHeader,
    Event,
    Ledger,
    Outbox,
    Owner,
    RunHeader,
    SharedHeader,
    finish_event,
    open_event,
    stage_event,
    stage_events,
    stage_ref,
    this_driver,
)

__all__ = [
    "CellHeader",
    "Owner",
    "RunHeader",
    "SharedHeader",
    "Tracker",
    "TrackingStatus",
    "sync",
    "tracking_uri",
    "ui_command",
    "where_to_look",
]

_RETRY_SECONDS = 20.0
# At the end, a server that did not answer this recently is not asked again.
_FRESH_SECONDS = 5.0


@dataclass(frozen=True)
class TrackingStatus:
    """What became of the events.

    Attributes:
        delivered: how many arrived.
        pending: how many wait in the store's outbox.
        error: why they wait, or None.
    """

    delivered: int
    pending: int
    error: str | None = None

    @property
    def warning(self) -> str | None:
        """Return what to tell the user, or None when all is well."""
        if not self.pending and self.error is None:
            return None
        why = self.error or "out of time"
        if not self.pending:
            return f"MLflow tracking: {why}; run the experiment again to complete it there"
        later = "nothing is lost: the next `oakum run` delivers them, or `oakum sync`"
        return f"MLflow tracking: {self.pending} events wait in the store ({why}); {later}"


class Tracker:
    """The driver's line to MLflow. Its methods return at once and raise nothing but what a wrong call raises.

    Call `start` early, `open_run` when the plan is known, `stage_finished` as stages are published (stages that are
    not reported are made up for by `finish`), `finish` with the record, and `close` in any case.
    """

    def __init__(self, store: Store, home: Path, uri: str | None = None) -> None:
        """Prepare to deliver from `store` to `uri` (default: `tracking_uri(home)`); nothing is written yet."""
        self._store = store
        self._destination = Destination.of(home, uri)
        self._outbox = Outbox(store)
        identity = self._destination.identity()
        self._ledger = None if identity is None else Ledger(store, identity)
        self._writer = _Writer(store, self._destination)
        self._header: RunHeader | None = None
        self._put_ids: set[str] = set()
        self._error: str | None = None

    def start(self) -> None:
        """Begin in the thread: create a missing database, deliver what earlier runs left."""
        self._writer.start()

    def open_run(self, header: RunHeader) -> None:
        """Report that a plan begins or is resumed. A plan that was delivered to its end is left alone."""
        self._header = header
        with self._noting_errors():
            if self._ledger is None or not self._ledger.is_finished(header.run_key, header.plan_key):
                self._writer.work_on(header.run_key)
                self._put(open_event(header))

    def stage_finished(self, run_key: str, owner: Owner, role: str, manifest: Manifest) -> None:
        """Report a published stage; `role` as in `CellRecord.stages` (`target.clean`), or that of a shared stage.

        Raises:
            ValueError: `open_run` was not called for this run.
        """
        if self._header is None or self._header.run_key != run_key:
            raise ValueError(f"call open_run for run {run_key} first")
        with self._noting_errors():
            self._put_missing(stage_event(self._header, owner, role, stage_ref(manifest)))

    def finish(self, record: RunRecord, artifacts: Iterable[Path] = ()) -> None:
        """Report the complete plan with the report's files, which must stay where they are until they are delivered."""
        with self._noting_errors():
            for event in stage_events(record):
                self._put_missing(event)
            self._put_missing(finish_event(record, artifacts))
        self._writer.complete()

    def close(self, timeout: float = 60.0, *, outcome: Literal["FAILED", "KILLED"] = "KILLED") -> TrackingStatus:
        """Deliver what waits, for at most `timeout` seconds (a server that is away: a few), and end.

        `outcome` is the MLflow status of a run that was opened and not finished.
        """
        status = self._writer.end(timeout, outcome)
        return TrackingStatus(status.delivered, status.pending, status.error or self._error)

    def _put_missing(self, event: Event) -> None:
        if event.id not in self._put_ids and (self._ledger is None or not self._ledger.has(event)):
            self._put(event)

    def _put(self, event: Event) -> None:
        self._outbox.put(event)
        self._put_ids.add(event.id)
        self._writer.add(event.name)

    def _noting_errors(self) -> _NotingErrors:
        return _NotingErrors(self, StoreError, ValueError, TypeError)


def sync(store: Store, home: Path, uri: str | None = None) -> TrackingStatus:
    """Deliver everything that waits in the store's outbox, and return when that is done or has failed."""
    return _Writer(store, Destination.of(home, uri)).deliver_all()


class _NotingErrors:
    """A context that writes exceptions of some types into its holder's `_error` instead of passing them on."""

    def __init__(self, holder: Tracker | _Writer, *kinds: type[Exception]) -> None:
        self._holder = holder
        self._kinds = kinds

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, self._kinds):
            return False
        self._holder._error = _short(error, self._holder._destination)
        return True


class _Writer(threading.Thread):
    """Delivers events. A daemon: a process that ends leaves the rest in the outbox, as one that is killed does."""

    def __init__(self, store: Store, destination: Destination) -> None:
        super().__init__(name="oakum-tracking", daemon=True)
        self._store = store
        self._destination = destination
        self._changed = threading.Condition()
        # Names of events; those in `_failed` were tried and stay in the outbox.
        self._waiting: set[str] = set()
        self._failed: dict[str, str] = {}
        self._delivered = 0
        self._error: str | None = None
        self._failed_at = 0.0
        self._current: tuple[str, str] | None = None
        self._outcome: str | None = None
        self._is_ending = False
        self._delivery: Delivery | None = None

    def add(self, name: str) -> None:
        """Queue an event that is in the outbox."""
        with self._changed:
            self._waiting.add(name)
            self._failed.pop(name, None)
            self._changed.notify_all()

    def work_on(self, run_key: str) -> None:
        """Mark the runs of this key as this process's from here on."""
        self._current = (run_key, this_driver())

    def complete(self) -> None:
        """Leave the status of the current run to its finish event."""
        self._current = None

    def end(self, timeout: float, outcome: str) -> TrackingStatus:
        """Try what waits once more and stop the thread, for at most `timeout` seconds."""
        with self._changed:
            self._is_ending, self._outcome = True, outcome
            self._changed.notify_all()
        if self.ident is None and self._waiting:
            self.start()
        if self.ident is not None:
            self.join(timeout)
        if self.is_alive():
            self._error = self._error or f"still busy after {timeout:.0f} s"
        return self.status()

    def deliver_all(self) -> TrackingStatus:
        """Deliver what waits in the outbox, in the calling thread."""
        self._is_ending = True
        self.run()
        return self.status()

    def status(self) -> TrackingStatus:
        with self._changed:
            error = self._error or next(iter(self._failed.values()), None)
            return TrackingStatus(self._delivered, len(self._waiting) + len(self._failed), error)

    def run(self) -> None:
        # The thread's outermost frame: nothing that goes wrong here may reach the scheduler.
        with _NotingErrors(self, Exception):
            self._serve()

    def _serve(self) -> None:
        with self._changed:
            self._waiting.update(Outbox(self._store).names())
        is_reached = True
        if self._destination.identity() is None:
            is_reached = self._drain()
        while True:
            is_ending = self._wait(is_reached)
            if is_ending and not is_reached and time.monotonic() - self._failed_at < _FRESH_SECONDS:
                break
            is_reached = not self._waiting or self._drain()
            if is_ending and (not self._waiting or not is_reached):
                break
        if self._delivery is not None and is_reached:
            self._delivery.close(own=None if self._current is None else self._outcome)

    def _wait(self, is_reached: bool) -> bool:
        """Wait for work, or, while nobody answers, for the time to try again; return whether the end has come."""
        with self._changed:
            if is_reached:
                self._changed.wait_for(lambda: bool(self._waiting) or self._is_ending)
            else:
                self._changed.wait_for(lambda: self._is_ending, timeout=_RETRY_SECONDS)
            return self._is_ending

    def _drain(self) -> bool:
        """Deliver what waits; return whether there was an answer."""
        is_reached = self._connect()
        while is_reached and self._waiting:
            # By name: a run is opened before it is finished, also when an earlier driver left its last event.
            with self._changed:
                first = min(self._waiting)
            is_reached = self._deliver(first)
        if not is_reached:
            self._failed_at = time.monotonic()
        return is_reached

    def _connect(self) -> bool:
        if self._delivery is not None and self._error is None:
            return True
        try:
            # Asked before MLflow is imported: a server that is away must not cost these seconds.
            self._destination.probe()
            if self._delivery is None:
                self._delivery = Delivery(self._store, self._destination)
        except UnreachableError as error:
            self._error = _short(error, self._destination)
            return False
        except delivery_errors() as error:
            self._error = _short(error, self._destination)
            return False
        self._error = None
        return True

    def _deliver(self, name: str) -> bool:
        """Deliver one event; one that fails for a reason of its own stays in the outbox for another day."""
        assert self._delivery is not None
        message = ""
        for _ in range(2):
            try:
                is_ours = self._delivery.deliver(name, self._current)
            except delivery_errors() as error:
                message = _short(error, self._destination)
                # Runs that somebody deleted meanwhile are made anew at the second try.
                self._delivery.forget()
                if not self._is_answering():
                    return False
            else:
                self._settle(name, delivered=int(is_ours))
                return True
        self._settle(name, failure=message)
        return True

    def _is_answering(self) -> bool:
        try:
            self._destination.probe()
        except UnreachableError as error:
            self._error = _short(error, self._destination)
            return False
        return True

    def _settle(self, name: str, *, delivered: int = 0, failure: str | None = None) -> None:
        with self._changed:
            self._waiting.discard(name)
            self._delivered += delivered
            if failure is not None:
                self._failed[name] = failure


def _short(error: BaseException, destination: Destination) -> str:
    lines = destination.hide(str(error)).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
