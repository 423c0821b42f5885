"""Seeds are equal for equal names, on every platform, and independent otherwise."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from oakum.seeding import derive_seed, numpy_generator, torch_generator

ROLES = st.text(alphabet="ab/0123", max_size=6)
INDICES = st.lists(st.integers(0, 12), max_size=3).map(tuple)


def test_known_values_hold_for_ever() -> None:
    assert derive_seed(0, "folds/shared") == 2910574816577283170
    assert derive_seed(7, "target", 2) == 5591264307412291532


@given(st.integers(-(2**70), 2**70), ROLES, INDICES)
def test_seeds_fit_every_generator(experiment_seed: int, role: str, index: tuple[int, ...]) -> None:
    seed = derive_seed(experiment_seed, role, *index)
    assert 0 <= seed < 2**63
    numpy_generator(seed)
    torch_generator(seed)


@given(st.tuples(st.integers(0, 3), ROLES, INDICES), st.tuples(st.integers(0, 3), ROLES, INDICES))
def test_equal_arguments_and_only_they_give_equal_seeds(
    first: tuple[int, str, tuple[int, ...]], second: tuple[int, str, tuple[int, ...]]
) -> None:
    seeds = [derive_seed(seed, role, *index) for seed, role, index in (first, second)]
    assert (seeds[0] == seeds[1]) == (first == second)


def test_a_role_with_a_slash_is_not_a_role_with_an_index() -> None:
    spellings = [("a/1",), ("a", 1), ("a", 1, 1), ("a/1", 1), ("a", 11)]
    seeds = [derive_seed(0, *spelling) for spelling in spellings]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(spellings)


def test_numpy_integers_count_as_integers() -> None:
    assert derive_seed(np.int64(3), "a", np.int32(4)) == derive_seed(3, "a", 4)  # type: ignore[arg-type]


def test_generators_repeat_their_streams_and_leave_the_global_ones_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = torch_generator(5), torch_generator(5)
    assert torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(numpy_generator(5).random(4), numpy_generator(5).random(4))


def test_streams_of_neighboring_seeds_do_not_correlate() -> None:
    draws = [numpy_generator(derive_seed(0, "target", i)).standard_normal(2000) for i in range(6)]
    for a, b in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
