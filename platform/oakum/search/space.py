"""Search spaces: what a search may change in an experiment, and between which bounds.

A space is a YAML file: dotted paths with a sampler each, values that are fixed, and a grid that replays a paper's
sweep. `defense.<setting>` is a setting of the searched defense, anything else a path of the experiment
(`recipe.weight_decay`). Samplers are names of a closed list; nothing in a space is code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from oakum import registry
from oakum.config import ConfigError, FrozenConfig, read_yaml, validate

DEFENSE = "defense."
Point = dict[str, Any]
_MODELS: dict[str, type[Range | Choice]]


class _Conditional(FrozenConfig):
    """Attributes:
    when: path -> value; the parameter exists only where all of them hold.
    """

    when: dict[str, Any] = Field(default={})


class Range(_Conditional):
    """Numbers from `low` to `high`, both included.

    Attributes:
        sampler: `uniform`, `loguniform` (equal shares for equal factors) or `integer`.
        step: only `low` and whole steps above it, of `uniform` and `integer`.
    """

    sampler: Literal["uniform", "loguniform", "integer"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.sampler == "loguniform" and self.low <= 0:
            raise ValueError(f"loguniform needs low above 0, not {self.low:g}")
        if self.sampler == "loguniform" and self.step is not None:
            raise ValueError("loguniform takes no step; use choice for single values")
        if self.sampler == "integer" and not all(each.is_integer() for each in (self.low, self.high, self.step or 1.0)):
            raise ValueError("integer needs whole bounds and a whole step")
        return self

    def extremes(self) -> list[Any]:
        """Return the values at which a schema's bounds are checked."""
        return [self.number(self.low), self.number(self.high)]

    def number(self, value: float) -> float | int:
        """Return the value in the sampler's own type."""
        return int(value) if self.sampler == "integer" else float(value)

    def at(self, share: float) -> float | int:
        """Return the value at a share of the range in [0, 1]: a uniform share gives the sampler's distribution."""
        if self.sampler == "loguniform":
            low, high = math.log(self.low), math.log(self.high)
            return min(self.high, max(self.low, math.exp(low + share * (high - low))))
        step = self._whole_step
        if step is None:
            return self.low + share * (self.high - self.low)
        return self.number(self.low + step * min(self._most_steps, math.floor(share * (self._most_steps + 1))))

    def scaled(self, value: float, factor: float) -> float | int:
        """Return a value times a factor, inside the bounds; where only whole steps are allowed, at least one away."""
        wanted, step = value * factor, self._whole_step
        if step is None:
            return min(self.high, max(self.low, wanted))
        here, there = (round((each - self.low) / step) for each in (value, wanted))
        if here == there and wanted != value:
            there += 1 if wanted > value else -1
        return self.number(self.low + step * min(self._most_steps, max(0, there)))

    @property
    def _whole_step(self) -> float | None:
        return 1.0 if self.sampler == "integer" and self.step is None else self.step

    @property
    def _most_steps(self) -> int:
        assert self._whole_step is not None
        return math.floor((self.high - self.low) / self._whole_step + 1e-9)


class Choice(_Conditional):
    """One of several values."""

    sampler: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    def extremes(self) -> list[Any]:
        """Return the values at which a schema is checked: all of them."""
        return list(self.values)

    def at(self, share: float) -> Any:
        """Return the value at a share in [0, 1] of the list."""
        return self.values[min(len(self.values) - 1, math.floor(share * len(self.values)))]


_MODELS = {"uniform": Range, "loguniform": Range, "integer": Range, "choice": Choice}
Parameter = Range | Choice
Pick = Callable[[str, Parameter], Any]


@dataclass(frozen=True)
class SearchSpace:
    """A validated space.

    Attributes:
        defense: name of the searched defense.
        parameters: path -> sampler; what a condition asks about stands before what it conditions.
        fixed: path -> value, equal in all points.
        grid: points of a paper's sweep; fixed values are not repeated in them.
    """

    defense: str
    parameters: dict[str, Parameter]
    fixed: Point
    grid: tuple[Point, ...]

    def draw(self, pick: Pick) -> Point:
        """Return a point whose values `pick(path, parameter)` chooses; conditions that do not hold are left out."""
        point = dict(self.fixed)
        for path, parameter in self.parameters.items():
            if all(point.get(other) == value for other, value in parameter.when.items()):
                point[path] = pick(path, parameter)
        return point

    def grid_points(self) -> Iterator[Point]:
        """Yield the points of the grid with the fixed values."""
        for point in self.grid:
            yield {**self.fixed, **point}

    def settings(self, point: Point) -> dict[str, Any]:
        """Return the defense of a point as an entry of an experiment's `settings`."""
        own = {path.removeprefix(DEFENSE): value for path, value in point.items() if path.startswith(DEFENSE)}
        return {"name": self.defense, **own}

    def changes(self, point: Point) -> Point:
        """Return what a point changes in the experiment outside of the defense."""
        return {path: value for path, value in point.items() if not path.startswith(DEFENSE)}


def load_space(file: Path) -> SearchSpace:
    """Read and check a space. Its defense is what `defense:` names, else the file's stem.

    Raises:
        ConfigError: bad YAML, an unknown defense or setting, a bound outside of the setting's schema, a condition on a
            path that is not in the space, or conditions in a circle; the message names the path.
    """
    data = read_yaml(file)
    where = file.name
    name = data.pop("defense", file.stem)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: defense: write the name of a defense")
    name = registry.canonical_name("defenses", name)
    grid, fixed = data.pop("grid", []), data.pop("fixed", {})
    if not isinstance(grid, list) or not all(isinstance(point, dict) for point in grid):
        raise ConfigError(f"{where}: grid: write a list of mappings from paths to values")
    if not isinstance(fixed, dict):
        raise ConfigError(f"{where}: fixed: write a mapping from paths to values")
    parameters = {path: _parameter(path, entry, where) for path, entry in data.items()}
    if not parameters and not grid:
        raise ConfigError(f"{where}: the space is empty; write paths with samplers, or a grid")
    space = SearchSpace(name, _ordered(parameters, fixed, where), fixed, tuple(grid))
    _check_defense(space, where)
    return space


def _parameter(path: str, entry: Any, where: str) -> Parameter:
    if not isinstance(entry, dict) or entry.get("sampler") not in _MODELS:
        found = entry.get("sampler") if isinstance(entry, dict) else entry
        raise ConfigError(f"{where}: {path}: write `sampler:` with one of {', '.join(_MODELS)} (got {found!r})")
    return validate(_MODELS[entry["sampler"]], entry, f"{where}: {path}")


def _ordered(parameters: dict[str, Parameter], fixed: Point, where: str) -> dict[str, Parameter]:
    """Return the parameters in the file's order, but every one behind those that its conditions ask about."""
    for path, parameter in parameters.items():
        unknown = [other for other in parameter.when if other not in {**parameters, **fixed}]
        if unknown:
            raise ConfigError(
                f"{where}: {path}.when: {unknown[0]!r} is not in this space; give it a sampler, or a value under "
                "`fixed`, or remove the condition"
            )
    ordered: dict[str, Parameter] = {}
    left = dict(parameters)
    while left:
        free = {path: each for path, each in left.items() if not left.keys() & each.when.keys()}
        if not free:
            circle = " -> ".join(_circle(left))
            raise ConfigError(
                f"{where}: conditions in a circle ({circle}): none of them can be drawn first; remove one `when`"
            )
        ordered |= free
        left = {path: each for path, each in left.items() if path not in free}
    return ordered


def _circle(waiting: dict[str, Parameter]) -> list[str]:
    """Return paths of which each waits for the next, the first one again at the end; every path waits for another."""
    followed = [next(iter(waiting))]
    while followed.count(followed[-1]) == 1:
        followed.append(next(path for path in waiting[followed[-1]].when if path in waiting))
    return followed[followed.index(followed[-1]) :]


def _conditions(space: SearchSpace, path: str) -> Point:
    """Return all that must hold for a parameter to exist, the conditions of its conditions included."""
    own = space.parameters[path].when if path in space.parameters else {}
    found: Point = {}
    for other in own:
        found |= _conditions(space, other)
    return found | own


def _check_defense(space: SearchSpace, where: str) -> None:
    """Hold every grid point, and both ends of every parameter beside the others' first values, against the schema."""
    config = registry.load("defenses", space.defense).Config
    for place, point in enumerate(space.grid_points()):
        _check_point(space, config, point, f"{where}: grid.{place}")
    first = next(space.grid_points(), None)
    for path, parameter in space.parameters.items():
        wanted = _conditions(space, path)
        point = space.draw(lambda other, each, wanted=wanted: wanted.get(other, each.extremes()[0]))  # type: ignore[misc]
        for value in parameter.extremes():
            # A grid's first point fills what has neither a sampler nor a default.
            point = {**(first or {}), **point, **wanted, path: value}
            _check_point(space, config, point, f"{where}: {path}: {value!r} is outside of the schema")


def _check_point(space: SearchSpace, config: type[FrozenConfig], point: Point, where: str) -> None:
    options = space.settings(point)
    del options["name"]
    validate(config, options, where)
