"""Population-based training for one objective: settings that change while a model trains.

Jaderberg et al., "Population Based Training of Neural Networks", 2017, with truncation selection, and synchronous: a
generation is measured as a whole before the next one begins. Trial number g * N + i is member i of generation g. It
trains up to the end of its generation, under the settings that its ancestors had in theirs, and is measured like any
trial. Then each member of the worst quarter goes on from a random one of the best quarter, with perturbed settings; the
others go on as they are. So the result of a trial is a schedule: settings for each part of the training.

Everything random is drawn from (seed, generation, member), and what a member continues follows from the records of the
generation before: a search that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oakum import registry
from oakum.config import ConfigError
from oakum.search.objectives import Objective
from oakum.search.records import SearchHeader, TrialRecord
from oakum.search.space import DEFENSE, Choice, Parameter, Point, SearchSpace
from oakum.seeding import derive_seed, numpy_generator

POPULATION = "population"
DEFAULT_MEMBERS = 8
FACTORS = (0.8, 1.25)
# How often a choice is drawn again where a number would be perturbed.
REDRAWN_SHARE = 0.25
_SELECTED_SHARE = 1 / 4


@dataclass(frozen=True)
class Phase:
    """Settings of a part of a training.

    Attributes:
        begin: first epoch, counted from 0.
        point: path -> value: all of the first phase, of a later one what differs from the phase before.
    """

    begin: int
    point: Point


class Population:
    """Proposes the members of generation after generation; takes the place of a `Sampler`.

    Args:
        members: N, trials of a generation.
        seed: of everything random.
    """

    def __init__(self, space: SearchSpace, objective: Objective, members: int, seed: int) -> None:
        self._space = space
        self._objective = objective
        self._members = members
        self._seed = seed
        self._records: dict[int, TrialRecord] = {}

    def ask(self, number: int) -> TrialRecord | None:
        """Return trial `number`, to be run; None while the generation before it has not ended."""
        generation, member = divmod(number, self._members)
        generator = self._generator(generation, member)
        if generation == 0:
            point = self._space.draw(lambda path, parameter: parameter.at(generator.random()))
            return self._asked(TrialRecord(number, point, POPULATION, "running"))
        first = number - member - self._members
        before = [self._records.get(each) for each in range(first, first + self._members)]
        ended = [record for record in before if record is not None and record.state != "running"]
        if len(ended) < self._members:
            return None
        own, source = ended[member], select(ended, member, self._objective, generator)
        point = own.point if source is None else perturb(self._space, source.point, generator)
        parent = (source or own).number
        return self._asked(TrialRecord(number, dict(point), POPULATION, "running", parent=parent))

    def tell(self, record: TrialRecord) -> None:
        """Learn from a finished trial."""
        self._records[record.number] = record

    def recall(self, records: Iterable[TrialRecord]) -> None:
        """Learn from the records of an earlier process, unfinished ones included."""
        self._records |= {record.number: record for record in records}

    def _asked(self, record: TrialRecord) -> TrialRecord:
        self._records[record.number] = record
        return record

    def _generator(self, generation: int, member: int) -> np.random.Generator:
        return numpy_generator(derive_seed(self._seed, POPULATION, generation, member))


def select(
    generation: Sequence[TrialRecord], member: int, objective: Objective, generator: np.random.Generator
) -> TrialRecord | None:
    """Return whom a member goes on from instead of itself, or None if it goes on as it is.

    Members of the worst quarter, and those that failed, take a random one of the best quarter.

    Args:
        generation: all members that ended, by member.
    """
    order = ranking(generation, objective)
    quarter = max(1, math.floor(_SELECTED_SHARE * len(generation)))
    best = [generation[place] for place in order[:quarter] if _is_measured(generation[place])]
    if not best or (member not in order[-quarter:] and _is_measured(generation[member])):
        return None
    return best[int(generator.integers(len(best)))]


def ranking(generation: Sequence[TrialRecord], objective: Objective) -> list[int]:
    """Return members from best to worst: feasible ones by objective, then by how much they miss, then failed ones."""

    def worth(member: int) -> tuple[bool, float, float, int]:
        record = generation[member]
        value = record.values[0] if record.values is not None else math.inf
        return not _is_measured(record), sum(record.violations), objective.cost(value), member

    return sorted(range(len(generation)), key=worth)


def perturb(space: SearchSpace, point: Point, generator: np.random.Generator) -> Point:
    """Return a point near another one: numbers times 0.8 or 1.25 within their bounds, choices drawn again or kept.

    A number that its factor cannot move (it lies on the bound, or is 0) takes the other factor, and one that neither
    can move is drawn anew.
    """
    return space.draw(lambda path, parameter: _near(parameter, point[path], generator))


def _near(parameter: Parameter, value: Any, generator: np.random.Generator) -> Any:
    share = generator.random()
    if isinstance(parameter, Choice):
        return parameter.at(generator.random()) if share < REDRAWN_SHARE else value
    anew = parameter.at(generator.random())
    first, other = FACTORS if share < 1 / 2 else FACTORS[::-1]
    moved = (parameter.scaled(value, factor) for factor in (first, other))
    return next((each for each in moved if each != value), anew)


def _is_measured(record: TrialRecord) -> bool:
    return record.state != "failed" and record.values is not None


def generation_ends(epochs: int, generations: int) -> tuple[int, ...]:
    """Return after how many epochs each generation is measured; the last one after all."""
    return tuple(math.ceil(epochs * (place + 1) / generations) for place in range(generations))


def lineage(trial: TrialRecord, records: Mapping[int, TrialRecord]) -> tuple[TrialRecord, ...]:
    """Return the trials whose settings a trial trains under, one for each generation, itself last."""
    found = [trial]
    while (parent := found[-1].parent) is not None:
        found.append(records[parent])
    return tuple(reversed(found))


def phases(header: SearchHeader, trial: TrialRecord, records: Mapping[int, TrialRecord]) -> list[Phase]:
    """Return a trial's schedule; generations in which nothing changed are no phases of their own."""
    points = [each.point for each in lineage(trial, records)]
    found = [Phase(0, points[0])]
    for begin, before, point in zip(header.generations, points, points[1:], strict=False):
        changes = {path: value for path, value in point.items() if before.get(path) != value}
        found += [Phase(begin, changes)] if changes else []
    return found


def settings_of(
    space: SearchSpace, header: SearchHeader, trial: TrialRecord, records: Mapping[int, TrialRecord]
) -> dict[str, Any]:
    """Return a trial's defense as an entry of an experiment's `settings`, as one would write it."""
    first, *later = phases(header, trial, records)
    schedule = {phase.begin: _own(phase.point) for phase in later}
    return {**space.settings(first.point), **({"schedule": schedule} if schedule else {})}


def trained_settings(space: SearchSpace, header: SearchHeader, points: Sequence[Point]) -> dict[str, Any]:
    """Return the defense of a trial whose ancestors had `points`, with a phase for every generation.

    Phases in which nothing changes are kept: each ends in a stored training, from which another member may go on.
    """
    searched = [{path: point[path] for path in space.parameters} for point in points]
    schedule = {begin: _own(point) for begin, point in zip(header.generations, searched[1:], strict=False)}
    return {**space.settings(points[0]), **({"schedule": schedule} if schedule else {})}


def check_population(
    space: SearchSpace, objectives: Sequence[Objective], members: int, trials: int, epochs: int
) -> tuple[int, ...]:
    """Return `generation_ends` of a search.

    Raises:
        ConfigError: what was asked for cannot be searched by a population.
    """
    if len(objectives) != 1:
        raise ConfigError("a population ranks its members by one objective; give one --objective, or a weighted sum")
    if members < 2:
        raise ConfigError("--population must be 2 or more")
    generations = trials // members
    if trials % members or generations < 2:
        ways = " or ".join(str(members * max(2, count)) for count in dict.fromkeys((generations, generations + 1)))
        raise ConfigError(
            f"--trials {trials} is not two or more generations of {members} members; write {ways}, or another "
            "--population"
        )
    if generations > epochs:
        raise ConfigError(
            f"{generations} generations do not fit into {epochs} epochs, since each trains at least one; lower "
            "--trials or raise recipe.epochs"
        )
    _check_space(space)
    return generation_ends(epochs, generations)


def _check_space(space: SearchSpace) -> None:
    schedulable = registry.load("defenses", space.defense).schedulable
    if not schedulable:
        raise ConfigError(
            f"no setting of {space.defense} can change while a model trains, which is what a population does; choose "
            "another sampler"
        )
    able = ", ".join(f"{DEFENSE}{name}" for name in schedulable)
    for path, parameter in space.parameters.items():
        if path.removeprefix(DEFENSE) not in schedulable or not path.startswith(DEFENSE):
            raise ConfigError(
                f"{path} cannot change while a model trains; a population may search {able}. Move it to `fixed`, or "
                "choose another sampler"
            )
        if parameter.when:
            raise ConfigError(f"{path}.when: a population changes every parameter in every phase; remove the condition")
    if f"{DEFENSE}schedule" in space.fixed:
        raise ConfigError(f"{DEFENSE}schedule: a population finds the schedule; remove it from `fixed`")


def _own(point: Point) -> dict[str, Any]:
    return {path.removeprefix(DEFENSE): value for path, value in point.items()}
