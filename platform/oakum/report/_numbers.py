"""How numbers are written, the same in the terminal and the HTML report."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from oakum.report._overview import Column, Unit
from oakum.report.statistics import Difference, Spread

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"
_LONGEST_NUMBER = 8


def number(value: float, unit: Unit, *, sign: bool = False, mark: bool = True) -> str:
    """Write a value: shares in percent with one decimal, AUC and losses with three, times with their unit.

    `sign` writes a plus too, for differences; shares are then in points. `mark` appends the unit.
    """
    if unit == "percent":
        body, suffix = f"{100 * value:+.1f}", f"{SPACE}points" if sign else f"{SPACE}%"
    elif unit == "score":
        body, suffix = f"{value:+.3f}", ""
    elif unit == "seconds":
        body, suffix = _seconds(value)
    elif unit == "nats" and (value == 0 or abs(value) >= 0.001):
        body, suffix = f"{value:+.3f}", ""
    else:
        digits = 2 if unit == "nats" else 4
        body, suffix = re.sub(r"e([+-])0", r"e\1", f"{value:+.{digits}g}"), ""
    if not any(digit in body for digit in "123456789"):
        body = body.lstrip("+-")
    body = body if sign else body.removeprefix("+")
    return body.replace("-", MINUS) + (suffix if mark else "")


def setting_text(value: Any) -> str:
    """Write the value of a setting as in YAML; a number with many digits, such as a search draws, with five of them."""
    if isinstance(value, float) and len(repr(value)) > _LONGEST_NUMBER:
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value)


def _seconds(value: float) -> tuple[str, str]:
    if abs(value) >= 7200:
        return f"{value / 3600:+.1f}", f"{SPACE}h"
    if abs(value) >= 600:
        return f"{value / 60:+.0f}", f"{SPACE}min"
    return f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.1f}", f"{SPACE}s"


def mean_text(values: Spread, unit: Unit) -> str:
    """Write the mean, or what stands in its place."""
    if values.mean is None:
        return "unresolved" if values.state == "unresolved" else "not measured"
    return number(values.mean, unit)


def range_text(values: Spread, unit: Unit) -> str:
    """Write the range over seeds; "" without a number, `one seed` for one; says when seeds are missing from it."""
    if values.low is None or values.high is None:
        return ""
    count, missing = len(values.values), len(values.unresolved)
    text = "one seed"
    if count > 1:
        joint = " to " if values.low < 0 else DASH
        low = number(values.low, unit, mark=False)
        text = f"{low}{joint}{number(values.high, unit, mark=False)}"
        if unit == "seconds":
            low, high = number(values.low, unit), number(values.high, unit)
            same = low.rsplit(SPACE, 1)[1] == high.rsplit(SPACE, 1)[1]
            text = f"{low.rsplit(SPACE, 1)[0] if same else low}{joint}{high}"
    return f"{text} ({count} of {count + missing} seeds)" if missing else text


def values_text(values: Iterable[float], unit: Unit, *, sign: bool = False) -> str:
    """Write every value, in order of seeds."""
    return ", ".join(number(value, unit, sign=sign, mark=unit == "seconds") for value in values)


def interval_text(difference: Difference, unit: Unit) -> str:
    """Write the interval of a difference; "" below two seeds."""
    if difference.low is None or difference.high is None:
        return ""
    low = number(difference.low, unit, sign=True, mark=unit == "seconds")
    return f"{low} to {number(difference.high, unit, sign=True, mark=unit == 'seconds')}"


def chance_text(column: Column) -> str:
    """Write the chance level, or ""."""
    return "" if column.chance is None else f"chance {number(column.chance, column.unit)}"


def aim_text(column: Column) -> str:
    """Write which direction a defender wants, and the chance level; "" without either."""
    aim = {"low": "lower is better", "high": "higher is better", "none": ""}[column.wants]
    return ", ".join(part for part in (aim, chance_text(column)) if part)


def difference_unit(column: Column) -> str:
    """Write in what a column's differences are."""
    return {"percent": "points", "seconds": "time"}.get(column.unit, "difference")


def printable(text: str) -> str:
    """Replace control and direction-changing characters, which can rewrite what a terminal or a page shows."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else char
        for char in text
    )


def short_labels(labels: list[str], length: int = 24) -> dict[str, str]:
    """Return each label in at most `length` characters, cut where all stay different: at the end, inside, in front."""
    dots = "\N{HORIZONTAL ELLIPSIS}"
    half = (length - 1) // 2
    plain = {label: printable(label) for label in labels}
    cuts: tuple[Callable[[str], str], ...] = (
        lambda text: text[: length - 1] + dots,
        lambda text: text[: length - 1 - half] + dots + text[-half:],
        lambda text: dots + text[1 - length :],
    )
    for cut in cuts:
        short = {label: text if len(text) <= length else cut(text) for label, text in plain.items()}
        if len(set(short.values())) == len(labels):
            return short
    return {label: f"{place}: {plain[label][: length - 6]}{dots}" for place, label in enumerate(labels, start=1)}
