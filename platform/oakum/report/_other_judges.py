"""Judges who do not see the change in class pictures that the evaluation model sees.

The evaluation model may err with the target, from whose images it often learned: what only it sees is in doubt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from oakum.records import CellRecord
from oakum.report._phrases import listed
from oakum.report.statistics import Direction, paired_difference, spread

# Judge -> its mean top-1 of the baseline and of the setting.
Doubts = Mapping[str, tuple[float, float]]

# What follows top-1 of the evaluation model: another judge's name, or the floor that was judged.
_ANOTHER_JUDGE = re.compile(r"\.([^./]+)")
_FLOORS = ("control", "unoptimized")
_NAMES = {"second": "the second evaluation model"}


def doubts(
    direction: Direction, own: tuple[str, tuple[CellRecord, ...]], its: tuple[str, tuple[CellRecord, ...]]
) -> Doubts:
    """Return the judges by whom a difference, whose sign the seeds settle, is not settled alike.

    Args:
        direction: the difference as the evaluation model sees it; unless `lower` or `higher` nobody doubts it.
        own: key of the setting's top-1, and the setting's cells.
        its: the same of the baseline.
    """
    if direction not in ("lower", "higher"):
        return {}
    found = {}
    for judge in _other_judges(*own):
        after, before = (spread(cells, f"{key}.{judge}") for key, cells in (own, its))
        difference = paired_difference(after, before)
        if before.mean is None or after.mean is None or not difference.values:
            continue
        if difference.direction != direction:
            found[judge] = (before.mean, after.mean)
    return found


def doubts_text(found: Doubts) -> str:
    """Name the judges, with what they see."""
    names = [
        f"{_NAMES.get(judge, judge)} ({_percent(before)} to {_percent(after)})"
        for judge, (before, after) in found.items()
    ]
    return listed(names)


def doubt_warnings(found: Mapping[str, Doubts]) -> list[str]:
    """Return a warning for each setting, by its label, whose change another judge does not see."""
    return [
        f"{label}: the change in class pictures that the evaluation model sees is not confirmed by {doubts_text(own)}."
        for label, own in found.items()
    ]


def _other_judges(key: str, cells: tuple[CellRecord, ...]) -> list[str]:
    names = dict.fromkeys(name for cell in cells for name in cell.metrics if name.startswith(f"{key}."))
    matches = [_ANOTHER_JUDGE.fullmatch(name.removeprefix(key)) for name in names]
    return [match.group(1) for match in matches if match and match.group(1) not in _FLOORS]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
