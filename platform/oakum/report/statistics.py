"""Seeds as statistics: every value, mean and range, and paired differences to the baseline.

Pure Python, so that the terminal's table needs no numpy. Nothing is called a 95 % interval below
`SEEDS_FOR_INTERVAL` seeds: with fewer, the interval shown is the range of the seeds, and named so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from oakum.records import CellRecord

CONFIDENCE = 0.95
SEEDS_FOR_INTERVAL = 5

Direction = Literal["lower", "higher", "equal", "unclear", "single", "none"]


@dataclass(frozen=True)
class Spread:
    """One metric of one setting over its seeds.

    Attributes:
        values: seed index -> value, for the seeds where it is resolved.
        unresolved: seed index -> the reason, for the seeds where it is not.
        intervals: seed index -> the interval inside that cell (over points or identities), where one was measured.
    """

    values: dict[int, float]
    unresolved: dict[int, str]
    intervals: dict[int, tuple[float, float]]

    @property
    def state(self) -> Literal["measured", "unresolved", "absent"]:
        """`absent`: no cell has this metric; `unresolved`: cells have it, none with a number."""
        if self.values:
            return "measured"
        return "unresolved" if self.unresolved else "absent"

    @property
    def mean(self) -> float | None:
        """The mean over resolved seeds, or None."""
        return math.fsum(self.values.values()) / len(self.values) if self.values else None

    @property
    def low(self) -> float | None:
        """The smallest resolved seed, or None."""
        return min(self.values.values(), default=None)

    @property
    def high(self) -> float | None:
        """The largest resolved seed, or None."""
        return max(self.values.values(), default=None)

    @property
    def reasons(self) -> list[str]:
        """The distinct reasons of unresolved seeds, in order of seeds."""
        return list(dict.fromkeys(reason for _, reason in sorted(self.unresolved.items())))


@dataclass(frozen=True)
class Difference:
    """A setting minus the baseline, paired per seed.

    Attributes:
        values: seed index -> difference, for the seeds resolved on both sides.
        mean: their mean, or None without a pair.
        low, high: the interval that `label` names, or None below two pairs.
        label: what the interval is: `range of 3 seeds`, or `95 % t interval, 6 seeds, 5 degrees of freedom`.
    """

    values: dict[int, float]
    mean: float | None
    low: float | None
    high: float | None
    label: str

    @property
    def direction(self) -> Direction:
        """What the seeds say together.

        `lower` / `higher`: the interval of `label` lies on one side of zero (below `SEEDS_FOR_INTERVAL` seeds:
        all seeds agree); `equal`: every difference is exactly zero; `single`: one seed, so nothing is known about
        the spread; `none`: no pair; else `unclear`.
        """
        if not self.values:
            return "none"
        if not any(self.values.values()):
            return "equal"
        if self.low is None or self.high is None:
            return "single"
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "unclear"

    @property
    def agreeing(self) -> int:
        """The number of seeds whose difference has the sign of the mean."""
        mean = self.mean or 0.0
        return sum(1 for value in self.values.values() if value * mean > 0)


def spread(cells: Iterable[CellRecord], key: str) -> Spread:
    """Collect metric `key` over the cells of one setting.

    Raises:
        ValueError: two cells carry the same seed, so that one of them would be hidden.
    """
    values: dict[int, float] = {}
    unresolved: dict[int, str] = {}
    intervals: dict[int, tuple[float, float]] = {}
    for cell in cells:
        if cell.seed in values or cell.seed in unresolved:
            raise ValueError(
                f"setting {cell.setting!r} has two cells of seed {cell.seed}; a setting needs its own label"
            )
        metric = cell.metrics.get(key)
        if metric is None:
            continue
        if metric.value is None:
            unresolved[cell.seed] = metric.note or "no reason was recorded"
            continue
        values[cell.seed] = metric.value
        if metric.low is not None and metric.high is not None:
            intervals[cell.seed] = (metric.low, metric.high)
    return Spread(dict(sorted(values.items())), dict(sorted(unresolved.items())), intervals)


def paired_difference(setting: Spread, baseline: Spread) -> Difference:
    """Return `setting` minus `baseline` over the seeds that both resolve (docs/design.md, Numbers)."""
    seeds = [seed for seed in setting.values if seed in baseline.values]
    values = {seed: setting.values[seed] - baseline.values[seed] for seed in seeds}
    count = len(values)
    if count == 0:
        return Difference({}, None, None, None, "no seed in common")
    mean = math.fsum(values.values()) / count
    if count == 1:
        return Difference(values, mean, None, None, "one seed")
    if count < SEEDS_FOR_INTERVAL:
        return Difference(values, mean, min(values.values()), max(values.values()), f"range of {count} seeds")
    half = t_quantile(count - 1) * standard_error(list(values.values()))
    label = f"{CONFIDENCE:.0%} t interval, {count} seeds, {count - 1} degrees of freedom".replace("%", " %")
    return Difference(values, mean, mean - half, mean + half, label)


def standard_error(values: list[float]) -> float:
    """Return the standard error of the mean from the sample variance (n - 1); needs two values."""
    assert len(values) >= 2
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def t_probability(t: float, degrees: int) -> float:
    """Return P(|T| < t) of Student's t with whole `degrees` of freedom (Abramowitz and Stegun 26.7.3-4), t >= 0."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return t with P(|T| < t) = `confidence`, by bisection to full precision.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {degrees}")
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < confidence:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2
