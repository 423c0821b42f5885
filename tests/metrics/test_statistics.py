from __future__ import annotations

import pytest
from scipy.stats import ttest_rel

from oakum.metrics.statistics import paired_difference


def test_interval_equals_that_of_the_paired_t_test() -> None:
    a, b = [0.81, 0.79, 0.84, 0.80], [0.70, 0.72, 0.71, 0.74]
    mean, low, high = paired_difference(a, b)
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert mean == pytest.approx(0.0925)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_one_seed_has_no_interval_and_equal_differences_have_none_to_spare() -> None:
    assert paired_difference([0.5], [0.25]) == (0.25, None, None)
    assert paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_values_must_pair_up(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference(a, b)
