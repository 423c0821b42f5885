"""The run as settings and columns: what both the terminal and the HTML report show.

A column is one question ("how well does the strongest membership attack do?") answered for every setting. Where
several attacks answer it, the strongest one of each setting is taken, because the adversary may choose; it is
named next to its number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from oakum.records import CellRecord, RunRecord
from oakum.report._flags import Flag, gather, is_mask_note, seeds_text
from oakum.report._other_judges import Doubts, doubt_warnings, doubts
from oakum.report._weak_judges import faint_hits, weak_judges
from oakum.report.statistics import SEEDS_FOR_INTERVAL, Difference, Spread, paired_difference, spread

BASELINE = "none"
Unit = Literal["percent", "score", "seconds", "nats", "plain"]
Topic = Literal["utility", "membership", "canary", "inversion", "privacy", "cost", "other"]

VANILLA_SUFFIX = ".vanilla_shadow"
# The attack that reads predicted classes alone, which a mask leaves as they are.
LABEL_ONLY_ATTACK = "label_only"
_TPR = re.compile(r"tpr_at_fpr_([0-9.]+)$")
_PERCENT_ENDINGS = ("accuracy", "accuracy_cost", "accuracy_per_class")
_SCORE_ENDINGS = ("auc", "average_precision")
# Metrics of inversion are followed by who says so: `top1.second`, `precision.k5`.
_PERCENT_STEMS = ("top1", "top5", "disagreement", "faint", "accuracy_on_real")
_SCORE_STEMS = ("precision", "recall", "density", "coverage")
_INVERSION_TOP1 = re.compile(r"inversion/[^/]+/top1")
_LEAKAGE_TOPICS = ("membership", "canary", "inversion")
# With more attacks the matrix shows the loss attack, and the overview the strongest one alone.
_ATTACKS_WITH_LOSS_APART = 4


@dataclass(frozen=True)
class Setting:
    """One row: a defense with its parameters, and its cells in order of seeds.

    `index` is the place in the record; colors and marks follow it, so a setting looks the same in every figure.
    """

    label: str
    defense: str
    parameters: dict[str, Any]
    cells: tuple[CellRecord, ...]
    index: int

    @property
    def seeds(self) -> list[int]:
        return [cell.seed for cell in self.cells]

    @property
    def is_masked(self) -> bool:
        """Whether the released model hides what its weights show."""
        return any(is_mask_note(flag) for cell in self.cells for flag in cell.flags)

    @property
    def is_ranked(self) -> bool:
        """Whether it may be called better than another: a masked setting only where a label-only attack was run."""
        prefix = f"membership/{LABEL_ONLY_ATTACK}/"
        return not self.is_masked or any(key.startswith(prefix) for cell in self.cells for key in cell.metrics)


@dataclass(frozen=True)
class Measurement:
    """A setting's answer to a column: the metric that was read, its attack ("" without one) and its seeds."""

    key: str
    attack: str
    spread: Spread


@dataclass(frozen=True)
class Column:
    """One question, answered for every setting.

    Attributes:
        name: stable identifier, used in JSON.
        title: the heading.
        topic: what it belongs to.
        unit: how numbers are written.
        wants: what the defender wants of it.
        chance: the level of an attack that knows nothing, or None where none is recorded.
        measurements: setting label -> answer.
        differences: setting label -> paired difference to the baseline; {} without a baseline.
        names_attack: whether several attacks compete, so that each number needs its attack's name.
        at_chance: labels of the settings of which, as of the baseline, no seed is above chance by its interval.
        unconfirmed: label -> the judges by whom the difference, whose sign the seeds settle, is not settled alike, each
            with the baseline's mean and the setting's.
    """

    name: str
    title: str
    topic: Topic
    unit: Unit
    wants: Literal["low", "high", "none"]
    chance: float | None
    measurements: dict[str, Measurement]
    differences: dict[str, Difference]
    names_attack: bool = False
    at_chance: frozenset[str] = frozenset()
    unconfirmed: Mapping[str, Doubts] = field(default_factory=dict)


@dataclass(frozen=True)
class Overview:
    """Settings, columns and all that a reader must be warned of."""

    settings: tuple[Setting, ...]
    baseline: Setting | None
    columns: tuple[Column, ...]
    warnings: tuple[str, ...]
    flags: tuple[Flag, ...]
    unresolved: tuple[str, ...]

    def column(self, name: str) -> Column | None:
        """Return the column of that name, or None where nothing of it was measured."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def seeds(self) -> list[int]:
        """Every seed index that occurs, sorted."""
        return sorted({seed for setting in self.settings for seed in setting.seeds})


def overview(record: RunRecord) -> Overview:
    """Arrange `record` for reading. Columns that nothing was measured for are left out, never filled."""
    settings = group_settings(record)
    baseline = find_baseline(settings)
    columns = [column for column in _columns(record, settings, baseline) if column is not None]
    return Overview(
        settings=settings,
        baseline=baseline,
        columns=tuple(columns),
        warnings=(
            *record.warnings,
            *_own_warnings(settings, baseline, metric_keys(record)),
            *(text for column in columns for text in doubt_warnings(column.unconfirmed)),
        ),
        flags=gather([cell for setting in settings for cell in setting.cells]),
        unresolved=tuple(_unresolved(settings)),
    )


def group_settings(record: RunRecord) -> tuple[Setting, ...]:
    """Return the settings in the order in which the record names them."""
    grouped: dict[str, list[CellRecord]] = {}
    for cell in record.cells:
        grouped.setdefault(cell.setting, []).append(cell)
    return tuple(
        Setting(label, cells[0].defense, cells[0].parameters, tuple(sorted(cells, key=lambda cell: cell.seed)), index)
        for index, (label, cells) in enumerate(grouped.items())
    )


def find_baseline(settings: tuple[Setting, ...]) -> Setting | None:
    """Return the undefended setting: the one labeled `none` if several train with no defense, else the first."""
    undefended = [setting for setting in settings if setting.defense == BASELINE]
    return next((setting for setting in undefended if setting.label == BASELINE), next(iter(undefended), None))


def metric_keys(record: RunRecord) -> list[str]:
    """Return every metric key of the cells, in order of topic and first appearance."""
    keys = list(dict.fromkeys(key for cell in record.cells for key in cell.metrics))
    order = ["utility", "membership", "canary", "inversion", "privacy", "cost", "other"]
    return sorted(keys, key=lambda key: order.index(topic_of(key)))


def topic_of(key: str) -> Topic:
    """Return what a metric key belongs to."""
    head = key.split("/", 1)[0]
    for topic in ("utility", "membership", "canary", "inversion", "privacy", "cost"):
        if head == topic:
            return topic
    return "other"


def unit_of(key: str) -> Unit:
    """Return how a metric is written: shares as percent, AUC, precision and losses with three decimals."""
    last = key.rsplit("/", 1)[-1].removesuffix(VANILLA_SUFFIX)
    stem = last.split(".", 1)[0]
    if stem in _PERCENT_STEMS or last.endswith(_PERCENT_ENDINGS) or _TPR.search(last):
        return "percent"
    if last.endswith("seconds"):
        return "seconds"
    if last.endswith(("loss_mean", "loss_variance")):
        return "nats"
    return "score" if stem in _SCORE_STEMS or last.endswith(_SCORE_ENDINGS) else "plain"


def _columns(record: RunRecord, settings: tuple[Setting, ...], baseline: Setting | None) -> list[Column | None]:
    keys = metric_keys(record)

    def column(name: str, title: str, pattern: str) -> Column | None:
        matching = [key for key in keys if re.fullmatch(pattern, key)]
        return _column(name, title, matching, record, settings, baseline) if matching else None

    attacks = {key.split("/")[1] for key in keys if re.fullmatch(r"membership/[^/]+/auc", key)}
    loss_apart = "loss" in attacks and 1 < len(attacks) <= _ATTACKS_WITH_LOSS_APART
    shadow = ", matched shadow" if any(key.endswith(VANILLA_SUFFIX) for key in keys) else ""
    rate = shared_rate(keys, settings, "membership")
    return [
        column("test_accuracy", "Test accuracy", "utility/test_accuracy"),
        column("membership_loss_auc", "Membership AUC, loss attack", "membership/loss/auc") if loss_apart else None,
        column("membership_auc", "Membership AUC, strongest attack" if len(attacks) > 1 else "Membership AUC",
               "membership/[^/]+/auc"),
        column("membership_balanced_accuracy", f"Balanced accuracy{shadow}", "membership/[^/]+/balanced_accuracy"),
        column("membership_tpr", f"TPR at {rate_text(rate)} FPR", f"membership/[^/]+/tpr_at_fpr_{re.escape(rate)}")
        if rate else None,
        column("canary_auc", "Canary AUC", "canary/[^/]+/auc"),
        _inversion_column(record, settings, baseline),
        column("train_seconds", "Training time", "cost/train_seconds"),
    ]  # fmt: skip


def _inversion_column(record: RunRecord, settings: tuple[Setting, ...], baseline: Setting | None) -> Column | None:
    """Return the strongest attack's top-1, among the attacks that met all attacked settings in all attacked seeds.

    An attack that spared a setting, or some of its seeds, would make it look safe beside those that it met.
    """
    measured = [key for key in metric_keys(record) if _INVERSION_TOP1.fullmatch(key)]
    if not measured:
        return None
    title = "Inversion top-1, strongest attack" if len(measured) > 1 else "Inversion top-1"
    apart = _met_by_some(measured, settings)
    compared = [key for key in measured if key not in apart] or measured
    column = _column("inversion_top1", title, compared, record, settings, baseline)
    unconfirmed = _unconfirmed(column, settings, baseline) if baseline is not None else {}
    return replace(column, names_attack=len(measured) > 1, unconfirmed=unconfirmed)


def _unconfirmed(column: Column, settings: tuple[Setting, ...], baseline: Setting) -> dict[str, Doubts]:
    """Return label -> judges, for the settings whose change another judge does not see."""
    by_label = {setting.label: setting for setting in settings}
    its = (column.measurements[baseline.label].key, baseline.cells)
    found = {
        label: doubts(difference.direction, (column.measurements[label].key, by_label[label].cells), its)
        for label, difference in column.differences.items()
    }
    return {label: judges for label, judges in found.items() if judges}


def _met_by_some(keys: list[str], settings: tuple[Setting, ...]) -> list[str]:
    """Return the keys that some cell with any of them lacks."""
    found = [{key for key in keys if key in cell.metrics} for setting in settings for cell in setting.cells]
    return [key for key in keys if any(own and key not in own for own in found)]


def _column(
    name: str, title: str, keys: list[str], record: RunRecord, settings: tuple[Setting, ...], baseline: Setting | None
) -> Column:
    topic = topic_of(keys[0])
    measurements = {setting.label: _strongest(setting, keys) for setting in settings}
    reference = measurements[baseline.label].spread if baseline else None
    differences = {
        label: paired_difference(measurement.spread, reference)
        for label, measurement in measurements.items()
        if reference is not None and baseline is not None and label != baseline.label
    }
    levels = {record.chance.get(measurement.key) for measurement in measurements.values() if measurement.key}
    chance = levels.pop() if len(levels) == 1 else None
    at_chance = frozenset(label for label, one in measurements.items() if _is_at_chance(one.spread, chance))
    return Column(
        name=name,
        title=title,
        topic=topic,
        unit=unit_of(keys[0]),
        wants=_wants(topic),
        chance=chance,
        measurements=measurements,
        differences=differences,
        names_attack=topic in _LEAKAGE_TOPICS and len(keys) > 1,
        at_chance=at_chance if baseline is not None and baseline.label in at_chance else frozenset(),
    )


def _is_at_chance(values: Spread, chance: float | None) -> bool:
    """Return whether every seed has an interval over points that begins at chance or below.

    From `SEEDS_FOR_INTERVAL` seeds on their mean must not be above chance either: what is too small to be seen in one
    seed may be seen in all together.
    """
    if chance is None or not values.values or set(values.intervals) != set(values.values):
        return False
    if len(values.values) >= SEEDS_FOR_INTERVAL:
        level = Spread(dict.fromkeys(values.values, chance), {}, {})
        if paired_difference(values, level).direction == "higher":
            return False
    return all(low <= chance for low, _ in values.intervals.values())


def _wants(topic: Topic) -> Literal["low", "high", "none"]:
    if topic in _LEAKAGE_TOPICS:
        return "low"
    return "high" if topic == "utility" else "none"


def _strongest(setting: Setting, keys: list[str]) -> Measurement:
    """Return the key with the largest mean; resolved on more seeds comes before larger."""
    found = [(key, spread(setting.cells, key)) for key in keys]
    found = [(key, values) for key, values in found if values.state != "absent"]
    if not found:
        return Measurement("", "", Spread({}, {}, {}))

    def strength(item: tuple[str, Spread]) -> tuple[int, float]:
        mean = item[1].mean
        return len(item[1].values), mean if mean is not None else 0.0

    key, values = max(found, key=strength)
    return Measurement(key, key.split("/")[1] if topic_of(key) in _LEAKAGE_TOPICS else "", values)


def shared_rate(keys: list[str], settings: tuple[Setting, ...], topic: Topic) -> str | None:
    """Return the lowest FPR that every cell with this attack resolves, else the largest that was asked for."""
    rates: dict[str, list[str]] = {}
    for key in keys:
        match = _TPR.search(key)
        if match and topic_of(key) == topic:
            rates.setdefault(match.group(1), []).append(key)
    ordered = sorted(rates, key=float)
    for rate in ordered:
        spreads = [spread(setting.cells, key) for setting in settings for key in rates[rate]]
        if any(values.values for values in spreads) and not any(values.unresolved for values in spreads):
            return rate
    return ordered[-1] if ordered else None


def rate_text(rate: str | None) -> str:
    """Write a false positive rate such as `0.01` in percent."""
    return f"{float(rate or 0) * 100:g}\N{NO-BREAK SPACE}%"


def _own_warnings(settings: tuple[Setting, ...], baseline: Setting | None, keys: list[str]) -> list[str]:
    found = []
    if baseline is None and settings:
        found.append("No setting trains undefended (`none`), so nothing here says how much a defense changes.")
    seeds = {setting.label: set(setting.seeds) for setting in settings}
    if any(len(own) == 1 for own in seeds.values()):
        found.append("A setting has one seed only: how much its numbers vary from training to training is unknown.")
    if len({frozenset(own) for own in seeds.values()}) > 1:
        found.append("Not all settings have the same seeds; paired differences use the seeds that both sides have.")
    weak = weak_judges(baseline.cells) if baseline is not None else []
    faint = faint_hits({setting.label: setting.cells for setting in settings})
    return found + _attacks_apart(settings, keys) + weak + faint


def _attacks_apart(settings: tuple[Setting, ...], keys: list[str]) -> list[str]:
    """Warn of inversion attacks that spared a setting or some of its seeds."""
    measured = [key for key in keys if _INVERSION_TOP1.fullmatch(key)]
    apart = _met_by_some(measured, settings)
    if not apart:
        return []
    if len(apart) == len(measured):
        return ["No inversion attack met every setting and seed that another met: their inversion is not comparable."]
    spared, compared = (
        ", ".join(key.split("/")[1] for key in measured if (key in apart) == is_apart) for is_apart in (True, False)
    )
    return [
        f"Inversion by {spared} did not meet every setting in every seed; "
        f"where settings are compared it is by {compared}."
    ]


def _unresolved(settings: tuple[Setting, ...]) -> list[str]:
    """Return one line per reason and place, naming the metrics, settings and seeds it holds for."""
    places: dict[tuple[str, str], dict[str, list[int]]] = {}
    for setting in settings:
        for cell in setting.cells:
            for key, metric in cell.metrics.items():
                if metric.value is None:
                    reason = metric.note or "no reason was recorded"
                    places.setdefault((key, reason), {}).setdefault(setting.label, []).append(cell.seed)
    everyone = {setting.label: setting.seeds for setting in settings}
    lines: dict[tuple[str, str], list[str]] = {}
    for (key, reason), where in places.items():
        place = "every setting and seed"
        if where != everyone:
            place = ", ".join(f"{label} ({seeds_text(seeds)})" for label, seeds in where.items())
        lines.setdefault((reason, place), []).append(key)
    return [
        f"{', '.join(_grouped(keys))}: {reason.removeprefix('unresolved: ')}"
        + (f" [{place}]" if place != "every setting and seed" else "")
        for (reason, place), keys in lines.items()
    ]


def _grouped(keys: list[str]) -> list[str]:
    """Write several attacks' equal metrics as one: `membership/*/auc` for `membership/loss/auc`, ...."""
    shapes: dict[str, list[str]] = {}
    for key in keys:
        head, _, rest = key.partition("/")
        attack, _, name = rest.partition("/")
        shapes.setdefault(f"{head}/*/{name}" if name and attack else key, []).append(key)
    return [shape if len(same) > 1 else same[0] for shape, same in shapes.items()]
