"""An audit as text for people: a table, what is suspicious about it, and what it means."""

from __future__ import annotations

import textwrap

from oakum.audit import AttackResult, Audit
from oakum.metrics.membership import FPR_LEVELS

_CHANCE = 0.5
_WIDTH = 120
_COLUMNS = {
    "auc": "AUC [95 % interval]",
    **{f"tpr_at_fpr_{fpr:g}": f"TPR@{100 * fpr:g}%" for fpr in FPR_LEVELS},
    "balanced_accuracy": "balanced acc.",
    "balanced_accuracy_per_class": "by class",
}


def describe(audit: Audit) -> str:
    """Return the audit as plain text; prose is wrapped at 120 columns, the table may be wider."""
    notes = [f"Warning: {warning}" for warning in audit.warnings]
    notes += [f"Flag: {attack.name}: {flag}" for attack in audit.attacks for flag in attack.flags]
    notes += [f"Unresolved: {reason}" for reason in _unresolved(audit)]
    prose = [[textwrap.fill(line, _WIDTH) for line in lines] for lines in (notes, conclusions(audit))]
    parts = [[_title(audit), _accuracies(audit)], _table(audit), *prose]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def conclusions(audit: Audit) -> list[str]:
    """Return what the numbers mean and what they do not, one paragraph each."""
    thresholds = (
        "Balanced accuracies take their thresholds from the shadow model, or from the attack itself."
        if audit.uses_shadow
        else "Without a shadow model only attacks that bring a threshold have a balanced accuracy: read AUC and TPR."
    )
    limits = (
        "These are averages over the given points. Single records can be at much greater risk, and attacks with many "
        "shadow models are stronger. Any other difference between the two files looks like leakage."
    )
    return [_finding(audit), thresholds, limits]


def _title(audit: Audit) -> str:
    shape = "x".join(map(str, audit.model["input_shape"]))
    return (
        f"{audit.model['name']}, {audit.model['num_classes']} classes, {audit.model['parameters']:,} parameters; "
        f"{audit.members:,} members and {audit.nonmembers:,} non-members of shape {shape}"
    )


def _accuracies(audit: Audit) -> str:
    names = ("member_accuracy", "nonmember_accuracy", "accuracy_gap")
    inside, outside, gap = (audit.utility[name].value or 0.0 for name in names)
    return f"accuracy: {_share(inside)} on members, {_share(outside)} on non-members, a gap of {100 * gap:.1f} points"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(audit: Audit) -> list[str]:
    """Return one line for each attack; columns in which no attack has a number are left out.

    Attacks that were asked about some of the points only say about how many.
    """
    everyone = (audit.members, audit.nonmembers)
    kept = [key for key in _COLUMNS if any(_value(attack, key) is not None for attack in audit.attacks)]
    rows = [["attack", "access", *(_COLUMNS[key] for key in kept)]]
    rows += [[attack.name, attack.access, *(_cell(attack, key) for key in kept)] for attack in audit.attacks]
    if any((attack.members, attack.nonmembers) != everyone for attack in audit.attacks):
        counts = [f"{attack.members:,} + {attack.nonmembers:,}" for attack in audit.attacks]
        rows = [[*row, count] for row, count in zip(rows, ["points", *counts], strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _value(attack: AttackResult, key: str) -> float | None:
    metric = attack.metrics.get(key)
    return None if metric is None else metric.value


def _cell(attack: AttackResult, key: str) -> str:
    value = _value(attack, key)
    if value is None:
        return "-"
    if key != "auc":
        return _share(value)
    low, high = attack.metrics[key].low, attack.metrics[key].high
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _unresolved(audit: Audit) -> list[str]:
    """Return each reason for a missing number or interval, once."""
    reasons: dict[str, None] = {}
    for attack in audit.attacks:
        for key, metric in attack.metrics.items():
            if metric.value is None and key in _COLUMNS:
                reasons[f"{_COLUMNS[key]} {metric.note.removeprefix('unresolved: ')}"] = None
            elif metric.note and metric.value is not None:
                reasons[metric.note] = None
    return list(reasons)


def _finding(audit: Audit) -> str:
    """Say whether members can be told from non-members."""
    aucs = {attack.name: attack.metrics["auc"] for attack in audit.attacks}
    lows = {name: metric.low for name, metric in aucs.items() if metric.low is not None}
    if not lows:
        return "There are too few points for intervals: nothing can be concluded from these values."
    leaking = [name for name, low in lows.items() if low > _CHANCE]
    if leaking:
        name = max(leaking, key=lambda each: aucs[each].value or 0.0)
        choice = "; it is the largest value, and its interval does not count that choice" if len(lows) > 1 else ""
        return (
            f"The model leaks membership: {name} scores a random member above a random non-member in "
            f"{_share(aucs[name].value or 0.0)} of pairs (ties count half), against 50 % by chance{choice}."
        )
    highs = {each: metric.high for each, metric in aucs.items() if metric.high is not None}
    turned = min(highs, key=lambda each: highs[each])
    if highs[turned] < _CHANCE:
        return (
            f"No attack scores members above non-members, but {turned} scores them below: the two files differ, or the "
            "model was trained to invert this score. An adversary who knows turns the sign."
        )
    return (
        f"None of {len(lows)} attacks tells members from non-members: the 95 % interval of every AUC includes 0.5. "
        "That is no proof of safety."
    )
