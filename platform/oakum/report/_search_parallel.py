"""Parallel coordinates: what the trials of a search had in common that did well."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from oakum.report._figure_style import styled
from oakum.report._labels import spread_out
from oakum.report._numbers import number, printable
from oakum.report._palette import MUTED, PAPER, TEXT
from oakum.report._search_marks import NARROW, WIDE, best_numbers, is_logarithmic, wrapped
from oakum.report._search_view import (
    SAMPLED_LOOK,
    Reading,
    SearchView,
    costs_of,
    is_number,
    parameter_name,
    search_view,
    value_text,
)
from oakum.search.records import SearchRecord, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Below the axes, for trials in which a parameter does not exist or is null.
_MISSING = -0.14
_MOST_NAMES = 16
_MOST_NARROW_SCALES = 5
_NAME_GAP = 0.056
_WEAKEST = 0.2


@dataclass(frozen=True)
class _Scale:
    """One upright axis: a title, ticks at heights from 0 to 1, and trial number -> height."""

    title: str
    aim: str
    ticks: tuple[tuple[float, str], ...]
    heights: dict[int, float]

    def place(self, trial: TrialRecord) -> float:
        return self.heights.get(trial.number, _MISSING)


def parameters(record: SearchRecord) -> Figure | None:
    """Draw a line for each complete trial through its parameters, its objectives and the metrics of the floors.

    None below two complete trials, or where they have the same parameters.
    """
    view = search_view(record)
    trials = view.record.complete
    scales = [_parameter_scale(path, view) for path in view.parameters]
    scales = [scale for scale in scales if len({scale.place(trial) for trial in trials}) > 1]
    if len(trials) < 2 or not scales:
        return None
    scales += [_reading_scale(reading, view) for reading in _readings(view)]
    has_missing = any(scale.place(trial) == _MISSING for scale in scales for trial in trials)
    with styled() as make:
        width = NARROW if len(scales) <= _MOST_NARROW_SCALES else max(WIDE, 1.3 * len(scales))
        figure = make(figsize=(width, 3.9), layout="constrained")
        axis = figure.subplots()
        axis.set_axis_off()
        axis.set(xlim=(-0.42, len(scales) - 0.78), ylim=(-0.2 if has_missing else -0.05, 1.28))
        _draw_lines(axis, scales, view)
        for place, scale in enumerate(scales):
            _draw_scale(axis, place, scale)
        _name_ends(axis, view, len(scales) - 1, scales[-1])
    return figure


def _readings(view: SearchView) -> list[Reading]:
    """Return the objectives, and the floors' metrics that are none of them."""
    titles = {goal.title for goal in view.goals}
    return [*view.goals, *{bound.title: bound for bound in view.bounds if bound.title not in titles}.values()]


def _parameter_scale(path: str, view: SearchView) -> _Scale:
    trials = view.record.complete
    values = {trial.number: trial.point[path] for trial in trials if trial.point.get(path) is not None}
    title = parameter_name(path)
    if values and all(is_number(value) for value in values.values()):
        scale = _number_scale(title, "", values, value_text, is_log=is_logarithmic(path, view))
    else:
        names = sorted({value_text(value) for value in values.values()})
        heights = {name: place / max(len(names) - 1, 1) for place, name in enumerate(names)}
        places = {number: heights[value_text(value)] for number, value in values.items()}
        scale = _Scale(title, "", tuple((height, name) for name, height in heights.items()), places)
    missing = ((_MISSING, "not set"),) if len(values) < len(trials) else ()
    return replace(scale, ticks=(*scale.ticks, *missing))


def _reading_scale(reading: Reading, view: SearchView) -> _Scale:
    found = {trial.number: view.searched(reading, trial) for trial in view.record.complete}
    values = {trial: value for trial, value in found.items() if value is not None}
    return _number_scale(reading.title, reading.aim, values, lambda value: number(float(value), reading.unit))


def _number_scale(
    title: str, aim: str, values: dict[int, Any], write_value: Callable[[Any], str], *, is_log: bool = False
) -> _Scale:
    if not values:
        return _Scale(title, aim, (), {})
    low, high = min(values.values()), max(values.values())
    turn: Callable[[Any], float] = math.log if is_log else float
    width = turn(high) - turn(low)

    def height(value: Any) -> float:
        return (turn(value) - turn(low)) / width if width else 0.5

    middle = math.sqrt(low * high) if is_log else (low + high) / 2
    has_middle = width > 0 and not (isinstance(low, int) and isinstance(high, int))
    at = dict.fromkeys((low, middle, high) if has_middle else (low, high))
    ticks = tuple((height(value), write_value(value)) for value in at)
    return _Scale(title, aim, ticks, {trial: height(value) for trial, value in values.items()})


def _draw_lines(axis: Axes, scales: list[_Scale], view: SearchView) -> None:
    best, strengths = best_numbers(view), _strengths(view)
    for trial in view.record.complete:
        heights = [scale.place(trial) for scale in scales]
        style: dict[str, Any] = {"color": MUTED.light, "linestyle": (0, (3, 2.5)), "alpha": 0.7, "linewidth": 0.7}
        if trial.is_feasible:
            strength = strengths[trial.number]
            width = 2.0 if trial.number in best else 0.9
            style = {"color": SAMPLED_LOOK.ink.light, "alpha": strength, "linewidth": width, "zorder": 2 + strength}
        axis.plot(range(len(scales)), heights, **style)


def _strengths(view: SearchView) -> dict[int, float]:
    """Return feasible trial -> how strongly it is drawn, in the order of the first objective."""
    ordered = sorted(view.feasible, key=lambda trial: -costs_of([trial], view.goals)[0][0])
    last = max(len(ordered) - 1, 1)
    return {trial.number: min(1.0, _WEAKEST + (1 - _WEAKEST) * place / last) for place, trial in enumerate(ordered)}


def _draw_scale(axis: Axes, place: int, scale: _Scale) -> None:
    ground = {"facecolor": PAPER.light, "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    axis.plot([place, place], [0, 1], color=TEXT.light, linewidth=0.9, zorder=4)
    for height, text in scale.ticks:
        axis.plot([place - 0.03, place], [height, height], color=TEXT.light, linewidth=0.8, zorder=4)
        axis.annotate(printable(text), (place - 0.05, height), fontsize=7.5, color=TEXT.light, ha="right", va="center",
                      bbox=ground, zorder=5)  # fmt: skip
    if scale.aim:
        axis.annotate(scale.aim, (place, 1.075), fontsize=7.5, color=MUTED.light, ha="center", va="bottom")
    axis.annotate(wrapped(scale.title, 16), (place, 1.13), fontsize=8.5, ha="center", va="bottom", fontweight="bold",
                  linespacing=1.2)  # fmt: skip


def _name_ends(axis: Axes, view: SearchView, last: int, scale: _Scale) -> None:
    """Write the best trials' numbers beside the ends of their lines, none above the axis."""
    named = list(view.best)[:_MOST_NAMES]
    places = spread_out([scale.place(trial) for trial in named], _NAME_GAP)
    outside = max(0.0, max(places, default=0.0) - 1.0)
    for trial, place in zip(named, places, strict=True):
        axis.annotate(str(trial.number), (last, place - outside), xytext=(6, 0), textcoords="offset points",
                      fontsize=8, color=SAMPLED_LOOK.ink.light, va="center", annotation_clip=False)  # fmt: skip
