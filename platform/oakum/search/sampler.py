"""Which setting a search tries next: Optuna's samplers, or the grid of a paper.

A sampler's memory is the trial records: it is told them again when a search goes on. Each question is answered by a
sampler seeded with the question's number, so that a search that goes on asks what it would have asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from oakum.search.objectives import Objective
from oakum.search.population import POPULATION
from oakum.search.records import TrialRecord
from oakum.search.space import Choice, Parameter, SearchSpace
from oakum.seeding import derive_seed

SAMPLERS = ("tpe", "nsga2", "random", "grid", POPULATION)
GRID = "grid"
_STARTUP_TRIALS = 10
_POPULATION = 12


class Sampler:
    """Proposes points and learns from their results.

    Args:
        name: one of `SAMPLERS` but the population, which is a class of its own; `grid` proposes the space's grid and
            then ends.
        seed: of the proposals.
        grid_first: propose the space's grid before anything is sampled.
    """

    def __init__(
        self, space: SearchSpace, objectives: Sequence[Objective], name: str, seed: int, *, grid_first: bool = False
    ) -> None:
        self._space = space
        self._name = name
        self._seed = seed
        self._grid = list(space.grid_points()) if grid_first or name == GRID else []
        self._asked: dict[int, Trial] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["minimize" if objective.direction == "min" else "maximize" for objective in objectives]
        )

    def ask(self, number: int) -> TrialRecord | None:
        """Return trial `number`, to be run; None at the end."""
        if number < len(self._grid):
            record = TrialRecord(number, self._grid[number], GRID, "running")
            self.remember(record)
            return record
        if self._name == GRID:
            return None
        self._reseed(number)
        trial = self._study.ask()
        self._settle_generations(trial)
        self._asked[number] = trial
        point = self._space.draw(lambda path, parameter: _suggest(trial, path, parameter))
        noted = self._study._storage.get_trial_system_attrs(trial._trial_id)
        return TrialRecord(number, point, self._name, "running", memory=dict(noted))

    def remember(self, record: TrialRecord) -> None:
        """Take up a trial whose point is known: of the grid, or asked for by an earlier process.

        A value outside of the space's ranges is left out of what the sampler learns.
        """
        point = record.point
        known = {
            path: parameter
            for path, parameter in self._space.parameters.items()
            if path in point and _is_in(parameter, point[path])
        }
        self._study.enqueue_trial({path: _encode(parameter, point[path]) for path, parameter in known.items()})
        self._reseed(record.number)
        trial = self._study.ask()
        for path, parameter in known.items():
            _suggest(trial, path, parameter)
        # NSGA-II knows its generations by what it noted at a trial, which a trial with a given point lacks.
        for name, value in record.memory.items():
            self._study._storage.set_trial_system_attr(trial._trial_id, name, value)
        self._asked[record.number] = trial

    def tell(self, record: TrialRecord) -> None:
        """Learn from a finished trial. A failed one, or one that was stopped at a lower rung, only counts as tried."""
        trial = self._asked.pop(record.number)
        if record.state != "complete" or record.values is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        for place, violation in enumerate(record.violations):
            trial.set_constraint(str(place), violation)
        self._study.tell(trial, list(record.values))

    def recall(self, records: Iterable[TrialRecord]) -> None:
        """Learn from the records of an earlier process, in the order of their numbers."""
        for record in records:
            self.remember(record)
            if record.state != "running":
                self.tell(record)

    def _settle_generations(self, trial: Trial) -> None:
        """Have NSGA-II look up its parents once: it orders them otherwise at the first look than at later ones."""
        sampler = self._study.sampler
        if isinstance(sampler, NSGAIISampler):
            frozen = self._study._storage.get_trial(trial._trial_id)
            for generation in range(1, sampler.get_trial_generation(self._study, frozen) + 1):
                sampler.get_parent_population(self._study, generation)

    def _reseed(self, number: int) -> None:
        self._study.sampler = _MAKERS[self._name](derive_seed(self._seed, "ask", number) % 2**32)


def _tpe(seed: int) -> BaseSampler:
    # The constant liar keeps trials that run at the same time apart.
    return TPESampler(seed=seed, constant_liar=True, n_startup_trials=_STARTUP_TRIALS)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=_POPULATION)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


_MAKERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "random": _random,
    "grid": _random,
}


def _suggest(trial: Trial, path: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        # By position, since a value may be a list, which Optuna does not take.
        return parameter.values[trial.suggest_categorical(path, range(len(parameter.values)))]
    if parameter.sampler == "integer":
        return trial.suggest_int(path, int(parameter.low), int(parameter.high), step=int(parameter.step or 1))
    return trial.suggest_float(
        path, parameter.low, parameter.high, step=parameter.step, log=parameter.sampler == "loguniform"
    )


def _encode(parameter: Parameter, value: Any) -> Any:
    return parameter.values.index(value) if isinstance(parameter, Choice) else value


def _is_in(parameter: Parameter, value: Any) -> bool:
    if isinstance(parameter, Choice):
        return value in parameter.values
    return isinstance(value, int | float) and parameter.low <= value <= parameter.high
