"""Where direct labels go, so that they cover neither each other nor the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oakum.report._palette import TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OFFSETS = ((8, 0, "left"), (-8, 0, "right"), (0, 10, "center"), (0, -10, "center"), (7, 9, "left"), (7, -9, "left"),
            (-7, 9, "right"), (-7, -9, "right"), (0, 20, "center"), (0, -20, "center"))  # fmt: skip
Point = tuple[float, float]
Box = tuple[float, float, float, float]


def place_labels(axis: Axes, labels: list[tuple[str, Point]], points: list[Point]) -> None:
    """Write each label beside its point (data coordinates), at the offset that covers the least.

    `points` are all the marks that labels should leave visible.
    """
    scale = axis.figure.dpi / 72 if axis.figure is not None else 1.0
    marks = [tuple(axis.transData.transform(point)) for point in points]
    frame = axis.get_window_extent()
    taken: list[Box] = []
    for label, point in labels:
        x, y = (float(part) for part in axis.transData.transform(point))
        wide, tall = 5.0 * scale * len(label), 10.0 * scale

        def box(
            offset: tuple[int, int, str], x: float = x, y: float = y, wide: float = wide, tall: float = tall
        ) -> Box:
            start = x + offset[0] * scale - {"left": 0.0, "center": wide / 2, "right": wide}[offset[2]]
            middle = y + offset[1] * scale
            return (start, middle - tall / 2, start + wide, middle + tall / 2)

        def cost(offset: tuple[int, int, str]) -> float:
            place = box(offset)
            covered = sum(1.0 for mark in marks if _contains(place, mark[0], mark[1], 3 * scale))
            outside = max(0.0, float(frame.x0) - place[0]) + max(0.0, place[2] - float(frame.x1))
            return 20 * sum(_overlap(place, other) > 0 for other in taken) + covered + outside

        best = min(_OFFSETS, key=cost)
        taken.append(box(best))
        axis.annotate(label, point, xytext=best[:2], textcoords="offset points", ha=best[2], va="center",
                      fontsize=8.5, color=TEXT.light, zorder=6, annotation_clip=False)  # fmt: skip


def spread_out(values: list[float], gap: float) -> list[float]:
    """Return positions in the order of `values`, at least `gap` apart, crowded ones centered on their mean."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    groups: list[list[int]] = []
    for place in order:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], values, gap) < _start(groups[-2], values, gap) + gap * len(
            groups[-2]
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [
        _start(group, values, gap) + gap * group.index(place)
        for place in range(len(values))
        for group in groups
        if place in group
    ]


def _start(group: list[int], values: list[float], gap: float) -> float:
    return sum(values[place] for place in group) / len(group) - gap * (len(group) - 1) / 2


def _contains(box: Box, x: float, y: float, margin: float) -> bool:
    return box[0] - margin <= x <= box[2] + margin and box[1] - margin <= y <= box[3] + margin


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)
