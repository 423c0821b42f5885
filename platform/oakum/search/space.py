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
        step = 1.0 if self.sampler == "integer" and self.step is None else self.step
        if step is None:
            return self.low + share * (self.high - self.low)
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return self.number(self.low + step * min(count - 1, math.floor(share * count)))


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
        parameters: path -> sampler, those without a condition first.
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
        ConfigError: bad YAML, an unknown defense or setting, a bound outside of the setting's schema, or a condition on
            a path that is not in the space; the message names the path.
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
    ordered = dict(sorted(parameters.items(), key=lambda item: bool(item[1].when)))
    for path, parameter in ordered.items():
        unknown = [other for other in parameter.when if other not in {**parameters, **fixed}]
        if unknown:
            raise ConfigError(f"{where}: {path}.when: {unknown[0]!r} is not in this space")
    space = SearchSpace(name, ordered, fixed, tuple(grid))
    _check_defense(space, where)
    return space


def _parameter(path: str, entry: Any, where: str) -> Parameter:
    if not isinstance(entry, dict) or entry.get("sampler") not in _MODELS:
        found = entry.get("sampler") if isinstance(entry, dict) else entry
        raise ConfigError(f"{where}: {path}: write `sampler:` with one of {', '.join(_MODELS)} (got {found!r})")
    return validate(_MODELS[entry["sampler"]], entry, f"{where}: {path}")


def _check_defense(space: SearchSpace, where: str) -> None:
    """Hold every grid point, and both ends of every parameter beside the others' first values, against the schema."""
    config = registry.load("defenses", space.defense).Config
    for place, point in enumerate(space.grid_points()):
        _check_point(space, config, point, f"{where}: grid.{place}")
    first = next(space.grid_points(), None)
    for path, parameter in space.parameters.items():
        for value in parameter.extremes():
            point = space.draw(lambda other, each: each.extremes()[0])
            # A grid's first point fills what has neither a sampler nor a default.
            point = {**(first or {}), **point, **parameter.when, path: value}
            _check_point(space, config, point, f"{where}: {path}: {value!r} is outside of the schema")


def _check_point(space: SearchSpace, config: type[FrozenConfig], point: Point, where: str) -> None:
    options = space.settings(point)
    del options["name"]
    validate(config, options, where)
