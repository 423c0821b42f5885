"""What a search is after: objectives and floors over metric keys, and the front of those that no other setting beats.

    min inversion/gmi/top1                                   one objective
    min 0.5*membership/loss/auc + 0.5*inversion/gmi/top1     a weighted sum, for those who insist
    utility/val_accuracy >= 0.93                             a floor
    utility/val_accuracy >= none - 0.01                      a floor relative to `none` of the same seed

Values are compared as they are measured; inside, everything is minimized.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oakum.config import ConfigError
from oakum.records import MetricValue
from oakum.seeding import numpy_generator

# A value that lies exactly on its bound must not miss it by the last bit of a difference.
_ROUNDING = 1e-9
Metrics = Mapping[str, MetricValue]
Floats = NDArray[np.float64]
_KEY = r"[A-Za-z][\w./:-]*/[\w./:-]*\w"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*\s*)?({_KEY})\s*")
_FLOOR = re.compile(rf"\s*({_KEY})\s*(>=|<=)\s*(?:(none)\s*(?:([-+])\s*({_NUMBER}))?|({_NUMBER}))\s*")


class MissingMetricError(LookupError):
    """A trial has no value for what is searched: that is a failure of the trial, never a good value."""


@dataclass(frozen=True)
class Objective:
    """A metric, or a weighted sum of metrics, to be made small or large.

    Attributes:
        text: as written.
        direction: `min` or `max`.
        terms: (weight, metric key).
    """

    text: str
    direction: Literal["min", "max"]
    terms: tuple[tuple[float, str], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for _, key in self.terms)

    def value(self, metrics: Metrics) -> float:
        """Return the value as measured.

        Raises:
            MissingMetricError: a metric is absent or unresolved.
        """
        return sum(weight * measured(metrics, key) for weight, key in self.terms)

    def cost(self, value: float) -> float:
        """Return the value turned so that small is good."""
        return value if self.direction == "min" else -value


@dataclass(frozen=True)
class Floor:
    """A bound that a setting must keep to count.

    Attributes:
        text: as written.
        key: of the metric.
        is_lower: the metric must be at least the bound, else at most.
        bound: the bound itself, or what is added to the baseline's value.
        is_relative: the bound is relative to `none` of the same seed.
    """

    text: str
    key: str
    is_lower: bool
    bound: float
    is_relative: bool = False

    def violation(self, metrics: Metrics, baseline: Metrics | None) -> float:
        """Return by how much the bound is missed, in the metric's unit; 0 where it is kept.

        Raises:
            MissingMetricError: the metric, or the baseline that a relative bound needs, is absent or unresolved.
        """
        if self.is_relative and baseline is None:
            raise MissingMetricError(f"{self.text}: there is no result of `none` under this seed")
        bound = self.bound + (measured(baseline, self.key) if self.is_relative and baseline is not None else 0.0)
        value = measured(metrics, self.key)
        missed = bound - value if self.is_lower else value - bound
        return missed if missed > _ROUNDING else 0.0


def measured(metrics: Metrics, key: str) -> float:
    """Return a metric's value.

    Raises:
        MissingMetricError: absent, or unresolved.
    """
    found = metrics.get(key)
    if found is None:
        raise MissingMetricError(f"metric {key!r} was not measured")
    if found.value is None or not math.isfinite(found.value):
        raise MissingMetricError(f"metric {key!r} has no value: {found.note or 'not finite'}")
    return found.value


def parse_objective(text: str) -> Objective:
    """Read `min KEY`, `max KEY` or a weighted sum of keys.

    Raises:
        ConfigError: anything else; says what to write.
    """
    direction, _, rest = text.strip().partition(" ")
    if direction not in ("min", "max") or not rest.strip():
        raise ConfigError(f"objective {text!r}: write `min KEY` or `max KEY`, for example: min inversion/gmi/top1")
    terms = []
    for part in re.split(r"\s\+\s", rest):
        found = _TERM.fullmatch(part)
        if found is None:
            raise ConfigError(f"objective {text!r}: {part.strip()!r} is neither a metric key nor WEIGHT*KEY")
        terms.append((float(found[1]) if found[1] else 1.0, found[2]))
    return Objective(text.strip(), "min" if direction == "min" else "max", tuple(terms))


def parse_floor(text: str) -> Floor:
    """Read `KEY >= NUMBER`, `KEY <= NUMBER`, `KEY >= none`, `KEY >= none - NUMBER`.

    Raises:
        ConfigError: anything else; says what to write.
    """
    found = _FLOOR.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"bound {text!r}: write KEY >= NUMBER, KEY <= NUMBER, or KEY >= none - NUMBER, for example: "
            "utility/val_accuracy >= none - 0.01"
        )
    key, sign, baseline, shift_sign, shift, number = found.groups()
    shifted = float(shift or 0) * (-1 if shift_sign == "-" else 1)
    return Floor(text.strip(), key, sign == ">=", shifted if baseline else float(number), bool(baseline))


def fronts(costs: Floats, violations: Floats | None = None) -> list[list[int]]:
    """Return row numbers sorted into fronts by non-domination, the best front first; rows keep their order.

    A row dominates another when it is feasible and the other is not, when both are infeasible and it misses by less,
    or when both are feasible and it is nowhere worse and somewhere better (Deb et al. 2002, constrained domination).
    Equal rows do not dominate each other.

    Args:
        costs: (N, M), small is good.
        violations: (N,) nonnegative, 0 where feasible; None: all feasible.
    """
    count = len(costs)
    missed = np.zeros(count) if violations is None else violations
    dominates = np.zeros((count, count), dtype=np.bool_)
    for i in range(count):
        better = (costs[i] <= costs).all(axis=1) & (costs[i] < costs).any(axis=1)
        dominates[i] = np.where((missed[i] == 0) & (missed == 0), better, missed[i] < missed)
    left = np.ones(count, dtype=np.bool_)
    found = []
    while left.any():
        front = left & ~dominates[left].any(axis=0)
        found.append(np.flatnonzero(front).tolist())
        left &= ~front
    return found


def hypervolume(costs: Floats, reference: Sequence[float]) -> float:
    """Return the volume between a set of points and a reference point that dominates none of them; small is good.

    Exact, by slicing along the last objective: for two objectives a sweep, for M a recursion of O(N^(M-1)).

    Args:
        costs: (N, M); points that are not below the reference everywhere add nothing.
        reference: (M,) the worst corner.
    """
    corner = np.asarray(reference, dtype=np.float64)
    points = np.asarray(costs, dtype=np.float64).reshape(-1, len(corner))
    points = points[(points < corner).all(axis=1)]
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    heights = np.unique(points[:, -1])
    volume = 0.0
    for height, above in zip(heights, [*heights[1:], corner[-1]], strict=True):
        below = points[points[:, -1] <= height][:, :-1]
        volume += (above - height) * hypervolume(below, corner[:-1].tolist())
    return volume


def front_membership(costs: Sequence[Floats], *, seed: int = 0, resamples: int = 1000) -> Floats:
    """Return each setting's probability of being on the front, (N,), by a bootstrap over its seeds.

    Each setting's seeds are drawn again with replacement, and the front of the means is counted. With one seed a
    setting's mean does not move: its probability then only reflects the others' noise.

    Args:
        costs: per setting an array (seeds, M), small is good.
    """
    generator = numpy_generator(seed)
    counts = np.zeros(len(costs))
    for _ in range(resamples):
        means = np.stack([each[generator.integers(0, len(each), len(each))].mean(axis=0) for each in costs])
        counts[fronts(means)[0]] += 1
    return counts / resamples
