"""The sections of a search's page below the verdict: figures, every trial, and what the words mean."""

from __future__ import annotations

from oakum.report import search_figures
from oakum.report._marks import mark
from oakum.report._markup import Markup, folded, join, tag
from oakum.report._numbers import DASH, aim_text, number
from oakum.report._phrases import listed
from oakum.report._search_landscape import landscape
from oakum.report._search_parallel import parameters
from oakum.report._search_verdict import broken
from oakum.report._search_view import GRID, Reading, SearchView, look_of, parameter_name, point_text, value_text
from oakum.report._search_words import missed_text, one_line
from oakum.report._sections import drawing
from oakum.report._tables import MOST_OPEN_ROWS, plain_table
from oakum.search.records import TrialRecord

_MOST_PARAMETER_COLUMNS = 5
_ERROR_LENGTH = 600
_WORDS = (
    ("Trial", "One setting of the searched defense, trained and attacked like any other beside `none`."),
    (
        "Feasible, floor",
        "A floor is a bound that a setting must keep to count; a trial is feasible when it keeps all of them. A floor "
        "relative to `none` is compared with the undefended model of the same seed.",
    ),
    (
        "Front",
        "The feasible trials that no other trial beats: nothing is at least as good in every objective and better in "
        "one. With one objective it is the best trial.",
    ),
    (
        "Confirmed",
        "Measured again on the test folds, under seeds that no trial saw and, for inversion, by another judge. Several "
        "of the best were confirmed, so the best confirmed value is a little flattered too.",
    ),
    (
        "Chance to be on the front, to be best",
        "Share of bootstrap samples in which the setting is on the front of the candidates, its seeds drawn again "
        "with replacement. With one seed a setting's own noise is not in it.",
    ),
    (
        "Repeats",
        "Candidates of the front are measured under further seeds before some are confirmed. Search values leave "
        "repeats out, so that all trials compare under the same seeds.",
    ),
    (
        "Hypervolume",
        "The volume of what the front is better than, up to a reference point that is worse than every trial. It "
        "grows when the front moves or fills; it says nothing about which part of the front you need.",
    ),
    (
        "Rung, stopped",
        "A cheaper form of the experiment that a trial passes first. What is not among the best there is stopped; its "
        "values are of that rung and not comparable with complete trials.",
    ),
    (
        "Population, generation, schedule",
        "Members train side by side. After each generation the worst quarter goes on from the best quarter, with "
        "changed settings, so that a member's settings are a schedule: which held from which epoch on. Only the last "
        "generation is trained to its end, and a confirmed schedule is trained from its beginning.",
    ),
)


def front_section(view: SearchView) -> Markup | None:
    """Return the figure of all trials and how to read it."""
    figure = search_figures.front(view.record)
    if figure is None:
        return None
    (across, up), *_ = search_figures.front_axes(view)
    title = "All trials" if across is None or len(view.goals) > 2 else f"All trials, {up.title} against {across.title}"
    return join(tag("h2", title), drawing(figure, "front", _front_caption(view, across, up), f"{title}."))


def parameter_section(view: SearchView) -> Markup | None:
    """Return parallel coordinates and, for one or two numeric parameters, the objectives over them."""
    first = view.goals[0]
    best = "the best trial" if len(view.goals) == 1 else "the front"
    lines = (
        f"A line is a complete trial. The stronger it is, the better its {first.title} ({first.aim}); thick is {best}, "
        f"with its number at the end.{' Dashed gray lines miss a floor.' if view.bounds else ''}"
    )
    surface = landscape(view.record)
    marks = _mark_words(view)
    if surface is not None and any(axis.collections for axis in surface.axes):
        marks += (
            " A shade is interpolated between trials, whether they keep the floors or not, and ends where no trial "
            "was; the stronger it is, the better."
        )
    drawn = (
        ("parameters", parameters(view.record), lines, "Parallel coordinates of all complete trials."),
        ("landscape", surface, marks, "Objectives over the searched parameters."),
    )
    found = [drawing(figure, name, text, label) for name, figure, text, label in drawn if figure is not None]
    return join(tag("h2", "What the parameters do"), *found) if found else None


def progress_section(view: SearchView) -> Markup | None:
    """Return how the best value, or the hypervolume, grew with the trials."""
    figure = search_figures.progress(view.record)
    if figure is None:
        return None
    if len(view.goals) == 1:
        text = (
            f"The line is the best feasible {view.goals[0].title} so far ({view.goals[0].aim}). Complete trials are "
            f"drawn at their numbers. {_mark_words(view)}"
        )
    else:
        corner = zip(view.goals, search_figures.reference_point(view), strict=True)
        point = listed([f"{goal.title} {number(value, goal.unit)}" for goal, value in corner])
        text = (
            "Hypervolume of the front of all feasible trials up to each number; higher is better. Its reference is the "
            f"worst corner over all complete trials and 10 % of the range beyond it: {point}."
        )
    return join(tag("h2", "Progress"), drawing(figure, "progress", text, "Progress of the search over its trials."))


def trial_section(view: SearchView) -> Markup | None:
    """Return every trial with all that is known of it."""
    trials = view.record.trials
    if not trials:
        return None
    paths = view.parameters if len(view.parameters) <= _MOST_PARAMETER_COLUMNS else ()
    head = [tag("th", "Trial", class_="text", scope="col")]
    head += [tag("th", parameter_name(path), scope="col") for path in paths]
    is_population = bool(view.record.header.population)
    if is_population or not paths:
        head += [tag("th", "Schedule" if is_population else "Parameters", class_="text", scope="col")]
    head += [
        tag("th", broken(goal.title), tag("small", aim_text(view.column(goal))), scope="col") for goal in view.goals
    ]
    head += [tag("th", broken(floor.text), tag("small", "missed by"), scope="col") for floor in view.floors]
    head += [tag("th", "State", class_="text", scope="col")]
    head += [tag("th", "Time", scope="col"), tag("th", "Stages", scope="col")]
    rows = [row for trial in trials for row in _trial_rows(view, trial, paths, len(head))]
    caption = (
        "Objectives are means over the search's seeds. Time: from asking to the result. Stages: the longest chain of "
        "stages that ran for the trial, short where the store had them."
    )
    if any(trial.state != "complete" and trial.values is not None for trial in trials):
        early = "after a part of the epochs" if view.record.header.population else "at a lower rung"
        caption += f" Values in italics were measured {early}."
    table = plain_table(tag("tr", *head), rows, caption, "values")
    if len(trials) > MOST_OPEN_ROWS:
        table = folded(f"{len(trials):,} trials", table, class_="bulk")
    return join(tag("h2", "Every trial"), table)


def words_section() -> Markup:
    """Return what the page's words mean."""
    entries = (tag("div", tag("dt", term), tag("dd", meaning)) for term, meaning in _WORDS)
    return join(tag("h2", "Words"), tag("dl", *entries, class_="terms"))


def _trial_rows(view: SearchView, trial: TrialRecord, paths: tuple[str, ...], width: int) -> list[Markup]:
    """Return a trial's row, and one of the whole width with the error of a failed one."""
    origin = tag("span", trial.origin, class_="muted")
    after = f"continues trial {trial.parent}" if trial.parent is not None else None
    number_cells = (mark(look_of(trial)), Markup("&ensp;"), str(trial.number), Markup("&ensp;"), origin)
    name = tag("th", *number_cells, scope="row", title=after)
    cells = [tag("td", value_text(trial.point[path]) if path in trial.point else DASH) for path in paths]
    if view.record.header.population or not paths:
        cells.append(tag("td", point_text(view, trial), class_="text wrap"))
    cells += [_objective_cell(trial, goal) for goal in view.goals]
    cells += [_violation_cell(trial, bound) for bound in view.bounds]
    cells.append(tag("td", _state_text(view, trial), class_="text"))
    seconds = (trial.latency, trial.stage_seconds)
    cells += [tag("td", number(each, "seconds") if trial.state != "running" else DASH) for each in seconds]
    rows = [tag("tr", name, *cells)]
    if trial.error:
        error = tag("td", one_line(trial.error, _ERROR_LENGTH), class_="text wrap", colspan=width)
        rows.append(tag("tr", error))
    return rows


def _objective_cell(trial: TrialRecord, goal: Reading) -> Markup:
    if trial.values is None:
        return tag("td", DASH)
    text = number(trial.values[goal.place], goal.unit)
    return tag("td", text if trial.state == "complete" else tag("span", text, class_="none"))


def _violation_cell(trial: TrialRecord, bound: Reading) -> Markup:
    if len(trial.violations) <= bound.place:
        return tag("td", DASH)
    missed = trial.violations[bound.place]
    return tag("td", missed_text(missed, bound.unit) if missed else "kept")


def _state_text(view: SearchView, trial: TrialRecord) -> Markup:
    word: str = trial.state
    if trial in view.best:
        word = "best" if len(view.goals) == 1 else "front"
    elif trial.state == "complete" and not trial.is_feasible:
        word = "misses a floor"
    elif trial.state == "stopped" and view.record.header.population:
        header = view.record.header
        word = f"generation {header.generation_of(trial.number) + 1} of {len(header.generations)}"
    elif trial.state == "stopped":
        word = f"stopped at rung {trial.rung + 1} of {len(view.record.header.rungs) + 1}"
    confirmed = ", confirmed" if trial.number in view.confirmed else ""
    return tag("strong", word + confirmed) if trial in view.best else join(word + confirmed)


def _mark_words(view: SearchView) -> str:
    """Explain the marks of trials that the search has."""
    best = "the best trial" if len(view.goals) == 1 else "the front"
    parts = [f"Outlined: {best}"] if view.best else []
    parts += ["hollow: misses a floor"] if len(view.feasible) < len(view.record.complete) else []
    parts += ["squares: points of the paper's grid"] if any(t.origin == GRID for t in view.record.complete) else []
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _front_caption(view: SearchView, across: Reading | None, up: Reading) -> str:
    where = {"low": "down", "high": "up"}[up.wants]
    if across is not None:
        where = f"{where} and to the {'left' if across.wants == 'low' else 'right'}"
    better = f"better is {where}" if len(view.goals) <= 2 else "what is better stands at the axes"
    parts = [f"Every mark is a complete trial; {better}.", _mark_words(view)]
    if len(view.goals) == 2 and view.best:
        parts.append("The stepped line bounds what the front reaches.")
    elif len(view.goals) > 2:
        parts.append("A trial on the front may look beaten in one panel; another objective then speaks for it.")
    if view.confirmed:
        parts.append(
            "Triangles are confirmed values (test folds, fresh seeds, for inversion another judge), joined to the same "
            "trial's search value by a thin line."
        )
    if view.bounds and across is not None:
        parts.append("Where a floor on an axis is missed the ground is shaded.")
    return " ".join(part for part in parts if part)
