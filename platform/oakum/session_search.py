"""One search: from an experiment and a space to trials, repeated candidates, confirmed settings and the report."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oakum.config import ConfigError, apply_values, read_yaml, validate
from oakum.datasets.base import ensure_prepared
from oakum.pipeline.collect import collect
from oakum.progress import Progress, code_facts
from oakum.records import RunRecord, canonical_json, sha256_hex
from oakum.search.objectives import Objective, front_membership, fronts, parse_floor, parse_objective
from oakum.search.protocol import (
    BASELINE,
    FIRST_SEARCH_SEED,
    PROTOCOL_PATHS,
    confirmation_experiment,
    trial_experiment,
)
from oakum.search.records import Confirmation, SearchHeader, SearchLog, SearchRecord, TrialRecord
from oakum.search.sampler import GRID, SAMPLERS, Sampler
from oakum.search.space import SearchSpace, load_space
from oakum.session import RunOptions, make_plan, open_executor, read_request
from oakum.session_home import Home
from oakum.session_report import write_report, write_search_report
from oakum.session_search_progress import SearchProgress
from oakum.session_trials import TrialBoard, plan_trial
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.pipeline.executor import Executor, Failure
    from oakum.pipeline.stage import WorkerSettings

UNACCOUNTED = (
    "epsilon is that of one training. Choosing among the trials looked at the private validation data again, and that "
    "loss of privacy is not accounted for."
)


@dataclass(frozen=True)
class SearchOptions:
    """What the command line asks of a search.

    Attributes:
        trials: in all, those of earlier processes included; or, with `more`, beside those.
        sampler: one of `SAMPLERS`.
        seed: of the sampler.
        seeds_per_trial: seeds that every trial is measured under.
        repeats: further seeds for candidates of the front.
        confirm: settings that are confirmed at most; 0: none.
        rungs: each a mapping from paths to values: the cheaper forms that a trial passes first.
        concurrency: trials at a time; None: as many as the machine has CPUs.
    """

    file: Path
    space: Path
    objectives: tuple[str, ...]
    floors: tuple[str, ...] = ()
    overrides: list[str] = field(default_factory=list)
    name: str | None = None
    trials: int = 30
    more: bool = False
    sampler: str = "tpe"
    seed: int = 0
    grid_first: bool = False
    seeds_per_trial: int = 1
    repeats: int = 2
    confirm: int = 3
    rungs: tuple[dict[str, Any], ...] = ()
    concurrency: int | None = None
    executor: str = "ray"
    max_cpus: float | None = None
    max_gpus: float | None = None
    track: bool = True


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
        ConfigError: the request, the data or the machine do not fit; nothing was started.
    """
    store = Store.open(home.store_uri)
    space = load_space(options.space)
    header = make_header(options, space, home)
    _check_space(header, space, home, options.file.name)
    if options.confirm:
        _check_confirmation(header, space, home, options.file.name)
    log = SearchLog.open(store, header)
    board = TrialBoard(header, space, log, home, store, options.file.name)
    total = _wanted(options, len(board.records))
    known = {number for number, record in board.records.items() if record.state != "running"}
    run = RunOptions(file=options.file, executor=options.executor, max_cpus=options.max_cpus, max_gpus=options.max_gpus)
    with _Delivery(options.track, store, home, header.key) as delivery, open_executor(run) as starting:
        work = _Search(options, space, board, home, store, delivery)
        executor = starting.ready()
        if len(known) < total:
            work.run_trials(executor, total)
        confirmed = work.confirm(executor, log) if options.confirm else []
        starting.end()
        record = log.record()
        report = write_search_report(record, home)
        delivery.finish(report)
    return SearchResult(record, report, len(board.records) - len(known), confirmed, delivery.warning)


def make_header(options: SearchOptions, space: SearchSpace, home: Home) -> SearchHeader:
    """Check what is asked for and return the search's header.

    Raises:
        ConfigError: see `protocol.trial_experiment`; or no objective, no trials, an unknown sampler.
    """
    if not options.objectives:
        raise ConfigError("say what to search for, for example: --objective 'min membership/loss/auc'")
    if options.sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler {options.sampler!r}; samplers: {', '.join(SAMPLERS)}")
    if options.sampler == GRID and not space.grid:
        raise ConfigError(f"{options.space.name} has no grid; choose another sampler or add `grid:`")
    if options.trials < 1:
        raise ConfigError("--trials must be 1 or more (write +N for N more than there are)")
    if options.seeds_per_trial < 1:
        raise ConfigError("--seeds-per-trial must be 1 or more")
    if min(options.repeats, options.confirm, (options.concurrency or 1) - 1) < 0:
        raise ConfigError("--repeats and --confirm must be 0 or more, --concurrency 1 or more")
    if not space.parameters and options.sampler != GRID:
        raise ConfigError(f"{options.space.name} has a grid and nothing to sample; use --sampler grid")
    experiment = read_request(RunOptions(file=options.file, overrides=options.overrides))
    experiment.pop("description", None)
    objectives = [parse_objective(text) for text in options.objectives]
    floors = [parse_floor(text) for text in options.floors]
    _refuse_paths_of_the_protocol(options, space)
    seeds = tuple(range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + options.seeds_per_trial))
    classes = _private_classes(experiment, options.file.name, home)
    used = range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + options.seeds_per_trial + options.repeats)
    trial = {**trial_experiment(experiment, objectives, floors, tuple(used), classes), "seeds": list(seeds)}
    content: dict[str, Any] = {
        "defense": space.defense,
        "space": {**read_yaml(options.space), "defense": space.defense},
        "experiment": experiment,
        "trial": trial,
        "objectives": tuple(objective.text for objective in objectives),
        "floors": tuple(floor.text for floor in floors),
        "seeds": seeds,
        "rungs": options.rungs,
        "notes": (UNACCOUNTED,) if space.defense == "dpsgd" else (),
    }
    name = options.name or f"{experiment['name']}-{space.defense}"
    return SearchHeader(name=name, key=sha256_hex(canonical_json({"name": name, **content})), **content)


def _refuse_paths_of_the_protocol(options: SearchOptions, space: SearchSpace) -> None:
    """Refuse paths by which a space or a rung would undo what keeps trials and confirmation apart."""
    spaces = {path for point in (space.parameters, space.fixed, *space.grid) for path in space.changes(dict(point))}
    for path in sorted({*spaces, *(path for rung in options.rungs for path in rung)}):
        if any(path == own or path.startswith(f"{own}.") for own in PROTOCOL_PATHS):
            raise ConfigError(f"{path} may not be changed by a search: it decides what trials and confirmation may see")
    for path in sorted(spaces):
        if path.startswith(("attacks.inversion.", "attacks.membership.")):
            raise ConfigError(f"{path} may not be searched: a confirmation must meet the attacks that the trials met")


def confirmed_name(search: str) -> str:
    """Return the name of the experiment that confirms a search."""
    return f"{search}-confirmed"


class _Search:
    def __init__(
        self,
        options: SearchOptions,
        space: SearchSpace,
        board: TrialBoard,
        home: Home,
        store: Store,
        delivery: _Delivery,
    ) -> None:
        self._options = options
        self._space = space
        self._board = board
        self._home = home
        self._store = store
        self._delivery = delivery

    def run_trials(self, executor: Executor, total: int) -> None:
        """Run trials until `total` have ended, first those that an earlier process had asked for."""
        asker = _Asker(self._options, self._space, self._board, total)
        with SearchProgress(self._board, total) as progress:
            feed = self._feed(executor, asker, progress, total)
            self._run(executor, feed)

    def repeat(self, executor: Executor, candidates: Sequence[TrialRecord]) -> None:
        """Measure candidates under further seeds."""
        header = self._board.header
        last = header.seeds[-1]
        seeds = tuple(range(last + 1, last + 1 + self._options.repeats))
        missing = [trial for trial in candidates if not set(seeds) <= set(trial.metrics)]
        if not missing or not seeds:
            return
        Progress.say(f"repeating {len(missing)} candidates under {len(seeds)} more seeds")
        waiting = list(missing)

        def feed() -> bool:
            while waiting:
                self._board.submit(waiting.pop(0), seeds)
            self._board.settle()
            return self._board.running > 0

        self._run(executor, feed)

    def confirm(self, executor: Executor, log: SearchLog) -> list[Failure]:
        """Repeat the candidates of the front, then measure the likeliest of them on test folds; return failures."""
        candidates = front_candidates(self._board, 2 * self._options.confirm)
        if not candidates:
            return []
        self.repeat(executor, candidates)
        candidates = [self._board.records[trial.number] for trial in candidates]
        shares = membership_of(candidates, self._board.objectives)
        chosen = sorted(candidates, key=lambda trial: -shares[trial.number])[: self._options.confirm]
        Progress.say(f"confirming {', '.join(f'trial {trial.number}' for trial in chosen)} on the test folds")
        record, failures = self._measure_confirmed(executor, sorted(chosen, key=lambda trial: trial.number))
        settings = {f"trial-{trial.number}": trial.number for trial in chosen}
        log.put_confirmation(Confirmation(record.plan_key, settings, shares, record))
        return failures

    def _measure_confirmed(self, executor: Executor, chosen: Sequence[TrialRecord]) -> tuple[RunRecord, list[Failure]]:
        """Run one experiment for each set of changes outside of the defense; join their cells."""
        from oakum.pipeline.executor import Ledger

        header, where = self._board.header, self._options.file.name
        groups: dict[bytes, list[TrialRecord]] = {}
        for trial in chosen:
            groups.setdefault(canonical_json(self._space.changes(trial.point)), []).append(trial)
        joined: RunRecord | None = None
        failures: list[Failure] = []
        for place, trials in enumerate(groups.values()):
            settings = {f"trial-{trial.number}": self._space.settings(trial.point) for trial in trials}
            name = confirmed_name(header.name) + (f"-{place + 1}" if place else "")
            data = apply_values(
                confirmation_experiment(header.experiment, name, settings), self._space.changes(trials[0].point)
            )
            digest = sha256_hex(canonical_json({"confirmation": data, "code": code_facts()["package"]}))
            plan = make_plan(data, where, self._home, self._store, digest)
            progress = Progress(plan, self._store, None)
            ledger = Ledger.of(plan.stages(), self._store, progress)
            progress.begin(ledger)
            executor.run(ledger, self._settings())
            progress.end()
            failures += ledger.failures.values()
            document = self._store.get_document(f"plans/{plan.plan_key}")
            assert document is not None
            found = collect(document["skeleton"], self._store)
            write_report(found, self._home, self._store)
            joined = found if joined is None else _joined(joined, found)
        assert joined is not None
        return joined, failures

    def _feed(self, executor: Executor, asker: _Asker, progress: SearchProgress, total: int) -> Callable[[], bool]:
        concurrency = self._options.concurrency or executor.concurrency()

        def ended() -> list[TrialRecord]:
            records = self._board.settle()
            for record in records:
                asker.tell(record)
                progress.ended(record)
                self._delivery.wake()
            return records

        if self._options.executor == "serial":

            def serial() -> bool:
                ended()
                while self._board.running == 0 and (number := asker.ask()) is not None:
                    self._board.submit(asker.record(number))
                    ended()
                return self._board.running > 0

            return serial

        from oakum.distributed.tune import TuneTrials

        tune = TuneTrials(asker.ask, total, concurrency)
        tune.start()

        def through_tune() -> bool:
            for number in tune.take():
                known = self._board.records.get(number)
                if known is not None and known.state != "running":
                    # Its client was lost with its node and has handed the number in again.
                    tune.answer(number, {"state": known.state})
                elif not self._board.is_running(number):
                    self._board.submit(asker.record(number))
            for record in ended():
                tune.answer(record.number, {"state": record.state})
            return self._board.running > 0 or not tune.is_over()

        return through_tune

    def _run(self, executor: Executor, feed: Callable[[], bool]) -> None:
        from oakum.pipeline.executor import Ledger

        ledger = Ledger({}, self._store, self._board, feed=feed)
        self._board.ledger = ledger
        executor.run(ledger, self._settings())

    def _settings(self) -> WorkerSettings:
        from oakum.pipeline.stage import WorkerSettings

        return WorkerSettings(self._store.uri, self._home.data, commit=code_facts().get("commit") or "")


class _Asker:
    """Numbers trials and asks the sampler for their points. Asked in Tune's thread, told in the executor's."""

    def __init__(self, options: SearchOptions, space: SearchSpace, board: TrialBoard, total: int) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._sampler = Sampler(space, board.objectives, options.sampler, options.seed, grid_first=options.grid_first)
        known = sorted(board.records.values(), key=lambda record: record.number)
        self._sampler.recall(known)
        self._left_over = [record.number for record in known if record.state == "running"]
        self._records = {record.number: record for record in known}

    def ask(self) -> int | None:
        """Return the number of the next trial: one that an earlier process did not finish, or a new one."""
        with self._lock:
            if self._left_over:
                return self._left_over.pop(0)
            if len(self._records) >= self._total:
                return None
            # A driver that died may have asked for a trial that it never recorded: its number is free.
            number = next(each for each in itertools.count() if each not in self._records)
            record = self._sampler.ask(number)
            if record is None:
                return None
            self._records[number] = record
            return number

    def record(self, number: int) -> TrialRecord:
        return self._records[number]

    def tell(self, record: TrialRecord) -> None:
        with self._lock:
            self._sampler.tell(record)


class _Delivery:
    """Delivers a search to MLflow while it runs, in a thread; what cannot be delivered is delivered by `oakum sync`."""

    def __init__(self, enabled: bool, store: Store, home: Home, key: str) -> None:
        self._enabled = enabled
        self._arguments = (store, home.folder, key)
        self._wakes = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._serve, name="oakum-search-tracking", daemon=True)
        self.warning: str | None = None

    def __enter__(self) -> _Delivery:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._wakes.set()

    def wake(self) -> None:
        """Say that there is something new."""
        self._wakes.set()

    def finish(self, report: Path) -> None:
        """Deliver everything, with the report and its figures, and note what went wrong."""
        if not self._enabled:
            return
        from oakum.tracking_search import deliver_search

        self._ends = True
        self._wakes.set()
        self._thread.join()
        figures = sorted((report.parent / "figures").glob("*.png"))
        self.warning = deliver_search(*self._arguments, artifacts=[report, *figures]).warning

    def _serve(self) -> None:
        from oakum.tracking_search import deliver_search

        while not self._ends:
            self._wakes.wait()
            self._wakes.clear()
            if not self._ends:
                deliver_search(*self._arguments)


def front_candidates(board: TrialBoard, most: int) -> list[TrialRecord]:
    """Return the feasible trials of the best fronts, at most `most`, distinct points only."""
    distinct: dict[bytes, TrialRecord] = {}
    for record in sorted(board.records.values(), key=lambda each: each.number):
        if record.is_feasible:
            distinct.setdefault(canonical_json(record.point), record)
    feasible = list(distinct.values())
    if not feasible:
        return []
    costs = np.array([_costs(board.objectives, record.values or ()) for record in feasible])
    order = [row for front in fronts(costs) for row in front]
    return [feasible[row] for row in order[:most]]


def membership_of(candidates: Sequence[TrialRecord], objectives: Sequence[Objective]) -> dict[int, float]:
    """Return trial number -> probability of being on the front of the candidates, by a bootstrap over seeds."""
    costs = [
        np.array([[each.cost(each.value(metrics)) for each in objectives] for metrics in trial.metrics.values()])
        for trial in candidates
    ]
    return dict(zip([trial.number for trial in candidates], front_membership(costs).tolist(), strict=True))


def nearest_misses(record: SearchRecord, most: int = 3) -> list[TrialRecord]:
    """Return the complete trials that miss their floors by least, where none keeps them all."""
    if any(trial.is_feasible for trial in record.trials):
        return []
    return sorted(record.complete, key=lambda trial: sum(trial.violations))[:most]


def _costs(objectives: Sequence[Objective], values: Sequence[float]) -> list[float]:
    return [objective.cost(value) for objective, value in zip(objectives, values, strict=True)]


def _wanted(options: SearchOptions, known: int) -> int:
    return known + options.trials if options.more else options.trials


def _check_space(header: SearchHeader, space: SearchSpace, home: Home, where: str) -> None:
    """Hold the bounds of the experiment's own paths against its schema, and plan one point at every rung."""
    from oakum.pipeline.experiment import ExperimentFile

    middle = _middle(space)
    for path, parameter in space.parameters.items():
        for value in parameter.extremes() if space.changes({path: None}) else ():
            changed = apply_values(header.trial, space.changes({**middle, path: value}))
            validate(ExperimentFile, changed, where)
    for rung in range(len(header.rungs) + 1):
        plan_trial(header, space, middle, home, where, rung)


def _check_confirmation(header: SearchHeader, space: SearchSpace, home: Home, where: str) -> None:
    """Plan a confirmation, so that what would fail after all trials fails before the first."""
    middle = _middle(space)
    settings = {"trial-0": space.settings(middle)}
    data = confirmation_experiment(header.experiment, confirmed_name(header.name), settings)
    make_plan(apply_values(data, space.changes(middle)), where, home, None)


def _middle(space: SearchSpace) -> dict[str, Any]:
    """Return a point by which a request is checked before anything starts."""
    if not space.parameters:
        return next(space.grid_points())
    return {**next(space.grid_points(), {}), **space.draw(lambda path, parameter: parameter.at(0.5))}


def _private_classes(experiment: dict[str, Any], where: str, home: Home) -> int:
    from oakum.pipeline.experiment import resolve_experiment
    from oakum.pipeline.folds import Selection, plan_folds

    file = resolve_experiment(experiment, where).file
    ensure_prepared(file.data.name, home.data)
    folds = file.folds.model_dump(mode="json", by_alias=True)
    selection = Selection(file.data.name, file.data.image_size, folds, file.experiment_seed, 0)
    return len(plan_folds(selection, home.data).private_classes)


def _joined(first: RunRecord, other: RunRecord) -> RunRecord:
    """Add the settings of another confirmation; its `none` was trained under other conditions and is left out."""
    cells = tuple(cell for cell in other.cells if cell.setting != BASELINE)
    return replace(first, cells=(*first.cells, *cells), warnings=(*first.warnings, *other.warnings))
