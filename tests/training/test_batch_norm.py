"""Global batch normalization in one process, where it has to be torch's; groups are in tests/contracts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.training.batch_norm import GlobalBatchNorm, use_global_statistics
from oakum.training.collective import Collective

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "rows": (lambda: nn.BatchNorm1d(3), (5, 3)),
    "sequences": (lambda: nn.BatchNorm1d(3, eps=1e-3), (5, 3, 4)),
    "images": (lambda: nn.BatchNorm2d(3, momentum=0.3), (5, 3, 4, 2)),
    "cumulative average": (lambda: nn.BatchNorm2d(3, momentum=None), (5, 3, 4, 2)),
    "without weights": (lambda: nn.BatchNorm2d(3, affine=False), (5, 3, 4, 2)),
    "without running statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (5, 3, 4, 2)),
    "without bias": (lambda: nn.BatchNorm2d(3, bias=False), (5, 3, 4, 2)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Return a layer of torch's with weights of its own, and ours in its place."""
    build, shape = LAYERS[name]
    layer = build().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    ours = nn.Sequential(copy.deepcopy(layer))
    use_global_statistics(ours, Collective())
    return layer, ours[0], shape


def inputs(shape: tuple[int, ...], seed: int, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).add(1).to(**options)


@pytest.mark.parametrize("name", LAYERS)
def test_alone_it_is_torchs_forward_backward_and_in_eval_mode(name: str) -> None:
    theirs, ours, shape = pair(name)
    assert isinstance(ours, GlobalBatchNorm)
    for seed in range(3):
        results = []
        for layer in (theirs, ours):
            layer.zero_grad()
            x = inputs(shape, seed).requires_grad_()
            y = layer(x)
            (y.sin() * torch.arange(y.numel()).view_as(y)).sum().backward()
            results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
        for mine, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)
    x = inputs(shape, 9)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)


def test_names_weights_and_training_flags_stay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2)))
    weights, state = list(model.parameters()), model.state_dict()
    use_global_statistics(model, Collective())
    assert all(one is other for one, other in zip(model.parameters(), weights, strict=True))
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == {
        name: value.data_ptr() for name, value in state.items()
    }
    assert [layer.training for layer in model[1]] == [False, True]
    assert all(type(layer) is GlobalBatchNorm for layer in model[1])
    before = model[1][0].running_mean.clone()
    model(torch.rand(2, 1, 5, 5))
    assert torch.equal(model[1][0].running_mean, before) and model[1][1].num_batches_tracked == 1


def test_a_large_mean_costs_no_digits_in_float32() -> None:
    layer = nn.BatchNorm2d(2)
    ours = GlobalBatchNorm(copy.deepcopy(layer), Collective())
    x = inputs((64, 2, 4, 4), 0, dtype=torch.float32) * 0.1 + 500
    torch.testing.assert_close(ours(x), F.batch_norm(x.double(), None, None, training=True).float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * x.double().var((0, 2, 3)).float(), rtol=1e-5, atol=0)


def test_under_autocast_it_answers_in_the_type_that_it_gets() -> None:
    ours = GlobalBatchNorm(nn.BatchNorm2d(2), Collective())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(torch.rand(3, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert ours.running_mean.dtype == torch.float32


def test_one_value_for_each_channel_is_refused() -> None:
    ours = GlobalBatchNorm(nn.BatchNorm1d(2), Collective())
    with pytest.raises(ValueError, match="at least 2 values for each channel to train, not 1"):
        ours(torch.rand(1, 2))
    assert ours.eval()(torch.rand(1, 2)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"takes \(B, C, ...\), not \(2,\)"):
        ours(torch.rand(2))


@pytest.mark.gpu
def test_on_cuda_torchs_own_layers_take_over() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).cuda()
    use_global_statistics(model, Collective())
    assert type(model[0]) is nn.SyncBatchNorm and model[0].weight.is_cuda
