"""The findings in plain words: what leaks, how much less than undefended, and what it costs.

Every sentence is made from the record's numbers. A change is called lower or higher only where the seeds allow it
(`Difference.direction`); otherwise the sentence says that they disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oakum.report._numbers import interval_text, mean_text, number, values_text
from oakum.report._other_judges import doubts_text
from oakum.report._overview import Column, Measurement, Overview, Setting
from oakum.report._phrases import listed
from oakum.report.statistics import SEEDS_FOR_INTERVAL, Difference, Direction

Tone = Literal["good", "bad", "neutral"]
Outcome = Direction | Literal["chance", "disputed"]

UNRANKED = "Unranked: its output is masked, and no label-only attack was run"
_THREATS = (
    ("membership_auc", "membership", "Membership, average record"),
    ("canary_auc", "worst-case records", "Membership, worst case (canaries)"),
    ("inversion_top1", "class pictures", "Inversion"),
)


@dataclass(frozen=True)
class Finding:
    """One way of leaking, or the accuracy, for one setting.

    Attributes:
        title: what it is.
        figure: the number that counts: the paired difference, or for the baseline the value.
        chip: what the seeds say of the difference; "" for the baseline.
        tone: whether the defender wants it.
        sentence: the values behind it.
    """

    title: str
    figure: str
    chip: str
    tone: Tone
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """All findings of a setting under one headline."""

    setting: Setting
    headline: str
    findings: tuple[Finding, ...]


def verdicts(view: Overview) -> list[Verdict]:
    """Return a verdict for every setting, the baseline first."""
    ordered = sorted(view.settings, key=lambda setting: setting != view.baseline)
    return [_verdict(setting, view) for setting in ordered]


def _verdict(setting: Setting, view: Overview) -> Verdict:
    findings = []
    outcomes: dict[str, Outcome] = {}
    for name, short, title in (("test_accuracy", "", "Test accuracy"), *_THREATS):
        column = view.column(name)
        if column is None:
            continue
        findings.append(_finding(column, setting, view, title))
        if short and setting.label in column.differences:
            outcomes[short] = _outcome(column, setting)
    if view.baseline is None:
        headline = "No undefended setting to compare with"
    elif setting == view.baseline:
        headline = "The undefended baseline: every difference in this report is to this model"
    elif not setting.is_ranked:
        headline = UNRANKED
    else:
        headline = _headline(outcomes) + (" (masked output)" if setting.is_masked else "")
    return Verdict(setting, headline, tuple(findings))


def _outcome(column: Column, setting: Setting) -> Outcome:
    """Return what the seeds settle, and the judges with them.

    Between two that do not leak, a difference is none of leakage.
    """
    direction = column.differences[setting.label].direction
    if setting.label in column.at_chance and direction in ("lower", "higher", "unclear"):
        return "chance"
    return "disputed" if setting.label in column.unconfirmed else direction


def _headline(outcomes: dict[str, Outcome]) -> str:
    if not outcomes:
        return "No leakage was measured"
    groups = {outcome: [name for name, own in outcomes.items() if own == outcome] for outcome in
              ("lower", "higher", "disputed", "unclear", "equal", "single", "none", "chance")}  # fmt: skip
    if len(groups["lower"]) == len(outcomes) > 1:
        return "Leaks less in every way that was measured"
    if groups["single"]:
        return "One seed only: the differences below may be noise"
    parts = []
    if groups["lower"]:
        parts.append(f"leaks less through {listed(groups['lower'])}")
    if groups["higher"]:
        parts.append(f"leaks more through {listed(groups['higher'])}")
    if groups["disputed"]:
        parts.append(f"the judges of {listed(groups['disputed'])} do not agree")
    if groups["unclear"]:
        parts.append(f"no consistent change for {listed(groups['unclear'])}")
    if groups["equal"]:
        parts.append(f"exactly the baseline's {listed(groups['equal'])}")
    if groups["chance"]:
        parts.append(f"{listed(groups['chance'])} at chance, with it and without")
    if groups["none"]:
        parts.append(f"nothing to compare for {listed(groups['none'])}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _finding(column: Column, setting: Setting, view: Overview, title: str) -> Finding:
    measurement = column.measurements[setting.label]
    values = measurement.spread
    if values.mean is None:
        reasons = "; ".join(values.reasons)
        return Finding(title, mean_text(values, column.unit), "", "neutral", f"{_capital(reasons)}." if reasons else "")
    parts = [_values_sentence(column, setting, view), _attack_sentence(column, setting, view)]
    difference = column.differences.get(setting.label)
    if difference is None or difference.mean is None:
        parts.append(_at_chance(column, measurement))
        chip = difference.label if difference else ""
        return Finding(title, mean_text(values, column.unit), chip, "neutral", " ".join(part for part in parts if part))
    if difference.direction == "unclear":
        parts.append(f"Per seed {values_text(difference.values.values(), column.unit, sign=True)}.")
    parts += [_at_chance(column, measurement), _unconfirmed(column, setting)]
    figure = number(difference.mean, column.unit, sign=True)
    sentence = " ".join(part for part in parts if part)
    chip = outcome_text(difference, column) if is_ranked(column, setting) else "unranked: no label-only attack"
    return Finding(title, figure, chip, tone(column, difference, setting), sentence)


def _values_sentence(column: Column, setting: Setting, view: Overview) -> str:
    chance = f"chance {number(column.chance, column.unit)}" if column.chance is not None else ""
    if view.baseline is None or setting == view.baseline:
        return f"{_capital(chance)}." if chance else ""
    own, its = (
        mean_text(column.measurements[label].spread, column.unit) for label in (setting.label, view.baseline.label)
    )
    return f"{own} against {its} of {view.baseline.label}{f'; {chance}' if chance else ''}."


def _attack_sentence(column: Column, setting: Setting, view: Overview) -> str:
    """Name the attack, and the baseline's where it is another one."""
    own = column.measurements[setting.label].attack
    if not own:
        return ""
    its = column.measurements[view.baseline.label].attack if view.baseline else own
    other = f" ({its} on {view.baseline.label})" if view.baseline and its not in (own, "") else ""
    return f"Attack: {own}{other}."


def _at_chance(column: Column, measurement: Measurement) -> str:
    intervals = measurement.spread.intervals
    if column.chance is None or set(intervals) != set(measurement.spread.values):
        return ""
    covering = sum(1 for low, high in intervals.values() if low <= column.chance <= high)
    if covering == 0:
        return ""
    where = _all(covering) if covering == len(intervals) else f"{covering} of {len(intervals)} seeds"
    return f"Not told apart from chance in {where}."


def _unconfirmed(column: Column, setting: Setting) -> str:
    judges = column.unconfirmed.get(setting.label)
    return f"Not confirmed by {doubts_text(judges)}." if judges else ""


def outcome_text(difference: Difference, column: Column) -> str:
    """Write what the seeds settle of a difference, in a few words."""
    count = len(difference.values)
    direction = difference.direction
    if direction in ("lower", "higher"):
        if count < SEEDS_FOR_INTERVAL:
            return f"{direction} in {_all(count)}"
        return f"{direction}, 95 % t interval {interval_text(difference, column.unit)}"
    if direction == "unclear" and count >= SEEDS_FOR_INTERVAL:
        return f"no clear change, 95 % t interval {interval_text(difference, column.unit)}"
    return {"equal": f"the same in {_all(count)}", "single": "one seed, spread unknown"}.get(
        direction, "seeds disagree"
    )


def is_ranked(column: Column, setting: Setting) -> bool:
    """Return whether the column's attacks are fit to compare the setting: a mask alone may have misled them."""
    return setting.is_ranked or column.topic not in ("membership", "canary")


def tone(column: Column, difference: Difference, setting: Setting) -> Tone:
    """Return whether the defender wants this change.

    `neutral` unless the seeds settle its sign, for the leakage of a setting that is not ranked, where neither the
    setting nor the baseline is above chance, and where another judge does not see the change.
    """
    if difference.direction not in ("lower", "higher") or column.wants == "none" or not is_ranked(column, setting):
        return "neutral"
    if setting.label in column.at_chance or setting.label in column.unconfirmed:
        return "neutral"
    return "good" if (difference.direction == "lower") == (column.wants == "low") else "bad"


def _all(count: int) -> str:
    return {1: "the one seed", 2: "both seeds"}.get(count, f"all {count} seeds")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
