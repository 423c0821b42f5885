from __future__ import annotations

import pytest
import torch
from torch import nn

from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.collective import Collective
from oakum.training.state import TrainState


def state(**changes: object) -> TrainState:
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(6, 5)), InputShape((4,)), 3)
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), 3, 0, **changes)  # type: ignore[arg-type]


def test_forward_remembers_detached_logits() -> None:
    running = state()
    logits = running.forward(torch.rand(2, 4))
    assert logits.requires_grad and running.last_logits is not None
    assert not running.last_logits.requires_grad and torch.equal(running.last_logits, logits)


def test_taps_belong_to_the_same_logits() -> None:
    running, x = state(), torch.rand(2, 4)
    logits, taps = running.forward_with_taps(x)
    assert torch.equal(logits, running.forward(x))
    assert [tuple(tap.shape) for tap in taps] == [(2, 6), (2, 5)]


def test_autocast_gives_float32_logits_and_taps() -> None:
    running, x = state(autocast_dtype=torch.bfloat16), torch.rand(2, 4)
    logits, taps = running.forward_with_taps(x)
    assert {logits.dtype, *(tap.dtype for tap in taps)} == {torch.float32}
    exact = state().forward(x)
    assert not torch.equal(logits, exact)
    assert logits.tolist() == [pytest.approx(row, abs=0.05) for row in exact.tolist()]


def test_float64_is_not_lowered() -> None:
    running = state()
    running.model.double()
    assert running.forward(torch.rand(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_batch_mean_of_one_process() -> None:
    assert state().batch_mean(torch.tensor([1.0, 2.0, 6.0])) == 3.0


def test_batch_mean_weighs_shards_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks with 1 and 3 samples: the average over ranks must be the mean over all four."""
    monkeypatch.setattr(Collective, "sum", lambda self, value: torch.tensor(4.0))
    shards = [torch.tensor([8.0]), torch.tensor([1.0, 2.0, 1.0])]
    means = [state(collective=Collective(rank, 2)).batch_mean(shard) for rank, shard in enumerate(shards)]
    assert sum(means) / 2 == pytest.approx(float(torch.cat(shards).mean()))


def test_channels_last_changes_the_layout_only() -> None:
    model = nn.Conv2d(2, 3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    TrainState(model, optimizer, 3, 0, channels_last=True).forward(torch.rand(2, 2, 5, 5))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
