"""Confirmation of a search: which trials are confirmed, and what they reach on the test folds beside `none`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from oakum.config import apply_values
from oakum.pipeline.collect import collect
from oakum.progress import Progress, code_facts
from oakum.records import RunRecord, canonical_json, sha256_hex
from oakum.search.objectives import Objective, front_membership, fronts
from oakum.search.protocol import BASELINE, confirmation_experiment, confirmed_name
from oakum.search.records import Confirmation, TrialRecord
from oakum.search.space import SearchSpace
from oakum.session import make_plan
from oakum.session_home import Home
from oakum.session_report import write_report
from oakum.session_search_trials import worker_settings
from oakum.session_trials import TrialBoard
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.pipeline.executor import Executor, Failure


def front_candidates(board: TrialBoard, most: int) -> list[TrialRecord]:
    """Return the feasible trials of the best fronts, at most `most`, distinct settings only."""
    distinct: dict[bytes, TrialRecord] = {}
    for record in sorted(board.records.values(), key=lambda each: each.number):
        if record.is_feasible:
            distinct.setdefault(canonical_json([record.point, board.settings_of(record)]), record)
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


def likeliest(candidates: Iterable[TrialRecord], shares: dict[int, float], most: int) -> list[TrialRecord]:
    """Return the candidates that are likeliest on the front, at most `most`, by number."""
    chosen = sorted(candidates, key=lambda trial: -shares[trial.number])[:most]
    return sorted(chosen, key=lambda trial: trial.number)


class Confirming:
    """Measures settings of a search on test folds, under the experiment's own seeds and by the other judge."""

    def __init__(self, board: TrialBoard, space: SearchSpace, home: Home, store: Store, where: str) -> None:
        self._board = board
        self._header = board.header
        self._space = space
        self._home = home
        self._store = store
        self._where = where
        self.failures: list[Failure] = []

    def measure(self, executor: Executor, chosen: Sequence[TrialRecord], shares: dict[int, float]) -> Confirmation:
        """Confirm trials, at least one; stages that fail are kept in `failures`.

        Args:
            shares: trial number -> probability of being on the front.
        """
        Progress.say(f"confirming {', '.join(f'trial {trial.number}' for trial in chosen)} on the test folds")
        groups: dict[bytes, list[TrialRecord]] = {}
        for trial in chosen:
            groups.setdefault(canonical_json(self._space.changes(trial.point)), []).append(trial)
        found = [self._measure_group(executor, trials, place) for place, trials in enumerate(groups.values())]
        settings = {_label(trial): trial.number for trial in chosen}
        baselines = {
            _label(trial): _baseline_label(place)
            for place, trials in enumerate(groups.values())
            for trial in trials
            if place
        }
        return Confirmation(found[0].plan_key, settings, shares, _joined(found), baselines)

    def _measure_group(self, executor: Executor, trials: Sequence[TrialRecord], place: int) -> RunRecord:
        """Run one experiment: trials that change the same outside of the defense, and `none` with these changes."""
        from oakum.pipeline.executor import Ledger

        settings = {_label(trial): self._board.settings_of(trial) for trial in trials}
        name = confirmed_name(self._header.name) + (f"-{place + 1}" if place else "")
        data = apply_values(
            confirmation_experiment(self._header.experiment, name, settings, trial=self._header.trial),
            self._space.changes(trials[0].point),
        )
        digest = sha256_hex(canonical_json({"confirmation": data, "code": code_facts()["package"]}))
        plan = make_plan(data, self._where, self._home, self._store, digest)
        progress = Progress(plan, self._store, None)
        ledger = Ledger.of(plan.stages(), self._store, progress)
        progress.begin(ledger)
        executor.run(ledger, worker_settings(self._store, self._home))
        progress.end()
        self.failures += ledger.failures.values()
        document = self._store.get_document(f"plans/{plan.plan_key}")
        assert document is not None
        found = collect(document["skeleton"], self._store)
        write_report(found, self._home, self._store)
        return found


def _label(trial: TrialRecord) -> str:
    return f"trial-{trial.number}"


def _costs(objectives: Sequence[Objective], values: Sequence[float]) -> list[float]:
    return [objective.cost(value) for objective, value in zip(objectives, values, strict=True)]


def _baseline_label(place: int) -> str:
    """Return what the `none` of a group of settings is called in the joined record."""
    return f"{BASELINE}-{place + 1}" if place else BASELINE


def _joined(records: Sequence[RunRecord]) -> RunRecord:
    """Return the first record with the cells of all; every `none` keeps its place beside the settings of its group."""
    cells = [
        replace(cell, setting=_baseline_label(place)) if cell.setting == BASELINE else cell
        for place, record in enumerate(records)
        for cell in record.cells
    ]
    shared = {(item.role, item.stage): item for record in records for item in record.shared}
    warnings = dict.fromkeys(text for record in records for text in record.warnings)
    return replace(records[0], cells=tuple(cells), shared=tuple(shared.values()), warnings=tuple(warnings))
