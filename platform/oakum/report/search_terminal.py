"""A search in the terminal and as plain text: what is best, search values beside confirmed ones, and the counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oakum.report._console import FirstThatFits, difference_detail, empty_table, to_plain_text
from oakum.report._numbers import number, printable, range_text
from oakum.report._overview import BASELINE
from oakum.report._search_view import Reading, SearchView, UndefendedRow, point_text, search_view
from oakum.report._search_words import (
    caveat,
    chance_to_lead,
    counted,
    counts,
    failures,
    floor_outcome,
    headline,
    one_line,
    sentence,
    warnings,
)
from oakum.report._verdict import tone
from oakum.report.statistics import Spread
from oakum.search.records import SearchRecord, TrialRecord

_STYLES = {"good": "green", "bad": "red", "neutral": ""}
_MOST_ROWS = 12
_NOTE_LENGTH = 400


@dataclass(frozen=True)
class _Said:
    """What is said in a cell: a main line, lines below it, and a style. `lines` is empty where there is nothing."""

    lines: tuple[str, ...] = ()
    style: str = ""


@dataclass(frozen=True)
class _Column:
    """What is said of every trial, and of every row of `none`.

    Attributes:
        heading: lines for a table.
        name: for a list, on one line.
        is_spare: whether a narrow table does without it.
    """

    heading: str
    name: str
    of_trial: Callable[[TrialRecord], _Said]
    of_undefended: Callable[[UndefendedRow], _Said] = lambda row: _Said()
    is_spare: bool = False


def render(record: SearchRecord) -> Group:
    """Return the verdict for a rich console: a table, or where the console is too narrow a list, and the warnings."""
    view = search_view(record)
    parts: list[RenderableType] = [_title(view), Text(""), Text(printable(headline(view)), style="bold")]
    if view.shown:
        columns = _columns(view)
        spare = [column for column in columns if not column.is_spare]
        tables = [_trial_table(view, columns), _trial_table(view, spare)]
        parts += [Text(_legend(view), style="dim"), Text(""), FirstThatFits(tables, _trial_list(view, columns))]
        left = len(view.shown) - _MOST_ROWS
        parts += [Text(f"and {left} more in the report", style="dim")] if left > 0 else []
    parts += _notes(view)
    return Group(*parts)


def plain_text(record: SearchRecord, width: int = 100) -> str:
    """Return the same as plain text of at most `width` columns, without colors, for pipes and log files.

    Only names and messages from the record can hold characters outside ASCII.
    """
    return to_plain_text(render(record), width)


def _title(view: SearchView) -> Text:
    text = Text(printable(view.record.header.name), style="bold")
    text.append(f"  {counts(view)}\n", style="not bold dim")
    text.append(printable(sentence(view)), style="not bold")
    return text


def _legend(view: SearchView) -> str:
    seeds = f"mean of {counted(len(view.record.header.seeds), 'seed')}"
    if view.record.confirmation is None:
        return f"search: {seeds}; minus none: paired per seed"
    return f"search: {seeds}; confirmed: mean and range of seeds; minus none: confirmed, paired per seed"


def _columns(view: SearchView) -> list[_Column]:
    found = [column for goal in view.goals for column in _goal_columns(view, goal)]
    found += [_bound_column(view, bound) for bound in view.bounds]
    return found + ([_chance_column(view)] if view.record.confirmation is not None else [])


def _goal_columns(view: SearchView, goal: Reading) -> list[_Column]:
    searched = _Column(
        heading=f"{goal.wants}\n{_stacked(goal.title)}\nsearch",
        name=f"{goal.title} ({goal.aim}), search",
        of_trial=lambda trial: _Said((_value(view.searched(goal, trial), goal),)),
        of_undefended=lambda row: _searched_baseline(view, goal, row),
    )
    minus = _Column(
        heading="minus\nnone" + ("\npoints" if goal.unit == "percent" else ""),
        name=f"minus none{', points' if goal.unit == 'percent' else ''}",
        of_trial=lambda trial: _difference(view, goal, trial),
        is_spare=True,
    )
    if view.record.confirmation is None:
        return [searched, minus]
    other = f"{_stacked(goal.confirmed_title)}\n" if goal.confirmed_title != goal.title else ""
    confirmed = _Column(
        heading=f"{other}confirmed",
        name=f"{goal.confirmed_title}, confirmed",
        of_trial=lambda trial: _confirmed(view, goal, trial),
        of_undefended=lambda row: _spread(goal.confirmed_spread(row.cells), goal),
    )
    return [searched, confirmed, minus]


def _bound_column(view: SearchView, bound: Reading) -> _Column:
    assert bound.floor is not None
    where = "confirmed" if view.record.confirmation is not None else "search"
    text = printable(bound.floor.text)
    return _Column(
        heading=f"floor\n{_stacked(bound.title)}\n{where}",
        name=f"floor {text}, {where}",
        of_trial=lambda trial: _Said(tuple(floor_outcome(view, bound, trial))),
    )


def _chance_column(view: SearchView) -> _Column:
    shares = view.record.confirmation.membership if view.record.confirmation else {}
    return _Column(
        heading=chance_to_lead(view).replace(" to be ", "\nto be\n"),
        name=chance_to_lead(view),
        of_trial=lambda trial: _Said((number(shares[trial.number], "percent"),) if trial.number in shares else ()),
        is_spare=True,
    )


def _searched_baseline(view: SearchView, goal: Reading, row: UndefendedRow) -> _Said:
    baselines = view.baselines(goal, like=row.conditions)
    return _Said((number(baselines[0][0], goal.unit),)) if len(baselines) == 1 else _Said()


def _confirmed(view: SearchView, goal: Reading, trial: TrialRecord) -> _Said:
    return _spread(view.confirmed_spread(goal, trial), goal) if trial.number in view.confirmed else _Said()


def _spread(values: Spread, goal: Reading) -> _Said:
    if values.mean is None:
        return _Said(("missing",))
    return _Said((number(values.mean, goal.unit), range_text(values, goal.unit)))


def _difference(view: SearchView, goal: Reading, trial: TrialRecord) -> _Said:
    difference, column = view.difference(goal, trial), view.column(goal)
    if difference.mean is None:
        return _Said(("no pair",)) if view.record.confirmation is None or trial.number in view.confirmed else _Said()
    details = difference_detail(column, difference).split("\n") if len(difference.values) > 1 else []
    style = _STYLES[tone(column, difference, view.setting(trial))]
    return _Said((number(difference.mean, goal.unit, sign=True, mark=False), *details), style)


def _trial_table(view: SearchView, columns: list[_Column]) -> Table:
    table = empty_table("trial")
    for column in columns:
        table.add_column(Text(column.heading, justify="right"), justify="right", no_wrap=True)
    for row in view.undefended_rows:
        remark = Text(f"{BASELINE}\n{printable(row.remark)}")
        table.add_row(remark, *(_cell(column.of_undefended(row)) for column in columns))
    for trial in view.shown[:_MOST_ROWS]:
        label = Text(str(trial.number))
        label.append(f"\n{printable(point_text(view, trial))}", style="dim")
        table.add_row(label, *(_cell(column.of_trial(trial)) for column in columns))
    return table


def _cell(said: _Said) -> Text:
    text = Text(said.lines[0] if said.lines else "", style=said.style)
    for line in said.lines[1:]:
        text.append(f"\n{line}", style="dim")
    return text


def _trial_list(view: SearchView, columns: list[_Column]) -> Text:
    lines = Text()
    rows = [
        (BASELINE if row.conditions is None else f"{BASELINE}: {row.remark}",
         [(column, column.of_undefended(row)) for column in columns])
        for row in view.undefended_rows
    ]  # fmt: skip
    rows += [
        (f"trial {trial.number}: {point_text(view, trial)}", [(column, column.of_trial(trial)) for column in columns])
        for trial in view.shown[:_MOST_ROWS]
    ]
    for label, cells in rows:
        lines.append(f"{printable(label)}\n", style="bold")
        for column, said in cells:
            if said.lines:
                details = f" ({', '.join(said.lines[1:])})" if len(said.lines) > 1 else ""
                lines.append(f"  {printable(column.name)}: ")
                lines.append(said.lines[0], style=said.style)
                lines.append(f"{details}\n")
    lines.rstrip()
    return lines


def _notes(view: SearchView) -> list[RenderableType]:
    groups = (
        ("Failed", "red", failures(view)),
        ("Warning", "yellow", warnings(view)),
        ("Note", "", list(view.record.header.notes)),
    )
    parts: list[RenderableType] = [Text(caveat(view), style="dim")] if caveat(view) else []
    for word, style, messages in groups:
        for message in messages:
            text = Text(f"{word}: ", style=f"bold {style}".strip())
            text.append(printable(one_line(message, _NOTE_LENGTH)), style="not bold")
            parts.append(text)
    return [Text(""), *parts] if parts else []


def _value(value: float | None, reading: Reading) -> str:
    return number(value, reading.unit) if value is not None else "missing"


def _stacked(title: str) -> str:
    """Break a metric key into lines."""
    return printable(title).replace("/", "/\n")
