from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.coco_output import OutputDependence, output_dependence
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.state import Batch, TrainState

CLASSES, ROWS = 4, 40


def defense(**settings) -> OutputDependence:
    return OutputDependence(validate(OutputDependence.Config, settings, "defense"))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(ROWS, 12, generator=generator), torch.randint(CLASSES, (ROWS,), generator=generator)


def fresh_state() -> TrainState:
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((12,)), CLASSES)
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.2), num_classes=CLASSES, seed=0)


def train(chosen: Defense, epochs: int) -> tuple[list[float], TrainState]:
    x, y = data()
    state, values = fresh_state(), []
    for state.epoch in range(epochs):
        for index in torch.arange(ROWS).split(20):
            state.optimizer.zero_grad()
            loss = chosen.loss(state, Batch(x[index], y[index], index))
            loss.backward()
            state.optimizer.step()
            values.append(loss.item())
    return values, state


def naive_kernel(rows: list[list[float]], name: str) -> list[list[float]]:
    def entry(a: list[float], b: list[float]) -> float:
        if name == "linear":
            return sum(u * v for u, v in zip(a, b, strict=True))
        distance = sum((u - v) ** 2 for u, v in zip(a, b, strict=True))
        return math.exp(-distance / (50 * len(a))) if name == "gaussian" else 1 / math.sqrt(distance + 1)

    return [[entry(a, b) for b in rows] for a in rows]


def naive_coco(first: list[list[float]], second: list[list[float]]) -> float:
    """sqrt of the Frobenius norm of the product of doubly centered kernels, by loops, divided by the rows."""
    size = len(first)
    centered = []
    for kernel in (first, second):
        means = [sum(row) / size for row in kernel]
        whole = sum(means) / size
        centered.append([[kernel[i][j] - means[i] - means[j] + whole for j in range(size)] for i in range(size)])
    a, b = centered
    product = [[sum(a[i][k] * b[k][j] for k in range(size)) for j in range(size)] for i in range(size)]
    return math.sqrt(math.sqrt(sum(value**2 for row in product for value in row))) / size


def test_lambda_zero_equals_none_bit_for_bit() -> None:
    values, state = train(defense(lambda_x=0.0), 3)
    expected, undefended = train(Defense(Defense.Config()), 3)
    assert values == expected
    for mine, theirs in zip(state.model.parameters(), undefended.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kernel", ["linear", "gaussian", "imq"])
def test_dependence_equals_a_naive_twin(kernel: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(7, 1, 3, 2, dtype=torch.float64, generator=generator)
    logits = 3 * torch.randn(7, 3, dtype=torch.float64, generator=generator)
    expected = naive_coco(naive_kernel(x.flatten(1).tolist(), "gaussian"), naive_kernel(logits.tolist(), kernel))
    assert output_dependence(x, logits, logits_kernel=kernel).item() == pytest.approx(expected, rel=1e-6)


def test_loss_is_cross_entropy_plus_the_weighed_dependence() -> None:
    x, y = data()
    state = fresh_state()
    value = defense(lambda_x=7.0).loss(state, Batch(x, y, torch.arange(ROWS)))
    logits = state.model(x)
    expected = F.cross_entropy(logits, y) + 7 * output_dependence(x, logits).float()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert value.dtype == torch.float32


def test_gradient_equals_finite_differences() -> None:
    x = data()[0][:6].double()
    logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: output_dependence(x, each), logits, atol=1e-6, rtol=1e-3)


def test_training_lowers_the_dependence_and_accuracy_pays_for_it() -> None:
    x, y = data()
    defended, plain = (train(chosen, 40)[1].model for chosen in (defense(lambda_x=50.0), Defense(Defense.Config())))
    assert output_dependence(x, defended(x)).item() < 0.5 * output_dependence(x, plain(x)).item()
    accuracies = [(model(x).argmax(1) == y).float().mean().item() for model in (defended, plain)]
    assert accuracies[0] < accuracies[1]


@pytest.mark.parametrize("rows", [1, 5])
def test_batches_without_variation_have_no_dependence_and_finite_gradients(rows: int) -> None:
    state = fresh_state()
    x = torch.full((rows, 12), 0.5)
    batch = Batch(x, torch.zeros(rows, dtype=torch.long), torch.arange(rows))
    value = defense().loss(state, batch)
    value.backward()
    assert value.item() == Defense(Defense.Config()).loss(fresh_state(), batch).item()
    assert all(parameter.grad.isfinite().all() for parameter in state.model.parameters())


def test_names_ignore_case_and_bad_settings_are_refused() -> None:
    chosen = defense(logits_kernel="IMQ", sigma="Median", coco_norm="Spectral").config
    assert (chosen.logits_kernel, chosen.sigma, chosen.coco_norm) == ("imq", "median", "spectral")
    for bad in ({"lambda_x": -1.0}, {"logits_kernel": "rbf"}, {"sigma": 0.0}, {"lambda_y": 1.0}):
        with pytest.raises(ConfigError, match="defense"):
            defense(**bad)
