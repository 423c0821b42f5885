from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from oakum.records import CellRecord, MetricValue
from oakum.report.statistics import Spread, paired_difference, spread, standard_error, t_probability, t_quantile

KEY = "membership/loss/auc"


def cells(*values: MetricValue | None) -> list[CellRecord]:
    return [
        CellRecord("a", "none", {}, seed, {} if value is None else {KEY: value}, {})
        for seed, value in enumerate(values)
    ]


def of(*values: float) -> Spread:
    return Spread(dict(enumerate(values)), {}, {})


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 30, 101])
def test_t_quantile_equals_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)
    assert t_quantile(degrees, 0.8) == pytest.approx(stats.t.ppf(0.9, degrees), rel=1e-12)
    assert t_probability(1.3, degrees) == pytest.approx(1 - 2 * stats.t.sf(1.3, degrees), rel=1e-12)


def test_t_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="degree"):
        t_quantile(0)


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=12))
def test_interval_from_five_seeds_equals_scipy(values: list[float]) -> None:
    found = paired_difference(of(*values), of(*[0.0] * len(values)))
    if standard_error(values) < 1e-9:
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-12)
    assert found.label == f"95 % t interval, {len(values)} seeds, {len(values) - 1} degrees of freedom"


def test_below_five_seeds_the_interval_is_the_range_and_is_called_so() -> None:
    found = paired_difference(of(0.5, 0.6, 0.55), of(0.6, 0.61, 0.7))
    assert found.values == pytest.approx({0: -0.1, 1: -0.01, 2: -0.15})
    assert (found.low, found.high) == pytest.approx((-0.15, -0.01))
    assert found.label == "range of 3 seeds"
    assert "95" not in found.label
    assert found.direction == "lower"


@pytest.mark.parametrize(
    ("differences", "direction"),
    [
        ((-0.1, -0.2), "lower"),
        ((0.1, 0.2, 0.3), "higher"),
        ((-0.1, 0.2, 0.3), "unclear"),
        ((-0.1, 0.0), "unclear"),
        ((0.0, 0.0), "equal"),
        ((-0.3,), "single"),
        ((), "none"),
        ((0.1, 0.1, 0.1, 0.1, -0.1), "unclear"),
        ((0.1, 0.11, 0.1, 0.09, 0.1), "higher"),
        ((0.1, 0.1, 0.1, 0.1, 0.1), "higher"),
    ],
)
def test_direction(differences: tuple[float, ...], direction: str) -> None:
    assert paired_difference(of(*differences), of(*[0.0] * len(differences))).direction == direction


def test_pairs_only_seeds_that_both_sides_resolve() -> None:
    found = paired_difference(Spread({0: 0.5, 2: 0.7}, {1: "few"}, {}), Spread({1: 0.1, 2: 0.6}, {}, {}))
    assert found.values == pytest.approx({2: 0.1})
    assert found.label == "one seed"
    assert (found.low, found.high) == (None, None)


def test_spread_keeps_numbers_reasons_and_intervals_apart() -> None:
    found = spread(cells(MetricValue(0.6, 0.5, 0.7), MetricValue(None, note="too few"), MetricValue(0.8), None), KEY)
    assert found.values == {0: 0.6, 2: 0.8}
    assert found.unresolved == {1: "too few"}
    assert found.intervals == {0: (0.5, 0.7)}
    assert found.mean == pytest.approx(0.7)
    assert (found.low, found.high) == (0.6, 0.8)
    assert found.state == "measured"


def test_spread_without_numbers_has_none_of_them() -> None:
    unresolved = spread(cells(MetricValue(None)), KEY)
    assert (unresolved.state, unresolved.mean, unresolved.low) == ("unresolved", None, None)
    assert unresolved.reasons == ["no reason was recorded"]
    assert spread(cells(None), KEY).state == "absent"


def test_two_cells_of_one_seed_are_refused() -> None:
    same = cells(MetricValue(0.5))
    with pytest.raises(ValueError, match="two cells of seed 0"):
        spread(same + same, KEY)


def test_mean_of_many_equal_values_is_exact() -> None:
    assert of(*[0.1] * 10).mean == 0.1
    assert math.isclose(standard_error([0.1, 0.3]), 0.1)
