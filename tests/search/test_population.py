"""Populations: who goes on from whom, how settings move, and that a search's future follows from its records."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from oakum.config import ConfigError
from oakum.search.objectives import parse_objective
from oakum.search.population import (
    Phase,
    Population,
    check_population,
    generation_ends,
    perturb,
    phases,
    ranking,
    select,
    settings_of,
    trained_settings,
)
from oakum.search.records import SearchHeader, TrialRecord
from oakum.search.space import SearchSpace, load_space

LEAK = parse_objective("min membership/loss/auc")
ALPHA = "defense.alpha"
MEMBERS = 8
RANGE = {"sampler": "loguniform", "low": 0.1, "high": 10.0}


def load(folder: Path, data: dict[str, Any], defense: str = "relaxloss") -> SearchSpace:
    file = folder / f"{defense}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_space(file)


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return load(tmp_path, {"fixed": {"defense.variant": "paper"}, ALPHA: RANGE})


def ended(number: int, value: float | None, violation: float = 0.0, **changes: Any) -> TrialRecord:
    state: Any = "failed" if value is None else "stopped"
    trial = TrialRecord(number, {ALPHA: 1.0 + number}, "population", state)
    values = None if value is None else (value,)
    return replace(trial, values=values, violations=(violation,), **changes)


def test_members_rank_by_feasibility_then_objective_and_failed_ones_last() -> None:
    rows = [(0.5, 0.0), (None, 0.0), (0.1, 0.3), (0.4, 0.0), (0.2, 0.1), (0.5, 0.0)]
    generation = [ended(number, value, missed) for number, (value, missed) in enumerate(rows)]
    assert ranking(generation, LEAK) == [3, 0, 5, 4, 2, 1]
    assert ranking(generation, parse_objective("max membership/loss/auc"))[:3] == [0, 5, 3]


def test_the_worst_quarter_goes_on_from_the_best_and_all_others_as_they_are() -> None:
    values = [0.9, 0.1, 0.5, 0.4, 0.8, 0.3, 0.2, 0.6]
    generation = [ended(number, value) for number, value in enumerate(values)]
    sources: dict[int, Counter[int | None]] = {member: Counter() for member in range(MEMBERS)}
    for draw, member in itertools.product(range(40), range(MEMBERS)):
        source = select(generation, member, LEAK, np.random.default_rng(draw))
        sources[member][None if source is None else source.number] += 1
    for member, found in sources.items():
        assert found.keys() == ({1, 6} if member in (0, 4) else {None})


def test_every_failed_member_goes_on_from_one_that_was_measured() -> None:
    generation = [ended(number, None if number % 2 else 0.1 * number) for number in range(MEMBERS)]
    for member in (1, 3, 5, 7):
        source = select(generation, member, LEAK, np.random.default_rng(0))
        assert source is not None and source.number in (0, 2)
    assert select(generation, 6, LEAK, np.random.default_rng(0)) is None
    lost = [ended(number, None) for number in range(MEMBERS)]
    assert all(select(lost, member, LEAK, np.random.default_rng(0)) is None for member in range(MEMBERS))


def test_numbers_move_by_a_factor_and_stay_inside_their_bounds(tmp_path: Path) -> None:
    data = {
        "defense.coco_norm": {"sampler": "choice", "values": ["frobenius", "spectral"]},
        "defense.lambda_x": {"sampler": "loguniform", "low": 0.1, "high": 10.0},
        "defense.lambda_y": {"sampler": "uniform", "low": 0.0, "high": 2.0, "step": 0.5},
        "recipe.epochs": {"sampler": "integer", "low": 1, "high": 5},
        "recipe.weight_decay": {"sampler": "uniform", "low": 0.0, "high": 1.0},
    }
    space = load(tmp_path, {"fixed": {"defense.measure": "coco"}, **data}, "bido")
    point = {
        "defense.measure": "coco", "defense.coco_norm": "spectral", "defense.lambda_x": 1.0, "defense.lambda_y": 1.0,
        "recipe.epochs": 3, "recipe.weight_decay": 0.5,
    }  # fmt: skip
    moved = [perturb(space, point, np.random.default_rng(seed)) for seed in range(300)]

    def values(path: str) -> Counter[Any]:
        return Counter(each[path] for each in moved)

    assert values("defense.lambda_x").keys() == {0.8, 1.25} and values("recipe.weight_decay").keys() == {0.4, 0.625}
    assert values("defense.lambda_y").keys() == {0.5, 1.5} and values("recipe.epochs").keys() == {2, 4}
    assert all(100 < count < 200 for count in values("defense.lambda_x").values())
    # Drawn again with probability 1/4, and then the other one half of the time.
    assert 300 * 0.07 < values("defense.coco_norm")["frobenius"] < 300 * 0.19
    assert all(each["defense.measure"] == "coco" for each in moved)
    far = {**point, "defense.lambda_x": 9.9, "defense.lambda_y": 2.0, "recipe.weight_decay": 0.0}
    moved = [perturb(space, far, np.random.default_rng(seed)) for seed in range(100)]
    assert values("defense.lambda_x").keys() == {10.0, 0.8 * 9.9} and values("defense.lambda_y").keys() == {1.5}
    # No factor moves 0: it is drawn anew.
    assert len(values("recipe.weight_decay")) == 100 and max(values("recipe.weight_decay")) <= 1.0


@pytest.mark.parametrize(
    ("epochs", "generations", "ends"), [(10, 4, (3, 5, 8, 10)), (6, 3, (2, 4, 6)), (5, 5, (1, 2, 3, 4, 5))]
)
def test_generations_share_the_epochs(epochs: int, generations: int, ends: tuple[int, ...]) -> None:
    assert generation_ends(epochs, generations) == ends


def measured(record: TrialRecord) -> TrialRecord:
    """Results on an invented landscape with the optimum at alpha = 1; one trial fails."""
    if record.number == 5:
        return replace(record, state="failed", error="no luck")
    return replace(record, state="stopped", values=(abs(float(np.log(record.point[ALPHA]))),), violations=())


def run(population: Population, known: list[TrialRecord], count: int) -> list[TrialRecord]:
    records = list(known)
    while len(records) < count:
        asked = population.ask(len(records))
        assert asked is not None
        records.append(measured(asked))
        population.tell(records[-1])
    return records


def test_a_population_that_goes_on_asks_what_it_would_have_asked(space: SearchSpace) -> None:
    whole = run(Population(space, LEAK, MEMBERS, seed=3), [], 5 * MEMBERS)
    for cut in (1, 7, 8, 9, 20, 39):
        again = Population(space, LEAK, MEMBERS, seed=3)
        again.recall(TrialRecord.from_json(record.to_json()) for record in whole[:cut])
        assert run(again, whole[:cut], len(whole)) == whole
    assert run(Population(space, LEAK, MEMBERS, seed=4), [], 1) != whole[:1]
    assert all(record.parent is None for record in whole[:MEMBERS])
    exploited = [record for record in whole[MEMBERS:] if record.parent != record.number - MEMBERS]
    assert len(exploited) == 4 * 2
    for record in whole[MEMBERS:]:
        assert record.parent is not None and record.parent // MEMBERS == record.number // MEMBERS - 1
        unchanged = record.point == whole[record.parent].point
        assert unchanged == (record not in exploited) and record.point["defense.variant"] == "paper"
    means = [np.mean([record.values for record in whole[start : start + MEMBERS] if record.values is not None])
             for start in range(0, len(whole), MEMBERS)]  # fmt: skip
    assert means[-1] < 0.6 * means[0]


def test_the_next_generation_waits_for_the_last_member_of_this_one(space: SearchSpace) -> None:
    population = Population(space, LEAK, 2, seed=0)
    first, second = (population.ask(number) for number in (0, 1))
    assert first is not None and second is not None and population.ask(2) is None
    population.tell(measured(second))
    assert population.ask(2) is None
    population.tell(measured(first))
    assert population.ask(2) is not None and population.ask(3) is not None and population.ask(4) is None


def family() -> tuple[SearchHeader, dict[int, TrialRecord]]:
    """Four generations; trial 6 is a child of 4, a child of 3 (unchanged), a child of 0."""
    header = SearchHeader(
        "h", "0" * 64, "relaxloss", {}, {}, {}, (LEAK.text,), (), (1000,), population=2, generations=(3, 5, 8, 10)
    )
    alphas = {0: (1.0, None), 1: (2.0, None), 3: (0.8, 0), 4: (0.8, 3), 6: (1.0, 4)}
    records = {
        number: TrialRecord(number, {ALPHA: alpha, "defense.variant": "paper"}, "population", "stopped", parent=parent)
        for number, (alpha, parent) in alphas.items()
    }
    return header, records


def test_a_schedule_is_what_the_ancestors_had(space: SearchSpace) -> None:
    header, records = family()
    assert phases(header, records[6], records) == [
        Phase(0, records[0].point), Phase(3, {ALPHA: 0.8}), Phase(8, {ALPHA: 1.0}),
    ]  # fmt: skip
    assert settings_of(space, header, records[6], records) == {
        "name": "relaxloss", "alpha": 1.0, "variant": "paper", "schedule": {3: {"alpha": 0.8}, 8: {"alpha": 1.0}},
    }  # fmt: skip
    assert "schedule" not in settings_of(space, header, records[1], records)


def test_what_is_trained_has_a_phase_for_every_generation(space: SearchSpace) -> None:
    """Or else a member that goes on as it is would share nothing with what it was."""
    header, records = family()
    points = [records[number].point for number in (0, 3, 4, 6)]
    found = [trained_settings(space, header, points[:count]).get("schedule", {}) for count in (1, 2, 3, 4)]
    assert found[3] == {3: {"alpha": 0.8}, 5: {"alpha": 0.8}, 8: {"alpha": 1.0}}
    assert found[:3] == [{}, {3: {"alpha": 0.8}}, {3: {"alpha": 0.8}, 5: {"alpha": 0.8}}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": [LEAK, LEAK]}, "ranks its members by one objective"),
        ({"members": 1}, "--population must be 2 or more"),
        ({"trials": 20}, "20 is not two or more generations of 8 members; write 16 or 24"),
        ({"trials": 8}, "8 is not two or more generations of 8 members; write 16"),
        ({"trials": 88}, "11 generations do not fit into 10 epochs"),
    ],
)
def test_what_a_population_cannot_do_is_refused(space: SearchSpace, changes: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"objectives": [LEAK], "members": 8, "trials": 32, "epochs": 10}
    assert check_population(space, **asked) == (3, 5, 8, 10)
    with pytest.raises(ConfigError, match=message):
        check_population(space, **{**asked, **changes})


@pytest.mark.parametrize(
    ("defense", "data", "message"),
    [
        ("relaxloss", {ALPHA: RANGE, "recipe.weight_decay": RANGE},
         r"recipe.weight_decay cannot change.*may search defense.alpha"),
        ("relaxloss", {ALPHA: RANGE, "defense.variant": {"sampler": "choice", "values": ["paper"]}},
         "defense.variant cannot change"),
        ("early_stopping", {"defense.epoch": {"sampler": "integer", "low": 1, "high": 5}}, "no setting of early_stop"),
        ("relaxloss", {"fixed": {"defense.variant": "paper"}, ALPHA: {**RANGE, "when": {"defense.variant": "paper"}}},
         "defense.alpha.when: a population changes every"),
        ("relaxloss", {"fixed": {"defense.schedule": {2: {"alpha": 1.0}}}, ALPHA: RANGE}, "finds the schedule"),
    ],
)  # fmt: skip
def test_only_what_can_change_during_training_may_be_searched(
    tmp_path: Path, defense: str, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_population(load(tmp_path, data, defense), [LEAK], 2, 4, 10)
