"""The run of a search's trials: asks a sampler for points, and has an executor run what the points need."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from oakum.progress import Progress, code_facts
from oakum.search.population import Population
from oakum.search.records import TrialRecord
from oakum.search.sampler import Sampler
from oakum.search.space import SearchSpace
from oakum.session_home import Home
from oakum.session_search_progress import SearchProgress
from oakum.session_search_request import SearchOptions
from oakum.session_trials import TrialBoard
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.pipeline.executor import Executor
    from oakum.pipeline.stage import WorkerSettings


class TrialSource:
    """Numbers trials and asks the sampler for their points. Asked in Tune's thread, told in the executor's.

    Args:
        total: trials in all.
    """

    def __init__(self, options: SearchOptions, space: SearchSpace, board: TrialBoard, total: int) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._sampler = _sampler(options, space, board)
        known = sorted(board.records.values(), key=lambda record: record.number)
        self._sampler.recall(known)
        self._left_over = [record.number for record in known if record.state == "running"]
        self._records = {record.number: record for record in known}
        self._is_exhausted = False

    def ask(self) -> int | None:
        """Return the number of the next trial: one that an earlier process did not finish, or a new one.

        None: there is none now; `is_over` says whether there will be.
        """
        with self._lock:
            if self._left_over:
                return self._left_over.pop(0)
            if len(self._records) >= self._total:
                return None
            # A driver that died may have asked for a trial that it never recorded: its number is free.
            number = next(each for each in itertools.count() if each not in self._records)
            record = self._sampler.ask(number)
            if record is None:
                # Of a grid this is the end; a population goes on when its generation has ended.
                self._is_exhausted = isinstance(self._sampler, Sampler)
                return None
            self._records[number] = record
            return number

    def is_over(self) -> bool:
        """Whether every trial has been asked for."""
        with self._lock:
            return not self._left_over and (self._is_exhausted or len(self._records) >= self._total)

    def record(self, number: int) -> TrialRecord:
        """Return a trial that was asked for, as it was asked."""
        return self._records[number]

    def tell(self, record: TrialRecord) -> None:
        """Let the sampler learn from a trial that ended."""
        with self._lock:
            self._sampler.tell(record)


def _sampler(options: SearchOptions, space: SearchSpace, board: TrialBoard) -> Sampler | Population:
    if board.header.population:
        return Population(space, board.objectives[0], board.header.population, options.seed)
    return Sampler(space, board.objectives, options.sampler, options.seed, grid_first=options.grid_first)


class TrialRunner:
    """Runs trials on an executor.

    Args:
        check: called again and again while trials run; ends the run by raising.
        ended: called with every trial that ended.
    """

    def __init__(
        self,
        options: SearchOptions,
        board: TrialBoard,
        home: Home,
        store: Store,
        executor: Executor,
        check: Callable[[], None],
        ended: Callable[[TrialRecord], None],
    ) -> None:
        self._options = options
        self._board = board
        self._home = home
        self._store = store
        self._executor = executor
        self._check = check
        self._ended = ended

    def run(self, space: SearchSpace, total: int) -> None:
        """Run trials until `total` have ended, first those that an earlier process had asked for."""
        source = TrialSource(self._options, space, self._board, total)
        with SearchProgress(self._board, total) as progress:

            def settle() -> list[TrialRecord]:
                records = self._board.settle()
                for record in records:
                    source.tell(record)
                    progress.ended(record)
                    self._ended(record)
                return records

            feed = self._serial if self._options.executor == "serial" else self._through_tune
            self._execute(feed(source, settle, total))

    def repeat(self, trials: Sequence[TrialRecord], count: int) -> None:
        """Measure complete trials under `count` further seeds, those that are not measured so yet."""
        last = self._board.header.seeds[-1]
        seeds = tuple(range(last + 1, last + 1 + count))
        waiting = [trial for trial in trials if not set(seeds) <= set(trial.metrics)]
        if not waiting or not seeds:
            return
        Progress.say(f"repeating {len(waiting)} candidates under {len(seeds)} more seeds")

        def feed() -> bool:
            while waiting:
                self._board.submit(waiting.pop(0), seeds)
            self._board.settle()
            return self._board.running > 0

        self._execute(feed)

    def _serial(self, source: TrialSource, settle: Callable[[], list[TrialRecord]], total: int) -> Callable[[], bool]:
        """Return a feed that asks for a trial when the one before has ended."""

        def feed() -> bool:
            settle()
            while self._board.running == 0 and (number := source.ask()) is not None:
                self._board.submit(source.record(number))
                settle()
            return self._board.running > 0

        return feed

    def _through_tune(
        self, source: TrialSource, settle: Callable[[], list[TrialRecord]], total: int
    ) -> Callable[[], bool]:
        """Return a feed that takes the trials which Tune asks for, several at a time."""
        from oakum.distributed.tune import TuneTrials

        tune = TuneTrials(source.ask, source.is_over, total, self._options.concurrency or self._executor.concurrency())
        tune.start()

        def feed() -> bool:
            for number in tune.take():
                known = self._board.records.get(number)
                if known is not None and known.state != "running":
                    # Its client was lost with its node and has handed the number in again.
                    tune.answer(number, {"state": known.state})
                elif not self._board.is_running(number):
                    self._board.submit(source.record(number))
            for record in settle():
                tune.answer(record.number, {"state": record.state})
            return self._board.running > 0 or not tune.is_over()

        return feed

    def _execute(self, feed: Callable[[], bool]) -> None:
        from oakum.pipeline.executor import Ledger

        def checked() -> bool:
            self._check()
            return feed()

        ledger = Ledger({}, self._store, self._board, feed=checked)
        self._board.ledger = ledger
        self._executor.run(ledger, worker_settings(self._store, self._home))


def worker_settings(store: Store, home: Home) -> WorkerSettings:
    """Return what a worker needs to know of this machine."""
    from oakum.pipeline.stage import WorkerSettings

    return WorkerSettings(store.uri, home.data, commit=code_facts().get("commit") or "")
