"""What the terminal shows of runs and of searches alike: tables that fit, differences, and the same as plain text."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement as Width
from rich.table import Table

from oakum.report._numbers import DASH, MINUS, SPACE, interval_text, values_text
from oakum.report._overview import Column
from oakum.report.statistics import SEEDS_FOR_INTERVAL, Difference

_ASCII = str.maketrans(
    {
        SPACE: " ",
        MINUS: "-",
        DASH: "-",
        "\N{BULLET}": "*",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
    }
)


class FirstThatFits:
    """The first of several tables that fits the console, else the list that says the same."""

    def __init__(self, tables: list[Table], fallback: RenderableType) -> None:
        self.tables = tables
        self.fallback = fallback

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(max_width=10_000)
        for table in self.tables:
            if Width.get(console, unlimited, table).maximum <= options.max_width:
                yield table
                return
        yield self.fallback


def empty_table(first: str) -> Table:
    """Return a table with nothing but its first column, whose long labels are folded."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    table.add_column(first, overflow="fold", max_width=28, vertical="top")
    return table


def difference_detail(column: Column, difference: Difference) -> str:
    """Write the interval of a difference, or below enough seeds for one every seed on a line of its own."""
    if len(difference.values) >= SEEDS_FOR_INTERVAL:
        return interval_text(difference, column.unit)
    return values_text(difference.values.values(), column.unit, sign=True).replace(", ", "\n")


def to_plain_text(shown: RenderableType, width: int) -> str:
    """Return what a console of `width` columns shows, without colors; the report's own signs become ASCII."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, emoji=False, highlight=False)
    console.print(shown)
    lines = stream.getvalue().translate(_ASCII).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
