from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, skew
from torch import Tensor, nn

from oakum.attacks.membership import _gradients
from oakum.attacks.membership._gradients import STATISTICS, Moments, gradient_statistics
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN

IMAGES, ROWS = (3, 8, 8), (12,)


def seven(vector: np.ndarray) -> list[float]:
    return [
        float(np.linalg.norm(vector, 1)),
        float(np.linalg.norm(vector, 2)),
        min(abs(v) for v in vector),
        max(abs(v) for v in vector),
        float(np.mean(vector)),
        float(skew(vector)),
        float(kurtosis(vector)),
    ]


def naive(module: nn.Module, x: Tensor, y: Tensor, scale: Tensor | float = 1.0) -> np.ndarray:
    """One backward pass for every sample; (N, 14)."""
    rows = []
    for sample, label in zip(x, y, strict=True):
        module.zero_grad()
        one = sample[None].clone().requires_grad_()
        logits = module(one)[0]
        (logits.logsumexp(0) - logits[label]).backward()
        of_w = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
        assert one.grad is not None
        rows.append(seven((one.grad * scale).numpy().ravel()) + seven(torch.cat([g.ravel() for g in of_w]).numpy()))
    module.zero_grad()
    return np.array(rows)


def found(module: nn.Module, x: Tensor, y: Tensor, chunk: int | None = None) -> np.ndarray:
    result = gradient_statistics(module, x, y, chunk=chunk)
    assert list(result) == [f"{of}/{name}" for of in ("x", "w") for name in STATISTICS]
    assert all(values.dtype == np.float64 and values.shape == (len(y),) for values in result.values())
    return np.stack(list(result.values()), axis=1)


class WithUnusedLayer(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.first(x)).tanh()).tanh())


class WeightUsedOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(x).tanh() @ self.first.weight.T).tanh())


class SeveralRowsASample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.each(x.view(len(x), 3, 4)).tanh().mean(dim=1))


class DependsOnData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.high(row[None]) if row.sum() > 6 else self.low(row[None]) for row in x])


def conv(normalization: nn.Module) -> nn.Module:
    """A small convolution network whose batch normalization, if any, has seen data."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        normalization,
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    net(torch.randn(16, *IMAGES))
    return net


NETWORKS = {
    "linear": lambda: nn.Linear(12, 5, bias=False),
    "rows": lambda: nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7, bias=False), nn.ELU(), nn.Linear(7, 5)),
    "in place": lambda: nn.Sequential(nn.Linear(12, 9), nn.ReLU(inplace=True), nn.Linear(9, 5)),
    "flattened image": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 5)),
    "called twice": CalledTwice,
    "used outside": WeightUsedOutside,
    "several rows": SeveralRowsASample,
    "unused": lambda: WithUnusedLayer(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5)),
    "batch norm": lambda: conv(nn.BatchNorm2d(4)),
    "group norm": lambda: conv(nn.GroupNorm(2, 4)),
    "depends on data": DependsOnData,
}
WAYS = {
    _gradients._by_factors: {"linear", "rows", "in place", "flattened image"},
    _gradients._by_vmap: {"called twice", "used outside", "several rows", "unused", "batch norm", "group norm"},
    _gradients._by_sample: {"depends on data"},
}


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a float64 network in eval mode, five samples in [0, 1] and labels."""
    torch.manual_seed(0)
    module = NETWORKS[name]().double().eval()
    dims = IMAGES if name in ("flattened image", "batch norm", "group norm") else ROWS
    return module, torch.rand(5, *dims, dtype=torch.float64), torch.tensor([0, 3, 2, 4, 1])


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_one_backward_pass_for_every_sample(name: str) -> None:
    module, x, y = build(name)
    np.testing.assert_allclose(found(module, x, y), naive(module, x, y), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", NETWORKS)
def test_takes_the_fastest_way_that_can_follow_the_module(name: str) -> None:
    module, x, _ = build(name)
    expected = next(way for way, names in WAYS.items() if name in names)
    assert _gradients._method(module, x[:2]) is expected


@pytest.mark.parametrize("name", ["rows", "batch norm", "depends on data"])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_do_not_matter(name: str, chunk: int) -> None:
    module, x, y = build(name)
    np.testing.assert_allclose(found(module, x, y, chunk), found(module, x, y), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["batch norm", "depends on data"])
def test_large_gradients_are_summed_up_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, y = build(name)
    whole = found(module, x, y)
    monkeypatch.setattr(_gradients, "_BLOCK_ON_CPU", 40)
    np.testing.assert_allclose(found(module, x, y), whole, rtol=1e-9, atol=1e-15)


def test_the_gradients_held_at_once_are_bounded() -> None:
    small, large = nn.Linear(4, 4), nn.Linear(1, 2**25, bias=False, device="meta")
    assert _gradients._chunk_size(small, _gradients._by_vmap) == 32
    assert _gradients._chunk_size(large, _gradients._by_vmap) * 2**25 * 4 <= 512 * 2**20


@pytest.mark.parametrize("name", ["rows", "batch norm", "depends on data"])
def test_a_sample_does_not_depend_on_the_others(name: str) -> None:
    module, x, y = build(name)
    together = found(module, x, y)
    for start, stop in pairwise(range(6)):
        alone = found(module, x[start:stop], y[start:stop])
        np.testing.assert_allclose(alone, together[start:stop], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", NETWORKS)
def test_leaves_the_module_as_it_is(name: str) -> None:
    module, x, y = build(name)
    module.train()
    next(module.parameters()).requires_grad_(False)
    frozen = [parameter.requires_grad for parameter in module.parameters()]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        in_training_mode = found(module, x, y)
    assert module.training
    assert [parameter.requires_grad for parameter in module.parameters()] == frozen
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all((value == before[key]).all() for key, value in module.state_dict().items())
    assert not any(each._forward_hooks for each in module.modules())
    assert not x.requires_grad
    np.testing.assert_array_equal(in_training_mode, found(module.eval(), x, y))


def test_the_input_gradient_is_that_of_the_normalized_input() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(4, *IMAGES, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    config = SmallCNN.Config(width=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.5, 4.0))
    module = SmallCNN(config, InputShape(IMAGES), 4).double().eval()
    normalized = ((x - module._mean) / module._std).clone()
    plain = SmallCNN(SmallCNN.Config(width=2), InputShape(IMAGES), 4).double().eval()
    plain.load_state_dict(module.state_dict())
    np.testing.assert_allclose(found(module, x, y), naive(plain, normalized, y), rtol=1e-9, atol=1e-15)
    rows = MLP(MLP.Config(hidden=(5,), mean=(0.3,), std=(0.25,)), InputShape(ROWS), 4).double().eval()
    x = torch.rand(4, *ROWS, dtype=torch.float64)
    np.testing.assert_allclose(found(rows, x, y), naive(rows, x, y, 0.25), rtol=1e-9, atol=1e-15)


def test_frozen_parameters_count() -> None:
    module, x, y = build("batch norm")
    free = found(module, x, y)
    np.testing.assert_array_equal(found(module.requires_grad_(False), x, y), free)


def test_float32_samples_meet_a_float64_module() -> None:
    module, x, y = build("rows")
    np.testing.assert_allclose(found(module, x.float(), y), found(module, x, y), rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_zero_has_zero_statistics() -> None:
    """A float32 model may be so sure that its loss is exactly 0."""
    module = nn.Linear(2, 2)
    module.load_state_dict({"weight": torch.tensor([[900.0, 0.0], [0.0, 900.0]]), "bias": torch.zeros(2)})
    assert (found(module, torch.eye(2), torch.tensor([0, 1])) == 0).all()


def test_tiny_gradients_stay_apart() -> None:
    """Squares and fourth powers of such float32 gradients would be 0 in float32."""
    module = nn.Linear(2, 2, bias=False)
    module.load_state_dict({"weight": torch.tensor([[0.0, 0.0], [-60.0, 30.0]])})
    statistics = gradient_statistics(module, torch.tensor([[1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 0]))
    assert 0 < statistics["w/l2"][0] < 1e-25
    assert statistics["w/l2"][0] < statistics["w/l2"][1]
    # In float32 p_y is 1, so that one of the four parameters is left with a gradient.
    assert statistics["w/kurtosis"][0] == pytest.approx(kurtosis([0, 0, 1, 0]))


def test_no_samples() -> None:
    module, x, y = build("batch norm")
    assert found(module, x[:0], y[:0]).shape == (0, 14)


def test_a_diverged_model_is_refused() -> None:
    module, x, y = build("batch norm")
    x[1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"1 of 5 samples are not finite.*smaller learning rate"):
        gradient_statistics(module, x, y)
    assert not any(each._forward_hooks for each in module.modules())


def test_wrong_arguments_are_refused() -> None:
    module, x, y = build("rows")
    with pytest.raises(ValueError, match="got 4 labels for 5 samples"):
        gradient_statistics(module, x, y[:4])
    with pytest.raises(ValueError, match="Identity has no parameters"):
        gradient_statistics(nn.Identity(), x, y)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradient_statistics(module, x[:, :3], y)


VECTORS = np.random.default_rng(0).normal(size=(3, 40)) ** 3


@pytest.mark.parametrize("shift", [0.0, 1.0, 1e4])
def test_moments_equal_scipy(shift: float) -> None:
    vectors = VECTORS + shift
    expected = [seven(vector) for vector in vectors]
    whole = Moments.of(torch.from_numpy(vectors))
    np.testing.assert_allclose(whole.statistics(), expected, rtol=1e-9)
    parts = [Moments.of(torch.from_numpy(part)) for part in np.split(vectors, [1, 4, 30], axis=1)]
    np.testing.assert_allclose(Moments.joined(parts).statistics(), expected, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0, 1e4])
def test_moments_of_an_outer_product(shift: float) -> None:
    first, second = VECTORS + shift, VECTORS[:, ::-1][:, :7] - 2 * shift
    product = Moments.of(torch.from_numpy(first)).times(Moments.of(torch.from_numpy(second.copy())))
    expected = [seven(np.outer(a, b).ravel()) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(product.statistics(), expected, rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_a_constant_vector_is_neither_skewed_nor_peaked(value: float) -> None:
    constant = torch.full((1, 7), value, dtype=torch.float64)
    for moments in (Moments.of(constant), Moments.joined([Moments.of(constant[:, :3]), Moments.of(constant[:, 3:])])):
        assert moments.statistics()[0, 5:].tolist() == [0.0, 0.0]
