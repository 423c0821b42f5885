from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oakum.datasets._canaries import candidates, plant


@given(count=st.integers(2, 60), num_classes=st.integers(2, 12), seed=st.integers(0, 2**63 - 1))
def test_wrong_labels_and_exactly_half(count: int, num_classes: int, seed: int) -> None:
    rows = np.arange(count) * 3 + 7
    labels = np.arange(count) % num_classes
    canaries = plant(rows, labels, num_classes, seed)
    assert (canaries.planted_label != labels).all()
    assert canaries.planted_label.min() >= 0
    assert canaries.planted_label.max() < num_classes
    assert canaries.is_member.sum() == count // 2
    np.testing.assert_array_equal(canaries.rows, rows)
    np.testing.assert_array_equal(canaries.members, rows[canaries.is_member])
    assert len(canaries) == count
    again = plant(rows, labels, num_classes, seed)
    np.testing.assert_array_equal(canaries.planted_label, again.planted_label)
    np.testing.assert_array_equal(canaries.is_member, again.is_member)


@given(count=st.integers(0, 60), seed=st.integers(0, 2**63 - 1), order=st.integers(0, 2**32 - 1))
def test_halves_of_the_candidates_share_nothing_and_are_those_of_any_order(count: int, seed: int, order: int) -> None:
    rows = np.arange(count) * 3 + 7
    shuffled = np.random.default_rng(order).permutation(rows)
    search, confirmation = (candidates(shuffled, part, seed) for part in ("search", "confirmation"))
    assert len(search) == count // 2 and sorted([*search, *confirmation]) == rows.tolist()
    assert set(search) == set(candidates(rows, "search", seed))
    assert list(search) == [row for row in shuffled if row in set(search)]
    np.testing.assert_array_equal(candidates(shuffled, "all", seed), shuffled)


def test_labels_are_uniform_and_independent_of_the_coin() -> None:
    count, num_classes = 40_000, 5
    labels = np.zeros(count, dtype=np.int64)
    canaries = plant(np.arange(count), labels, num_classes, 11)
    frequency = np.bincount(canaries.planted_label, minlength=num_classes) / count
    np.testing.assert_allclose(frequency, [0, 0.25, 0.25, 0.25, 0.25], atol=0.01)
    among_members = np.bincount(canaries.planted_label[canaries.is_member], minlength=num_classes) / (count / 2)
    np.testing.assert_allclose(among_members, frequency, atol=0.015)
    assert abs(np.corrcoef(np.arange(count), canaries.is_member)[0, 1]) < 0.02


def test_every_point_is_in_with_probability_one_half() -> None:
    rows, labels = np.arange(10), np.zeros(10, dtype=np.int64)
    members = np.stack([plant(rows, labels, 3, seed).is_member for seed in range(2000)])
    np.testing.assert_allclose(members.mean(axis=0), 0.5, atol=0.05)


def test_what_cannot_be_planted() -> None:
    one, two = np.arange(1), np.arange(2)
    with pytest.raises(ValueError, match="at least 2 rows and 2 classes"):
        plant(one, one, 5, 0)
    with pytest.raises(ValueError, match="at least 2 rows and 2 classes"):
        plant(two, np.zeros(2, dtype=np.int64), 1, 0)
    with pytest.raises(ValueError, match="one label in"):
        plant(two, np.array([0, 5]), 5, 0)
    with pytest.raises(ValueError, match="one label in"):
        plant(two, np.array([0, -1]), 5, 0)
    with pytest.raises(ValueError, match="one label in"):
        plant(two, np.array([0]), 5, 0)
