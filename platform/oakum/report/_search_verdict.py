"""The verdict of a search's page: the best setting or the front, search and confirmed values side by side."""

from __future__ import annotations

from dataclasses import replace

from oakum.report._marks import mark
from oakum.report._markup import Markup, join, tag
from oakum.report._numbers import aim_text, difference_unit, interval_text, number, range_text, values_text
from oakum.report._overview import BASELINE, Column, Unit, unit_of
from oakum.report._search_view import UNDEFENDED_LOOK, Reading, SearchView, UndefendedRow, look_of, point_text
from oakum.report._search_words import caveat, chance_to_lead, counted, failures, floor_outcome, headline
from oakum.report._tables import SEEDS_ON_LINE, matrix_table, value_with_interval
from oakum.report._verdict import outcome_text, tone
from oakum.report.statistics import Spread
from oakum.search.records import TrialRecord


def verdict_section(view: SearchView) -> Markup:
    """Return the best setting or the front, search and confirmed values side by side."""
    said = headline(view)
    parts = [tag("h2", said.rstrip(".:")), tag("p", caveat(view), class_="lead") if caveat(view) else None]
    if not view.record.complete and failures(view):
        parts += [tag("h3", "Failed with"), *(tag("p", text) for text in failures(view))]
    if view.best and len(view.goals) == 1:
        parts.append(_best_card(view, view.best[0]))
    return join(*parts, _verdict_table(view) if view.shown else None)


def _best_card(view: SearchView, trial: TrialRecord) -> Markup:
    goal = view.goals[0]
    column = _column(view, goal)
    found = [_searched_finding(view, goal, trial)]
    if view.record.confirmation is not None:
        found.append(_confirmed_finding(view, goal, trial))
    found.append(_difference_finding(view, column, trial))
    share = view.record.confirmation.membership.get(trial.number) if view.record.confirmation else None
    if share is not None:
        found.append(_finding(chance_to_lead(view), number(share, "percent"), "", "", _bootstrap_words(trial)))
    found += [_bound_finding(view, bound, trial) for bound in view.bounds]
    header = tag(
        "header",
        mark(look_of(trial)),
        tag("h3", f"trial {trial.number}"),
        tag("span", f"{view.record.header.defense}: {point_text(view, trial)}", class_="parameters"),
    )
    return tag("article", header, tag("p", _card_words(view, goal, trial), class_="headline"), tag("dl", *found),
               class_="verdict")  # fmt: skip


def _card_words(view: SearchView, goal: Reading, trial: TrialRecord) -> str:
    value, confirmed = view.searched(goal, trial), view.confirmed_spread(goal, trial).mean
    parts = [f"{number(value, goal.unit)} in the search"] if value is not None else []
    parts += [f"{number(confirmed, goal.unit)} confirmed"] if confirmed is not None else ["not confirmed"]
    return f"{goal.confirmed_title}: {', '.join(parts)}; {goal.aim}"


def _finding(title: str, figure: str, chip: str, color: str, text: str) -> Markup:
    return tag(
        "div",
        tag("dt", title),
        tag("dd", figure, class_=f"figure {color}".strip()),
        tag("dd", chip, class_=f"chip {color}".strip()) if chip else None,
        tag("dd", text) if text else None,
    )


def _searched_finding(view: SearchView, goal: Reading, trial: TrialRecord) -> Markup:
    value, base = view.searched(goal, trial), view.baseline(goal, trial)
    seeds = f"Mean of {counted(len(view.record.header.seeds), 'seed')}."
    against = f" none: {number(base, goal.unit)}." if base is not None else ""
    shown = number(value, goal.unit) if value is not None else "missing"
    return _finding(f"{goal.title} in the search", shown, goal.aim, "", seeds + against)


def _confirmed_finding(view: SearchView, goal: Reading, trial: TrialRecord) -> Markup:
    title = f"{goal.confirmed_title}, confirmed"
    values = view.confirmed_spread(goal, trial)
    if values.mean is None:
        text = "; ".join(values.reasons) or "This trial was not confirmed."
        return _finding(title, "missing", "", "", text)
    seeds = values_text(values.values.values(), goal.unit)
    text = f"{counted(len(values.values), 'seed')}: {seeds}."
    missing = f" {len(values.unresolved)} more without a value." if values.unresolved else ""
    spread = f"range {range_text(values, goal.unit)}" if len(values.values) > 1 else "one seed"
    return _finding(title, number(values.mean, goal.unit), spread, "", text + missing)


def _difference_finding(view: SearchView, column: Column, trial: TrialRecord) -> Markup:
    setting = view.setting(trial)
    difference = column.differences[setting.label]
    where = "confirmed" if view.record.confirmation else "in the search"
    title = f"Difference to none, {where}"
    if difference.mean is None:
        return _finding(title, "missing", "", "", f"{difference.label}.".capitalize())
    color = tone(column, difference, setting)
    seeds = values_text(difference.values.values(), column.unit, sign=True)
    figure = number(difference.mean, column.unit, sign=True)
    return _finding(title, figure, outcome_text(difference, column), color, f"Paired per seed: {seeds}.")


def _bound_finding(view: SearchView, bound: Reading, trial: TrialRecord) -> Markup:
    """Return a floor's metric in the search, which keeps it, and whether the confirmation does."""
    assert bound.floor is not None
    value = view.searched(bound, trial)
    figure = number(value, bound.unit) if value is not None else "missing"
    confirmed = view.confirmed_spread(bound, trial)
    text = ""
    if confirmed.mean is not None:
        outcome = ", ".join(_joined(floor_outcome(view, bound, trial)))
        text = f"Confirmed: {number(confirmed.mean, bound.unit)}{f'; {outcome}' if outcome else ''}."
    return _finding(bound.floor.text, figure, "kept in the search", "", text)


def _verdict_table(view: SearchView) -> Markup:
    columns = [_column(view, goal) for goal in view.goals]
    measured = ["Search", "Confirmed"] if _is_confirmed(view) else ["Search"]
    first = tag("th", "Setting", class_="text", scope="col", rowspan=2)
    groups = [_group_head(view, goal, column, len(measured) + 1)
              for goal, column in zip(view.goals, columns, strict=True)]  # fmt: skip
    kept = "floor, confirmed" if _is_confirmed(view) else "floor"
    groups += [tag("th", broken(floor.text), _small(kept), scope="col", rowspan=2) for floor in view.floors]
    groups += [tag("th", chance_to_lead(view), scope="col", rowspan=2)] if _is_confirmed(view) else []
    below = [tag("th", name, scope="col") if name in measured else _difference_head(column)
             for column in columns for name in (*measured, "")]  # fmt: skip
    common = _common_interval(columns)
    rows = [_undefended_row(view, row) for row in view.undefended_rows]
    rows += [_setting_row(view, trial, columns, common) for trial in view.shown]
    head = join(tag("tr", first, *groups), tag("tr", *below))
    is_wide = len(view.goals) > (1 if _is_confirmed(view) else 2)
    table = matrix_table(head, rows, "wide" if is_wide else "")
    return join(table, tag("p", _verdict_words(view, common), class_="footnote"))


def _verdict_words(view: SearchView, common: str | None) -> str:
    parts = [f"Search: mean of {counted(len(view.record.header.seeds), 'seed')}"]
    if any(len(trial.metrics) > len(view.record.header.seeds) for trial in view.shown):
        parts[0] += "; below it, repeats under further seeds"
    parts[0] += "."
    if _is_confirmed(view):
        parts.append("Confirmed: mean, range, every seed; a tooltip holds the interval inside each seed.")
    where = ", confirmed" if _is_confirmed(view) else ""
    if common:
        parts.append(
            f"Minus none: mean of the paired differences{where}; below it the {common}, and every seed. Colored only "
            "where the seeds settle the sign: green is what a defender wants."
        )
    else:
        parts.append(f"Minus none: mean of the paired differences{where}; below it what is known of their spread.")
    if _is_confirmed(view) and any(len(trial.metrics) == 1 for trial in view.shown):
        parts.append("A chance of one seed says little: its own noise is not in it.")
    return " ".join(parts)


def _common_interval(columns: list[Column]) -> str | None:
    """Return what all intervals of differences are, where they are the same."""
    names = {each.label for column in columns for each in column.differences.values() if each.low is not None}
    return names.pop() if len(names) == 1 else None


def _group_head(view: SearchView, goal: Reading, column: Column, width: int) -> Markup:
    is_other = _is_confirmed(view) and goal.confirmed_title != goal.title
    on = f"confirmed: {goal.confirmed_title}" if is_other else ""
    small = "; ".join(part for part in (aim_text(column), on) if part)
    return tag("th", broken(goal.title), tag("small", small), class_="group", scope="colgroup", colspan=width)


def _difference_head(column: Column) -> Markup:
    return tag("th", "Minus none", _small(difference_unit(column)), scope="col")


def _setting_row(view: SearchView, trial: TrialRecord, columns: list[Column], common: str | None) -> Markup:
    name, remark = f"trial {trial.number}", point_text(view, trial)
    cells = [tag("th", mark(look_of(trial)), Markup("&ensp;"), name, _small(remark) if remark else None, scope="row")]
    for goal, column in zip(view.goals, columns, strict=True):
        cells.append(_searched_cell(view, goal, trial))
        cells += [_confirmed_cell(view, goal, trial)] if _is_confirmed(view) else []
        is_measured = trial.number in view.confirmed or not _is_confirmed(view)
        cells.append(_minus_cell(view, trial, column, common) if is_measured else tag("td"))
    cells += [_bound_cell(view, bound, trial) for bound in view.bounds]
    if view.record.confirmation is not None:
        share = view.record.confirmation.membership.get(trial.number)
        cells.append(_value_cell(share, "percent", counted(len(trial.metrics), "seed")) if share is not None
                     else tag("td"))  # fmt: skip
    return tag("tr", *cells)


def _undefended_row(view: SearchView, row: UndefendedRow) -> Markup:
    cells = [tag("th", mark(UNDEFENDED_LOOK), Markup("&ensp;"), BASELINE, _small(row.remark), scope="row")]
    for goal in view.goals:
        cells.append(_baseline_cell(view, goal, row))
        cells += [_spread_cell(goal.confirmed_spread(row.cells), goal)] if _is_confirmed(view) else []
        cells.append(tag("td"))
    for bound in view.bounds:
        if _is_shown(view, bound):
            cells.append(tag("td"))
        elif _is_confirmed(view):
            cells.append(_value_cell(bound.confirmed_spread(row.cells).mean, bound.unit))
        else:
            cells.append(_baseline_cell(view, bound, row))
    return tag("tr", *cells, *([tag("td")] if _is_confirmed(view) else []))


def _minus_cell(view: SearchView, trial: TrialRecord, column: Column, common: str | None) -> Markup:
    """Return the paired difference, its interval (named unless it is the `common` one), and every seed."""
    difference = column.differences[view.setting(trial).label]
    if difference.mean is None:
        return tag("td", tag("span", difference.label, class_="none"))
    mean = number(difference.mean, column.unit, sign=True, mark=column.unit == "seconds")
    smalls = [interval_text(difference, column.unit)] if difference.low is not None else []
    smalls += [difference.label] if difference.label != common else []
    smalls += _seed_lines(difference.values, column.unit, sign=True) if difference.low is not None else []
    color = tone(column, difference, view.setting(trial))
    lines = (_small(text) for text in smalls)
    return tag("td", tag("span", mean, class_="main"), *lines, class_=color if color != "neutral" else None)


def _seed_lines(values: dict[int, float], unit: Unit, *, sign: bool = False) -> list[str]:
    """Write every seed's value, a few on each line."""
    found = list(values.values())
    starts = range(0, len(found), SEEDS_ON_LINE)
    return [values_text(found[start : start + SEEDS_ON_LINE], unit, sign=sign) for start in starts]


def _baseline_cell(view: SearchView, reading: Reading, row: UndefendedRow) -> Markup:
    values = [value for (value,) in view.baselines(reading, like=row.conditions)]
    if len(values) <= 1:
        return _value_cell(values[0] if values else None, reading.unit)
    texts = (number(value, reading.unit, mark=False) for value in (min(values), max(values)))
    return tag("td", tag("span", " to ".join(texts), class_="main"), _small("by recipe"))


def _searched_cell(view: SearchView, goal: Reading, trial: TrialRecord) -> Markup:
    seeds = view.record.header.seeds
    found = goal.spread(trial.metrics)
    own = [value for seed, value in found.values.items() if seed in seeds]
    repeats = [value for seed, value in found.values.items() if seed not in seeds]
    smalls = [values_text(own, goal.unit)] if len(own) > 1 else []
    smalls += [f"repeats {values_text(repeats, goal.unit)}"] if repeats else []
    return _value_cell(view.searched(goal, trial), goal.unit, *smalls)


def _confirmed_cell(view: SearchView, goal: Reading, trial: TrialRecord) -> Markup:
    if trial.number not in view.confirmed:
        return tag("td", tag("span", "not confirmed", class_="none"))
    return _spread_cell(view.confirmed_spread(goal, trial), goal)


def _spread_cell(values: Spread, reading: Reading) -> Markup:
    if values.mean is None:
        return _missing_cell("; ".join(values.reasons) or "not measured")
    key = reading.objective.keys[0]
    metric = key if unit_of(key) == reading.unit else ""
    seeds = [f"seed {seed}: {value_with_interval(values, seed, metric)}" for seed in values.values]
    seeds += [f"seed {seed}: missing, {reason}" for seed, reason in values.unresolved.items()]
    smalls = [range_text(values, reading.unit)]
    smalls += _seed_lines(values.values, reading.unit) if len(values.values) > 1 else []
    return _value_cell(values.mean, reading.unit, *smalls, title="\n".join(seeds))


def _bound_cell(view: SearchView, bound: Reading, trial: TrialRecord) -> Markup:
    """Return whether a floor is kept, and its metric unless an objective shows it already."""
    if _is_confirmed(view) and trial.number not in view.confirmed:
        return tag("td")
    outcome = floor_outcome(view, bound, trial)
    if _is_shown(view, bound) and outcome:
        return tag("td", tag("span", outcome[0], class_="main"), *(_small(text) for text in outcome[1:]))
    searched = view.searched(bound, trial)
    if not _is_confirmed(view):
        return _value_cell(searched, bound.unit, " ".join(outcome) or "not judged")
    before = [f"search {number(searched, bound.unit)}"] if searched is not None else []
    said = _joined(outcome) or ["not judged"]
    return _value_cell(view.confirmed_spread(bound, trial).mean, bound.unit, *said, *before)


def _joined(outcome: list[str]) -> list[str]:
    """Return a floor's outcome in at most two lines: the word with its amount, the seeds."""
    if not outcome:
        return []
    *words, seeds = outcome
    return [" ".join(words), seeds]


def _value_cell(value: float | None, unit: Unit, *smalls: str, title: str | None = None) -> Markup:
    if value is None:
        return _missing_cell(title or "not measured")
    return tag("td", tag("span", number(value, unit), class_="main"), *(_small(text) for text in smalls), title=title)


def _missing_cell(reason: str) -> Markup:
    return tag("td", tag("span", "missing", class_="none"), title=reason)


def _column(view: SearchView, goal: Reading) -> Column:
    differences = {view.setting(trial).label: view.difference(goal, trial) for trial in view.shown}
    return replace(view.column(goal), differences=differences)


def _is_confirmed(view: SearchView) -> bool:
    return view.record.confirmation is not None


def _is_shown(view: SearchView, bound: Reading) -> bool:
    """Whether an objective shows the floor's metric already."""
    return any(goal.title == bound.title for goal in view.goals)


def broken(key: str) -> Markup:
    """Return a metric key that may be broken after its slashes."""
    return Markup(Markup("/<wbr>").join(join(part) for part in key.split("/")))


def _bootstrap_words(trial: TrialRecord) -> str:
    if len(trial.metrics) == 1:
        return "Of one seed: its own noise is not in it."
    return f"Bootstrap over its {len(trial.metrics)} seeds of the search."


def _small(text: str) -> Markup:
    """Return a line of small print, which stays on paper too."""
    return tag("small", text, class_="seeds")
