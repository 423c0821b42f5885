"""The objectives of a search over its parameters, where there are one or two and they are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oakum.report._figure_style import styled, tick_format
from oakum.report._palette import TEXT
from oakum.report._search_marks import (
    best_numbers,
    draw_trial,
    explain_marks,
    is_logarithmic,
    name_axis,
    name_parameter_axis,
    panel_axes,
    panel_size,
    wrapped,
)
from oakum.report._search_view import UNDEFENDED_LOOK, Reading, SearchView, is_number, search_view
from oakum.search.records import SearchRecord, TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.tri import Triangulation

_LEVELS = 7
_REFINEMENTS = 2
_WEAKEST, _STRONGEST = 0.03, 0.45
# Of all trials' spread across the line that fits them best; narrower, triangles between them mean nothing.
_LEAST_BREADTH = 0.02


def landscape(record: SearchRecord) -> Figure | None:
    """Draw each objective over the parameters: one as a scatter, two with a contour.

    The contour is interpolated between trials, never beyond them. None where another number of parameters varies, or
    one is no number.
    """
    view = search_view(record)
    paths = [path for path in view.parameters if len({str(trial.point.get(path)) for trial in record.complete}) > 1]
    values = [trial.point.get(path) for path in paths for trial in record.complete if trial.point.get(path) is not None]
    trials = [trial for trial in record.complete if all(is_number(trial.point.get(path)) for path in paths)]
    if len(paths) not in (1, 2) or not all(is_number(value) for value in values) or len(trials) < 2:
        return None
    with styled() as make:
        count = len(view.goals)
        figure = make(figsize=panel_size(count, 4.2), layout="constrained")
        axes = panel_axes(figure, count)
        for axis, goal in zip(axes, view.goals, strict=True):
            if len(paths) == 1:
                _draw_over_one(axis, paths[0], goal, trials, view)
            else:
                _draw_over_two(axis, paths, goal, trials, view)
        explain_marks(figure, axes)
    return figure


def _draw_over_one(axis: Axes, path: str, goal: Reading, trials: list[TrialRecord], view: SearchView) -> None:
    for trial in trials:
        value = view.searched(goal, trial)
        if value is not None:
            draw_trial(axis, (float(trial.point[path]), value), trial, best_numbers(view))
    draw_undefended_level(axis, goal, view)
    axis.margins(0.07, 0.09)
    name_axis(axis.set_ylabel, axis.yaxis, goal, 42)
    name_parameter_axis(axis, "x", path, view)


def draw_undefended_level(axis: Axes, goal: Reading, view: SearchView) -> None:
    """Draw a line at the value of `none` in the search."""
    for (value,) in view.baselines(goal):
        axis.axhline(value, color=UNDEFENDED_LOOK.ink.light, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1,
                     label="none")  # fmt: skip


def _draw_over_two(axis: Axes, paths: list[str], goal: Reading, trials: list[TrialRecord], view: SearchView) -> None:
    places = np.array([[float(trial.point[path]) for path in paths] for trial in trials])
    values = np.array([view.searched(goal, trial) for trial in trials], dtype=np.float64)
    surface = _surface(places, values, [is_logarithmic(path, view) for path in paths])
    if surface is not None:
        _draw_contour(axis, *surface, goal)
    for place, trial in zip(places.tolist(), trials, strict=True):
        draw_trial(axis, (place[0], place[1]), trial, best_numbers(view))
    axis.set_title(f"{wrapped(goal.title, 52)}\n{goal.aim}", linespacing=1.35)
    name_parameter_axis(axis, "x", paths[0], view)
    name_parameter_axis(axis, "y", paths[1], view)
    # The contour would pin the axes to the outermost trials and cut their marks.
    axis.use_sticky_edges = False
    axis.margins(0.05, 0.06)
    axis.autoscale(tight=False)


def _draw_contour(axis: Axes, mesh: Triangulation, values: NDArray[np.float64], goal: Reading) -> None:
    """Shade the values: one neutral ink, stronger where they are better, reads on light and on dark paper."""
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import MaxNLocator

    low, high = float(values.min()), float(values.max())
    levels = MaxNLocator(_LEVELS).tick_values(low, high if high > low else low + 1.0)
    shares = np.linspace(_WEAKEST, _STRONGEST, len(levels) - 1)
    color = to_rgb(TEXT.light)
    colors = [(*color, float(share)) for share in (shares if goal.wants == "high" else shares[::-1])]
    filled = axis.tricontourf(mesh, values, levels=levels, colors=colors, zorder=1)
    bar: Any = axis.figure.colorbar(filled, ax=axis, format=tick_format(goal.unit), pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)


def _surface(
    places: NDArray[np.float64], values: NDArray[np.float64], is_log: list[bool]
) -> tuple[Triangulation, NDArray[np.float64]] | None:
    """Return triangles between the trials and values at their corners, linear in the scales of the axes.

    None where the trials lie on a line.

    Args:
        places: (N, 2).
        values: (N,).
        is_log: of both axes.
    """
    from matplotlib.tri import LinearTriInterpolator, Triangulation, UniformTriRefiner

    turned = np.column_stack([np.log(column) if log else column for column, log in zip(places.T, is_log, strict=True)])
    low, width = turned.min(axis=0), np.ptp(turned, axis=0)
    if not width.all():
        return None
    # Trials of the same point: the first one's value, since a surface has one value in one place.
    shares, first = np.unique((turned - low) / width, axis=0, return_index=True)
    if len(shares) < 4 or np.linalg.svd(shares - shares.mean(axis=0), compute_uv=False)[-1] < _LEAST_BREADTH:
        return None
    coarse = Triangulation(shares[:, 0], shares[:, 1])
    linear = LinearTriInterpolator(coarse, values[first])
    fine, found = UniformTriRefiner(coarse).refine_field(values[first], linear, subdiv=_REFINEMENTS)
    axes = low + width * np.column_stack([fine.x, fine.y])
    across, up = (np.exp(column) if log else column for column, log in zip(axes.T, is_log, strict=True))
    return Triangulation(across, up, fine.triangles), found
