"""Trials of a search as stages: a point becomes a plan, its stages join the ledger, and what they found is recorded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from oakum.config import ConfigError, apply_values
from oakum.faults import fault_point
from oakum.pipeline.collect import collect, skeleton
from oakum.pipeline.fingerprint import package_digest
from oakum.progress import Progress, code_facts
from oakum.search.objectives import Floor, Metrics, MissingMetricError, Objective, parse_floor, parse_objective
from oakum.search.population import lineage, settings_of, trained_settings
from oakum.search.promotion import is_promoted
from oakum.search.protocol import BASELINE, TRIAL, check_keys_after
from oakum.search.records import SearchHeader, SearchLog, SeedMetrics, TrialRecord
from oakum.search.space import Point, SearchSpace
from oakum.session import make_plan
from oakum.session_home import Home
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.pipeline.executor import Failure, Ledger
    from oakum.pipeline.plan import Plan
    from oakum.pipeline.runner import Outcome
    from oakum.pipeline.stage import Stage


@dataclass
class _Pending:
    record: TrialRecord
    seeds: tuple[int, ...]
    rung: int
    asked: float
    document: dict[str, Any]
    stages: list[Stage]
    missing: frozenset[str] = frozenset()
    common: frozenset[str] = frozenset()


class SharedStageError(RuntimeError):
    """A stage that every trial needs failed for good: no trial is to blame, and none is recorded as failed."""


class TrialBoard:
    """The trials that run now. Used from one thread: that of the executor.

    Attributes:
        records: every trial by number, the newest state of each.
    """

    def __init__(
        self, header: SearchHeader, space: SearchSpace, log: SearchLog, home: Home, store: Store, where: str
    ) -> None:
        self.header = header
        self.objectives: list[Objective] = [parse_objective(text) for text in header.objectives]
        self.floors: list[Floor] = [parse_floor(text) for text in header.floors]
        self.records: dict[int, TrialRecord] = {trial.number: trial for trial in log.trials()}
        self._space = space
        self._log = log
        self._home = home
        self._store = store
        self._where = where
        self._pending: dict[int, _Pending] = {}
        self._finished: list[TrialRecord] = []
        self._seconds: dict[str, float] = {}
        self.ledger: Ledger | None = None

    @property
    def running(self) -> int:
        return len(self._pending)

    def is_running(self, number: int) -> bool:
        return number in self._pending

    def settings_of(self, record: TrialRecord) -> dict[str, Any]:
        """Return a trial's defense as an entry of an experiment's `settings`, with its schedule if it has one."""
        return settings_of(self._space, self.header, record, self.records)

    def submit(self, record: TrialRecord, seeds: tuple[int, ...] | None = None) -> None:
        """Add a trial's stages to the ledger; with `seeds`, repeat a complete trial under them.

        A point that cannot be planned is recorded as failed.
        """
        asked = time.monotonic()
        is_repeat = seeds is not None
        rung = len(self.header.rungs) if is_repeat else 0
        if not is_repeat:
            asked_for = TrialRecord(record.number, record.point, record.origin, "running", memory=record.memory)
            record = replace(asked_for, parent=record.parent, package=package_digest())
            self._put(record)
        self._start(_Pending(record, seeds or self.header.seeds, rung, asked, {}, []))

    def settle(self) -> list[TrialRecord]:
        """Record the trials whose stages are done or failed; start the next rung of those that are promoted.

        Returns the trials that ended: complete, stopped, failed, or repeated.
        """
        for number, pending in list(self._pending.items()):
            failure = self._failure(pending)
            if failure is not None and failure.stage.key in pending.common:
                raise SharedStageError(_explain(failure))
            if failure is not None:
                self._end_failed(pending, _explain(failure))
            elif all(stage.key in self._ledger.done for stage in pending.stages):
                self._measure(number, pending)
        ended, self._finished = self._finished, []
        return ended

    def started(self, stage: Stage) -> None:
        """Do nothing; part of being the ledger's observer."""

    def finished(self, stage: Stage, outcome: Outcome) -> None:
        self._seconds[stage.key] = outcome.seconds

    def retried(self, stage: Stage, reason: str) -> None:
        Progress.say(f"again: {stage.label} ({reason})")

    def failed(self, stage: Stage, error: str) -> None:
        Progress.say(f"FAILED: {stage.label}: {error}")

    @property
    def _ledger(self) -> Ledger:
        assert self.ledger is not None
        return self.ledger

    def _start(self, pending: _Pending) -> None:
        try:
            points = [each.point for each in lineage(pending.record, self.records)]
            plan = plan_trial(self.header, self._space, points, self._home, self._where, pending.rung, pending.seeds)
        except Exception as error:
            # Whatever a method raises at its settings: one point must not end the search, now or when it goes on.
            kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            self._end_failed(pending, f"{kind}{error}")
            return
        pending.document = skeleton(plan, code_facts())
        pending.stages = list(plan.stages())
        if not self._space.changes(pending.record.point):
            pending.common = _common(plan)
        pending.record = replace(
            pending.record,
            stages=tuple(dict.fromkeys([*pending.record.stages, *(stage.ref for stage in pending.stages)])),
        )
        self._ledger.add(pending.stages)
        pending.missing = frozenset(stage.key for stage in pending.stages) - self._ledger.done
        self._pending[pending.record.number] = pending

    def _failure(self, pending: _Pending) -> Failure | None:
        failures = self._ledger.failures
        return next((failures[stage.key] for stage in pending.stages if stage.key in failures), None)

    def _measure(self, number: int, pending: _Pending) -> None:
        del self._pending[number]
        found = collect(pending.document, self._store)
        metrics = {cell.seed: dict(cell.metrics) for cell in found.cells if cell.setting == TRIAL}
        baseline = {cell.seed: dict(cell.metrics) for cell in found.cells if cell.setting == BASELINE}
        ran = {key: self._seconds.get(key, 0.0) for key in pending.missing}
        seconds = pending.record.stage_seconds + _longest_chain(pending.stages, ran)
        record = replace(pending.record, stage_seconds=seconds)
        if pending.record.state == "complete":
            merged = {**record.metrics, **metrics}
            try:
                mean_values(self.objectives, metrics, pending.seeds)
            except MissingMetricError as error:
                self._end_failed(pending, str(error))
                return
            self._end(pending, replace(record, metrics=merged, baseline={**record.baseline, **baseline}))
            return
        try:
            values = mean_values(self.objectives, metrics, pending.seeds)
            violations = mean_violations(self.floors, metrics, baseline, pending.seeds)
        except MissingMetricError as error:
            hint = check_keys_after(next(iter(metrics.values()), {}), self.objectives, self.floors)
            self._end(pending, replace(record, state="failed", error=hint or str(error)))
            return
        record = replace(
            record, rung=pending.rung, metrics=metrics, baseline=baseline, values=values, violations=violations
        )
        if pending.rung == len(self.header.rungs):
            whole = self.header.is_trained_to_the_end(number)
            self._end(pending, replace(record, state="complete" if whole else "stopped"))
        elif self._is_promoted(record):
            rows = (*record.lower[: pending.rung], {"values": list(values), "violations": list(violations)})
            record = replace(record, lower=rows)
            self._put(record)
            self._start(_Pending(record, pending.seeds, pending.rung + 1, pending.asked, {}, []))
        else:
            self._end(pending, replace(record, state="stopped"))

    def _is_promoted(self, record: TrialRecord) -> bool:
        """Compare with every trial that was measured at this rung."""
        rung = record.rung
        others = [
            (other.values, other.violations)
            for other in self.records.values()
            if other.number != record.number and other.rung == rung and len(other.lower) <= rung
            if other.values is not None
        ]
        others += [
            (row["values"], row["violations"])
            for other in self.records.values()
            for row in other.lower[rung : rung + 1]
            if other.number != record.number
        ]
        assert record.values is not None
        table = [(record.values, record.violations), *others]
        costs = np.array([[o.cost(v) for o, v in zip(self.objectives, values, strict=True)] for values, _ in table])
        return is_promoted(costs, np.array([sum(missed) for _, missed in table]))

    def _end_failed(self, pending: _Pending, error: str) -> None:
        """Record a failure; a complete trial whose repeat failed keeps what it has."""
        if pending.record.state == "complete":
            Progress.say(f"trial {pending.record.number} was not repeated: {error}")
            self._end(pending, pending.record)
        else:
            self._end(pending, replace(pending.record, state="failed", error=error))

    def _end(self, pending: _Pending, record: TrialRecord) -> None:
        self._pending.pop(record.number, None)
        if pending.record.state != "complete":
            record = replace(record, latency=time.monotonic() - pending.asked)
        self._put(record)
        fault_point("search.after_trial")
        self._finished.append(record)

    def _put(self, record: TrialRecord) -> None:
        self.records[record.number] = record
        self._log.put_trial(record)


def plan_trial(
    header: SearchHeader,
    space: SearchSpace,
    points: Sequence[Point],
    home: Home,
    where: str,
    rung: int = 0,
    seeds: Sequence[int] | None = None,
) -> Plan:
    """Return the plan of a trial at a rung: the undefended model and its point, under the given or the search's seeds.

    Args:
        points: of its ancestors in earlier generations, and its own at the end.

    Raises:
        ConfigError: the point does not fit the experiment or its methods.
    """
    data = {**header.trial, "seeds": list(seeds or header.seeds)}
    data = apply_values(data, space.changes(points[-1]))
    if rung < len(header.rungs):
        data = apply_values(data, header.rungs[rung])
    is_whole = not header.population or len(points) == len(header.generations)
    if not is_whole:
        data = apply_values(data, {"recipe.stop_after": header.generations[len(points) - 1]})
    # Before the end of training `none` is a training of its own: it is measured there only where a floor asks for it.
    is_compared = is_whole or any(parse_floor(text).is_relative for text in header.floors)
    settings = trained_settings(space, header, points) if header.population else space.settings(points[-1])
    data["settings"] = {**(data["settings"] if is_compared else {}), TRIAL: settings}
    return make_plan(data, where, home, None)


def mean_values(objectives: Iterable[Objective], metrics: SeedMetrics, seeds: Sequence[int]) -> tuple[float, ...]:
    """Return the objectives' means over seeds.

    Raises:
        MissingMetricError: a seed has no value.
    """
    return tuple(float(np.mean([objective.value(_of(metrics, seed)) for seed in seeds])) for objective in objectives)


def mean_violations(
    floors: Iterable[Floor], metrics: SeedMetrics, baseline: SeedMetrics, seeds: Sequence[int]
) -> tuple[float, ...]:
    """Return by how much each floor is missed, the mean over seeds.

    Raises:
        MissingMetricError: a seed has no value, or no baseline where a floor is relative.
    """
    return tuple(
        float(np.mean([floor.violation(_of(metrics, seed), baseline.get(seed)) for seed in seeds])) for floor in floors
    )


def _of(metrics: SeedMetrics, seed: int) -> Metrics:
    if seed not in metrics:
        raise MissingMetricError(f"seed {seed} was not measured")
    return metrics[seed]


def _longest_chain(stages: Sequence[Stage], seconds: Mapping[str, float]) -> float:
    """Return the summed seconds of the longest chain of stages, inputs before users; stages without seconds count 0."""
    ends: dict[str, float] = {}
    for stage in stages:
        before = max((ends[each.key] for each in stage.inputs.values()), default=0.0)
        ends[stage.key] = before + seconds.get(stage.key, 0.0)
    return max(ends.values(), default=0.0)


def _common(plan: Plan) -> frozenset[str]:
    """Return the keys of the stages that all trials share: judges, priors, the undefended model and its attacks."""
    baseline = [stage for cell in plan.cells if cell.setting == BASELINE for stage in cell.stages.values()]
    return frozenset(stage.key for stage in [*plan.shared.values(), *baseline])


def _explain(failure: Failure) -> str:
    return f"{failure.stage.label}: {failure.error}"
