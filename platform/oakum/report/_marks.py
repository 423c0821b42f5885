"""Small inline drawings: the mark of a setting, and a column's values on their common scale."""

from __future__ import annotations

from oakum.report._markup import Markup, tag
from oakum.report._numbers import number
from oakum.report._overview import Column
from oakum.report._palette import Look
from oakum.report.statistics import Spread

_WIDTH, _HEIGHT = 104.0, 15.0
_POLYGONS = {
    "s": "1.2,1.2 8.8,1.2 8.8,8.8 1.2,8.8",
    "^": "5,0.6 9.6,9.2 0.4,9.2",
    "v": "5,9.4 9.6,0.8 0.4,0.8",
    "<": "0.6,5 9.2,0.4 9.2,9.6",
    ">": "9.4,5 0.8,0.4 0.8,9.6",
    "D": "5,0 10,5 5,10 0,5",
    "P": "3.3,0.3 6.7,0.3 6.7,3.3 9.7,3.3 9.7,6.7 6.7,6.7 6.7,9.7 3.3,9.7 3.3,6.7 0.3,6.7 0.3,3.3 3.3,3.3",
    "X": "2.4,0 5,2.6 7.6,0 10,2.4 7.4,5 10,7.6 7.6,10 5,7.4 2.4,10 0,7.6 2.6,5 0,2.4",
}


def mark(look: Look) -> Markup:
    """Return the setting's mark in its color; hidden from screen readers, since the label stands beside it."""
    shape = (
        tag("polygon", points=_POLYGONS[look.mark]) if look.mark in _POLYGONS else tag("circle", cx=5, cy=5, r="4.6")
    )
    fill = f"var(--{look.ink.variable})"
    return tag("svg", shape, class_="mark", viewBox="0 0 10 10", fill=fill, aria_hidden="true")


def strip(column: Column, values: Spread, look: Look) -> Markup:
    """Return the seeds as dots and their mean as a bar, on a scale that holds the whole column and chance."""
    everything = [value for own in column.measurements.values() for value in own.spread.values.values()]
    everything += [column.chance] if column.chance is not None else []
    low, high = min(everything), max(everything)
    width = (high - low) or 1.0

    def place(value: float) -> str:
        return f"{4 + (_WIDTH - 8) * ((value - low) / width if high > low else 0.5):.1f}"

    color = f"var(--{look.ink.variable})"
    middle = _HEIGHT / 2
    parts = [tag("line", x1=0, x2=str(_WIDTH), y1=str(middle), y2=str(middle), stroke="var(--grid)")]
    if column.chance is not None:
        at = place(column.chance)
        parts.append(tag("line", x1=at, x2=at, y1=0, y2=str(_HEIGHT), stroke="var(--muted)", stroke_dasharray="2 2"))
    parts += [
        tag("circle", cx=place(value), cy=str(middle), r="3", fill=color, fill_opacity="0.55")
        for value in values.values.values()
    ]
    if values.mean is not None:
        at = place(values.mean)
        parts.append(tag("line", x1=at, x2=at, y1="2", y2=str(_HEIGHT - 2), stroke=color, stroke_width="2"))
    listed = ", ".join(f"seed {seed}: {number(value, column.unit)}" for seed, value in values.values.items())
    box = f"0 0 {_WIDTH:g} {_HEIGHT:g}"
    return tag("svg", tag("title", listed), *parts, class_="strip", viewBox=box, role="img", aria_label=listed)
