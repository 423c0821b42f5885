"""Figures of a search: the front, the parameters of its trials, what they do to the objectives, and its progress.

Each function returns a matplotlib `Figure` (no pyplot, no display, no global state), or None where the search holds
nothing to draw. Only complete trials are drawn: values of a lower rung are not comparable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oakum.report._document import replace_file
from oakum.report._figure_style import export, styled
from oakum.report._labels import place_labels
from oakum.report._palette import MUTED, PAPER, SHADE
from oakum.report._search_landscape import draw_undefended_level, landscape
from oakum.report._search_marks import (
    NARROW,
    Point,
    best_numbers,
    draw_trial,
    explain_marks,
    name_axis,
    panel_axes,
    panel_size,
)
from oakum.report._search_parallel import parameters
from oakum.report._search_view import (
    CONFIRMED_LOOK,
    SAMPLED_LOOK,
    UNDEFENDED_LOOK,
    Reading,
    SearchView,
    costs_of,
    search_view,
)
from oakum.search.objectives import fronts, hypervolume
from oakum.search.records import SearchRecord, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "front",
    "front_axes",
    "hypervolumes",
    "landscape",
    "parameters",
    "progress",
    "reference_point",
    "write",
]

MARGIN_OF_REFERENCE = 0.1
_MOST_LABELS = 16
_STEPS_OF_LINE = 12


def front(record: SearchRecord) -> Figure | None:
    """Draw the objectives against each other, or the one objective against the first floor's metric.

    Leakage goes to the right, utility up. One objective without a floor is drawn over the trials' numbers; more than
    two objectives make a panel for each of the others.
    """
    view = search_view(record)
    if not view.record.complete:
        return None
    pairs = front_axes(view)
    with styled() as make:
        figure = make(figsize=panel_size(len(pairs), 4.9), layout="constrained")
        axes = panel_axes(figure, len(pairs))
        for axis, (across, up) in zip(axes, pairs, strict=True):
            _front_panel(axis, across, up, view)
        explain_marks(figure, axes)
        figure.canvas.draw()
        for axis, (across, up) in zip(axes, pairs, strict=True):
            _front_labels(axis, across, up, view)
    return figure


def progress(record: SearchRecord) -> Figure | None:
    """Draw the best feasible value against the number of trials, or with several objectives the hypervolume."""
    view = search_view(record)
    if not record.complete:
        return None
    last = max(trial.number for trial in record.trials)
    with styled() as make:
        figure = make(figsize=(NARROW, 3.2), layout="constrained")
        axis = figure.subplots()
        if len(view.goals) == 1:
            _best_so_far(axis, view, last)
        else:
            steps = hypervolumes(view)
            _draw_steps(axis, steps, last)
            axis.set_ylabel("Hypervolume of the front\nhigher is better", linespacing=1.4)
            axis.set_ylim(0, 1.08 * max(steps.values(), default=1.0))
        axis.set_xlabel("Trial")
        axis.set_xlim(-0.02 * max(last, 1) - 0.3, last + 0.02 * max(last, 1) + 0.3)
        axis.locator_params(axis="x", integer=True)
        explain_marks(figure, [axis])
    return figure


def write(record: SearchRecord, folder: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Write every figure that the search supports into `folder` (created) and return the files."""
    made = {name: make(record) for name, make in FIGURES.items()}
    drawn = {name: figure for name, figure in made.items() if figure is not None}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in drawn.items():
        for form in formats:
            written.append(replace_file(folder / f"{name}.{form}", export(figure, form)))
    return written


def front_axes(view: SearchView) -> list[tuple[Reading | None, Reading]]:
    """Return what the panels of the front have to the right and up; None stands for the trial's number."""
    if len(view.goals) == 1:
        other = next((bound for bound in view.bounds if bound.title != view.goals[0].title), None)
        if other is None:
            return [(None, view.goals[0])]
        first, *others = sorted((view.goals[0], other), key=lambda reading: not reading.is_leakage)
        if not view.goals[0].is_leakage and not other.is_leakage:
            first, others = other, [view.goals[0]]
    else:
        first, *others = sorted(view.goals, key=lambda reading: not reading.is_leakage)
    return [(first, reading) for reading in others]


def reference_point(view: SearchView) -> list[float]:
    """Return the worst corner over all complete trials and 10 % of the range beyond it, as measured.

    Where all trials have one value the corner lies 10 % of that value beyond it (0.1 for zero).
    """
    costs = np.array(costs_of(view.record.complete, view.goals), dtype=np.float64)
    worst, width = costs.max(axis=0), costs.max(axis=0) - costs.min(axis=0)
    width = np.where(width > 0, width, np.where(worst == 0, 1.0, np.abs(worst)))
    corner = worst + MARGIN_OF_REFERENCE * width
    return [goal.objective.cost(float(each)) for goal, each in zip(view.goals, corner, strict=True)]


def hypervolumes(view: SearchView) -> dict[int, float]:
    """Return trial number -> hypervolume of the front of all feasible trials up to it, from the first one on."""
    if not view.feasible:
        return {}
    reference = [goal.objective.cost(each) for goal, each in zip(view.goals, reference_point(view), strict=True)]
    front_costs: list[list[float]] = []
    found: dict[int, float] = {}
    volume = 0.0
    for trial in view.feasible:
        candidate = costs_of([trial], view.goals)
        table = [*front_costs, *candidate]
        kept = [table[row] for row in fronts(np.array(table))[0]]
        if candidate[0] in kept and candidate[0] not in front_costs:
            volume = hypervolume(np.array(kept), reference)
        front_costs = kept
        found[trial.number] = volume
    return found


def _front_panel(axis: Axes, across: Reading | None, up: Reading, view: SearchView) -> None:
    best = best_numbers(view)
    for trial in view.record.complete:
        point = _point(across, up, trial, view)
        if point is not None:
            draw_trial(axis, point, trial, best)
    if len(view.goals) == 2 and across is not None:
        corners = _stairs(across, up, view)
        axis.plot([x for x, _ in corners], [y for _, y in corners], color=SAMPLED_LOOK.ink.light, linewidth=1.2,
                  zorder=2)  # fmt: skip
    _confirmed_marks(axis, across, up, view)
    _undefended_marks(axis, across, up, view)
    axis.margins(0.09, 0.09)
    name_axis(axis.set_ylabel, axis.yaxis, up, 48)
    if across is None:
        axis.set_xlabel("Trial")
        axis.locator_params(axis="x", integer=True)
    else:
        name_axis(axis.set_xlabel, axis.xaxis, across, 60)
    _floor_lines(axis, across, up, view)


def _stairs(across: Reading, up: Reading, view: SearchView) -> list[Point]:
    """Return the corners of the line that bounds what the front of two objectives reaches."""
    found = (_point(across, up, trial, view) for trial in view.best)
    points = sorted(point for point in found if point is not None)
    corners = points[:1]
    for (left, before), (right, after) in itertools.pairwise(points):
        corners += [(right, before) if across.wants == "low" else (left, after), (right, after)]
    return corners


def _confirmed_marks(axis: Axes, across: Reading | None, up: Reading, view: SearchView) -> None:
    color = CONFIRMED_LOOK.ink.light
    for trial in view.record.trials:
        end = _confirmed_point(across, up, trial.number, view) if trial.number in view.confirmed else None
        if end is None:
            continue
        begin = _point(across, up, trial, view)
        if begin is not None:
            axis.plot(*zip(begin, end, strict=True), color=color, linewidth=0.9, zorder=3)
        axis.plot(*end, CONFIRMED_LOOK.mark, color=color, markersize=8, mec=PAPER.light, mew=0.8, zorder=5,
                  label=CONFIRMED_LOOK.label)  # fmt: skip


def _undefended_marks(axis: Axes, across: Reading | None, up: Reading, view: SearchView) -> None:
    if across is None:
        draw_undefended_level(axis, up, view)
        return
    color = UNDEFENDED_LOOK.ink.light
    points = [(values[0], values[1]) for values in view.baselines(across, up)]
    for point in points:
        axis.plot(*point, UNDEFENDED_LOOK.mark, color=color, markersize=8, mec=PAPER.light, mew=0.8, label="none",
                  zorder=4)  # fmt: skip
    for row in view.undefended_rows:
        x, y = across.confirmed_spread(row.cells).mean, up.confirmed_spread(row.cells).mean
        if x is None or y is None:
            continue
        begins = view.baselines(across, up, like=row.conditions)
        if len(begins) == 1:
            begin = (begins[0][0], begins[0][1])
            axis.plot(*zip(begin, (x, y), strict=True), color=color, linewidth=0.9, zorder=3)
        axis.plot(x, y, CONFIRMED_LOOK.mark, color=color, markersize=8, mec=PAPER.light, mew=0.8, zorder=4,
                  label="none, confirmed")  # fmt: skip


def _floor_lines(axis: Axes, across: Reading | None, up: Reading, view: SearchView) -> None:
    """Shade where a floor on one of the axes is missed; a floor relative to `none` is drawn where `none` is one."""
    levels = [
        (bound, is_across, level)
        for bound in view.bounds
        for reading, is_across in ((across, True), (up, False))
        if reading is not None and bound.title == reading.title and (level := _level(bound, view)) is not None
    ]
    for _, is_across, level in levels:
        line = axis.axvline if is_across else axis.axhline
        line(level, color=MUTED.light, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label="floor")
    limits = {True: axis.get_xlim(), False: axis.get_ylim()}
    axis.set(xlim=limits[True], ylim=limits[False])
    for bound, is_across, level in levels:
        span = axis.axvspan if is_across else axis.axhspan
        end = limits[is_across][0 if bound.wants == "high" else 1]
        span(level, end, facecolor=SHADE.light, edgecolor="none", zorder=0)


def _level(bound: Reading, view: SearchView) -> float | None:
    assert bound.floor is not None
    if not bound.floor.is_relative:
        return bound.floor.bound
    baselines = view.baselines(bound)
    return baselines[0][0] + bound.floor.bound if len(baselines) == 1 else None


def _front_labels(axis: Axes, across: Reading | None, up: Reading, view: SearchView) -> None:
    """Write the numbers of the trials that the verdict is about, beside other marks and lines."""
    trials = {trial.number: _point(across, up, trial, view) for trial in view.record.complete}
    confirmed = {number: _confirmed_point(across, up, number, view) for number in view.confirmed}
    points = [point for point in (*trials.values(), *confirmed.values()) if point is not None]
    lines = [(trials.get(number), point) for number, point in confirmed.items()]
    if len(view.goals) == 2 and across is not None:
        lines += itertools.pairwise(_stairs(across, up, view))
    for begin, end in lines:
        points += _along(begin, end) if begin is not None and end is not None else []
    named = ((str(trial.number), trials.get(trial.number)) for trial in view.shown[:_MOST_LABELS])
    labels = [(text, point) for text, point in named if point is not None]
    if across is not None:
        labels += [("none", (values[0], values[1])) for values in view.baselines(across, up)[:1]]
    place_labels(axis, labels, points)


def _along(begin: Point, end: Point) -> list[Point]:
    """Return points of a line, so that labels leave it visible."""
    shares = (place / _STEPS_OF_LINE for place in range(1, _STEPS_OF_LINE))
    return [(begin[0] + share * (end[0] - begin[0]), begin[1] + share * (end[1] - begin[1])) for share in shares]


def _point(across: Reading | None, up: Reading, trial: TrialRecord, view: SearchView) -> Point | None:
    if trial.state != "complete":
        return None
    x = float(trial.number) if across is None else view.searched(across, trial)
    y = view.searched(up, trial)
    return None if x is None or y is None else (x, y)


def _confirmed_point(across: Reading | None, up: Reading, number: int, view: SearchView) -> Point | None:
    cells = view.confirmed[number].cells
    x = float(number) if across is None else across.confirmed_spread(cells).mean
    y = up.confirmed_spread(cells).mean
    return None if x is None or y is None else (x, y)


def _best_so_far(axis: Axes, view: SearchView, last: int) -> None:
    goal = view.goals[0]
    for trial in view.record.complete:
        if trial.values is not None:
            draw_trial(axis, (float(trial.number), trial.values[0]), trial, best_numbers(view))
    steps: dict[int, float] = {}
    best = math.inf
    for trial in view.feasible:
        best = min(best, costs_of([trial], view.goals)[0][0])
        steps[trial.number] = goal.objective.cost(best)
    _draw_steps(axis, steps, last)
    axis.margins(0.02, 0.09)
    name_axis(axis.set_ylabel, axis.yaxis, goal, 36)


def _draw_steps(axis: Axes, steps: dict[int, float], last: int) -> None:
    """Draw trial number -> value as steps that go on to the last trial."""
    if steps:
        values = list(steps.values())
        # One trial makes a line without length.
        mark = "o" if len(steps) == 1 else ""
        axis.step([*steps, last], [*values, values[-1]], where="post", color=SAMPLED_LOOK.ink.light, linewidth=1.8,
                  marker=mark, label="best so far")  # fmt: skip


FIGURES: dict[str, Callable[[SearchRecord], Figure | None]] = {
    "front": front,
    "parameters": parameters,
    "landscape": landscape,
    "progress": progress,
}
