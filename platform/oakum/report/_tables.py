"""The tables that all sections of the HTML report are made of."""

from __future__ import annotations

from oakum.report._marks import mark
from oakum.report._markup import Markup, join, tag
from oakum.report._numbers import mean_text, number, range_text
from oakum.report._overview import Overview, Setting, Unit, unit_of
from oakum.report._palette import Look
from oakum.report.statistics import Spread

SEEDS_ON_LINE = 3
# A longer table is folded.
MOST_OPEN_ROWS = 120


def plain_table(head: Markup, rows: list[Markup], caption: str | None, class_: str | None = None) -> Markup:
    """Return a table that scrolls sideways where it must; `head` holds rows."""
    title = tag("caption", caption) if caption else None
    return tag("div", tag("table", title, tag("thead", head), tag("tbody", *rows), class_=class_), class_="scroll")


def matrix_table(head: Markup, rows: list[Markup], class_: str = "wide") -> Markup:
    """Return a table of many columns, whose first column stays in place when the rest is scrolled."""
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="matrix")
    return tag("div", table, class_=f"scroll matrix-frame {class_}", tabindex=0, role="region", aria_label="Table")


def row_head(setting: Setting, styles: dict[str, Look], remark: str = "") -> Markup:
    """Return the first cell of a setting's row: its mark, its label, and a remark in small print."""
    small = tag("small", remark) if remark else None
    return tag("th", mark(styles[setting.label]), Markup("&ensp;"), setting.label, small, scope="row")


def baseline_first(view: Overview) -> list[Setting]:
    """Return the settings in the order of the record, the baseline in front."""
    return sorted(view.settings, key=lambda setting: setting != view.baseline)


def first_class(place: int) -> str | None:
    """Return the class of the first column of a group, which is set apart by a rule."""
    return None if place else "first"


def figure_cell(
    values: Spread,
    metric: str,
    classes: list[str | None] | None = None,
    *,
    flags: tuple[str, ...] = (),
    signs: str = "",
    style: str | None = None,
    lists_seeds: bool = False,
) -> Markup:
    """Return a cell with the mean and, small, the range of seeds that differ; its tooltip holds every seed and flag.

    `metric` is a key or its last part and decides how numbers are written; `signs` point to footnotes; `lists_seeds`
    shows every seed in the range's place.
    """
    unit = unit_of(metric)
    class_ = " ".join(name for name in classes or [] if name) or None
    if values.mean is None:
        text = mean_text(values, unit) if values.state == "unresolved" else "\N{EN DASH}"
        title = "; ".join(values.reasons) or "not measured"
        return tag("td", tag("span", text, class_="none"), title=title, class_=class_)
    listed = [f"seed {seed}: {value_with_interval(values, seed, metric)}" for seed in values.values]
    listed += [f"seed {seed}: unresolved, {reason}" for seed, reason in values.unresolved.items()]
    listed += [f"flag: {flag}" for flag in flags]
    return tag(
        "td",
        tag("span", number(values.mean, unit, mark=False), class_="main"),
        tag("sup", signs) if signs else None,
        _seeds(values, unit) if lists_seeds else _range(values, unit),
        title="\n".join(listed),
        class_=class_,
        style=style,
    )


def _range(values: Spread, unit: Unit) -> Markup | None:
    return tag("small", range_text(values, unit)) if values.low != values.high or values.unresolved else None


def _seeds(values: Spread, unit: Unit) -> Markup | None:
    """Return every resolved seed, a few on each line; None for a single one."""
    count, missing = len(values.values), len(values.unresolved)
    texts = [number(value, unit, mark=False) for value in values.values.values()]
    lines = [", ".join(texts[start : start + SEEDS_ON_LINE]) for start in range(0, count, SEEDS_ON_LINE)]
    parts = [tag("small", line, class_="seeds") for line in lines if count > 1]
    return join(*parts, tag("small", f"{count} of {count + missing} seeds") if missing else None)


def value_with_interval(values: Spread, seed: int, metric: str) -> str:
    """Write the value of a seed and, in brackets, the interval inside it where one is known."""
    unit = unit_of(metric)
    text = number(values.values[seed], unit)
    interval = values.intervals.get(seed)
    if interval is None:
        return text
    return f"{text} ({number(interval[0], unit, mark=False)} to {number(interval[1], unit, mark=False)})"
