from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.label_smoothing import LabelSmoothing, scheduled_epsilon, smoothed_cross_entropy
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, NoCheckpoints, TrainingLoop
from oakum.training.optimizers import build_optimizer, build_scheduler
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES = 3
SIGNED = [-1.0, -0.05, 0.0, 0.1, 0.5, 0.99]


def example(count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, dtype=torch.float64, generator=generator)
    return 2 * logits, torch.randint(classes, (count,), generator=generator)


def targets(y: Tensor, classes: int, epsilon: float) -> Tensor:
    rows = [[epsilon / classes + (1 - epsilon) * (label == c) for c in range(classes)] for label in y.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def smoothing(**settings: Any) -> LabelSmoothing:
    return LabelSmoothing(validate(LabelSmoothing.Config, settings, "defense"))


class OnDisk(NoCheckpoints):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        save_parts(self.folder, parts, record)

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        return load_parts(self.folder, parts) if self.folder.exists() else None


class StoppedError(Exception):
    pass


def data() -> LabeledData:
    generator = torch.Generator().manual_seed(1)
    return LabeledData(torch.rand(48, 8, generator=generator), torch.randint(CLASSES, (48,), generator=generator))


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"optimizer": "sgd", "learning_rate": 0.2, "epochs": 8, "batch_size": 16, **changes})


def fresh_state(chosen: Recipe) -> TrainState:
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((8,)), CLASSES)
    optimizer = build_optimizer(chosen, list(model.parameters()))
    return TrainState(model, optimizer, CLASSES, 0, scheduler=build_scheduler(chosen, optimizer))


def train(defense: Defense, **changes: Any) -> tuple[nn.Module, TrainingLoop]:
    chosen = recipe(**changes)
    loop = TrainingLoop(data(), None, chosen)
    return defense.fit(fresh_state(chosen), loop), loop


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("epsilon", SIGNED)
def test_loss_is_the_cross_entropy_with_soft_targets(epsilon: float) -> None:
    logits, y = example()
    logs = [[z - math.log(sum(map(math.exp, row))) for z in row] for row in logits.tolist()]
    expected = -(targets(y, 4, epsilon) * torch.tensor(logs, dtype=torch.float64)).sum(1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, y, epsilon=epsilon), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
def test_positive_epsilon_equals_the_framework(epsilon: float) -> None:
    logits, y = example()
    expected = F.cross_entropy(logits, y, reduction="none", label_smoothing=epsilon)
    torch.testing.assert_close(smoothed_cross_entropy(logits, y, epsilon=epsilon), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epsilon", SIGNED)
def test_gradient_is_the_softmax_minus_the_target(epsilon: float) -> None:
    logits, y = example()
    logits.requires_grad_(True)
    (got,) = torch.autograd.grad(smoothed_cross_entropy(logits, y, epsilon=epsilon).sum(), logits)
    torch.testing.assert_close(got, logits.detach().softmax(1) - targets(y, 4, epsilon), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("raised", "expected"), [(5, -0.17), (20, -0.90), (100, -4.5)])
def test_a_negative_epsilon_has_no_lower_bound(raised: float, expected: float) -> None:
    logits = raised * F.one_hot(torch.tensor([3]), 10).double()
    value = smoothed_cross_entropy(logits, torch.tensor([3]), epsilon=-0.05).item()
    assert value == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("epsilon", [0.1, 0.9])
def test_a_positive_epsilon_is_bounded_by_the_entropy_of_its_target(epsilon: float) -> None:
    y = torch.arange(4)
    target = targets(y, 4, epsilon)
    bound = -(target * target.log()).sum(1)
    torch.testing.assert_close(smoothed_cross_entropy(target.log(), y, epsilon=epsilon), bound)
    noise = torch.randn(200, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert all((smoothed_cross_entropy(target.log() + each, y, epsilon=epsilon) >= bound).all() for each in noise)


def naive_schedule(a: float, epochs: int, first: int, second: int, *, released: bool) -> list[float]:
    """Epoch by epoch, with the steps of the ramp added up."""
    values, reached = [], 0.0
    step = a / ((epochs if released else second) - first) if second > first else a
    for epoch in range(epochs):
        if epoch >= second:
            reached = a
        elif epoch >= first:
            reached += step
        values.append(reached)
    return values


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 10, 51, 60, 75, 76, 100])
def test_ramp_is_a_share_of_the_training_and_ends_at_epsilon(epochs: int) -> None:
    got = [scheduled_epsilon(-0.05, epoch, epochs, "ramp") for epoch in range(epochs)]
    expected = naive_schedule(-0.05, epochs, epochs // 2, 3 * epochs // 4, released=False)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert got[-1] == pytest.approx(-0.05) and got == sorted(got, reverse=True)
    assert got[: epochs // 2] == [0.0] * (epochs // 2)


@pytest.mark.parametrize("epochs", [51, 60, 75, 76, 100, 120])
def test_released_code_has_absolute_breaks_and_a_jump(epochs: int) -> None:
    got = [scheduled_epsilon(-0.05, epoch, epochs, "released_code") for epoch in range(epochs)]
    assert got == pytest.approx(naive_schedule(-0.05, epochs, 50, 75, released=True), rel=1e-9, abs=1e-15)
    assert got[-1] == pytest.approx(-0.05)


def test_known_values_of_the_released_code() -> None:
    hundred = [scheduled_epsilon(-0.05, epoch, 100, "released_code") for epoch in range(100)]
    assert (hundred[49], hundred[50], hundred[74], hundred[75]) == pytest.approx((0.0, -0.001, -0.025, -0.05))
    assert {scheduled_epsilon(-0.05, epoch, 50, "released_code") for epoch in range(50)} == {0.0}
    mnist = [scheduled_epsilon(-0.05, epoch, 10, "released_code", (5, 7)) for epoch in range(10)]
    assert mnist == pytest.approx([0.0] * 5 + [-0.01, -0.02] + [-0.05] * 3)


def test_breaks_in_the_same_epoch_are_a_switch() -> None:
    for schedule in ("ramp", "released_code"):
        assert [scheduled_epsilon(0.2, e, 5, schedule, (3, 3)) for e in range(5)] == [0.0, 0.0, 0.0, 0.2, 0.2]


def test_constant_is_constant() -> None:
    assert {scheduled_epsilon(0.2, epoch, 5, "constant") for epoch in range(5)} == {0.2}


@pytest.mark.parametrize("schedule", [None, "constant", "ramp", "released_code"])
def test_epsilon_zero_equals_none_bit_for_bit(schedule: str | None) -> None:
    model, loop = train(smoothing(epsilon=0.0, schedule=schedule))
    undefended, expected = train(Defense(Defense.Config()))
    assert equal(model, undefended)
    assert [row["train/loss"] for row in loop.history] == [row["train/loss"] for row in expected.history]


def test_the_sign_chooses_the_schedule() -> None:
    still = {"learning_rate": 1e-30, "batch_size": 48}
    logits, y = fresh_state(recipe()).model(data().x), data().y
    for epsilon, strengths in ((0.3, [1.0] * 8), (-0.3, [0, 0, 0, 0, 0.5, 1, 1, 1])):
        _, loop = train(smoothing(epsilon=epsilon), **still)
        expected = [smoothed_cross_entropy(logits, y, epsilon=epsilon * s).mean().item() for s in strengths]
        assert [row["train/loss"] for row in loop.history] == pytest.approx(expected, rel=1e-6)
    explicit = train(smoothing(epsilon=-0.3, schedule="constant"), **still)[1].history
    assert explicit[0]["train/loss"] == pytest.approx(smoothed_cross_entropy(logits, y, epsilon=-0.3).mean().item())


def test_loss_alone_is_at_full_strength() -> None:
    state, fold = fresh_state(recipe()), data()
    got = smoothing(epsilon=-0.2).loss(state, Batch(fold.x, fold.y, torch.arange(48)))
    assert got.item() == smoothed_cross_entropy(state.model(fold.x), fold.y, epsilon=-0.2).mean().item()


def test_a_schedule_before_its_start_equals_none_bit_for_bit() -> None:
    defense, undefended = smoothing(epsilon=-0.5, breaks=[6, 7]), Defense(Defense.Config())
    for epochs, expected in ((6, True), (7, False)):
        models = []
        for each in (defense, undefended):
            loop = TrainingLoop(data(), None, recipe(), snapshots=(epochs,))
            models.append(each.fit(fresh_state(recipe()), loop))
        assert equal(*models) == expected


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_training_continues_the_schedule(stop: int, tmp_path: Path) -> None:
    defense, chosen = smoothing(epsilon=-0.3, breaks=[2, 7]), recipe()
    expected, _ = train(defense)

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == stop:
            raise StoppedError

    broken = TrainingLoop(data(), None, chosen, OnDisk(tmp_path / "work"), on_epoch=interrupt)
    with pytest.raises(StoppedError):
        defense.fit(fresh_state(chosen), broken)
    resumed = TrainingLoop(data(), None, chosen, OnDisk(tmp_path / "work"))
    assert equal(defense.fit(fresh_state(chosen), resumed), expected) and len(resumed.history) == 8


def test_training_follows_the_sign() -> None:
    """A positive epsilon keeps wrong classes alive, a negative one pushes them down further than none does."""
    x, y = data().x, data().y
    wrong = F.one_hot(y, CLASSES) == 0
    means = []
    for epsilon in (0.3, 0.0, -0.1):
        model, _ = train(smoothing(epsilon=epsilon, schedule="constant"), epochs=60)
        means.append(model(x).log_softmax(1)[wrong].mean().item())
    assert means[0] > means[1] + 0.1 > means[2] + 0.2


def test_shards_add_up_to_the_global_batch() -> None:
    state, fold = fresh_state(recipe()), data()
    state.model.double()

    def gradient(rows: Tensor) -> Tensor:
        loss = smoothing(epsilon=-0.2).loss(state, Batch(fold.x[rows].double(), fold.y[rows], rows))
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(state.model.parameters()))])

    shards = [torch.arange(48)[rank::5] for rank in range(5)]
    together = sum(gradient(rows) * (len(rows) / 48) for rows in shards)
    torch.testing.assert_close(together, gradient(torch.arange(48)), rtol=1e-10, atol=1e-14)


def test_warnings_before_training() -> None:
    assert smoothing(epsilon=0.1).check_training(recipe(), 48) == []
    assert smoothing(epsilon=0.0, schedule="released_code").check_training(recipe(), 48) == []
    (unbounded,) = smoothing(epsilon=-0.05).check_training(recipe(), 48)
    assert "no lower bound" in unbounded and "-0.05" in unbounded
    (weak,) = smoothing(epsilon=0.1, schedule="ramp", breaks=[2, 9]).check_training(recipe(), 48)
    assert "full strength" in weak and "epoch 9" in weak
    assert smoothing(epsilon=0.1, schedule="ramp", breaks=[2, 8]).check_training(recipe(), 48) == []
    (selected,) = smoothing(epsilon=0.1, schedule="ramp").check_training(recipe(select="best_val"), 48)
    assert "best_val" in selected


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"epsilon": -0.05, "schedule": "released_code"}, 50),
        ({"epsilon": -0.05, "breaks": [8, 9]}, 8),
        ({"epsilon": 0.1, "schedule": "ramp", "breaks": [20, 20]}, 8),
    ],
)
def test_a_smoothing_that_never_starts_is_refused(settings: dict, epochs: int) -> None:
    with pytest.raises(ConfigError, match=r"breaks to earlier epochs or raise recipe\.epochs"):
        smoothing(**settings).check_training(recipe(epochs=epochs), 48)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "epsilon: this key is required"),
        ({"epsilon": 1.0}, "less than 1"),
        ({"epsilon": -1.5}, "greater than or equal to -1"),
        ({"epsilon": 0.1, "schedule": "cosine"}, "schedule"),
        ({"epsilon": 0.1, "breaks": [1, 2]}, "no effect"),
        ({"epsilon": -0.1, "schedule": "constant", "breaks": [1, 2]}, "no effect"),
        ({"epsilon": -0.1, "breaks": [3, 2]}, "ascending"),
        ({"epsilon": -0.1, "breaks": [-1, 2]}, "from 0 on"),
        ({"epsilon": -0.1, "breaks": [0.5, 0.75]}, "breaks"),
        ({"epsilon": -0.1, "breaks": [1, 2, 3]}, "breaks"),
    ],
)
def test_bad_settings_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(LabelSmoothing.Config, bad, "defense")
