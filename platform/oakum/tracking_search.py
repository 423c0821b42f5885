"""Tracking of searches: what MLflow does not know yet of a search is brought to it.

The store's records are the truth, and MLflow's runs are made from them in parts (`tracking_search_projection.py`): each
is delivered when it differs from what arrived, in a form that may be repeated (`tracking_search_runs.py`). What arrived
is noted in the store when a call ends; what a killed call delivered is delivered again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from oakum.records import sha256_hex
from oakum.search.records import SearchLog, SearchRecord, TrialRecord
from oakum.store import Store, StoreError
from oakum.tracking import TrackingStatus
from oakum.tracking_delivery import delivery_errors
from oakum.tracking_destination import Destination
from oakum.tracking_search_projection import Part, Projection
from oakum.tracking_search_runs import SearchRuns

_Read = TypeVar("_Read")
# Raised where a document or a file is damaged, away, or written by another oakum.
_UNREADABLE = (StoreError, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class SearchTrackingStatus(TrackingStatus):
    """What became of the parts of a search: the search, its trials, confirmed settings, the model and the files."""

    @property
    def warning(self) -> str | None:
        if not self.pending:
            return None
        return f"MLflow tracking: {self.pending} parts of the search wait ({self.error}); `oakum sync` delivers them"


def deliver_search(
    store: Store, home: Path, key: str, *, artifacts: Iterable[Path] = (), uri: str | None = None
) -> SearchTrackingStatus:
    """Bring to MLflow what it does not know yet of a search; where there is nothing to bring, nobody is asked.

    Args:
        home: oakum's home.
        key: of the search.
        artifacts: the report's files.
        uri: default `tracking_uri(home)`.

    Returns:
        How many parts arrived, how many wait, and why: nothing is raised for a server that is away or for a record, a
        stage or a file that cannot be read.
    """
    destination = Destination.of(home, uri)
    courier = _Courier(store, destination, key)
    try:
        courier.deliver(tuple(artifacts))
    except _UNREADABLE as error:
        courier.error = _short(error, destination)
    except delivery_errors() as error:
        courier.error = _short(error, destination)
    return courier.status()


def ledger_name(destination: Destination, key: str) -> str:
    """Return the name of the document that holds the digests of what arrived of a search at a destination, by part."""
    identity = destination.identity() or destination.uri
    return f"delivered/{sha256_hex(identity.encode())[:16]}/search-{key}"


class _Courier:
    """One delivery of one search."""

    def __init__(self, store: Store, destination: Destination, key: str) -> None:
        self.error: str | None = None
        self._store = store
        self._destination = destination
        self._key = key
        # Name of what has not arrived -> why.
        self._waiting: dict[str, str] = {}
        self._arrived = 0

    def status(self) -> SearchTrackingStatus:
        why = self.error or next(filter(None, self._waiting.values()), None)
        return SearchTrackingStatus(self._arrived, len(self._waiting) or int(self.error is not None), why)

    def deliver(self, artifacts: Sequence[Path]) -> None:
        """Deliver what has not arrived; raises when nothing can be delivered."""
        if not self._missing(artifacts):
            return
        # Asked before MLflow is imported: a server that is away must not cost these seconds.
        self._destination.probe()
        with self._destination.lock("deliver-search"):
            self._destination.prepare()
            from mlflow.tracking.client import MlflowClient

            header = SearchLog(self._store, self._key).header()
            runs = SearchRuns(MlflowClient(tracking_uri=self._destination.uri), self._destination, header)
            # Read again: while this call waited for the lock, another one may have delivered newer records.
            missing = self._missing(artifacts)
            try:
                for part in missing:
                    self._deliver_one(part, runs)
            finally:
                arrived = {part.name: part.digest for part in missing if part.name not in self._waiting}
                self._note(arrived)

    def _missing(self, artifacts: Iterable[Path]) -> list[Part]:
        self._waiting = {}
        known = self._known()
        parts = [*Projection(self._store, self._read()).parts(), *self._files(artifacts)]
        missing = [part for part in parts if known.get(part.name) != part.digest]
        self._waiting |= {part.name: "" for part in missing}
        return missing

    def _known(self) -> dict[str, Any]:
        return self._store.get_document(ledger_name(self._destination, self._key)) or {}

    def _note(self, arrived: dict[str, str]) -> None:
        self._store.put_document(ledger_name(self._destination, self._key), {**self._known(), **arrived})

    def _deliver_one(self, part: Part, runs: SearchRuns) -> None:
        """Deliver a part. One that cannot be delivered holds up no other, unless the server went away."""
        try:
            part.write(runs)
        except _UNREADABLE + delivery_errors() as error:
            self._waiting[part.name] = f"{part.name}: {_short(error, self._destination)}"
            runs.forget()
            self._destination.probe()
        else:
            del self._waiting[part.name]
            self._arrived += 1

    def _read(self) -> SearchRecord:
        """Return the search without what cannot be read of it."""
        log = SearchLog(self._store, self._key)
        names = self._store.list_documents(f"searches/{self._key}/trials")
        trials = [self._or_none(name, partial(self._trial, name)) for name in names]
        confirmation = self._or_none("confirmation", log.confirmation)
        return SearchRecord(log.header(), tuple(trial for trial in trials if trial is not None), confirmation)

    def _trial(self, name: str) -> TrialRecord:
        return TrialRecord.from_json(self._store.get_document(name) or {})

    def _or_none(self, name: str, read: Callable[[], _Read]) -> _Read | None:
        try:
            return read()
        except _UNREADABLE as error:
            self._waiting[name] = f"{name}: {_short(error, self._destination)}"
            return None

    def _files(self, paths: Iterable[Path]) -> Iterator[Part]:
        for path in paths:
            content = self._or_none(str(path), path.read_bytes)
            if content is not None:
                yield Part(f"file {path.name}", sha256_hex(content), partial(SearchRuns.put_report, path=path))


def _short(error: BaseException, destination: Destination) -> str:
    return destination.hide(f"{type(error).__name__}: {error}").splitlines()[0]
