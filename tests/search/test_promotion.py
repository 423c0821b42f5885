"""Rungs: the better third goes on."""

from __future__ import annotations

import numpy as np
import pytest

from oakum.search.promotion import is_promoted


@pytest.mark.parametrize(("rank", "goes_on"), [(0, True), (2, True), (3, False), (8, False)])
def test_one_objective_promotes_the_best_third(rank: int, goes_on: bool) -> None:
    others = [float(value) for value in range(9) if value != rank]
    assert is_promoted(np.array([[float(rank)], *([value] for value in others)]), np.zeros(9)) is goes_on


def test_the_first_trial_goes_on_and_so_does_a_newcomer_among_equals() -> None:
    assert is_promoted(np.array([[5.0]]), np.zeros(1))
    assert is_promoted(np.ones((9, 2)), np.zeros(9))


def test_several_objectives_go_by_fronts_and_misses_of_floors_come_last() -> None:
    front = [[0.0, 1.0], [1.0, 0.0]]
    worse = [[2.0, 2.0]] * 4
    assert is_promoted(np.array([*front, *worse]), np.zeros(6))
    assert not is_promoted(np.array([worse[0], *front, *worse[1:]]), np.zeros(6))
    assert not is_promoted(np.array([*front, *worse]), np.array([0.1, *np.zeros(5)]))
