"""What every inversion attack reached against every setting, and what it reaches without a leak; without any markup."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from oakum.records import RunRecord
from oakum.report._overview import Setting
from oakum.report.statistics import Spread, paired_difference, spread

Standing = Literal["above", "not above", "unsettled", "unknown"]

# Who made the features that a distance is measured in.
_PROFILES = {"efflite0": "EfficientNet-Lite0", "inception": "Inception-v3"}
_RECOGNIZED = "Recognized as the class, %"
_DISTANCE = "Squared distance"
_FRECHET = "Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance"
PRDC = "PRDC"
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Quantity:
    """A column: the metric behind `inversion/<attack>/`, its heading, and what stands in small print below that."""

    metric: str
    group: str
    title: str
    remark: str


@dataclass(frozen=True)
class Floor:
    """What is reached without a leak: its suffix in metric keys, its name, who reaches it, and its footnote's sign."""

    suffix: str
    title: str
    who: str
    sign: str


FLOORS = (
    Floor("control", "no-target control", "the same attack on a model of other classes", "\N{DAGGER}"),
    Floor("unoptimized", "unoptimized samples", "the prior without any search", "\N{DOUBLE DAGGER}"),
)
_SUFFIXES = "|".join(floor.suffix for floor in FLOORS)
# Pattern, group, title, remark; the groups of the pattern may be used in the texts.
_RULES = (
    (r"top1", _RECOGNIZED, "top-1", ""),
    (r"top5", _RECOGNIZED, "top-5", ""),
    (r"top1\.second", _RECOGNIZED, "second model", ""),
    (rf"top1\.(?!(?:second|{_SUFFIXES})$)([\w-]+)", _RECOGNIZED, "{0}", "embedder"),
    (r"disagreement", _RECOGNIZED, "disagree", "of the accepted"),
    (r"disagreement\.([\w-]+)", _RECOGNIZED, "disagree", "{0}"),
    (r"faint", _RECOGNIZED, "faint", "of the accepted"),
    (r"knn2\.([\w-]+)", _DISTANCE, "nearest", "{0}"),
    (r"feature2\.([\w-]+)", _DISTANCE, "center", "{0}"),
    (r"fd\.([\w-]+)", _FRECHET, "{0}", ""),
    (r"fid\.([\w-]+)", _FRECHET, "{0}", "FID"),
    *((rf"{name}\.k(\d+)", PRDC + ", k = {0}", name, "") for name in ("precision", "recall", "density", "coverage")),
)


def inversion_attacks(record: RunRecord) -> tuple[str, ...]:
    """Return the inversion attacks that were judged, in the order of the experiment, others behind."""
    keys = (key.split("/") for cell in record.cells for key in cell.metrics if key.startswith("inversion/"))
    measured = dict.fromkeys(key[1] for key in keys)
    listed = (record.config.get("attacks") or {}).get("inversion") or []
    names = [entry.get("as") or entry.get("name") if isinstance(entry, dict) else entry for entry in listed]
    return tuple(dict.fromkeys([*(name for name in names if name in measured), *measured]))


def metrics_of(record: RunRecord, attack: str) -> list[str]:
    """Return the metrics of an attack, as they stand behind `inversion/<attack>/`."""
    prefix = f"inversion/{attack}/"
    keys = dict.fromkeys(key for cell in record.cells for key in cell.metrics if key.startswith(prefix))
    return [key.removeprefix(prefix) for key in keys]


def quantities(metrics: Iterable[str]) -> list[Quantity]:
    """Return the columns of a table of these metrics, group by group; floors and unknown metrics have none."""
    found = []
    for pattern, group, title, remark in _RULES:
        matches = sorted((match for metric in metrics if (match := re.fullmatch(pattern, metric))), key=_order)
        for match in matches:
            names = [_PROFILES.get(name, name) for name in match.groups()]
            found.append(Quantity(match.group(), *(text.format(*names) for text in (group, title, remark))))
    order = list(dict.fromkeys(quantity.group for quantity in found))
    return sorted(found, key=lambda quantity: order.index(quantity.group))


def _order(match: re.Match[str]) -> tuple[int, bool, str]:
    """Put larger numbers of neighbors first, and the evaluation model before other networks."""
    _, _, last = match.group().rpartition(".")
    return -int(last[1:]) if re.fullmatch(r"k\d+", last) else 0, last != "evaluator", last


def key_of(attack: str, metric: str, floor: Floor | None = None) -> str:
    """Return the metric's key, or that of its floor."""
    return f"inversion/{attack}/{metric}" + (f".{floor.suffix}" if floor else "")


def met(settings: Iterable[Setting], attack: str) -> list[Setting]:
    """Return the settings that the attack was run against."""
    prefix = f"inversion/{attack}/"
    return [each for each in settings if any(key.startswith(prefix) for cell in each.cells for key in cell.metrics)]


def floors_of(metrics: list[str], columns: list[Quantity]) -> list[Floor]:
    """Return the floors that were measured of any column."""
    return [floor for floor in FLOORS if any(f"{column.metric}.{floor.suffix}" in metrics for column in columns)]


def floor_values(setting: Setting, attack: str, floor: Floor, columns: list[Quantity]) -> list[Spread]:
    """Return the floor of every column on one setting."""
    return [spread(setting.cells, key_of(attack, column.metric, floor)) for column in columns]


def common_floor(settings: list[Setting], attack: str, floor: Floor, columns: list[Quantity]) -> list[Spread] | None:
    """Return the floor of every column where all settings have the same, else None."""
    of_columns = zip(*(floor_values(setting, attack, floor, columns) for setting in settings), strict=True)
    merged = [_merged(values) for values in of_columns]
    known = [values for values in merged if values is not None]
    return known if len(known) == len(merged) else None


def _merged(values: Iterable[Spread]) -> Spread | None:
    """Return the one spread that all settings have up to rounding, or None where some differ."""
    whole = Spread({}, {}, {})
    for own in values:
        for seed, value in own.values.items():
            if not math.isclose(whole.values.setdefault(seed, value), value, rel_tol=_ROUNDING):
                return None
        whole.unresolved.update(own.unresolved)
        whole.intervals.update(own.intervals)
    return Spread(dict(sorted(whole.values.items())), dict(sorted(whole.unresolved.items())), whole.intervals)


@dataclass(frozen=True)
class Comparison:
    """An attack's top-1 on one setting beside a floor."""

    setting: Setting
    top1: Spread
    floor: Spread

    @property
    def standing(self) -> Standing:
        """Whether top-1 exceeds the floor: `unknown` without a common seed.

        By the rule of `Difference.direction`: below five seeds in all of them, from five up by the t interval. Of a
        single seed the interval over identities must lie above the floor; without one it is `unsettled`.
        """
        difference = paired_difference(self.top1, self.floor)
        if difference.direction == "none":
            return "unknown"
        if difference.direction != "single":
            return "above" if difference.direction == "higher" else "not above"
        ((seed, gap),) = difference.values.items()
        interval = self.top1.intervals.get(seed)
        if gap > 0 and interval is None:
            return "unsettled"
        return "above" if gap > 0 and interval is not None and interval[0] > self.floor.values[seed] else "not above"

    @property
    def seeds_above(self) -> tuple[int, int]:
        """The number of seeds above the floor, and of seeds that have both."""
        gaps = paired_difference(self.top1, self.floor).values.values()
        return sum(1 for gap in gaps if gap > 0), len(gaps)


def compare(setting: Setting, attack: str, floor: Floor) -> Comparison:
    """Return the attack's top-1 on a setting beside a floor."""
    keys = key_of(attack, "top1"), key_of(attack, "top1", floor)
    return Comparison(setting, *(spread(setting.cells, key) for key in keys))
