"""Randomness that belongs to samples: SplitMix64 in wrapping int64 tensors against Python's own integers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from oakum.seeding import content_keys, derive_seed, keyed_normal, keyed_uniform, sample_keys

WORD = 1 << 64
STEP = 0x9E3779B97F4A7C15
SEEDS = [0, 1, 1234567, (1 << 63) - 1, 1 << 63, WORD - 1]


def mix(z: int) -> int:
    """The finalizer of SplitMix64 on unsigned 64-bit integers."""
    z %= WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def splitmix64(seed: int, count: int) -> list[int]:
    state, found = seed, []
    for _ in range(count):
        state = (state + STEP) % WORD
        found.append(mix(state))
    return found


def unsigned(keys: Tensor) -> list[int]:
    return [key % WORD for key in keys.tolist()]


def signed(value: int) -> int:
    return value - WORD if value >= WORD // 2 else value


def test_the_twin_gives_the_published_numbers() -> None:
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_sample_keys_are_the_outputs_of_splitmix64(seed: int) -> None:
    assert unsigned(sample_keys(seed, torch.arange(1, 101))) == splitmix64(seed, 100)
    assert unsigned(sample_keys(seed, torch.tensor([0]))) == [mix(seed)]


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_numbers_are_the_upper_bits_of_splitmix64(seed: int) -> None:
    got = keyed_uniform(torch.tensor([signed(seed)]), 50)
    assert got.dtype == torch.float32 and got.shape == (1, 50)
    assert got[0].tolist() == [(value >> 40) / 2**24 for value in splitmix64(seed, 50)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, WORD - 1), st.integers(-(2**63), 2**63 - 1))
def test_any_seed_and_position_agree_with_the_twin(seed: int, position: int) -> None:
    (key,) = unsigned(sample_keys(seed, torch.tensor([position])))
    assert key == mix(position * STEP + seed)
    got = keyed_uniform(torch.tensor([signed(key)]), 3)[0].tolist()
    assert got == [(value >> 40) / 2**24 for value in splitmix64(key, 3)]


def naive_content_key(seed: int, row: list[float]) -> int:
    bits = [struct.unpack("<i", struct.pack("<f", value + 0.0))[0] for value in row]
    return mix(sum(mix(word) * (mix(place * STEP + seed) | 1) for place, word in enumerate(bits)))


@pytest.mark.parametrize("seed", SEEDS)
def test_content_keys_equal_a_twin(seed: int) -> None:
    x = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    x[0, :4] = torch.tensor([0.0, -0.0, 1.0, 1e-42])
    assert unsigned(content_keys(seed, x)) == [naive_content_key(seed, row) for row in x.tolist()]


def test_content_keys_depend_on_values_alone() -> None:
    x = torch.rand(40, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    keys = content_keys(3, x)
    assert keys.shape == (40,) and keys.dtype == torch.int64
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(content_keys(3, x[order]), keys[order])
    assert torch.equal(torch.cat([content_keys(3, part) for part in x.split(7)]), keys)
    assert torch.equal(content_keys(3, x.flatten(1)), keys)
    assert torch.equal(content_keys(3, x.double()), keys)
    assert torch.equal(content_keys(3, x.transpose(2, 3).contiguous().transpose(2, 3)), keys)
    assert torch.equal(content_keys(3, x.clone().requires_grad_(True)), keys)
    assert not (content_keys(4, x) == keys).any()


def test_content_keys_tell_close_and_permuted_rows_apart() -> None:
    x = torch.rand(1, 30, generator=torch.Generator().manual_seed(0))
    close = x.repeat(30, 1)
    close[torch.arange(30), torch.arange(30)] = torch.nextafter(x[0], torch.tensor(2.0))
    swapped = torch.stack([x[0].roll(places) for places in range(30)])
    binary = torch.tensor([[int(bit) for bit in f"{number:012b}"] for number in range(4096)])
    assert len(content_keys(5, torch.cat([close, swapped])).unique()) == 60
    assert len(content_keys(5, binary).unique()) == 4096


def test_zeros_of_both_signs_are_one_value() -> None:
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    first, second = content_keys(5, x).tolist()
    assert first == second


def test_a_row_of_numbers_depends_on_its_key_alone() -> None:
    keys = sample_keys(9, torch.arange(50))
    whole = keyed_uniform(keys, 20)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(keyed_uniform(keys[order], 20), whole[order])
    assert torch.equal(torch.cat([keyed_uniform(part, 20) for part in keys.split(7)]), whole)
    assert torch.equal(torch.cat([keyed_uniform(keys[i : i + 1], 20) for i in range(50)]), whole)
    assert torch.equal(keyed_uniform(keys, 6), whole[:, :6])


def test_sample_keys_of_shards_are_those_of_the_batch() -> None:
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    keys = sample_keys(9, index)
    for rank in range(3):
        assert torch.equal(sample_keys(9, index[rank::3]), keys[rank::3])
    assert len(keys.unique()) == 1000


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = keyed_uniform(sample_keys(1, torch.arange(4)), 5)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, keyed_uniform(sample_keys(1, torch.arange(4)), 5))


def test_empty_batches_and_counts_have_a_shape() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert sample_keys(1, none).shape == (0,) and content_keys(1, torch.empty(0, 3)).shape == (0,)
    assert keyed_uniform(none, 4).shape == (0, 4) and keyed_uniform(sample_keys(1, torch.arange(2)), 0).shape == (2, 0)


@pytest.mark.parametrize("along", ["samples", "counters"])
def test_numbers_are_uniform_and_uncorrelated(along: str) -> None:
    shape = (40_000, 5) if along == "samples" else (5, 40_000)
    keys = sample_keys(derive_seed(0, "dropout", 0, 0), torch.arange(shape[0]))
    draws = keyed_uniform(keys, shape[1]).double().numpy()
    streams = draws.T if along == "samples" else draws
    assert draws.min() >= 0 and draws.max() < 1
    for stream in streams:
        assert stats.kstest(stream, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(stream[:-1], stream[1:])[0, 1]) < 0.02
    assert np.abs(np.corrcoef(streams) - np.eye(5)).max() < 0.02


def test_streams_of_neighboring_steps_do_not_correlate() -> None:
    index = torch.arange(20_000)
    first, second = (keyed_uniform(sample_keys(derive_seed(0, "dropout", 0, step), index), 1)[:, 0] for step in (0, 1))
    assert abs(np.corrcoef(first.numpy(), second.numpy())[0, 1]) < 0.025


def test_keyed_normals_are_standard_and_belong_to_their_keys() -> None:
    keys = sample_keys(1, torch.arange(2000))
    drawn = keyed_normal(keys, 5)
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(drawn.T) - torch.eye(5)).max() < 0.1
    assert torch.equal(keyed_normal(keys[7:9], 5), drawn[7:9])


def test_keyed_normals_have_no_infinite_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0.0, 1 - 2.0**-24]])
    monkeypatch.setattr("oakum.seeding.keyed_uniform", lambda keys, count: ends)
    drawn = keyed_normal(torch.zeros(1, dtype=torch.long), 2)[0]
    assert drawn.isfinite().all() and drawn.abs().max() < 6
