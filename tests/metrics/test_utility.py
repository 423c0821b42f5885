from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from oakum.metrics.utility import accuracy, balanced_accuracy, wilson_interval


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


def test_balanced_accuracy_weighs_classes_alike() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice([0, 3, 4], size=200, p=[0.8, 0.15, 0.05])
    predicted = np.where(rng.random(200) < 0.6, y, 1)
    shares = [
        np.mean([guess == label for guess, label in zip(predicted, y, strict=True) if label == c]) for c in (0, 3, 4)
    ]
    value = balanced_accuracy(predicted, y)
    assert value.value == pytest.approx(sum(shares) / 3, abs=1e-12)
    assert value.wants == "high" and value.low is None
    assert balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 2]).value == 0.5
    assert balanced_accuracy([0, 1, 1, 2], [0, 1, 2, 0]).value == (0.5 + 1 + 0) / 3


def test_no_samples_are_unresolved_and_bad_input_is_refused() -> None:
    assert accuracy([], []).value is None
    assert balanced_accuracy([], []).value is None
    with pytest.raises(ValueError, match="predictions"):
        balanced_accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="predictions"):
        accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(1, 0)
