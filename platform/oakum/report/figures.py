"""Figures: utility against leakage, ROC curves, training curves, reconstructions.

Each function returns a matplotlib `Figure` (no pyplot, no display, no global state), or None where the run holds
nothing to draw. Every seed is shown; colors and marks per setting are those of the whole report.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.records import RunRecord
from oakum.report._document import replace_file
from oakum.report._evidence import (
    EvidenceStore,
    Roc,
    Rows,
    history_of,
    is_public,
    reconstructions_by_attack,
    roc_of,
    to_pixels,
)
from oakum.report._figure_style import export, styled, tick_format
from oakum.report._labels import place_labels, spread_out
from oakum.report._numbers import printable
from oakum.report._overview import Column, Overview, overview
from oakum.report._palette import ALL_INKS, MUTED, PAPER, SHADE, Look, looks

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

REAL_EXAMPLES = 3
_CROWDED = 8


def utility_leakage(record: RunRecord) -> Figure | None:
    """Draw test accuracy against leakage, one panel for each way of leaking; up and to the left is better."""
    view = overview(record)
    utility = view.column("test_accuracy")
    names = ("membership_auc", "canary_auc", "inversion_top1")
    columns = [column for name in names if (column := view.column(name)) is not None and _has_numbers(column)]
    if utility is None or not columns or not _has_numbers(utility):
        return None
    with styled() as make:
        width, height = (3.55 * max(len(columns), 2), 3.5)
        if len(view.settings) > _CROWDED:
            width, height = (max(width, 10.0), 5.6)
        figure = make(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axis, column in zip(axes, columns, strict=True):
            _utility_panel(axis, utility, column, view)
        axes[0].set_ylabel("Test accuracy")
        axes[0].yaxis.set_major_formatter(tick_format("percent"))
        figure.canvas.draw()
        for axis, column in zip(axes, columns, strict=True):
            means = [(look.label, _mean_point(utility, column, label)) for label, look in looks(view).items()]
            place_labels(axis, [(label, mean) for label, mean in means if mean], _all_points(axis))
    return figure


def roc(record: RunRecord, store: EvidenceStore, where: str = "clean") -> Figure | None:
    """Draw ROC curves on logarithmic axes, one panel for each setting, the baseline's mean in every panel.

    The attack of a panel is the strongest one of the setting. `where` is `clean` (average membership) or `canary`
    (worst case). Left of the lowest resolved FPR the panel is shaded.
    """
    view = overview(record)
    column = view.column("membership_auc" if where == "clean" else "canary_auc")
    if column is None:
        return None
    curves: dict[str, list[Roc]] = {}
    for setting in view.settings:
        attack = column.measurements[setting.label].attack
        found = [roc_of(cell, where, attack, store) for cell in setting.cells] if attack else []
        if kept := [curve for curve in found if curve is not None]:
            curves[setting.label] = kept
    if not curves:
        return None
    with styled() as make:
        width = 6 if len(curves) > _CROWDED else 4 if len(curves) in (4, 7, 8) else min(len(curves), 3)
        height = -(-len(curves) // width)
        size = {4: 2.75, 6: 1.95}.get(width, 3.3)
        figure = make(figsize=(max(size * width, 3.6), size * height), layout="constrained")
        figure.get_layout_engine().set(wspace=0.05, hspace=0.06)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False).ravel()
        for axis in axes[len(curves) :]:
            axis.set_visible(False)
        for position, label in enumerate(curves):
            _roc_panel(axes[position], label, curves, column, view)
            axes[position].xaxis.set_tick_params(labelbottom=position + width >= len(curves))
            if position + width >= len(curves):
                axes[position].set_xlabel("False positive rate")
            if position % width == 0:
                axes[position].set_ylabel("True positive rate")
    return figure


def training_curves(record: RunRecord, store: EvidenceStore) -> Figure | None:
    """Draw loss and accuracies over epochs: seeds thin, their mean thick and labeled at its end."""
    view = overview(record)
    histories = {setting.label: [history_of(cell, store) for cell in setting.cells] for setting in view.settings}
    titles = {
        "train/loss": "Training loss (each defense its own)",
        "train/accuracy": "Accuracy on training data",
        "val/accuracy": "Accuracy on validation data",
    }
    shown = [name for name in titles if any(name in curves for runs in histories.values() for curves in runs)]
    if not shown:
        return None
    with styled() as make:
        height = max(3.1, 1.0 + 0.15 * len(view.settings))
        figure = make(figsize=(3.55 * max(len(shown), 2), height), layout="constrained")
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for axis, name in zip(axes, shown, strict=True):
            series = {label: [dict(run[name]) for run in runs if name in run] for label, runs in histories.items()}
            _curve_panel(axis, {label: runs for label, runs in series.items() if runs}, looks(view))
            axis.set_title(titles[name])
            axis.set_xlabel("Epoch")
            if name.endswith("accuracy"):
                axis.yaxis.set_major_formatter(tick_format("percent"))
    return figure


def reconstructions(
    record: RunRecord, store: EvidenceStore, real_images: dict[int, NDArray[np.floating[Any]]]
) -> Figure | None:
    """Draw a block for each attack: a class per row, real images, then each setting's first reconstruction.

    None unless the data is public.
    """
    blocks = reconstructions_by_attack(record, store)
    if not blocks or not is_public(record):
        return None
    count = min(REAL_EXAMPLES, max((len(images) for images in real_images.values()), default=0))
    widths = [count + len(next(iter(rows.values()))) for rows in blocks.values()]
    heights = [0.95 * len(rows) + (0.8 if len(blocks) > 1 else 0.5) for rows in blocks.values()]
    with styled() as make:
        figure = make(figsize=(0.95 * max(widths) + 0.5, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, (attack, rows) in zip(parts, blocks.items(), strict=True):
            if len(blocks) > 1:
                part.suptitle(f"{attack} attack", fontsize=9, fontweight="bold")
            _picture_grid(part, rows, real_images, count, max(widths), looks(overview(record)))
    return figure


def _picture_grid(
    part: SubFigure,
    rows: Rows,
    real_images: dict[int, NDArray[np.floating[Any]]],
    count: int,
    width: int,
    styles: dict[str, Look],
) -> None:
    """Draw one attack's pictures in `width` columns, `count` of them for real images."""
    labels = list(next(iter(rows.values())))
    axes = part.subplots(len(rows), width, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for line, (label, made) in zip(axes, rows.items(), strict=True):
        real = [to_pixels(image) for image in real_images.get(label, [])[:count]]
        pictures = [*real, *[None] * (count - len(real)), *(item.pixels if item else None for item in made.values())]
        for axis, picture in zip(line, pictures, strict=False):
            if picture is not None:
                axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for axis, title in zip(axes[0], ["real"] * count + [styles[label].label for label in labels], strict=False):
        axis.set_title(title, fontsize=7, loc="center")


def write(
    record: RunRecord,
    store: EvidenceStore,
    folder: Path,
    real_images: dict[int, NDArray[np.floating[Any]]] | None = None,
    formats: tuple[str, ...] = ("png", "pdf"),
) -> list[Path]:
    """Write every figure that the run supports into `folder` (created) and return the files."""
    drawn: dict[str, Figure | None] = {
        "utility_leakage": utility_leakage(record),
        "roc": roc(record, store),
        "roc_canary": roc(record, store, "canary"),
        "training_curves": training_curves(record, store),
        "reconstructions": reconstructions(record, store, real_images or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in drawn.items():
        if figure is None:
            continue
        for form in formats:
            written.append(replace_file(folder / f"{name}.{form}", export(figure, form)))
    return written


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element whose colors are the page's CSS variables, so that it follows the theme.

    `name` makes the element's ids unique within a page.
    """
    text = export(figure, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    # Only inside tags: a label may read `id="x"` or `fill: #1c2128` and must stay as it is.
    return re.sub(r"<[^>]*>", lambda match: _themed(match.group(), name), text)


def _themed(element: str, name: str) -> str:
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    for ink in ALL_INKS:
        element = re.sub(rf"((?:fill|stroke|color): ?){ink.light}\b", rf"\1var(--{ink.variable})", element)
    return element


def _utility_panel(axis: Axes, utility: Column, column: Column, view: Overview) -> None:
    for label, look in looks(view).items():
        mean = _mean_point(utility, column, label)
        if mean is None:
            continue
        across, up = column.measurements[label].spread.values, utility.measurements[label].spread.values
        for seed in across.keys() & up.keys():
            axis.plot([mean[0], across[seed]], [mean[1], up[seed]], color=look.ink.light, linewidth=0.8, alpha=0.45)
            axis.plot(across[seed], up[seed], look.mark, color=look.ink.light, markersize=3.6, alpha=0.6, mew=0)
        axis.plot(*mean, look.mark, color=look.ink.light, markersize=8.5, mec=PAPER.light, mew=1.0, zorder=4)
    axis.margins(0.16, 0.14)
    if column.chance is not None:
        axis.axvline(column.chance, color=MUTED.light, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axis.annotate("chance", (column.chance, 0), xycoords=("data", "axes fraction"), xytext=(0, -18),
                      textcoords="offset points", fontsize=8, color=MUTED.light, ha="center", va="top")  # fmt: skip
    axis.xaxis.set_major_formatter(tick_format(column.unit))
    axis.locator_params(axis="x", nbins=5)
    axis.set_title(
        column.title + (" (strongest attack)" if column.names_attack and "strong" not in column.title else "")
    )
    arrow = {"arrowstyle": "-|>", "color": MUTED.light, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    line = 1 / axis.get_window_extent().height
    axis.annotate("", (0.845, 1 + 19 * line), xytext=(0.89, 1 + 6 * line), xycoords="axes fraction", arrowprops=arrow)
    axis.annotate("better", (1.0, 1 + 6 * line), xycoords="axes fraction", fontsize=8, color=MUTED.light, ha="right")
    axis.set_xlabel("leakage  \N{RIGHTWARDS ARROW}", color=MUTED.light, loc="right")


def _roc_panel(axis: Axes, label: str, curves: dict[str, list[Roc]], column: Column, view: Overview) -> None:
    import numpy as np

    styles, found = looks(view), curves[label]
    look = styles[label]
    points = min(curve.non_members for curve in found)
    floor, resolved = 1 / points, max(curve.resolved_fpr for curve in found)
    left = min(1 / curve.non_members for runs in curves.values() for curve in runs)
    axis.set(xscale="log", yscale="log", xlim=(left, 1.0), ylim=(left, 1.15))
    axis.plot([left, 1], [left, 1], color=MUTED.light, linewidth=0.9, linestyle=(0, (4, 3)))
    axis.axvspan(left, resolved, facecolor=SHADE.light, edgecolor="none", zorder=0)
    axis.axvline(resolved, color=MUTED.light, linewidth=0.7)
    side, shift = ("left", 3) if resolved < 0.05 else ("right", -3)
    axis.annotate(f"resolved from {100 * resolved:g} %", (resolved, 0.02), fontsize=7, color=MUTED.light, ha=side,
                  xycoords=("data", "axes fraction"), xytext=(shift, 1), textcoords="offset points")  # fmt: skip
    if len(curves) <= _CROWDED:
        axis.annotate("chance", (0.985, 0.74), xycoords="axes fraction", fontsize=7, color=MUTED.light, ha="right")
    baseline = view.baseline.label if view.baseline else None
    if baseline is not None and baseline != label and baseline in curves:
        grid = np.geomspace(max(floor, 1 / curves[baseline][0].non_members), 1, 200)
        axis.plot(grid, _mean_curve(curves[baseline], grid), color=styles[baseline].ink.light, linewidth=1.1, alpha=0.8)
        if len(curves) <= _CROWDED:
            axis.annotate(f"gray: {styles[baseline].label}", (0.985, 0.1), xycoords="axes fraction", fontsize=7,
                          ha="right", color=styles[baseline].ink.light)  # fmt: skip
    for curve in found:
        axis.step(curve.fpr, curve.tpr, where="post", color=look.ink.light, linewidth=0.7, alpha=0.45)
    grid = np.geomspace(floor, 1, 200)
    axis.plot(grid, _mean_curve(found, grid), color=look.ink.light, linewidth=1.9)
    attack = column.measurements[label].attack
    title = f"{look.label}\n{printable(attack)} attack" if column.names_attack else look.label
    size = None if len(curves) <= _CROWDED else 7.5
    axis.set_title(title, color=look.ink.light, fontweight="bold", fontsize=size, linespacing=1.35)
    axis.xaxis.set_major_formatter(tick_format("percent"))
    axis.yaxis.set_major_formatter(tick_format("percent"))
    axis.minorticks_off()


def _mean_curve(curves: list[Roc], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over seeds of the TPR that is reached without exceeding each FPR of `grid`."""
    import numpy as np

    reached = [curve.tpr[np.searchsorted(curve.fpr, grid * (1 + 1e-12), side="right") - 1] for curve in curves]
    mean: NDArray[np.float64] = np.mean(reached, axis=0)
    return mean


def _curve_panel(axis: Axes, series: dict[str, list[dict[int, float]]], styles: dict[str, Look]) -> None:
    ends: list[tuple[float, Look]] = []
    last = 0
    for label, runs in series.items():
        ink = styles[label].ink
        for run in runs:
            axis.plot(list(run), list(run.values()), color=ink.light, linewidth=0.7, alpha=0.4)
        epochs = sorted(set.intersection(*(set(run) for run in runs)))
        if not epochs:
            continue
        mean = [sum(run[epoch] for run in runs) / len(runs) for epoch in epochs]
        axis.plot(epochs, mean, color=ink.light, linewidth=1.8)
        ends.append((mean[-1], styles[label]))
        last = max(last, epochs[-1])
    low, high = axis.get_ylim()
    gap = min(0.062, 1 / max(len(ends), 1)) * (high - low)
    places = spread_out([value for value, _ in ends], gap)
    outside = max(0.0, max(places, default=high) - high) + min(0.0, min(places, default=low) - low)
    for (_, look), place in zip(ends, places, strict=True):
        axis.annotate(look.label, (1.0, place - outside), xycoords=("axes fraction", "data"), xytext=(3, 0),
                      fontsize=8 if len(ends) <= _CROWDED else 7, textcoords="offset points", color=look.ink.light,
                      va="center", annotation_clip=False)  # fmt: skip
    axis.set_xlim(None, last + 0.02 * max(last, 1))


def _mean_point(utility: Column, column: Column, label: str) -> tuple[float, float] | None:
    across, up = column.measurements[label].spread.mean, utility.measurements[label].spread.mean
    return None if across is None or up is None else (across, up)


def _all_points(axis: Axes) -> list[tuple[float, float]]:
    import numpy as np

    lines = [np.asarray(line.get_xydata(), np.float64) for line in axis.get_lines() if line.get_marker() != "None"]
    return [(float(x), float(y)) for line in lines for x, y in line]


def _has_numbers(column: Column) -> bool:
    return any(measurement.spread.values for measurement in column.measurements.values())
