"""How a search was judged: what trials saw, what the confirmation changed, and where everything comes from."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml

from oakum.report._markup import Markup, folded, join, pairs, tag
from oakum.report._phrases import listed
from oakum.report._search_view import GRID, SearchView, value_text
from oakum.report._search_words import confirmation_seeds, counted, counts, name_of
from oakum.report._tables import plain_table
from oakum.search.population import FACTORS, REDRAWN_SHARE

_RULE = (
    "A trial sees the validation fold and seeds of its own. The test fold is sealed: its rows are the same under every "
    "seed, and no trial reads them. The confirmation opens it once, under other seeds, so that a setting is not "
    "confirmed on what it was chosen with."
)
_RULE_OF_INVERSION = " Reconstructions are judged by one model in trials and by another one in the confirmation."


def protocol_section(view: SearchView) -> Markup:
    """Return the protocol beside what the confirmation changed, the rungs, the sampler, the code and the inputs."""
    header = view.record.header
    return join(
        tag("h2", "How it was judged"),
        tag("p", _RULE + (_RULE_OF_INVERSION if _is_inverted(header.trial) else ""), class_="lead"),
        _protocol_table(view),
        *_notes(view),
        tag("h3", "The search"),
        pairs(_facts(view)),
        *_rungs(view),
        *_population(view),
        folded("Space", _plain(header.space)),
        folded("Experiment, as it was given", _plain(header.experiment)),
        folded("What a trial runs, without its setting", _plain(header.trial)),
    )


def _protocol_table(view: SearchView) -> Markup:
    trial, experiment = view.record.header.trial, view.record.header.experiment
    is_confirmed = view.record.confirmation is not None
    rows = [
        ("Seeds", _seeds(view.record.header.seeds), _seeds(confirmation_seeds(experiment))),
        ("Utility measured on", "val", "test"),
        ("Non-members of membership attacks", (trial.get("attacks") or {}).get("nonmembers", "val"), "test"),
        ("Sealed folds", ", ".join((trial.get("folds") or {}).get("sealed") or ["test"]), "opened once"),
        ("Attacks", _attacks(trial), _attacks(experiment)),
    ]
    if _is_inverted(trial):
        rows += [
            ("Judge of reconstructions", _judge(trial, "model"), _judge(experiment, "second")),
            ("Classes attacked by inversion", _classes(trial), _classes(experiment)),
        ]
    names = ("", "Trials", "Confirmation" if is_confirmed else "Confirmation (not run yet)")
    head = tag("tr", *(tag("th", name, class_="text", scope="col") for name in names))
    body = [tag("tr", tag("th", name, scope="row"), *(tag("td", text, class_="text wrap") for text in texts))
            for name, *texts in rows]  # fmt: skip
    return plain_table(head, body, None)


def _is_inverted(experiment: dict[str, Any]) -> bool:
    return bool((experiment.get("attacks") or {}).get("inversion"))


def _notes(view: SearchView) -> list[Markup]:
    notes = view.record.header.notes
    return [tag("h3", "Notes"), *(tag("p", note) for note in notes)] if notes else []


def _facts(view: SearchView) -> dict[str, str]:
    record = view.record
    origins = Counter(trial.origin for trial in record.trials)
    points = [f"{name}: {counted(count, 'trial')}" for name, count in sorted(origins.items()) if name != GRID]
    points += [f"the paper's grid: {counted(origins[GRID], 'trial')}"] if origins[GRID] else []
    packages = Counter(trial.package for trial in record.trials if trial.package)
    facts = {
        "objectives": "; ".join(record.header.objectives),
        "floors": "; ".join(record.header.floors) or "none",
        "trials": counts(view),
        "points from": ", ".join(points) or "none yet",
        "confirmed": _confirmed(view),
        "measured by": ", ".join(f"code {package[:12]} ({counted(n, 'trial')})" for package, n in packages.items()),
        "search key": record.header.key,
        "confirmation's plan": record.confirmation.plan_key if record.confirmation else "",
    }
    return {name: text for name, text in facts.items() if text}


def _confirmed(view: SearchView) -> str:
    if view.record.confirmation is None:
        return "nothing yet"
    names = listed([str(number) for number in sorted(view.confirmed)])
    return f"{'trials' if len(view.confirmed) > 1 else 'trial'} {names or 'without a result'}, in a report of their own"


def _rungs(view: SearchView) -> list[Markup]:
    header = view.record.header
    if not header.rungs:
        return []
    steps = [", ".join(f"{path} {value_text(value)}" for path, value in rung.items()) for rung in header.rungs]
    facts = {f"rung {place}": step or "as the experiment says" for place, step in enumerate(steps, start=1)}
    facts[f"rung {len(steps) + 1}"] = "the experiment itself; only here is a trial complete"
    text = (
        "A trial passes cheaper forms of the experiment first. At each, the best third of those measured so far goes "
        "on (ordered by front); decided once, when a trial arrives."
    )
    return [tag("h3", "Rungs"), tag("p", text), pairs(facts)]


def _population(view: SearchView) -> list[Markup]:
    header = view.record.header
    if not header.population:
        return []
    ends = listed([str(end) for end in header.generations])
    text = (
        f"{header.population} members train in {len(header.generations)} generations, which end after {ends} epochs. "
        "After each, members of the worst quarter, ranked by feasibility and objective, go on from a random one of the "
        f"best quarter: numbers times {FACTORS[0]} or {FACTORS[1]} within their bounds, choices drawn again with "
        f"probability {REDRAWN_SHARE}. What is confirmed is the schedule, trained from its beginning."
    )
    return [tag("h3", "Population"), tag("p", text)]


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _attacks(experiment: dict[str, Any]) -> str:
    attacks = experiment.get("attacks") or {}
    parts = []
    for kind in ("membership", "inversion"):
        names = [_label(entry) for entry in attacks.get(kind) or ()]
        parts += [f"{kind}: {', '.join(dict.fromkeys(names))}"] if names else []
    return "; ".join(parts) or "none"


def _label(entry: Any) -> str:
    return str(entry.get("as") or name_of(entry)) if isinstance(entry, dict) else str(entry)


def _judge(experiment: dict[str, Any], which: str) -> str:
    evaluation = experiment.get("evaluation") or {}
    entry = evaluation.get(which)
    if which == "second" and isinstance(entry, dict):
        entry = entry.get("model")
    if entry is None:
        return "not recorded"
    options = {key: value for key, value in entry.items() if key != "name"} if isinstance(entry, dict) else {}
    return name_of(entry) + (f" {json.dumps(options)}" if options else "")


def _classes(experiment: dict[str, Any]) -> str:
    count = (experiment.get("attacks") or {}).get("identities")
    return f"the first {count}" if count else "all"


def _plain(content: dict[str, Any]) -> Markup:
    return tag("pre", yaml.safe_dump(_as_lists(content), sort_keys=False, allow_unicode=True, width=100))


def _as_lists(content: Any) -> Any:
    """Return plain data without tuples, which YAML does not have."""
    return json.loads(json.dumps(content))
