"""The rules of a release gate: what was measured keeps its bounds even at the unfavorable end of its interval.

    --max "membership/loss/tpr_at_fpr_0.01<=0.05"
    --min "utility/test_accuracy>=0.9"

What is missing, unresolved, suspicious or not confirmed never passes. Of a model that masks its scores, a bound on a
membership attack must hold for the attack on labels alone as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import fsum, isfinite
from typing import Any, Literal

from oakum.config import ConfigError
from oakum.records import CellRecord, MetricValue
from oakum.search.objectives import MissingMetricError, measured, parse_floor

Side = Literal["max", "min"]
_FORM = {"max": "KEY<=NUMBER", "min": "KEY>=NUMBER"}
_EXAMPLE = {"max": "membership/loss/tpr_at_fpr_0.01<=0.05", "min": "utility/test_accuracy>=0.9"}
# What the cells of a method that masks its output are marked with: facts, and no reasons for distrust.
_MASKED = "masked output"
_FACTS = (_MASKED, "acts on the weights, which the mask does not cover")
_LABEL_ONLY = re.compile(r"^membership/[^/]+/")
_ROLE = re.compile(r"([\w-]+(?:\.[\w-]+)+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Bound:
    """A number that a metric must not pass.

    Attributes:
        key: of the metric.
        side: `max`: at most `limit`; `min`: at least.
        limit: in the metric's unit.
    """

    key: str
    side: Side
    limit: float

    def keeps(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return value <= self.limit if self.side == "max" else value >= self.limit

    def compared(self, value: float) -> str:
        """Return how a value stands to the limit: `> 0.05`."""
        signs = ("<=", ">") if self.side == "max" else (">=", "<")
        return f"{signs[not self.keeps(value)]} {self.limit:.6g}"


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one bound.

    Attributes:
        value: the mean over seeds; None unless every seed has one.
        end: the unfavorable end of the interval over all seeds; None where the interval is not known.
        reason: one line: the end and the limit, and whatever else made it fail.
    """

    bound: Bound
    value: float | None
    end: float | None
    passed: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.bound.key,
            "limit": self.bound.limit,
            "side": self.bound.side,
            "value": self.value,
            "end": self.end,
            "passed": self.passed,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class _End:
    """The unfavorable end of one seed's interval; its value where it has no interval, or where that is worse."""

    number: float
    kind: str
    seed: int


def parse_bound(text: str, side: Side) -> Bound:
    """Read `KEY<=NUMBER` of `--max` or `KEY>=NUMBER` of `--min`; spaces around the sign do not matter.

    Raises:
        ConfigError: anything else; says what to write.
    """
    advice = f"--{side} {text!r}: write {_FORM[side]}, for example: --{side} '{_EXAMPLE[side]}'"
    try:
        found = parse_floor(text)
    except ConfigError as error:
        raise ConfigError(advice) from error
    if found.is_relative or found.is_lower != (side == "min") or not isfinite(found.bound):
        raise ConfigError(advice)
    return Bound(found.key, side, found.bound)


def judge(bound: Bound, cells: Sequence[CellRecord], doubts: Sequence[str] = ()) -> Verdict:
    """Compare a bound with the unfavorable end of its metric over all seeds of one setting.

    Args:
        cells: one for each seed of the setting; none if it was never confirmed.
        doubts: why no number of this setting may pass.
    """
    problems = [*doubts, *_doubts_of_key(bound.key), *_suspicions(bound.key, cells), *_hidden(bound, cells)]
    gaps = _gaps(bound.key, cells)
    if gaps or not cells:
        return Verdict(bound, None, None, False, "; ".join([*problems, *gaps]) or "nothing was measured")
    value = fsum(measured(cell.metrics, bound.key) for cell in cells) / len(cells)
    if len(cells) == 1 and _interval_end(bound, cells[0].metrics[bound.key]) is None:
        alone = f"unresolved: {value:.6g} of one seed, without an interval; run more seeds"
        return Verdict(bound, value, None, False, "; ".join([*problems, alone]))
    ends = [_end(bound, cell.seed, cell.metrics[bound.key]) for cell in cells]
    worst = (max if bound.side == "max" else min)(ends, key=lambda end: end.number)
    compared = f"{worst.number:.6g} ({worst.kind}, seed {worst.seed}) {bound.compared(worst.number)}"
    passed = bound.keeps(worst.number) and not problems
    return Verdict(bound, value, worst.number, passed, "; ".join([compared, *problems]))


def _hidden(bound: Bound, cells: Sequence[CellRecord]) -> list[str]:
    """Return why a bound on scores says nothing: the model masks them, and its labels alone give more away."""
    other = _LABEL_ONLY.sub("membership/label_only/", bound.key)
    if bound.side == "min" or other == bound.key or not any(_MASKED in cell.flags for cell in cells):
        return []
    unmasked = judge(replace(bound, key=other), cells)
    return [] if unmasked.passed else [f"its scores are masked, and by its labels alone: {unmasked.reason}"]


def _interval_end(bound: Bound, metric: MetricValue) -> float | None:
    return metric.high if bound.side == "max" else metric.low


def _end(bound: Bound, seed: int, metric: MetricValue) -> _End:
    value, own = metric.value, _interval_end(bound, metric)
    assert value is not None
    if own is None or (own < value if bound.side == "max" else own > value):
        return _End(value, "value", seed)
    return _End(own, "upper end" if bound.side == "max" else "lower end", seed)


def _doubts_of_key(key: str) -> list[str]:
    if any(part.startswith("val_") for part in key.split("/")):
        return ["measured on the validation fold, which settings are chosen by; bound the test fold"]
    return []


def _gaps(key: str, cells: Iterable[CellRecord]) -> list[str]:
    """Return why seeds have no value or no usable interval, each reason once."""
    reasons: dict[str, list[int]] = {}
    for cell in cells:
        try:
            measured(cell.metrics, key)
        except MissingMetricError as error:
            reasons.setdefault(str(error), []).append(cell.seed)
            continue
        metric = cell.metrics[key]
        if not all(isfinite(end) for end in (metric.low, metric.high) if end is not None):
            reasons.setdefault(f"metric {key!r} has an interval that is not finite", []).append(cell.seed)
    return _with_seeds(reasons)


def _suspicions(key: str, cells: Iterable[CellRecord]) -> list[str]:
    """Return the flags that a metric's numbers were raised with, each once."""
    raised: dict[str, list[int]] = {}
    for cell in cells:
        for flag in cell.flags:
            if _concerns(flag, key):
                raised.setdefault(f"flagged: {flag}", []).append(cell.seed)
    return _with_seeds(raised)


def _concerns(flag: str, key: str) -> bool:
    """Whether a flag makes a metric suspicious.

    An attack's flag is about that attack's metrics alone, and about a vanilla shadow's only if it says so: nearly
    every defended model has a vanilla shadow's threshold that does not fit. Any other flag is about the whole cell.
    """
    found = _ROLE.fullmatch(flag)
    role, text = found.groups() if found else ("", flag)
    if text in _FACTS:
        return False
    if text.endswith("(vanilla shadow)") and not key.endswith(".vanilla_shadow"):
        return False
    return key.startswith(_metrics_of(role))


def _metrics_of(role: str) -> str:
    """Return how the keys begin that an attack's stage is read into; "" for stages that all keys depend on."""
    part, _, rest = role.partition(".")
    target, _, attack = rest.partition(".")
    if part == "membership":
        return f"{'membership' if target == 'clean' else target}/{attack}/"
    if part in ("inversion", "judge"):
        return f"inversion/{attack.partition('.')[0]}/"
    return ""


def _with_seeds(reasons: dict[str, list[int]]) -> list[str]:
    return [
        f"{reason} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(str(seed) for seed in seeds)})"
        for reason, seeds in reasons.items()
    ]
