"""The style of all figures: letters, lines and colors, how numbers stand at axes, and how a figure becomes a file."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from oakum.report._palette import GRID, MUTED, PAPER, TEXT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib calls clips, markers and hatches: a letter and ten digits of a digest.
_DIGEST_ID = re.compile(rb'(\bid="|url\(#|href="#)([A-Za-z]?[0-9a-f]{10})(?=[")])')
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": TEXT.light,
    "axes.edgecolor": MUTED.light,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": TEXT.light,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "figure.facecolor": PAPER.light,
    "grid.color": GRID.light,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


@contextmanager
def styled() -> Iterator[Callable[..., Figure]]:
    """Give a function that makes figures, and draw in the report's style as long as the context lasts."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def make(**arguments: Any) -> Figure:
        figure = Figure(**arguments)
        FigureCanvasAgg(figure)
        return figure

    with matplotlib.rc_context(_STYLE), _any_script():
        yield make


def tick_format(unit: str) -> Callable[[float, float], str]:
    """Return how matplotlib writes the ticks of an axis in this unit."""
    if unit == "percent":
        return lambda value, _: f"{100 * value:g} %"
    return lambda value, _: f"{value:g}"


def export(figure: Figure, form: str) -> bytes:
    """Return the figure as a file of this format, the same bytes every time."""
    import matplotlib

    stream = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    face = "none" if form == "svg" else PAPER.light
    # An SVG's text takes the page's font; room is measured with a wide one so that no system's font overflows.
    style: Any = {**_STYLE, "svg.hashsalt": "oakum"}
    if form == "svg":
        style["font.sans-serif"] = ["DejaVu Sans"]
    with matplotlib.rc_context(style), _any_script():
        figure.savefig(stream, format=form, metadata=metadata, dpi=200, facecolor=face)
    return _with_numbered_ids(stream.getvalue()) if form == "svg" else stream.getvalue()


def _with_numbered_ids(svg: bytes) -> bytes:
    """Replace ids that are digests of positions by numbers: a layout that is made again differs in the last bits."""
    numbers: dict[bytes, bytes] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        number = numbers.setdefault(found[2], b"drawn-%d" % len(numbers))
        return found[1] + number

    # Only inside tags: a label may read like an id.
    return re.sub(rb"<[^>]*>", lambda tag: _DIGEST_ID.sub(numbered, tag.group()), svg)


@contextmanager
def _any_script() -> Iterator[None]:
    """Let labels hold characters that no installed font has; a browser draws them, a PNG shows a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
