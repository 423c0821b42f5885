"""A search arranged for reading: what its page, its figures and the terminal show."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from oakum.records import CellRecord
from oakum.report._overview import BASELINE, Column, Setting, Unit, group_settings, topic_of, unit_of
from oakum.report._palette import BASELINE_INK, BASELINE_MARK, SETTING_INKS, Look
from oakum.report.statistics import Difference, Spread, paired_difference
from oakum.search.objectives import (
    Floor,
    Metrics,
    MissingMetricError,
    Objective,
    fronts,
    parse_floor,
    parse_objective,
)
from oakum.search.population import phases
from oakum.search.protocol import confirmed_key
from oakum.search.records import SearchRecord, TrialRecord
from oakum.search.space import DEFENSE

GRID = "grid"
SAMPLED_LOOK = Look(SETTING_INKS[0], "o", "sampled")
GRID_LOOK = Look(SETTING_INKS[1], "s", "of the paper's grid")
CONFIRMED_LOOK = Look(SETTING_INKS[2], "^", "confirmed")
UNDEFENDED_LOOK = Look(BASELINE_INK, BASELINE_MARK, BASELINE)
NEAREST_MISSES = 3
_LEAKAGE = ("membership", "canary", "inversion")


@dataclass(frozen=True)
class Reading:
    """A number that is read of every trial: an objective, or the metric that a floor bounds.

    Attributes:
        objective: how it is read; of a floor the metric alone.
        place: among the objectives, or among the floors.
        floor: None for an objective.
    """

    objective: Objective
    place: int
    floor: Floor | None = None

    @property
    def title(self) -> str:
        """The metric's key, or the weighted sum as it was written."""
        return self.objective.text.split(" ", 1)[1].strip()

    @property
    def confirmed_title(self) -> str:
        """What a confirmation shows for it: the test fold's metric where trials read the validation fold's."""
        return confirmed_key(self.title)

    @property
    def wants(self) -> Literal["low", "high"]:
        return "low" if self.objective.direction == "min" else "high"

    @property
    def aim(self) -> str:
        return "lower is better" if self.wants == "low" else "higher is better"

    @property
    def unit(self) -> Unit:
        """The unit that all its metrics have; a sum of several units has none."""
        units = {unit_of(key) for key in self.objective.keys}
        return units.pop() if len(units) == 1 else "plain"

    @property
    def is_leakage(self) -> bool:
        return any(topic_of(key) in _LEAKAGE for key in self.objective.keys)

    def spread(self, metrics: Mapping[int, Metrics]) -> Spread:
        """Read it from seed -> metrics, as trials hold them; a missing metric is unresolved."""
        return _spread(self.objective, metrics)

    def confirmed_spread(self, cells: Iterable[CellRecord]) -> Spread:
        """Read it from the cells of a confirmation."""
        objective = parse_objective(confirmed_key(self.objective.text))
        return _spread(objective, {cell.seed: cell.metrics for cell in cells})

    def violations(self, metrics: Mapping[int, Metrics], baseline: Mapping[int, Metrics]) -> dict[int, float]:
        """Return seed -> by how much a confirmation misses the floor, without seeds that cannot be judged."""
        assert self.floor is not None
        floor = replace(self.floor, key=confirmed_key(self.floor.key))
        found = {}
        for seed, own in metrics.items():
            try:
                found[seed] = floor.violation(own, baseline.get(seed))
            except MissingMetricError:
                continue
        return found


@dataclass(frozen=True)
class UndefendedRow:
    """What a table says of `none`.

    Attributes:
        remark: below its name: `undefended`, or the conditions that it was trained under.
        setting: in the confirmation; None without one.
        conditions: what it and its trials change beside the defense; None: it is shown for all trials.
    """

    remark: str
    setting: Setting | None
    conditions: dict[str, Any] | None

    @property
    def cells(self) -> tuple[CellRecord, ...]:
        return self.setting.cells if self.setting else ()


@dataclass(frozen=True)
class SearchView:
    """Objectives, floors, what is best, and what was confirmed.

    Attributes:
        goals: the objectives, in the header's order.
        bounds: the metrics of the floors, in the header's order.
        best: the feasible trials that no other one beats: with one objective the best one, else the front, best
            first objective first.
        nearest: where nothing is feasible, the complete trials that miss their floors by least.
        confirmed: trial number -> setting of the confirmation.
        undefended: trial number -> `none` under its conditions in the confirmation.
        parameters: paths that differ between points, in the order of the space.
    """

    record: SearchRecord
    goals: tuple[Reading, ...]
    bounds: tuple[Reading, ...]
    best: tuple[TrialRecord, ...]
    nearest: tuple[TrialRecord, ...]
    confirmed: dict[int, Setting]
    undefended: dict[int, Setting]
    parameters: tuple[str, ...]

    @property
    def feasible(self) -> tuple[TrialRecord, ...]:
        return tuple(trial for trial in self.record.trials if trial.is_feasible)

    @property
    def shown(self) -> tuple[TrialRecord, ...]:
        """The trials that the verdict is about: the best, then others that were confirmed; else the nearest misses."""
        others = (trial for trial in self.record.trials if trial.number in self.confirmed and trial not in self.best)
        return (*self.best, *others) or self.nearest

    @property
    def floors(self) -> list[Floor]:
        return [bound.floor for bound in self.bounds if bound.floor is not None]

    @property
    def has_undefended(self) -> bool:
        """Whether `none` was measured anywhere."""
        return bool(self.undefended) or any(trial.baseline for trial in self.record.complete)

    @property
    def undefended_rows(self) -> tuple[UndefendedRow, ...]:
        """The rows in which `none` is shown: one for each of the conditions that were confirmed, or one for all."""
        conditions = {trial.number: _conditions(trial) for trial in self.record.trials}
        distinct = {setting.label: number for number, setting in reversed(sorted(self.undefended.items()))}
        if len(distinct) < 2:
            setting = next(iter(self.undefended.values()), None)
            return (UndefendedRow("undefended", setting, None),) if self.has_undefended else ()
        return tuple(
            UndefendedRow(_parameters_text(conditions[number]), self.undefended[number], conditions[number])
            for number in sorted(distinct.values())
        )

    def searched(self, reading: Reading, trial: TrialRecord) -> float | None:
        """Return what the search goes by: the mean over the header's seeds, None where there is none."""
        if reading.floor is None:
            return trial.values[reading.place] if trial.values is not None else None
        return reading.spread(_chosen(trial.metrics, self.record.header.seeds)).mean

    def baseline(self, reading: Reading, trial: TrialRecord) -> float | None:
        """Return the same of `none` under the trial's conditions."""
        return reading.spread(_chosen(trial.baseline, self.record.header.seeds)).mean

    def baselines(self, *readings: Reading, like: dict[str, Any] | None = None) -> list[tuple[float, ...]]:
        """Return the distinct values of `none` in the search: one, unless trials change more than the defense.

        Args:
            like: what trials change beside the defense; None: whatever they change.
        """
        trials = (trial for trial in self.record.complete if like is None or _conditions(trial) == like)
        found = (tuple(self.baseline(reading, trial) for reading in readings) for trial in trials)
        return list(dict.fromkeys(tuple(v for v in values if v is not None) for values in found if None not in values))

    def confirmed_spread(self, reading: Reading, trial: TrialRecord) -> Spread:
        setting = self.confirmed.get(trial.number)
        return reading.confirmed_spread(setting.cells if setting else ())

    def undefended_spread(self, reading: Reading, trial: TrialRecord) -> Spread:
        """Read it from the confirmation's `none` under a trial's conditions."""
        undefended = self.undefended.get(trial.number)
        return reading.confirmed_spread(undefended.cells if undefended else ())

    def confirmed_violations(self, reading: Reading, trial: TrialRecord) -> dict[int, float]:
        setting, undefended = self.confirmed.get(trial.number), self.undefended.get(trial.number)
        if setting is None:
            return {}
        baseline = undefended.cells if undefended else ()
        return reading.violations(
            {cell.seed: cell.metrics for cell in setting.cells}, {cell.seed: cell.metrics for cell in baseline}
        )

    def difference(self, reading: Reading, trial: TrialRecord) -> Difference:
        """Return the trial minus `none`, paired per seed: confirmed, or of the search where nothing was confirmed."""
        if self.record.confirmation is None:
            seeds = self.record.header.seeds
            own, its = (reading.spread(_chosen(metrics, seeds)) for metrics in (trial.metrics, trial.baseline))
            return paired_difference(own, its)
        if trial.number not in self.confirmed:
            return Difference({}, None, None, None, "not confirmed")
        if trial.number not in self.undefended:
            return Difference({}, None, None, None, "no `none` of its conditions")
        return paired_difference(self.confirmed_spread(reading, trial), self.undefended_spread(reading, trial))

    def setting(self, trial: TrialRecord) -> Setting:
        """Return the confirmed setting, or one without cells."""
        label = f"trial {trial.number}"
        return self.confirmed.get(trial.number) or Setting(label, self.record.header.defense, trial.point, (), -1)

    def column(self, reading: Reading) -> Column:
        """Return the reading as a report's column, without its measurements."""
        keys = [confirmed_key(key) for key in reading.objective.keys]
        confirmation = self.record.confirmation
        levels = confirmation.record.chance if confirmation else {}
        chance = levels.get(keys[0]) if reading.objective.terms[0][0] == 1 and len(keys) == 1 else None
        topics = [topic_of(key) for key in keys]
        topic = next((topic for topic in topics if topic in _LEAKAGE), topics[0])
        return Column(reading.title, reading.title, topic, reading.unit, reading.wants, chance, {}, {})


def search_view(record: SearchRecord) -> SearchView:
    """Arrange a search for reading. Nothing is left out that a reader would miss: unfinished trials stay in it."""
    goals = tuple(Reading(parse_objective(text), place) for place, text in enumerate(record.header.objectives))
    bounds = tuple(_bound(parse_floor(text), place) for place, text in enumerate(record.header.floors))
    confirmed, undefended = _confirmed(record)
    feasible = [trial for trial in record.complete if trial.is_feasible]
    nearest = [] if feasible else sorted(record.complete, key=lambda trial: sum(trial.violations))
    return SearchView(
        record=record,
        goals=goals,
        bounds=bounds,
        best=tuple(_best(feasible, goals)),
        nearest=tuple(nearest[:NEAREST_MISSES]),
        confirmed=confirmed,
        undefended=undefended,
        parameters=tuple(_parameters(record)),
    )


def costs_of(trials: Iterable[TrialRecord], goals: tuple[Reading, ...]) -> list[list[float]]:
    """Return a row for each trial with values: its objectives turned so that small is good."""
    return [
        [goal.objective.cost(value) for goal, value in zip(goals, trial.values, strict=True)]
        for trial in trials
        if trial.values is not None
    ]


def look_of(trial: TrialRecord) -> Look:
    return GRID_LOOK if trial.origin == GRID else SAMPLED_LOOK


def parameter_name(path: str) -> str:
    """Return a path as a reader knows it: settings of the searched defense without their prefix."""
    return path.removeprefix(DEFENSE)


def value_text(value: Any) -> str:
    """Write a parameter's value: numbers with four significant digits, lists and null as in YAML."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def point_text(view: SearchView, trial: TrialRecord) -> str:
    """Write what distinguishes a trial: the parameters that the search varies, in a population with their schedule."""
    if view.record.header.population:
        return schedule_text(view, trial)
    chosen = {path: trial.point[path] for path in view.parameters if path in trial.point}
    return _parameters_text(chosen or trial.point)


def schedule_text(view: SearchView, trial: TrialRecord) -> str:
    """Write the settings that a member of a population trained under: the first, then what changed and when."""
    records = {each.number: each for each in view.record.trials}
    first, *later = phases(view.record.header, trial, records)
    chosen = {path: first.point[path] for path in view.parameters if path in first.point} or first.point
    changes = (f"from epoch {phase.begin} {_parameters_text(phase.point)}" for phase in later)
    return "; ".join([_parameters_text(chosen), *changes])


def is_number(value: Any) -> bool:
    """Whether a parameter's value can be drawn on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spread(objective: Objective, metrics: Mapping[int, Metrics]) -> Spread:
    values: dict[int, float] = {}
    unresolved: dict[int, str] = {}
    intervals: dict[int, tuple[float, float]] = {}
    for seed, own in sorted(metrics.items()):
        try:
            values[seed] = objective.value(own)
        except MissingMetricError as error:
            unresolved[seed] = str(error)
            continue
        metric = own[objective.keys[0]]
        if objective.terms == ((1.0, objective.keys[0]),) and metric.low is not None and metric.high is not None:
            intervals[seed] = (metric.low, metric.high)
    return Spread(values, unresolved, intervals)


def _bound(floor: Floor, place: int) -> Reading:
    direction: Literal["min", "max"] = "max" if floor.is_lower else "min"
    return Reading(Objective(f"{direction} {floor.key}", direction, ((1.0, floor.key),)), place, floor)


def _best(feasible: list[TrialRecord], goals: tuple[Reading, ...]) -> list[TrialRecord]:
    feasible = [trial for trial in feasible if trial.values is not None]
    if not feasible:
        return []
    costs = np.array(costs_of(feasible, goals), dtype=np.float64)
    ordered = sorted(fronts(costs)[0], key=lambda row: (costs[row].tolist(), feasible[row].number))
    found = [feasible[row] for row in ordered]
    # With one objective a front of several trials is a tie; the first of them is the best.
    return found[:1] if len(goals) == 1 else found


def _confirmed(record: SearchRecord) -> tuple[dict[int, Setting], dict[int, Setting]]:
    """Return trial number -> confirmed setting, and trial number -> `none` under its conditions."""
    confirmation = record.confirmation
    if confirmation is None:
        return {}, {}
    settings = {setting.label: setting for setting in group_settings(confirmation.record)}
    named = confirmation.settings.items()
    pairs = {number: confirmation.baseline_of(label) for label, number in named}
    return (
        {number: settings[label] for label, number in named if label in settings},
        {number: settings[label] for number, label in pairs.items() if label in settings},
    )


def _parameters_text(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{parameter_name(path)} {value_text(value)}" for path, value in point.items())


def _parameters(record: SearchRecord) -> list[str]:
    own = [path for path in record.header.space if path not in ("defense", "grid", "fixed")]
    paths = list(dict.fromkeys([*own, *(path for trial in record.trials for path in trial.point)]))
    seen = {path: {json.dumps(trial.point.get(path)) for trial in record.trials} for path in paths}
    return [path for path in paths if len(seen[path]) > 1 or (path in own and seen[path] != {"null"})]


def _conditions(trial: TrialRecord) -> dict[str, Any]:
    return {path: value for path, value in trial.point.items() if not path.startswith(DEFENSE)}


def _chosen(metrics: Mapping[int, Metrics], seeds: Iterable[int]) -> dict[int, Metrics]:
    return {seed: metrics[seed] for seed in seeds if seed in metrics}
