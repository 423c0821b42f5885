"""Batches of several classes with several samples each: what they hold, and their place in the loop."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.training.collective import Collective
from oakum.training.identity_sampler import identity_batches
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState


def labels(*counts: int, seed: int = 0) -> Tensor:
    """Return labels with so many samples of class 0, 1, ... in random order."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


def epoch(y: Tensor, classes: int, images: int, seed: int = 0) -> list[Tensor]:
    return list(identity_batches(y, classes, images, torch.Generator().manual_seed(seed)))


def test_a_batch_holds_so_many_samples_of_so_many_classes() -> None:
    y = labels(9, 11, 8, 12, 10)
    for batch in epoch(y, 3, 4):
        groups = y[batch].view(3, 4)
        assert torch.equal(groups, groups[:, :1].expand(3, 4)) and len(groups[:, 0].unique()) == 3


def test_no_sample_comes_twice_in_an_epoch_and_remainders_are_left_out() -> None:
    y = labels(9, 11, 8, 12, 10)
    seen = Counter(torch.cat(epoch(y, 1, 4)).tolist())
    assert set(seen.values()) == {1}
    assert Counter(y[list(seen)].tolist()) == {0: 8, 1: 8, 2: 8, 3: 12, 4: 8}


def test_the_epoch_ends_when_too_few_classes_have_groups_left() -> None:
    # Class 0 has ten groups, the others one: pairs last no longer than the others.
    assert len(epoch(labels(20, 2, 2, 2), 2, 2)) in {2, 3}
    assert len(epoch(labels(4, 4, 4), 3, 2)) == 2
    assert len(epoch(labels(20, 3), 2, 2)) == 1


def test_a_class_that_is_too_small_is_drawn_with_replacement() -> None:
    y = labels(1, 3, 8)
    batches = epoch(y, 3, 4)
    assert len(batches) == 1 and Counter(y[batches[0]].tolist()) == {0: 4, 1: 4, 2: 4}
    drawn = Counter(len(batch[y[batch] == 1].unique()) for seed in range(300) for batch in epoch(y, 3, 4, seed))
    # 4 draws of 3: all equal with 3/81, all three seen with 36/81.
    assert stats.chisquare([drawn[n] for n in (1, 2, 3)], [300 * n / 81 for n in (3, 42, 36)]).pvalue > 1e-3


def test_every_class_and_sample_is_equally_likely_to_come_first() -> None:
    y = labels(4, 4, 4, 4)
    first = Counter(int(epoch(y, 2, 2, seed)[0][0]) for seed in range(1600))
    assert len(first) == 16 and stats.chisquare(list(first.values())).pvalue > 1e-3


def test_absent_classes_are_passed_over() -> None:
    y = labels(4, 0, 4)
    assert Counter(y[epoch(y, 2, 4)[0]].tolist()) == {0: 4, 2: 4}


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 12 .* takes 3 classes a batch, .* has 2; lower .* at most 8"):
        epoch(labels(9, 0, 9), 3, 4)


def loop(sampler: object = None) -> TrainingLoop:
    recipe = Recipe(batch_size=12, images_per_class=4)
    return TrainingLoop(LabeledData(torch.rand(50, 3), labels(9, 11, 8, 12, 10)), None, recipe, sampler=sampler)


def state(epoch: int = 0, seed: int = 1, collective: Collective | None = None) -> TrainState:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainState(model, optimizer, 5, seed, epoch=epoch, collective=collective or Collective())


def indices(running: TrainState) -> list[list[int]]:
    return [batch.index.tolist() for batch in loop().batches(running)]


def test_the_loop_draws_by_seed_and_epoch() -> None:
    assert indices(state()) == indices(state()) and all(len(index) == 12 for index in indices(state()))
    assert indices(state()) not in (indices(state(epoch=1)), indices(state(seed=2)))


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_share_the_batches_of_one(workers: int) -> None:
    alone = indices(state())
    shards = [indices(state(collective=Collective(rank, workers))) for rank in range(workers)]
    assert all(len(shard) == len(alone) for shard in shards)
    for step, whole in enumerate(alone):
        assert [shard[step] for shard in shards] == [whole[rank::workers] for rank in range(workers)]


def test_the_loop_yields_the_samples_of_its_positions() -> None:
    running = loop()
    for batch in running.batches(state()):
        assert torch.equal(batch.x, running.train.x[batch.index]) and torch.equal(batch.y, running.train.y[batch.index])


def test_a_defense_with_batches_of_its_own_refuses_the_option() -> None:
    with pytest.raises(ConfigError, match="draws its batches by itself"):
        list(loop(sampler=lambda running: iter([torch.arange(3)])).batches(state()))
