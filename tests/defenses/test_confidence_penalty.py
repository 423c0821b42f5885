from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.confidence_penalty import ConfidencePenalty, confidence_penalty
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.state import Batch, TrainState

CLASSES = 3


def example(count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, dtype=torch.float64, generator=generator)
    return 2 * logits, torch.randint(classes, (count,), generator=generator)


def naive(logits: Tensor, y: Tensor, alpha: float) -> list[float]:
    result = []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total for value in row]
        result.append(-math.log(p[label]) + alpha * sum(q * math.log(q) for q in p))
    return result


def penalty(**settings: float) -> ConfidencePenalty:
    return ConfidencePenalty(ConfidencePenalty.Config(**settings))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(48, 8, generator=generator), torch.randint(CLASSES, (48,), generator=generator)


def train(defense: Defense, epochs: int = 3) -> tuple[list[float], nn.Module]:
    x, y = data()
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((8,)), CLASSES)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), num_classes=CLASSES, seed=0)
    values = []
    for state.epoch in range(epochs):
        for index in torch.arange(48).split(16):
            state.optimizer.zero_grad()
            loss = defense.loss(state, Batch(x[index], y[index], index))
            loss.backward()
            state.optimizer.step()
            values.append(loss.item())
    return values, model


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0, 8.0])
def test_loss_equals_a_naive_twin(alpha: float) -> None:
    logits, y = example()
    assert confidence_penalty(logits, y, alpha=alpha).tolist() == pytest.approx(naive(logits, y, alpha), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 4.0])
def test_gradient_equals_its_closed_form(alpha: float) -> None:
    logits, y = example()
    logits.requires_grad_(True)
    (got,) = torch.autograd.grad(confidence_penalty(logits, y, alpha=alpha).sum(), logits)
    p = logits.detach().exp() / logits.detach().exp().sum(1, keepdim=True)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    expected = p - torch.eye(4, dtype=p.dtype)[y] + alpha * p * (p.log() + entropy)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_known_values() -> None:
    uniform = torch.zeros(1, 5, dtype=torch.float64)
    label = torch.tensor([2])
    assert confidence_penalty(uniform, label, alpha=0.3).item() == pytest.approx(0.7 * math.log(5))
    certain = uniform + 60 * torch.eye(5)[label]
    assert confidence_penalty(certain, label, alpha=4.0).item() == pytest.approx(0, abs=1e-12)
    assert confidence_penalty(torch.zeros(1, 1), torch.tensor([0]), alpha=2.0).item() == 0


def test_the_loss_is_at_least_minus_alpha_ln_k() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 5 * torch.randn(500, 7, dtype=torch.float64, generator=generator)
    y = torch.randint(7, (500,), generator=generator)
    assert (confidence_penalty(logits, y, alpha=8.0) >= -8.0 * math.log(7)).all()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4]], requires_grad=True)
    terms = confidence_penalty(logits, torch.tensor([0, 1]), alpha=1.0)
    (gradient,) = torch.autograd.grad(terms.mean(), logits)
    assert terms.tolist() == [0.0, 1e4] and gradient.isfinite().all()


def test_alpha_zero_equals_none_bit_for_bit() -> None:
    values, model = train(penalty(alpha=0.0))
    expected, undefended = train(Defense(Defense.Config()))
    assert values == expected
    for mine, theirs in zip(model.parameters(), undefended.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_training_keeps_answers_less_confident_the_larger_alpha_is() -> None:
    x, _ = data()
    confidences = []
    for alpha in (0.0, 0.5, 2.0):
        _, model = train(penalty(alpha=alpha), epochs=60)
        confidences.append(model(x).softmax(1).max(1).values.mean().item())
    assert confidences[0] > confidences[1] + 0.05 > confidences[2] + 0.1


def test_shards_add_up_to_the_global_batch() -> None:
    x, y = data()
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((8,)), CLASSES).double()
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), num_classes=CLASSES, seed=0)

    def gradient(rows: Tensor) -> Tensor:
        loss = penalty(alpha=0.7).loss(state, Batch(x[rows].double(), y[rows], rows))
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

    shards = [torch.arange(48)[rank::5] for rank in range(5)]
    together = sum(gradient(rows) * (len(rows) / 48) for rows in shards)
    torch.testing.assert_close(together, gradient(torch.arange(48)), rtol=1e-10, atol=1e-14)


def test_defaults_are_those_of_the_released_code() -> None:
    assert validate(ConfidencePenalty.Config, {}, "defense").alpha == 0.1


@pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"alpha": "0.1"}, {"alpha": None}, {"beta": 0.1}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="defense"):
        validate(ConfidencePenalty.Config, bad, "defense")
