"""The run's table in the terminal, as plain text, and as JSON. Needs neither numpy nor torch."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oakum.records import CellRecord, RunRecord
from oakum.report._console import FirstThatFits, difference_detail, empty_table, to_plain_text
from oakum.report._numbers import chance_text, mean_text, number, printable, range_text
from oakum.report._overview import Column, Overview, Setting, metric_keys, overview
from oakum.report._verdict import tone
from oakum.report.statistics import SEEDS_FOR_INTERVAL, Difference, paired_difference, spread

_COMPACT_LEAVES_OUT = ("membership_loss_auc", "train_seconds")
# More settings are written without the ranges and single seeds, which the report and the JSON hold.
_MOST_FULL_ROWS = 6
_WIDEST_ATTACK = 12
_HEADINGS = {
    "test_accuracy": "test\naccuracy",
    "membership_loss_auc": "member\nAUC, loss",
    "membership_auc": "member\nAUC",
    "membership_balanced_accuracy": "balanced\naccuracy",
    "canary_auc": "canary\nAUC",
    "inversion_top1": "inversion\ntop-1",
    "train_seconds": "training\ntime",
}


def render(record: RunRecord) -> Group:
    """Return the tables for a rich console: every setting, then paired differences, warnings and flags.

    Where the console is too narrow, the first table leaves out the loss attack and times; still narrower, the
    tables turn into lists.
    """
    view = overview(record)
    compact = [column for column in view.columns if column.name not in _COMPACT_LEAVES_OUT]
    tables = [_main_table(view, list(view.columns)), _main_table(view, compact)]
    if _is_short(view):
        tables.append(_main_table(view, compact, names_attacks=False))
    parts: list[RenderableType] = [_title(record, view), FirstThatFits(tables, _main_list(view))]
    if view.baseline is not None and len(view.settings) > 1:
        parts += [Text(""), _difference_heading(view)]
        compared = [column for column in view.columns if column.topic != "cost"]
        smaller = [column for column in compared if column in compact]
        tables = [_difference_table(view, compared), _difference_table(view, smaller)]
        parts.append(FirstThatFits(tables, _difference_list(view, compared)))
    parts += _notes(view)
    return Group(*parts)


def plain_text(record: RunRecord, width: int = 100) -> str:
    """Return the same as plain text of at most `width` columns, without colors, for pipes and log files.

    Only labels and messages from the record can hold characters outside ASCII.
    """
    return to_plain_text(render(record), width)


def summary(record: RunRecord) -> dict[str, Any]:
    """Return plain JSON data: for every setting and metric the seeds, mean, range, chance and paired difference."""
    view = overview(record)
    return {
        "name": record.name,
        "run_key": record.run_key,
        "plan_key": record.plan_key,
        "baseline": view.baseline.label if view.baseline else None,
        "seeds": view.seeds,
        "settings": [_setting_json(setting, view, record) for setting in view.settings],
        "chance": dict(record.chance),
        "warnings": list(view.warnings),
        "flags": [flag.line for flag in view.flags],
        "unresolved": list(view.unresolved),
        "seconds": dict(record.seconds),
    }


def _setting_json(setting: Setting, view: Overview, record: RunRecord) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for key in metric_keys(record):
        values = spread(setting.cells, key)
        if values.state == "absent":
            continue
        metrics[key] = {
            "values": {str(seed): value for seed, value in values.values.items()},
            "mean": values.mean,
            "low": values.low,
            "high": values.high,
            "unresolved": {str(seed): reason for seed, reason in values.unresolved.items()},
            "notes": {str(cell.seed): cell.metrics[key].note for cell in setting.cells if _has_note(cell, key)},
        }
        if view.baseline is not None and setting.label != view.baseline.label:
            metrics[key]["difference"] = _difference_json(paired_difference(values, spread(view.baseline.cells, key)))
    strongest = {
        column.name: {"attack": measurement.attack, "metric": measurement.key}
        for column in view.columns
        if (measurement := column.measurements[setting.label]).attack
    }
    return {
        "label": setting.label,
        "defense": setting.defense,
        "parameters": setting.parameters,
        "seeds": setting.seeds,
        "masked": setting.is_masked,
        "ranked": setting.is_ranked,
        "metrics": metrics,
        "strongest": strongest,
    }


def _has_note(cell: CellRecord, key: str) -> bool:
    """Return whether a number comes with a word of caution."""
    metric = cell.metrics.get(key)
    return metric is not None and metric.value is not None and bool(metric.note)


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "values": {str(seed): value for seed, value in difference.values.items()},
        "mean": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "interval": difference.label,
        "direction": difference.direction,
    }


def _title(record: RunRecord, view: Overview) -> Text:
    seeds = len(view.seeds)
    settings = len(view.settings)
    counted = f"{settings} {'setting' if settings == 1 else 'settings'}"
    facts = f"{counted} \N{MULTIPLICATION SIGN} {seeds} {'seed' if seeds == 1 else 'seeds'}"
    data = record.data.get("name")
    facts += f", data {data}" if data else ""
    text = Text(printable(record.name), style="bold")
    text.append(f"  {printable(facts)}\n", style="not bold dim")
    shown = "mean over seeds, then the strongest attack; ranges and every attack: in the report"
    shown = shown if _is_short(view) else "mean, then range of seeds"
    text.append(f"{shown}; under a heading, in brackets: chance", style="not bold dim")
    return text


def _is_short(view: Overview) -> bool:
    return len(view.settings) > _MOST_FULL_ROWS


def _heading(column: Column) -> Text:
    title = _HEADINGS.get(column.name) or column.title.replace(" at ", " at\n")
    heading = Text(title, justify="right")
    if column.chance is not None:
        heading.append(f"\n[{number(column.chance, column.unit)}]", style="not bold dim")
    return heading


def _main_table(view: Overview, columns: list[Column], *, names_attacks: bool = True) -> Table:
    table = empty_table("setting")
    for column in columns:
        table.add_column(_heading(column), justify="right", no_wrap=True)
    for setting in view.settings:
        cells = (
            _cell(column, setting, is_short=_is_short(view), names_attack=names_attacks and column.names_attack)
            for column in columns
        )
        table.add_row(_label(setting), *cells)
    return table


def _label(setting: Setting) -> Text:
    text = Text(printable(setting.label))
    if setting.is_masked:
        text.append("\nmasked" if setting.is_ranked else "\nmasked, unranked", style="dim")
    return text


def _cell(column: Column, setting: Setting, *, is_short: bool, names_attack: bool) -> Text:
    measurement = column.measurements[setting.label]
    values = measurement.spread
    text = Text(mean_text(values, column.unit), style="" if values.mean is not None else "dim")
    spread_text = range_text(values, column.unit)
    if is_short:
        missing = len(values.unresolved) if values.values else 0
        spread_text = f"{len(values.values)} of {len(values.values) + missing} seeds" if missing else ""
    if spread_text:
        text.append(f"\n{spread_text}", style="dim")
    if names_attack and measurement.attack:
        text.append(f"\n{_broken(printable(measurement.attack))}", style="dim italic")
    return text


def _broken(attack: str) -> str:
    """Break a long name after its last underscore."""
    head, underscore, tail = attack.rpartition("_")
    return f"{head}{underscore}\n{tail}" if len(attack) > _WIDEST_ATTACK and head else attack


def _main_list(view: Overview) -> Text:
    lines = Text()
    for setting in view.settings:
        lines.append(f"{printable(setting.label)}\n", style="bold")
        for column in view.columns:
            measurement = column.measurements[setting.label]
            parts = [mean_text(measurement.spread, column.unit), range_text(measurement.spread, column.unit)]
            attack = printable(measurement.attack) if column.names_attack else ""
            details = ", ".join(part for part in (parts[1], attack, chance_text(column)) if part)
            lines.append(f"  {column.title}: {parts[0]}{f' ({details})' if details else ''}\n")
    lines.rstrip()
    return lines


def _difference_heading(view: Overview) -> Text:
    count = len(view.seeds)
    what = "every seed below" if count < SEEDS_FOR_INTERVAL else "95 % t interval over seeds below"
    if _is_short(view):
        what = f"* where {'all seeds agree' if count < SEEDS_FOR_INTERVAL else 'the 95 % t interval leaves zero out'}"
    label = printable(view.baseline.label) if view.baseline else ""
    text = Text(f"Difference to {label}", style="bold")
    text.append(f"  paired per seed: mean, {what}", style="not bold dim")
    return text


def _others(view: Overview) -> list[Setting]:
    return [setting for setting in view.settings if setting != view.baseline]


def _difference_table(view: Overview, columns: list[Column]) -> Table:
    table = empty_table("setting")
    for column in columns:
        heading = Text(_HEADINGS.get(column.name) or column.title.replace(" at ", " at\n"), justify="right")
        if column.unit == "percent":
            heading.append("\npoints", style="not bold dim")
        table.add_column(heading, justify="right", no_wrap=True)
    for setting in _others(view):
        cells = [_difference_cell(column, setting, is_short=_is_short(view)) for column in columns]
        table.add_row(Text(printable(setting.label)), *cells)
    return table


def _difference_cell(column: Column, setting: Setting, *, is_short: bool) -> Text:
    difference = column.differences[setting.label]
    if difference.mean is None:
        return Text("no pair", style="dim")
    mean = number(difference.mean, column.unit, sign=True, mark=False)
    text = Text(mean, style=_style(column, setting))
    if is_short:
        return text.append("*" if difference.direction in ("lower", "higher") else " ")
    text.append(f"\n{difference_detail(column, difference)}", style="dim")
    return text


def _style(column: Column, setting: Setting) -> str:
    """Color a difference only where the seeds agree on its sign and the setting is ranked."""
    return {"good": "green", "bad": "red", "neutral": ""}[tone(column, column.differences[setting.label], setting)]


def _difference_list(view: Overview, columns: list[Column]) -> Text:
    lines = Text()
    for setting in _others(view):
        lines.append(f"{printable(setting.label)}\n", style="bold")
        for column in columns:
            difference = column.differences[setting.label]
            lines.append(f"  {column.title}: ")
            if difference.mean is None:
                lines.append("no pair\n", style="dim")
                continue
            lines.append(number(difference.mean, column.unit, sign=True), style=_style(column, setting))
            detail = difference_detail(column, difference).replace("\n", " ")
            lines.append(f" ({detail})\n", style="dim")
    lines.rstrip()
    return lines


def _notes(view: Overview) -> list[RenderableType]:
    parts: list[RenderableType] = []
    flags = tuple(f"{flag.counted}; see the report" if flag.has_many_places else flag.line for flag in view.flags)
    groups = (("Warning", "yellow", view.warnings), ("Flag", "yellow", flags), ("Unresolved", "", view.unresolved))
    for word, style, messages in groups:
        for message in messages:
            text = Text(f"{word}: ", style=f"bold {style}".strip())
            text.append(printable(" ".join(message.split())), style="not bold")
            parts.append(text)
    parts += [Text(sentence, style="dim") for sentence in _mask_sentences(view)]
    return [Text(""), *parts] if parts else []


def _mask_sentences(view: Overview) -> list[str]:
    sentences = []
    if any(setting.is_masked for setting in view.settings):
        sentences.append("Masked: scores are changed when asked; attacks with weights act on the model without that.")
    if any(not setting.is_ranked for setting in view.settings):
        sentences.append("Unranked: masked, and no label-only attack was run, so it is not called better.")
    return sentences
