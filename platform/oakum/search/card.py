"""What is told of a search where nobody reads its records: its progress, what it recommends, and the leakage card.

Everything here is computed from the records alone, as plain data. The card and the README go with the recommended
model, so that whoever loads it sees what was confirmed of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from oakum.records import CellRecord
from oakum.search.objectives import MissingMetricError, Objective, fronts, hypervolume, parse_floor, parse_objective
from oakum.search.protocol import confirmed_key
from oakum.search.records import Confirmation, SearchHeader, SearchRecord, TrialRecord

# Of the leakage card.
SCHEMA = 1
_README = """# {setting} of the search {search}

`model.safetensors` holds the weights of the target model of seed {seed}, `config.json` what it was trained with, and
`leakage_card.json` what was confirmed of the setting. To load what whoever may query the model meets:

```python
import json
from pathlib import Path

from oakum.pipeline.context import build_defense, build_network
from oakum.seeding import derive_seed
from oakum.training.checkpoint import load_module

config = json.loads(Path("config.json").read_text())
network = load_module(build_network(config), Path("model.safetensors"))
model = build_defense(config["defense"]).release(network, derive_seed(config["seed"], "release")).eval()
```
"""


def parameter_names(record: SearchRecord) -> dict[str, str]:
    """Return path -> name: the path's last part, or all of it where two paths of the search end alike."""
    paths = {*_paths(record.header.space), *(path for trial in record.trials for path in trial.point)}
    ends = {path: path.rpartition(".")[2] for path in sorted(paths)}
    count = Counter(ends.values())
    return {path: end if count[end] == 1 else path for path, end in ends.items()}


def front_numbers(objectives: Sequence[Objective], trials: Iterable[TrialRecord]) -> set[int]:
    """Return the numbers of the feasible trials that no other one beats."""
    feasible = [(trial.number, trial.values) for trial in trials if trial.is_feasible and trial.values is not None]
    costs = [_costs(objectives, values) for _, values in feasible]
    return {feasible[row][0] for row in fronts(np.array(costs))[0]} if costs else set()


def progress(objectives: Sequence[Objective], trials: Iterable[TrialRecord]) -> list[dict[str, float]]:
    """Return rows of what the search came to with each trial, up to the first trial that has not ended.

    With one objective that is the best feasible value, with several the hypervolume of the front. Its corner is not
    the report's (`report.search_figures.reference_point`), which lies beyond the worst of all complete trials: a later
    trial may move that one, and with it the rows of all trials before, but what MLflow has logged stays. This corner
    is known from the first complete trial on: 0 for what is made large; for what is made small 1, or twice that
    trial's value where that is above 1. So these volumes compare with each other, not with the report's.

    Args:
        trials: by number.
    """
    rows: list[dict[str, float]] = []
    front: list[list[float]] = []
    corner: list[float] = []
    for step, trial in enumerate(trials):
        if trial.number != step or trial.state == "running":
            break
        if trial.state == "complete" and trial.values is not None:
            corner = corner or _logged_corner(objectives, trial.values)
            points = [*front, _costs(objectives, trial.values)] if trial.is_feasible else front
            front = [points[row] for row in fronts(np.array(points))[0]] if points else []
        if front and len(objectives) == 1:
            rows.append({"step": step, "search/best": objectives[0].cost(front[0][0])})
        elif front:
            rows.append({"step": step, "search/hypervolume": hypervolume(np.array(front), corner)})
    return rows


def recommended(record: SearchRecord) -> str | None:
    """Return the label of the confirmed setting that keeps every floor and is the best in the first objective.

    Both as confirmed, on test folds; a floor is kept when no seed misses it. Among equals the one that is likelier on
    the front is taken. None: nothing was confirmed, no setting keeps the floors, or there are several objectives and no
    floor, so that the front has no best setting.
    """
    confirmation = record.confirmation
    if confirmation is None or (len(record.header.objectives) > 1 and not record.header.floors):
        return None
    objective, cells = _confirmed_objectives(record.header)[0], confirmed_cells(confirmation)
    ranked = []
    for label, number in confirmation.settings.items():
        value = complete_mean(_by_seed(cells.get(label, ()), objective).values())
        missed = [miss for by_seed in _missed(record, label).values() for miss in by_seed.values()]
        if value is not None and all(miss == 0 for miss in missed):
            ranked.append((objective.cost(value), -confirmation.membership.get(number, 0.0), label))
    return min(ranked)[2] if ranked else None


def leakage_card(record: SearchRecord, label: str) -> dict[str, Any]:
    """Return what was confirmed of a setting, with every seed's values, as plain data.

    Raises:
        ValueError: the search was not confirmed.
    """
    header, confirmation = record.header, record.confirmation
    if confirmation is None:
        raise ValueError(f"search {header.name!r} was not confirmed")
    settings, data = confirmed_cells(confirmation), confirmation.record.data
    cells = settings[label]
    values = {objective.text: _by_seed(cells, objective) for objective in _confirmed_objectives(header)}
    return {
        "schema": SCHEMA,
        "search": {"name": header.name, "key": header.key, "confirmed_by": confirmation.plan_key},
        "setting": label,
        "trial": confirmation.settings.get(label),
        "defense": {"name": cells[0].defense, **cells[0].parameters},
        "objectives": {text: {"mean": complete_mean(found.values()), "seeds": found} for text, found in values.items()},
        "floors": {text: {"missed_by": found} for text, found in _missed(record, label).items()},
        "front_probability": front_probability(confirmation, label),
        "metrics": _by_metric(cells),
        "none": _by_metric(confirmation.baseline_cells(label)),
        "chance": confirmation.record.chance,
        "data": {name: data.get(name) for name in ("name", "digest", "public", "license_note", "folds")},
        "code": confirmation.record.code,
        "notes": list(header.notes),
    }


def readme(header: SearchHeader, label: str, seed: int) -> str:
    """Return the README of a registered model: what its files are, and how to load the model of that seed."""
    return _README.format(setting=label, search=header.name, seed=seed)


def confirmed_cells(confirmation: Confirmation) -> dict[str, tuple[CellRecord, ...]]:
    """Return the cells of every confirmed setting by label, in the record's order; undefended ones are among them."""
    cells = confirmation.record.cells
    labels = dict.fromkeys(cell.setting for cell in cells)
    return {label: tuple(cell for cell in cells if cell.setting == label) for label in labels}


def confirmed_means(header: SearchHeader, cells: Sequence[CellRecord]) -> list[float | None]:
    """Return every objective's mean over a confirmed setting's seeds; None where a seed has no value."""
    return [complete_mean(_by_seed(cells, each).values()) for each in _confirmed_objectives(header)]


def front_probability(confirmation: Confirmation, label: str) -> float | None:
    """Return a confirmed setting's probability of being on the front; None for `none`."""
    number = confirmation.settings.get(label)
    return None if number is None else confirmation.membership.get(number)


def complete_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None where a value is missing or there is none at all."""
    known = list(values)
    numbers = [value for value in known if value is not None]
    return fmean(numbers) if numbers and len(numbers) == len(known) else None


def _paths(space: Any) -> Iterator[str]:
    """Yield every key with a dot, at any depth: paths stand beside `grid` and in it."""
    for key, value in space.items() if isinstance(space, Mapping) else ():
        if "." in str(key):
            yield str(key)
        for each in value if isinstance(value, list | tuple) else [value]:
            yield from _paths(each)


def _costs(objectives: Sequence[Objective], values: Sequence[float]) -> list[float]:
    return [objective.cost(value) for objective, value in zip(objectives, values, strict=True)]


def _logged_corner(objectives: Sequence[Objective], first: Sequence[float]) -> list[float]:
    """Return the corner of `progress`, as costs, from the first complete trial's values."""
    pairs = zip(objectives, first, strict=True)
    return [0.0 if each.direction == "max" else 1.0 if value <= 1 else 2 * value for each, value in pairs]


def _confirmed_objectives(header: SearchHeader) -> list[Objective]:
    return [parse_objective(confirmed_key(text)) for text in header.objectives]


def _by_seed(cells: Iterable[CellRecord], objective: Objective) -> dict[int, float | None]:
    return {cell.seed: _resolved(partial(objective.value, cell.metrics)) for cell in cells}


def _missed(record: SearchRecord, label: str) -> dict[str, dict[int, float | None]]:
    """Return floor -> seed -> by how much the confirmed setting misses it, or None where that is not known."""
    if record.confirmation is None:
        return {}
    settings = confirmed_cells(record.confirmation)
    none = {cell.seed: cell.metrics for cell in record.confirmation.baseline_cells(label)}
    floors = [parse_floor(confirmed_key(text)) for text in record.header.floors]
    return {
        floor.text: {
            cell.seed: _resolved(partial(floor.violation, cell.metrics, none.get(cell.seed)))
            for cell in settings.get(label, ())
        }
        for floor in floors
    }


def _by_metric(cells: Iterable[CellRecord]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        for key, value in cell.metrics.items():
            found.setdefault(key, {})[cell.seed] = value.to_json()
    return found


def _resolved(value: Callable[[], float]) -> float | None:
    try:
        return value()
    except MissingMetricError:
        return None
