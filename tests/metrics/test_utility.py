from __future__ import annotations

import pytest
from scipy.stats import binomtest

from oakum.metrics.utility import accuracy, wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (1, 3), (450, 500), (1, 10_000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(right: int, count: int, level: float) -> None:
    expected = binomtest(right, count).proportion_ci(level, method="wilson")
    assert wilson_interval(right, count, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_accuracy() -> None:
    value = accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    assert value.value == 0.75
    assert value.low < 0.75 < value.high
    assert value.wants == "high"


def test_no_samples_are_unresolved_and_bad_input_is_refused() -> None:
    assert accuracy([], []).value is None
    with pytest.raises(ValueError, match="predictions"):
        accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(1, 0)
