"""What a search came to in sentences, the same on its page and in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from oakum.report._numbers import number
from oakum.report._overview import Unit
from oakum.report._phrases import listed
from oakum.report._search_view import Reading, SearchView, parameter_name, point_text
from oakum.search.records import TrialRecord

_DEFAULT_SEEDS = (0, 1, 2)
_MOST_ERRORS = 3
_ERROR_LENGTH = 160


def sentence(view: SearchView) -> str:
    """Say what was searched, for what, under which floors, how many trials, under which seeds, on what data."""
    header = view.record.header
    names = listed([parameter_name(path) for path in view.parameters]) or "the settings"
    goals = listed([f"{goal.wants} {goal.title}" for goal in view.goals])
    floors = f", keeping {listed(list(header.floors))}" if header.floors else ""
    count = len(view.record.trials)
    trials = f"{counted(count, 'trial')}{', each' if count > 1 else ''} under {seeds_text(header.seeds)}"
    where = f" on {data_name(header.experiment)}" if data_name(header.experiment) else ""
    return f"Searched: {names} of {header.defense}{where}, for {goals}{floors}: {trials}."


def counts(view: SearchView) -> str:
    """Count trials by what became of them."""
    trials = view.record.trials
    states = Counter(trial.state for trial in trials)
    feasible = f", {len(view.feasible)} of them feasible" if view.bounds and states["complete"] else ""
    parts = [f"{states['complete']} complete{feasible}"]
    header = view.record.header
    stopped = "of earlier generations" if header.population else "stopped at a lower rung"
    parts += [f"{states['stopped']} {stopped}"] if states["stopped"] or header.rungs or header.population else []
    parts += [f"{states['failed']} failed"]
    parts += [f"{states['running']} running"] if states["running"] else []
    return "; ".join(parts)


def headline(view: SearchView) -> str:
    """Say what the search came to."""
    if not view.record.trials:
        return "No trial has been asked for yet."
    if not view.record.complete:
        return f"No trial is complete, so there is no verdict: {counts(view)}."
    if not view.best:
        return "Nothing feasible: no complete trial keeps every floor"
    among = f"{counted(len(view.feasible), 'feasible trial' if view.bounds else 'complete trial')}"
    if len(view.goals) == 1:
        best = view.best[0]
        what = point_text(view, best)
        return f"Trial {best.number} is the best of {among}{f': {what}' if what else ''}"
    if len(view.best) == 1:
        return f"Trial {view.best[0].number} is best in every objective, of {among}"
    return f"{len(view.best)} of {among} are on the front: more of one objective is paid with another"


def caveat(view: SearchView) -> str:
    """Say how far the shown values can be trusted; "" where nothing is shown."""
    if not view.record.complete:
        return ""
    if not view.best:
        of = counted(len(view.record.complete), "complete trial")
        return f"Shown are those that miss the floors by least, {len(view.nearest)} of {of}."
    if view.record.confirmation is None:
        return (
            "Not confirmed. These are the values that settings were chosen by: the best of many noisy numbers looks "
            "better than it is. Confirm before you rely on them."
        )
    return (
        "Search values flatter: the best of many noisy numbers looks better than it is. Rely on the confirmed ones, "
        "which come from test folds and seeds that no trial saw."
    )


def warnings(view: SearchView) -> list[str]:
    """Return what a reader must be warned of."""
    return [*_about_trials(view), *_about_confirmation(view)]


def failures(view: SearchView) -> list[str]:
    """Return the errors of failed trials, each once, the most frequent first."""
    errors = Counter(one_line(trial.error) or "no reason was recorded" for trial in _of_state(view, "failed"))
    found = [f"{counted(count, 'trial')}: {error}" for error, count in errors.most_common(_MOST_ERRORS)]
    left = len(errors) - len(found)
    return [*found, f"{counted(left, 'other error')}: in the table of all trials"] if left > 0 else found


def missed_text(amount: float, unit: Unit) -> str:
    """Write by how much a floor is missed; shares are then in points."""
    return number(amount, unit, sign=True).lstrip("+")


def floor_outcome(view: SearchView, bound: Reading, trial: TrialRecord) -> list[str]:
    """Say whether a trial keeps a floor, in the confirmation where there is one, else in the search.

    Returns a word and its details; [] where it is not known.
    """
    if view.record.confirmation is None:
        missed = dict(enumerate(trial.violations[bound.place : bound.place + 1]))
        counts_seeds = False
    else:
        missed = view.confirmed_violations(bound, trial)
        counts_seeds = True
    if not missed:
        return []
    mean = math.fsum(missed.values()) / len(missed)
    count = sum(1 for amount in missed.values() if amount)
    seeds = [f"{f'{count} of ' if count else ''}{counted(len(missed), 'seed')}"] if counts_seeds else []
    return [*(["missed", f"by {missed_text(mean, bound.unit)}"] if mean else ["kept"]), *seeds]


def chance_to_lead(view: SearchView) -> str:
    """Return the heading of the bootstrap's share: with one objective the front is the best setting."""
    return "Chance to be best" if len(view.goals) == 1 else "Chance to be on the front"


def seeds_text(seeds: tuple[int, ...]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {listed([str(seed) for seed in seeds])}"


def confirmation_seeds(experiment: dict[str, Any]) -> tuple[int, ...]:
    return tuple(experiment.get("seeds", _DEFAULT_SEEDS))


def data_name(experiment: dict[str, Any]) -> str:
    return name_of(experiment.get("data"))


def name_of(entry: Any) -> str:
    """Return the name of a method's or data set's entry, which is the name itself or a mapping with it; else ""."""
    if isinstance(entry, dict):
        entry = entry.get("name")
    return entry if isinstance(entry, str) else ""


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def one_line(text: str, length: int = _ERROR_LENGTH) -> str:
    """Return a text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _about_trials(view: SearchView) -> list[str]:
    found = []
    running = _of_state(view, "running")
    if running:
        are = "is" if len(running) == 1 else "are"
        found.append(
            f"Unfinished: {counted(len(running), 'trial')} {are} running or {'was' if are == 'is' else 'were'} "
            "interrupted, so the verdict may change."
        )
    packages = Counter(trial.package[:12] for trial in view.record.trials if trial.package and trial.values is not None)
    if len(packages) > 1:
        each = ", ".join(f"{package}: {counted(count, 'trial')}" for package, count in packages.most_common())
        found.append(
            f"Trials were measured by {len(packages)} versions of the code ({each}); part of their differences may be "
            "the code's."
        )
    if view.record.complete and not any(trial.baseline for trial in view.record.complete):
        found.append("The search measured no undefended model (`none`), so its values stand alone.")
    return found


def _about_confirmation(view: SearchView) -> list[str]:
    confirmation = view.record.confirmation
    if confirmation is None:
        return []
    found = []
    lost = sorted(set(confirmation.settings.values()) - set(view.confirmed))
    if lost:
        names = listed([str(number) for number in lost])
        found.append(f"The confirmation holds nothing of {'trials' if len(lost) > 1 else 'trial'} {names}.")
    if len(view.goals) == 1 and view.best and view.best[0].number not in view.confirmed:
        found.append(
            f"Trial {view.best[0].number}, the best of the search, was not confirmed: under more seeds others were "
            "likelier to be best."
        )
    if not view.undefended:
        found.append("The confirmation holds no undefended model (`none`), so there are no differences to it.")
    elif len(view.undefended_rows) > 1:
        found.append(
            "Confirmed trials differ outside of the defense as well: each is compared with the `none` that was trained "
            "under its own conditions, and differences to different ones say little about each other."
        )
    return found + [f"Confirmation: {text}" for text in confirmation.record.warnings]


def _of_state(view: SearchView, state: str) -> list[TrialRecord]:
    return [trial for trial in view.record.trials if trial.state == state]
