from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.relaxloss import RelaxLoss, relaxloss, soft_cross_entropy
from oakum.models.mlp import MLP
from oakum.training.state import Batch, TrainState


def example(count: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, dtype=torch.float64, generator=generator)
    return 2 * logits, torch.randint(classes, (count,), generator=generator)


def naive_soft(logits: Tensor, y: Tensor, upper: float) -> list[float]:
    result = []
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        p = [math.exp(value) / total for value in row]
        q = min(p[label], upper)
        target = [q if c == label else (1 - q) / (len(row) - 1) for c in range(len(row))]
        result.append(-sum(t * math.log(value) for t, value in zip(target, p, strict=True)))
    return result


@pytest.mark.parametrize("upper", [1.0, 0.3, 0.05])
def test_soft_cross_entropy_equals_a_naive_twin(upper: float) -> None:
    logits, y = example()
    assert soft_cross_entropy(logits, y, upper=upper).tolist() == pytest.approx(naive_soft(logits, y, upper))


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_flattening_is_that_of_its_definition(detach: bool) -> None:
    logits, y = example()
    assert torch.autograd.gradcheck(
        lambda z: soft_cross_entropy(z, y, upper=0.4, detach_targets=False), logits.requires_grad_(True)
    )
    logs = logits.log_softmax(1)
    q = logs.exp().gather(1, y[:, None]).clamp(max=0.4)
    target = ((1 - q) / (logits.shape[1] - 1)).expand(-1, logits.shape[1]).scatter(1, y[:, None], q)
    expected = torch.autograd.grad(-((target.detach() if detach else target) * logs).sum(), logits)[0]
    got = torch.autograd.grad(soft_cross_entropy(logits, y, upper=0.4, detach_targets=detach).sum(), logits)[0]
    torch.testing.assert_close(got, expected)


def test_branches_of_algorithm_1() -> None:
    logits, y = example()
    losses = F.cross_entropy(logits, y, reduction="none")
    above, below = float(losses.mean()) - 0.1, float(losses.mean()) + 0.1
    flattening = soft_cross_entropy(logits, y)
    # Epoch 0 here is epoch 1 of the paper, an odd one.
    for epoch in (0, 1, 2, 3):
        assert torch.equal(relaxloss(logits, y, alpha=above, epoch=epoch), losses)
        got = relaxloss(logits, y, alpha=below, epoch=epoch)
        torch.testing.assert_close(got, flattening if epoch % 2 == 0 else below - losses)


def test_branches_of_the_released_code() -> None:
    logits, y = example()
    losses = F.cross_entropy(logits, y, reduction="none")
    mean = float(losses.mean())
    for epoch in (0, 1, 2, 3):
        for alpha in (mean - 0.1, mean + 0.1):
            got = relaxloss(logits, y, alpha=alpha, epoch=epoch, variant="released_code").mean().item()
            if epoch % 2 == 0:
                assert got == pytest.approx(abs(mean - alpha))
            elif mean > alpha:
                assert got == pytest.approx(mean)
            else:
                assert got == pytest.approx(soft_cross_entropy(logits, y).mean().item())


def test_correct_samples_get_ascent_where_only_incorrect_ones_are_flattened() -> None:
    logits, y = example(40)
    correct = logits.argmax(1) == y
    assert 0 < correct.sum() < 40
    losses, flattening = F.cross_entropy(logits, y, reduction="none"), soft_cross_entropy(logits, y)
    paper = relaxloss(logits, y, alpha=9.0, epoch=0, flatten_incorrect_only=True)
    torch.testing.assert_close(paper, torch.where(correct, -losses, flattening))
    released = relaxloss(logits, y, alpha=9.0, epoch=1, variant="released_code", flatten_incorrect_only=True)
    torch.testing.assert_close(released, torch.where(correct, -losses, flattening - losses))


def test_the_global_batch_decides_the_branch() -> None:
    logits, y = example()
    mean = float(F.cross_entropy(logits, y))
    ascent = relaxloss(logits, y, alpha=mean - 0.5, epoch=1, batch_loss=torch.tensor(mean - 1.0))
    torch.testing.assert_close(ascent, mean - 0.5 - F.cross_entropy(logits, y, reduction="none"))


@pytest.mark.parametrize("variant", ["paper", "released_code"])
def test_extreme_logits_and_one_sample_stay_finite(variant: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for label in (0, 1):
        for epoch in (0, 1):
            terms = relaxloss(logits, torch.tensor([label]), alpha=1.0, epoch=epoch, variant=variant)
            (gradient,) = torch.autograd.grad(terms.mean(), logits)
            assert terms.isfinite().all() and gradient.isfinite().all()


def train(defense: Defense, epochs: int = 4, image: bool = False) -> tuple[list[float], nn.Module]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(48, *((1, 2, 4) if image else (8,)), generator=generator)
    y = torch.randint(3, (48,), generator=generator)
    torch.manual_seed(0)
    from oakum.models.base import InputShape

    model = MLP(MLP.Config(hidden=(16,)), InputShape(tuple(x.shape[1:])), 3)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), num_classes=3, seed=0)
    values = []
    for state.epoch in range(epochs):
        for index in torch.arange(48).split(16):
            state.optimizer.zero_grad()
            loss = defense.loss(state, Batch(x[index], y[index], index))
            loss.backward()
            state.optimizer.step()
            values.append(loss.item())
    return values, model


@pytest.mark.parametrize("variant", ["paper", "released_code"])
@pytest.mark.parametrize("image", [False, True])
def test_alpha_zero_equals_none_bit_for_bit(variant: str, image: bool) -> None:
    values, model = train(RelaxLoss(RelaxLoss.Config(alpha=0.0, variant=variant)), image=image)
    expected, undefended = train(Defense(Defense.Config()), image=image)
    assert values == expected
    for mine, theirs in zip(model.parameters(), undefended.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_training_hovers_near_alpha() -> None:
    """The undefended loss falls far below 0.8; with alpha 0.8 it stays near."""
    undefended, _ = train(Defense(Defense.Config()), 120)
    assert undefended[-1] < 0.4
    _, model = train(RelaxLoss(RelaxLoss.Config(alpha=0.8)), 120)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(48, 8, generator=generator), torch.randint(3, (48,), generator=generator)
    assert 0.55 < F.cross_entropy(model(x), y).item() < 1.1


def test_tabular_rows_are_all_flattened_and_images_only_where_incorrect() -> None:
    for image in (False, True):
        on, off = (
            train(RelaxLoss(RelaxLoss.Config(alpha=2.0, flatten_incorrect_only=flag)), 1, image)[0]
            for flag in (True, False)
        )
        assert train(RelaxLoss(RelaxLoss.Config(alpha=2.0)), 1, image)[0] == (on if image else off)
        assert on != off


def test_check_warns_near_the_loss_of_a_uniform_guess() -> None:
    assert RelaxLoss(RelaxLoss.Config(alpha=1.0)).check(MLP, 10) == []
    (warning,) = RelaxLoss(RelaxLoss.Config(alpha=0.8 * math.log(10) + 1e-9)).check(MLP, 10)
    assert "uniform guess" in warning and "1.84" in warning
    with pytest.raises(ConfigError, match="2 classes"):
        RelaxLoss(RelaxLoss.Config(alpha=1.0)).check(MLP, 1)


@pytest.mark.parametrize(
    "bad",
    [{}, {"alpha": -0.1}, {"alpha": 1.0, "upper": 0.0}, {"alpha": 1.0, "variant": "reference"}, {"alpha": "1e-3"}],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(RelaxLoss.Config, bad, "defense")
