"""How the figures of a search draw trials, name axes and explain marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from oakum.report._figure_style import tick_format
from oakum.report._numbers import printable
from oakum.report._palette import PAPER, TEXT
from oakum.report._search_view import GRID_LOOK, Reading, SearchView, look_of, parameter_name
from oakum.search.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
# Figures of these widths, in inches, have letters of one size on the page: narrow ones are not stretched to its width.
NARROW, WIDE = 7.4, 10.2
PANELS_IN_ROW = 2


def panel_axes(figure: Figure, count: int) -> list[Axes]:
    """Return one axis for each panel, two in a row."""
    columns = min(count, PANELS_IN_ROW)
    axes = figure.subplots(-(-count // columns), columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return list(axes[:count])


def panel_size(count: int, height: float) -> tuple[float, float]:
    """Return the size of a figure of so many panels of a height."""
    return NARROW if count == 1 else WIDE, height * -(-count // PANELS_IN_ROW)


def best_numbers(view: SearchView) -> dict[int, str]:
    """Return the best trials and what the legend calls them."""
    return {trial.number: "best" if len(view.goals) == 1 else "on the front" for trial in view.best}


def draw_trial(axis: Axes, point: Point, trial: TrialRecord, best: dict[int, str]) -> None:
    """Draw a trial's mark: its shape is its origin, hollow misses a floor, outlined is among `best`."""
    look = look_of(trial)
    color = look.ink.light
    where = GRID_LOOK.label if look == GRID_LOOK else f"sampled ({printable(trial.origin)})"
    if not trial.is_feasible:
        axis.plot(*point, look.mark, mfc="none", mec=color, mew=1.0, markersize=5.5, alpha=0.8,
                  label=f"{where}, misses a floor")  # fmt: skip
    elif trial.number in best:
        axis.plot(*point, look.mark, color=color, mec=TEXT.light, mew=1.1, markersize=8.5, label=best[trial.number],
                  zorder=4)  # fmt: skip
    else:
        axis.plot(*point, look.mark, color=color, mec=PAPER.light, mew=0.6, markersize=6, alpha=0.75, label=where,
                  zorder=3)  # fmt: skip


def name_axis(set_label: Callable[..., Any], ruler: Any, reading: Reading, width: int) -> None:
    """Label an axis with what it shows and what is better, numbers in their unit."""
    set_label(f"{wrapped(reading.title, width)}\n{reading.aim}", linespacing=1.4)
    ruler.set_major_formatter(tick_format(reading.unit))


def name_parameter_axis(axis: Axes, which: str, path: str, view: SearchView) -> None:
    """Label an axis with a parameter, logarithmic where the search was."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ruler = axis.xaxis if which == "x" else axis.yaxis
    set_label = axis.set_xlabel if which == "x" else axis.set_ylabel
    set_label(printable(parameter_name(path)))
    if not is_logarithmic(path, view):
        return
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    ruler.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ruler.set_minor_locator(NullLocator())
    ruler.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def is_logarithmic(path: str, view: SearchView) -> bool:
    """Whether the search draws a parameter by equal factors, and every value that was tried allows it."""
    entry = view.record.header.space.get(path)
    values = [trial.point.get(path) for trial in view.record.trials]
    is_positive = all(value > 0 for value in values if isinstance(value, int | float))
    return isinstance(entry, dict) and entry.get("sampler") == "loguniform" and is_positive


def explain_marks(figure: Figure, axes: Sequence[Axes]) -> None:
    """Write the legend above the figure: every label that is used, once."""
    handles: dict[str, Artist] = {}
    for handle, label in _labeled(axes):
        handles.setdefault(label, handle)
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=min(4, len(handles)),
                      frameon=False, fontsize=8, handletextpad=0.5, columnspacing=1.6, borderaxespad=0.2)  # fmt: skip


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of about `width` characters, after spaces and the slashes of metric keys."""
    lines = [""]
    for part in re.split(r"(?<=[/ ])", printable(text)):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _labeled(axes: Iterable[Axes]) -> Iterator[tuple[Artist, str]]:
    for axis in axes:
        yield from zip(*axis.get_legend_handles_labels(), strict=True)
