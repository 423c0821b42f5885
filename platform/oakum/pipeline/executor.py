"""Executors run the missing stages of a plan. The ledger decides what may start; executors only place it."""

from __future__ import annotations

import time
import traceback
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.stage import Stage, StageTask, WorkerSettings
from oakum.store import DamagedEntryError, Manifest, Store, StoreError

MAX_RETRIES = 2
_FEED_SECONDS = 0.05


class Observer(Protocol):
    """Is told what happens, in the driver's thread."""

    def started(self, stage: Stage) -> None: ...

    def finished(self, stage: Stage, outcome: Outcome) -> None: ...

    def retried(self, stage: Stage, reason: str) -> None: ...

    def failed(self, stage: Stage, error: str) -> None: ...


@dataclass(frozen=True)
class Failure:
    """A stage that failed for good, with the end of its traceback."""

    stage: Stage
    error: str
    trace: str


@dataclass
class Ledger:
    """Which stages are done, ready, running or failed; the only admission of work.

    For every stage the inputs that are not done are counted, and the stages that may start stand in line: what changes
    costs the stages that it concerns, and never the whole plan. Only the ledger's own methods change its sets.

    Attributes:
        stages: key -> stage, inputs before their users.
        done: keys in the store.
        repaired: keys that were found damaged and are computed again.
        asked: keys that may start, or None for all.
        stop_at: monotonic time after which nothing more is started, or None.
        feed: asked again and again while an executor runs: may add stages, and says whether more may come; None: the
            stages are all there is.
    """

    stages: dict[str, Stage]
    store: Store
    observer: Observer
    done: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    repaired: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    asked: frozenset[str] | None = None
    stop_at: float | None = None
    feed: Callable[[], bool] | None = None
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _missing: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _users: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list), init=False, repr=False)
    _line: list[tuple[float, int, Stage]] = field(default_factory=list, init=False, repr=False)
    _in_line: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        for stage in self.stages.values():
            self._enter(stage)

    @classmethod
    def of(
        cls,
        stages: Iterable[Stage],
        store: Store,
        observer: Observer,
        only: tuple[str, ...] = (),
        skip: tuple[str, ...] = (),
    ) -> Ledger:
        """Return a ledger that knows what the store already holds; stale entries are set aside.

        `only` and `skip` name stage kinds or parts: others than these, or these, are not started.
        """
        known = {stage.key: stage for stage in stages}
        asked = frozenset(
            stage.key
            for stage in known.values()
            if (not only or {stage.kind, stage.part} & set(only)) and not {stage.kind, stage.part} & set(skip)
        )
        done = find_present(known, store)
        return cls(known, store, observer, done=done, asked=asked if only or skip else None)

    def add(self, stages: Iterable[Stage]) -> None:
        """Take up more stages, inputs before their users; those that are known already stay as they are."""
        new = {stage.key: stage for stage in stages if stage.key not in self.stages}
        present = find_present(new, self.store)
        self.stages |= new
        for stage in new.values():
            self._enter(stage)
        for key in present:
            self._note_done(key)

    def refill(self) -> bool:
        """Let the feed add stages and return whether more may come."""
        return self.feed is not None and self.feed()

    def ready(self) -> list[Stage]:
        """Return the stages that may start, the heaviest first (plan order among equals)."""
        if self.stop_at is not None and time.monotonic() > self.stop_at:
            return []
        return [stage for _, _, stage in self._line]

    def outstanding(self) -> list[Stage]:
        """Return every stage that this run is to start, now or later."""
        return [
            stage
            for key, stage in self.stages.items()
            if key not in self.done and (self.asked is None or key in self.asked)
        ]

    def finished(self) -> bool:
        """Whether nothing runs and nothing can start."""
        return not self.running and not self.ready()

    def skipped(self) -> list[Stage]:
        """Return the stages that never started: an input failed, their kind was not asked for, or time was up."""
        left = set(self.stages) - self.done - set(self.failures) - self.running
        return [self.stages[key] for key in self.stages if key in left]

    def start(self, stage: Stage) -> StageTask:
        self.running.add(stage.key)
        self._line_up(stage)
        self.observer.started(stage)
        return stage.task()

    def complete(self, stage: Stage, outcome: Outcome) -> None:
        self.running.discard(stage.key)
        self._note_done(stage.key)
        if stage.key in self.repaired:
            # Came out with other bytes? Then what was made from the earlier ones is stale.
            present = find_present(self.stages, self.store)
            for key in present - self.done:
                self._note_done(key)
            for key in self.done - present:
                self._note_lost(key)
        self.observer.finished(stage, outcome)

    def fail(self, stage: Stage, error: BaseException, *, lost_worker: bool = False, trace: str = "") -> None:
        """Classify an error: repair a damaged input, retry what may pass, or give the stage up.

        `trace` is the traceback's text where the error comes from another process, which loses its frames.
        """
        self.running.discard(stage.key)
        reason = f"{type(error).__name__}: {error}"
        self.attempts[stage.key] += 1
        may_retry = self.attempts[stage.key] <= MAX_RETRIES
        if isinstance(error, DamagedEntryError) and may_retry and self._recompute(error):
            self.observer.retried(stage, f"an input was damaged and is computed again ({error})")
        elif (lost_worker or isinstance(error, StoreError)) and may_retry:
            self.observer.retried(stage, reason)
        else:
            trace = trace or "".join(traceback.format_exception(error)[-12:])
            self.failures[stage.key] = Failure(stage, reason, trace)
            self.observer.failed(stage, reason)
        self._line_up(stage)

    def _recompute(self, error: DamagedEntryError) -> bool:
        """Set a damaged entry aside so that it is computed again; False when it is not part of this plan."""
        if error.key not in self.stages:
            return False
        # Another stage may have met the same damage before, and the entry may be whole again by now.
        self.store.set_aside(error.kind, error.key, str(error), attempt=error.attempt)
        self._note_lost(error.key)
        self.repaired.add(error.key)
        return True

    def _enter(self, stage: Stage) -> None:
        self._places[stage.key] = len(self._places)
        for each in stage.inputs.values():
            self._users[each.key].append(stage.key)
            self._missing[stage.key] += each.key not in self.done
        self._line_up(stage)

    def _note_done(self, key: str) -> None:
        if key not in self.done:
            self.done.add(key)
            self._count_missing(key, -1)

    def _note_lost(self, key: str) -> None:
        if key in self.done:
            self.done.remove(key)
            self._count_missing(key, +1)

    def _count_missing(self, key: str, more: int) -> None:
        self._line_up(self.stages[key])
        for user in self._users[key]:
            self._missing[user] += more
            self._line_up(self.stages[user])

    def _line_up(self, stage: Stage) -> None:
        """Put a stage in line, or take it out, as its state says now."""
        key = stage.key
        may_start = (
            not self._missing[key]
            and key not in self.done
            and key not in self.running
            and key not in self.failures
            and (self.asked is None or key in self.asked)
        )
        if may_start == (key in self._in_line):
            return
        place = (-stage.weight, self._places[key])
        if may_start:
            insort(self._line, (*place, stage))
            self._in_line.add(key)
        else:
            del self._line[bisect_left(self._line, place)]
            self._in_line.remove(key)


class Executor(Protocol):
    """Runs what a ledger admits until nothing is left."""

    def run(self, ledger: Ledger, settings: WorkerSettings) -> None: ...

    def concurrency(self) -> int:
        """Return how many stages of one thread may run at a time."""
        ...

    def close(self) -> None: ...


class Serial:
    """Runs one stage after the other in this process: for tests, debugging, and machines without Ray."""

    def run(self, ledger: Ledger, settings: WorkerSettings) -> None:
        """Run all stages in one worker thread, so that signals reach the driver at once."""
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="oakum-stage")
        try:
            while True:
                more_to_come = ledger.refill()
                ready = ledger.ready()
                if not ready:
                    if not more_to_come:
                        break
                    time.sleep(_FEED_SECONDS)
                    continue
                stage = ready[0]
                own = replace(settings, use_gpu=stage.resources.gpus > 0)
                future = pool.submit(run_stage, ledger.start(stage), own)
                error = _wait(future)
                if error is None:
                    ledger.complete(stage, future.result())
                else:
                    ledger.fail(stage, error)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def concurrency(self) -> int:
        return 1

    def close(self) -> None:
        """Nothing to close; a stage that a signal interrupted ends with the process."""


def _wait(future: Future[Outcome]) -> BaseException | None:
    """Wait with pauses, so that a signal handler of the main thread runs between them."""
    while not future.done():
        time.sleep(0.01)
    return future.exception()


def find_present(stages: dict[str, Stage], store: Store) -> set[str]:
    """Return the keys that the store holds and whose inputs are still the ones they were made from.

    An entry that was made from other bytes of an input (the input was damaged and came out differently when computed
    again) is set aside.
    """
    stored = store.manifests(stage.ref for stage in stages.values())
    present: dict[str, Manifest] = {}
    for key, stage in stages.items():
        manifest = stored.get(stage.ref)
        if manifest is None:
            continue
        stale = stale_input(manifest, present)
        if stale is not None:
            reason = f"made from other bytes of its input {stale!r}"
            store.set_aside(stage.kind, key, reason, attempt=manifest.attempt)
            continue
        present[key] = manifest
    return set(present)


def stale_input(manifest: Manifest, present: Mapping[str, Manifest]) -> str | None:
    """Return the name of an input that the manifest was made from other bytes of than `present` (by key) holds."""
    for name, made_from in manifest.provenance.get("inputs", {}).items():
        held = present.get(made_from["key"])
        if held is not None and held.content != made_from["content"]:
            return str(name)
    return None
