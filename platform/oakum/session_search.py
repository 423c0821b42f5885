"""One search: from an experiment and a space to trials, repeated candidates, confirmed settings and the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from oakum.search.records import SearchLog, SearchRecord, TrialRecord
from oakum.search.space import load_space
from oakum.session import open_executor
from oakum.session_home import Home
from oakum.session_report import write_search_report
from oakum.session_search_confirmation import Confirming, front_candidates, likeliest, membership_of
from oakum.session_search_delivery import SearchDelivery
from oakum.session_search_driver import SoleDriver
from oakum.session_search_request import SearchOptions, check_confirmation, check_trials, make_header
from oakum.session_search_trials import TrialRunner
from oakum.session_trials import TrialBoard
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.pipeline.executor import Failure


@dataclass
class SearchResult:
    """What a search came to."""

    record: SearchRecord
    report: Path
    new_trials: int
    failures: list[Failure] = field(default_factory=list)
    warning: str | None = None


def search(options: SearchOptions, home: Home) -> SearchResult:
    """Run a search to its end, or go on with it.

    Raises:
        ConfigError: the request, the data or the machine do not fit, or another driver runs this search; nothing was
            started.
    """
    store = Store.open(home.store_uri)
    space = load_space(options.space)
    header = make_header(options, space, home)
    check_trials(header, space, home, options.file.name)
    if options.confirm:
        check_confirmation(header, space, home, options.file.name)
    log = SearchLog.open(store, header)
    with (
        SoleDriver(store, header) as driver,
        SearchDelivery(options.track, store, home, header.key) as delivery,
        open_executor(options.run_options()) as starting,
    ):
        board = TrialBoard(header, space, log, home, store, options.file.name)
        total = len(board.records) + options.trials if options.more else options.trials
        known = {number for number, record in board.records.items() if record.state != "running"}
        confirming = Confirming(board, space, home, store, options.file.name)
        executor = starting.ready()
        runner = TrialRunner(
            options, board, home, store, executor, check=driver.check, ended=lambda trial: delivery.wake()
        )
        if len(known) < total:
            runner.run(space, total)
        candidates = front_candidates(board, 2 * options.confirm)
        if candidates:
            runner.repeat(candidates, options.repeats)
            candidates = [board.records[trial.number] for trial in candidates]
            shares = membership_of(candidates, board.objectives)
            confirmation = confirming.measure(executor, likeliest(candidates, shares, options.confirm), shares)
            driver.check()
            log.put_confirmation(confirmation)
        starting.end()
        record = log.record()
        report = write_search_report(record, home)
        delivery.finish(report)
    return SearchResult(record, report, len(board.records) - len(known), confirming.failures, delivery.warning)


def nearest_misses(record: SearchRecord, most: int = 3) -> list[TrialRecord]:
    """Return the complete trials that miss their floors by least, where none keeps them all."""
    if any(trial.is_feasible for trial in record.trials):
        return []
    return sorted(record.complete, key=lambda trial: sum(trial.violations))[:most]
