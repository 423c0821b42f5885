"""How fast samplers find the front, at equal cost: replays by lookup on a grid of settings that was measured once.

Every sampler proposes settings of the quantized space `relaxloss_grid.yaml` beside this file; their values are those
of a stored search that measured all 64 of them, so that a replay costs no training and all samplers meet the same
numbers. The hypervolume over trials is compared, with its spread over repetitions; asking again for a setting that was
tried costs a trial, as it would not in `oakum search`, which reuses its stages.

    oakum search jobs/experiments/location30_relaxloss.yaml benchmarks/relaxloss_grid.yaml --name sampler-grid \
        --set folds.rules.0.take.val=1000 --set recipe.epochs=60 --set "recipe.milestones=[30, 50]" \
        --objective "min membership/loss/auc" --objective "max utility/val_accuracy" \
        --sampler grid --trials 64 --repeats 0 --confirm 0
    python benchmarks/samplers.py --search sampler-grid --out benchmarks/results/samplers.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oakum.records import canonical_json
from oakum.search.objectives import Objective, hypervolume, parse_objective
from oakum.search.records import SearchLog, TrialRecord
from oakum.search.sampler import Sampler
from oakum.search.space import SearchSpace, load_space
from oakum.session_home import Home
from oakum.store import Store

SPACE = Path(__file__).parent / "relaxloss_grid.yaml"
COMPARED = ("random", "tpe", "nsga2")
SHOWN = (8, 16, 24, 32, 48)
Table = Mapping[bytes, TrialRecord]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", required=True, help="name of the search that measured the grid")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = SearchLog.named(Store.open(Home.of_environment().store_uri), options.search).record()
    objectives = [parse_objective(text) for text in record.header.objectives]
    space = load_space(SPACE)
    table = {_key(trial.point): trial for trial in record.complete}
    missing = [point for point in space.grid_points() if _key(point) not in table]
    if missing:
        sys.exit(f"{len(missing)} of {len(space.grid)} settings have no result in search {options.search!r}")
    costs = np.array([_costs(objectives, trial) for trial in table.values()])
    reference = (costs.max(axis=0) + 0.1 * (costs.max(axis=0) - costs.min(axis=0))).tolist()
    best = hypervolume(costs, reference)
    curves = {
        name: [
            replay(space, objectives, table, name, seed, options.trials, reference) / best
            for seed in range(options.repetitions)
        ]
        for name in COMPARED
    }
    card = {
        "benchmark": "samplers",
        "settings": len(table),
        "objectives": [objective.text for objective in objectives],
        "experiment": record.header.experiment["name"],
        "repetitions": options.repetitions,
        "reference": reference,
        "figure": "share of the grid's hypervolume after so many trials: mean and standard deviation of a repetition",
        "values": [
            {"point": trial.point, "values": trial.values}
            for trial in sorted(table.values(), key=lambda each: each.number)
        ],
        "results": {
            name: {
                str(count): {
                    "mean": round(float(np.mean([curve[count - 1] for curve in runs])), 4),
                    "deviation": round(float(np.std([curve[count - 1] for curve in runs], ddof=1)), 4),
                }
                for count in SHOWN
                if count <= options.trials
            }
            for name, runs in curves.items()
        },
        "against_random": {
            name: paired(curves[name], curves["random"], SHOWN, options.trials) for name in COMPARED if name != "random"
        },
    }
    text = json.dumps(card, indent=1)
    sys.stdout.write(json.dumps({key: card[key] for key in ("results", "against_random")}, indent=1) + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


def replay(
    space: SearchSpace,
    objectives: Sequence[Objective],
    table: Table,
    name: str,
    seed: int,
    trials: int,
    reference: Sequence[float],
) -> np.ndarray:
    """Return the hypervolume after each trial of one search by lookup, (trials,)."""
    sampler = Sampler(space, objectives, name, seed)
    costs: list[list[float]] = []
    volumes = []
    for number in range(trials):
        asked = sampler.ask(number)
        assert asked is not None
        known = table[_key(asked.point)]
        sampler.tell(TrialRecord(number, asked.point, asked.origin, "complete", values=known.values))
        costs.append(_costs(objectives, known))
        volumes.append(hypervolume(np.array(costs), reference))
    return np.array(volumes)


def paired(
    runs: Sequence[np.ndarray], others: Sequence[np.ndarray], counts: Sequence[int], trials: int
) -> dict[str, Any]:
    """Return the mean difference after so many trials and its standard error over repetitions."""
    found = {}
    for count in (each for each in counts if each <= trials):
        difference = np.array([a[count - 1] - b[count - 1] for a, b in zip(runs, others, strict=True)])
        found[str(count)] = {
            "difference": round(float(difference.mean()), 4),
            "standard_error": round(float(difference.std(ddof=1) / np.sqrt(len(difference))), 4),
        }
    return found


def _costs(objectives: Sequence[Objective], trial: TrialRecord) -> list[float]:
    assert trial.values is not None
    return [objective.cost(value) for objective, value in zip(objectives, trial.values, strict=True)]


def _key(point: Mapping[str, Any]) -> bytes:
    return canonical_json({path: round(value, 9) for path, value in point.items()})


if __name__ == "__main__":
    sys.exit(main())
