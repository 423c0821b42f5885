"""Objectives and floors as text, and fronts, hypervolume and front membership against naive twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oakum.config import ConfigError
from oakum.records import MetricValue
from oakum.search.objectives import (
    Floor,
    MissingMetricError,
    front_membership,
    fronts,
    hypervolume,
    parse_floor,
    parse_objective,
)

METRICS = {
    "inversion/gmi/top1": MetricValue(0.4),
    "membership/loss/auc": MetricValue(0.8),
    "membership/loss/tpr_at_fpr_0.01": MetricValue(None, note="unresolved: needs 1,000 non-members"),
    "utility/val_accuracy": MetricValue(0.92),
}


def test_objectives_are_read_and_measured() -> None:
    leak = parse_objective("min inversion/gmi/top1")
    assert leak.direction == "min" and leak.value(METRICS) == 0.4 and leak.cost(0.4) == 0.4
    useful = parse_objective("max utility/val_accuracy")
    assert useful.cost(useful.value(METRICS)) == -0.92
    both = parse_objective("min 0.5*membership/loss/auc + 2 * inversion/gmi/top1")
    assert both.terms == ((0.5, "membership/loss/auc"), (2.0, "inversion/gmi/top1"))
    assert both.value(METRICS) == pytest.approx(1.2)
    assert parse_objective("min 1e-3*membership/loss/auc + inversion/gmi/top1").terms[0][0] == 0.001


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("utility/val_accuracy>=0.93", Floor("", "utility/val_accuracy", True, 0.93)),
        ("membership/loss/auc <= .6", Floor("", "membership/loss/auc", False, 0.6)),
        ("utility/val_accuracy >= none", Floor("", "utility/val_accuracy", True, 0.0, True)),
        ("utility/val_accuracy >= none - 0.01", Floor("", "utility/val_accuracy", True, -0.01, True)),
        ("membership/loss/auc <= none + 0.05", Floor("", "membership/loss/auc", False, 0.05, True)),
    ],
)
def test_floors_are_read(text: str, floor: Floor) -> None:
    found = parse_floor(text)
    assert (found.key, found.is_lower, found.bound, found.is_relative) == (
        floor.key,
        floor.is_lower,
        floor.bound,
        floor.is_relative,
    )


def test_a_floor_says_by_how_much_it_is_missed() -> None:
    assert parse_floor("utility/val_accuracy >= 0.93").violation(METRICS, None) == pytest.approx(0.01)
    assert parse_floor("utility/val_accuracy >= 0.92").violation(METRICS, None) == 0
    baseline = {"utility/val_accuracy": MetricValue(0.95)}
    assert parse_floor("utility/val_accuracy >= none - 0.01").violation(METRICS, baseline) == pytest.approx(0.02)
    assert parse_floor("membership/loss/auc <= 0.7").violation(METRICS, None) == pytest.approx(0.1)


def test_what_was_not_measured_is_a_failure_and_no_value() -> None:
    with pytest.raises(MissingMetricError, match="'inversion/vmi/top1' was not measured"):
        parse_objective("min inversion/vmi/top1").value(METRICS)
    with pytest.raises(MissingMetricError, match=r"has no value: unresolved: needs 1,000 non-members"):
        parse_objective("min membership/loss/tpr_at_fpr_0.01").value(METRICS)
    with pytest.raises(MissingMetricError, match="no result of `none` under this seed"):
        parse_floor("utility/val_accuracy >= none").violation(METRICS, None)


@pytest.mark.parametrize("text", ["", "inversion/gmi/top1", "min", "least inversion/gmi/top1", "min top1", "min a/b +"])
def test_objectives_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="objective"):
        parse_objective(text)


@pytest.mark.parametrize("text", ["utility/val_accuracy", "a/b > 1", "a/b >= much", "a/b >= none * 2", ">= 1"])
def test_floors_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="write KEY >= NUMBER"):
        parse_floor(text)


def naive_front(costs: np.ndarray) -> list[int]:
    return [
        i
        for i, row in enumerate(costs)
        if not any(all(other <= row) and any(other < row) for j, other in enumerate(costs) if j != i)
    ]


grids = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(grids)
def test_fronts_are_those_of_the_definition(rows: list[tuple[int, ...]]) -> None:
    costs = np.array(rows, dtype=np.float64)
    found = fronts(costs)
    assert sorted(row for front in found for row in front) == list(range(len(costs)))
    left = np.arange(len(costs))
    for front in found:
        assert front == left[naive_front(costs[left])].tolist()
        left = np.array([row for row in left if row not in front])


def test_what_is_feasible_comes_before_what_is_not() -> None:
    costs = np.array([[0.0, 0.0], [5.0, 5.0], [1.0, 1.0]])
    assert fronts(costs, np.array([0.2, 0.0, 0.1])) == [[1], [2], [0]]


@settings(max_examples=60, deadline=None)
@given(grids)
def test_hypervolume_counts_the_cells_of_a_grid(rows: list[tuple[int, ...]]) -> None:
    costs = np.array(rows, dtype=np.float64)
    cells = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    covered = (costs[:, None] <= cells[None]).all(axis=2).any(axis=0).sum()
    assert hypervolume(costs, [6, 6, 6]) == covered


def test_hypervolume_of_known_sets() -> None:
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0
    assert hypervolume(np.array([[0.5, 0.5]]), [1, 1]) == 0.25
    assert hypervolume(np.array([[0.0, 0.5], [0.5, 0.0]]), [1, 1]) == 0.75
    assert hypervolume(np.array([[2.0, 0.0]]), [1, 1]) == 0
    assert hypervolume(np.array([[0.25], [0.5]]), [1]) == 0.75


def test_front_membership_follows_the_noise() -> None:
    sure = np.tile([[0.0, 0.0]], (3, 1))
    beaten = np.tile([[1.0, 1.0]], (3, 1))
    assert front_membership([sure, beaten]).tolist() == [1.0, 0.0]
    noisy = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    steady = np.tile([[1.0, 1.0]], (3, 1))
    first, second = front_membership([noisy, steady], seed=1)
    assert 0.3 < first < 0.8 and 0.3 < second < 0.8
