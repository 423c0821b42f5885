from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.hamp import (
    HAMP,
    hamp_loss,
    masked_logits,
    random_inputs,
    soft_label_entropy,
    true_class_probability,
)
from oakum.models.base import InputShape, predict_log_probabilities
from oakum.models.mlp import MLP
from oakum.training.state import Batch, TrainState


def example(count: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, dtype=torch.float64, generator=generator)
    return 2 * logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize(
    ("classes", "gamma", "exact", "on_the_grid"),
    [
        (100, 0.8, 0.3374, 0.33),
        (100, 0.6, 0.5485, 0.54),
        (30, 0.5, 0.6809, 0.68),
        (10, 0.95, 0.2698, 0.26),
        (100, 0.5, 0.6410, 0.64),
    ],
)
def test_soft_labels_of_the_published_settings(classes: int, gamma: float, exact: float, on_the_grid: float) -> None:
    assert true_class_probability(gamma, classes) == pytest.approx(exact, abs=5e-5)
    assert true_class_probability(gamma, classes, "released_code") == pytest.approx(on_the_grid)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("gamma", [1e-6, 0.2, 0.9, 0.99968377])
def test_soft_labels_have_the_wanted_entropy(classes: int, gamma: float) -> None:
    q = true_class_probability(gamma, classes)
    label = [q] + [(1 - q) / (classes - 1)] * (classes - 1)
    entropy = -sum(t * math.log(t) for t in label)
    assert 1 / classes < q < 1
    assert entropy == pytest.approx(gamma * math.log(classes), abs=1e-9)
    assert soft_label_entropy(q, classes) == pytest.approx(entropy)
    on_the_grid = true_class_probability(gamma, classes, "released_code")
    assert q - 0.01 <= on_the_grid <= q and on_the_grid * 100 == pytest.approx(round(on_the_grid * 100))


def test_gamma_zero_is_the_hard_label() -> None:
    assert true_class_probability(0.0, 7) == true_class_probability(0.0, 7, "released_code") == 1.0
    assert soft_label_entropy(1.0, 7) == 0.0


def naive_terms(logits: Tensor, y: Tensor, q: float, alpha: float, by_elements: bool) -> list[float]:
    result = []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total for value in row]
        t = [q if c == label else (1 - q) / (len(row) - 1) for c in range(len(row))]
        divergence = sum(a * math.log(a / b) for a, b in zip(t, p, strict=True))
        entropy = -sum(value * math.log(value) for value in p)
        result.append(divergence / (len(row) if by_elements else 1) - alpha * entropy)
    return result


@pytest.mark.parametrize("variant", ["paper", "released_code"])
def test_the_loss_equals_a_naive_twin(variant: str) -> None:
    logits, y = example()
    got = hamp_loss(logits, y, true_probability=0.6, alpha=0.3, variant=variant)
    assert got.tolist() == pytest.approx(naive_terms(logits, y, 0.6, 0.3, variant == "released_code"))
    target = F.one_hot(y, 4) * (0.6 - 0.4 / 3) + 0.4 / 3
    elements = F.kl_div(logits.log_softmax(1), target, reduction="none")
    divergence = elements.mean() if variant == "released_code" else elements.sum(1).mean()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert got.mean().item() == pytest.approx((divergence - 0.3 * entropy).item())


def test_the_released_code_is_the_paper_with_alpha_times_classes_scaled_down() -> None:
    logits, y = example()
    released = hamp_loss(logits, y, true_probability=0.7, alpha=0.01, variant="released_code")
    torch.testing.assert_close(released, hamp_loss(logits, y, true_probability=0.7, alpha=0.04) / 4)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for label, q in product((0, 1), (1.0, 0.5)):
        terms = hamp_loss(logits, torch.tensor([label]), true_probability=q, alpha=1.0)
        (gradient,) = torch.autograd.grad(terms.mean(), logits)
        assert terms.isfinite().all() and gradient.isfinite().all()


def train(defense: Defense) -> tuple[list[float], nn.Module]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(48, 8, generator=generator), torch.randint(3, (48,), generator=generator)
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((8,)), 3)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), num_classes=3, seed=0)
    values = []
    for state.epoch in range(30):
        for index in torch.arange(48).split(16):
            state.optimizer.zero_grad()
            loss = defense.loss(state, Batch(x[index], y[index], index))
            loss.backward()
            state.optimizer.step()
            values.append(loss.item())
    return values, model


def test_without_soft_labels_and_entropy_it_equals_none_bit_for_bit() -> None:
    values, model = train(HAMP(HAMP.Config(gamma=0.0, alpha=0.0)))
    expected, undefended = train(Defense(Defense.Config()))
    assert values == expected
    for mine, theirs in zip(model.parameters(), undefended.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_training_raises_the_entropy_of_predictions() -> None:
    x = torch.rand(48, 8, generator=torch.Generator().manual_seed(1))
    mean_entropy = []
    for gamma, alpha in ((0.0, 0.0), (0.8, 0.0), (0.8, 1.0)):
        _, model = train(HAMP(HAMP.Config(gamma=gamma, alpha=alpha)))
        mean_entropy.append(torch.distributions.Categorical(logits=model(x)).entropy().mean().item())
    assert mean_entropy[0] + 0.2 < mean_entropy[1] < mean_entropy[2] - 0.05


def naive_mask(logits: list[float], values: list[float]) -> list[float]:
    """For rows without ties."""
    ascending = sorted(values)
    return [ascending[sum(other < value for other in logits)] for value in logits]


def test_masked_logits_equal_a_naive_twin() -> None:
    logits, _ = example(20, 6)
    values, _ = example(20, 6, seed=5)
    got = masked_logits(logits, values)
    assert got.tolist() == [naive_mask(*rows) for rows in zip(logits.tolist(), values.tolist(), strict=True)]
    assert torch.equal(got.argsort(1), logits.argsort(1))


def test_ties_never_change_the_prediction_or_turn_a_ranking_around() -> None:
    rows = torch.tensor(list(product([0.0, 1.0, 1.0 + 2**-23, -3.0], repeat=3)))
    for values in ([0.0, 0.0, 0.0], [2.0, 2.0, -1.0], [5.0, 1e-30, 0.0], [-7.0, -7.0, -7.0]):
        got = masked_logits(rows, torch.tensor(values).expand_as(rows))
        released = got.double().log_softmax(1)
        assert torch.equal(released.argmax(1), rows.argmax(1))
        for first, second in ((0, 1), (1, 2), (0, 2)):
            is_above = rows[:, first] > rows[:, second]
            assert (released[is_above, first] >= released[is_above, second]).all()
        assert (got.sort(1).values - torch.tensor(values).sort().values).abs().max() < 1e-5


def model_of(shape: tuple[int, ...] = (10,), dtype: torch.dtype = torch.float32) -> MLP:
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape(shape), 5).to(dtype)
    model.head.weight.data.mul_(8)
    return model.eval()


def hamp() -> HAMP:
    return HAMP(HAMP.Config(gamma=0.5, alpha=0.1))


@torch.no_grad()
def test_the_ranking_is_released_and_the_values_are_those_of_the_random_input() -> None:
    model = model_of()
    x = torch.rand(200, 10, generator=torch.Generator().manual_seed(2))
    released = hamp().release(model, seed=3).eval()
    scores, clean = predict_log_probabilities(released, x), predict_log_probabilities(model, x)
    assert torch.equal(scores.argsort(1), clean.argsort(1))
    assert torch.equal(scores.argmax(1), clean.argmax(1))
    of_random = predict_log_probabilities(model, random_inputs(x, 3))
    torch.testing.assert_close(scores.sort(1).values, of_random.sort(1).values)
    assert not torch.allclose(scores.sort(1).values, clean.sort(1).values, atol=0.1)


@torch.no_grad()
def test_answers_do_not_depend_on_the_batch_and_repeat() -> None:
    model = model_of(dtype=torch.float64)
    x = torch.rand(20, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    released = hamp().release(model, seed=3).eval()
    whole = released(torch.cat([x, x]))
    parts = torch.cat([released(part) for part in x.flip(0).split(3)]).flip(0)
    torch.testing.assert_close(whole[:20], whole[20:])
    torch.testing.assert_close(whole[:20], parts)
    assert not torch.allclose(whole[:20], hamp().release(model, seed=4).eval()(x))
    assert released(x[:0]).shape == (0, 5)


def test_random_rows_are_fair_bits_and_random_images_are_gray_levels() -> None:
    rows = random_inputs(torch.rand(200, 50), seed=1)
    assert set(rows.unique().tolist()) == {0.0, 1.0} and rows.mean().item() == pytest.approx(0.5, abs=0.03)
    assert rows.unique(dim=0).shape == rows.shape
    images = random_inputs(torch.rand(60, 3, 8, 8), seed=1)
    levels = (images.double() * 255).round()
    assert images.shape == (60, 3, 8, 8) and (images - levels.float() / 255).abs().max() < 1e-6
    assert levels.min() == 0 and levels.max() == 254 and levels.mean().item() == pytest.approx(127, abs=3)
    x = torch.rand(4, 50)
    assert torch.equal(random_inputs(x, 1)[2:3], random_inputs(x[2:3], 1))
    assert not torch.equal(random_inputs(x, 1), random_inputs(x, 2))


@pytest.mark.parametrize("shape", [(10,), (1, 4, 4)])
def test_gradients_reach_the_input(shape: tuple[int, ...]) -> None:
    model = model_of(shape)
    x = torch.rand(4, *shape, requires_grad=True)
    released = hamp().release(model, 0).eval()
    logits = released(x)
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), x)
    (expected,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert hamp().unmasked(model) is model


def test_a_single_class_is_refused() -> None:
    assert hamp().check(MLP, 2) == []
    with pytest.raises(ConfigError, match="2 classes"):
        hamp().check(MLP, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 0.1},
        {"gamma": 0.5},
        {"gamma": 1.0, "alpha": 0.1},
        {"gamma": -0.1, "alpha": 0.1},
        {"gamma": 0.5, "alpha": -1.0},
        {"gamma": 0.5, "alpha": 0.1, "variant": "reference"},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(HAMP.Config, bad, "defense")
