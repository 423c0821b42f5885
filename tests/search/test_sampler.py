"""Samplers: every point is inside the space, a memory made from records asks what the old one would have asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from oakum.search.objectives import parse_objective
from oakum.search.records import TrialRecord
from oakum.search.sampler import Sampler
from oakum.search.space import SearchSpace, load_space

SPACE = {
    "defense": "bido",
    "defense.measure": {"sampler": "choice", "values": ["hsic", "coco"]},
    "defense.lambda_x": {"sampler": "loguniform", "low": 0.01, "high": 1.0},
    "defense.lambda_y": {
        "sampler": "uniform", "low": 0.0, "high": 2.0, "step": 0.5, "when": {"defense.measure": "hsic"},
    },
    "recipe.augmentation": {"sampler": "choice", "values": [[], ["flip"]]},
    "recipe.epochs": {"sampler": "integer", "low": 2, "high": 6},
    "grid": [
        {"defense.measure": "coco", "defense.lambda_x": 0.5, "defense.lambda_y": 50.0},
        {"defense.measure": "hsic", "defense.lambda_x": 0.05, "defense.lambda_y": 0.5},
    ],
}  # fmt: skip
OBJECTIVES = [parse_objective("min inversion/gmi/top1"), parse_objective("max utility/val_accuracy")]


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    file = tmp_path / "bido.yaml"
    file.write_text(yaml.safe_dump(SPACE, sort_keys=False))
    return load_space(file)


def asked(sampler: Sampler, number: int) -> TrialRecord:
    found = sampler.ask(number)
    assert found is not None and found.number == number and found.state == "running"
    return found


def measured(trial: TrialRecord, objectives: int = 2) -> TrialRecord:
    """Results on an invented landscape whose optimum is lambda_x = 0.1; every fifth fails, large ones miss a floor."""
    distance = float(abs(np.log(trial.point["defense.lambda_x"] / 0.1)))
    state: Any = "failed" if trial.number % 5 == 4 else "complete"
    violation = max(0.0, trial.point["defense.lambda_x"] - 0.5)
    return replace(trial, state=state, values=(distance, -distance)[:objectives], violations=(violation,))


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_points_lie_in_the_space_and_a_search_that_goes_on_asks_the_same(space: SearchSpace, name: str) -> None:
    whole = Sampler(space, OBJECTIVES, name, 7, grid_first=True)
    records = []
    for number in range(40):
        trial = asked(whole, number)
        point = trial.point
        assert trial.origin == ("grid" if number < 2 else name)
        if trial.origin != "grid":
            assert 0.01 <= point["defense.lambda_x"] <= 1.0 and point["recipe.epochs"] in range(2, 7)
            assert point["recipe.augmentation"] in ([], ["flip"])
            assert ("defense.lambda_y" in point) == (point["defense.measure"] == "hsic")
            assert point.get("defense.lambda_y", 0.5) in (0.0, 0.5, 1.0, 1.5, 2.0)
        records.append(measured(trial))
        whole.tell(records[-1])
    for cut in (1, 13, 20, 27, 39):
        again = Sampler(space, OBJECTIVES, name, 7, grid_first=True)
        again.recall(TrialRecord.from_json(json.loads(json.dumps(record.to_json()))) for record in records[:cut])
        for number in range(cut, 40):
            assert asked(again, number).point == records[number].point, cut
            again.tell(records[number])
    assert asked(Sampler(space, OBJECTIVES, name, 8), 0) != asked(Sampler(space, OBJECTIVES, name, 7), 0)


def test_unfinished_trials_are_remembered_without_a_result(space: SearchSpace) -> None:
    whole, again = (Sampler(space, OBJECTIVES[:1], "random", 0) for _ in range(2))
    records = [measured(asked(whole, number), objectives=1) for number in range(4)]
    again.recall([replace(records[0], state="running", values=None), *records[1:]])
    assert asked(again, 4).point == asked(whole, 4).point
    again.tell(records[0])


def test_the_grid_sampler_proposes_the_grid_and_ends(space: SearchSpace) -> None:
    sampler = Sampler(space, OBJECTIVES, "grid", 0)
    assert [asked(sampler, number).point for number in range(2)] == SPACE["grid"]
    assert sampler.ask(2) is None


def test_tpe_comes_near_the_optimum_of_a_smooth_landscape_more_often_than_chance(space: SearchSpace) -> None:
    def hits(name: str, seed: int) -> int:
        sampler = Sampler(space, OBJECTIVES[:1], name, seed)
        near = 0
        for number in range(60):
            record = measured(asked(sampler, number), objectives=1)
            sampler.tell(record)
            near += number >= 30 and record.values is not None and record.values[0] < 0.3
        return near

    assert sum(hits("tpe", seed) for seed in range(3)) > 1.5 * sum(hits("random", seed) for seed in range(3))
