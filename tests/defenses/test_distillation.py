from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense, Teacher
from oakum.defenses.distillation import Distillation, distillation
from oakum.models.base import InputShape
from oakum.models.small_cnn import SmallCNN
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, NoCheckpoints, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES = 3
ROWS = 300


def example(count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, count, classes, dtype=torch.float64, generator=generator)
    return student, torch.randint(classes, (count,), generator=generator), teacher


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def naive(logits: Tensor, y: Tensor, teacher: Tensor, alpha: float, t: float, variant: str) -> list[float]:
    result = []
    for student_row, label, teacher_row in zip(logits.tolist(), y.tolist(), teacher.tolist(), strict=True):
        p, q = (softmax([value / t for value in row]) for row in (teacher_row, student_row))
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        if variant == "released_code":
            divergence /= len(p)
        result.append(alpha * t * t * divergence - (1 - alpha) * math.log(softmax(student_row)[label]))
    return result


def distilled(**settings: Any) -> Distillation:
    return Distillation(validate(Distillation.Config, settings, "defense"))


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


class Counting(nn.Module):
    """A teacher that writes down how it is asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.asked: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append((len(x), self.inner.training, torch.is_grad_enabled()))
        logits: Tensor = self.inner(x)
        return logits


def data() -> LabeledData:
    generator = torch.Generator().manual_seed(1)
    return LabeledData(torch.rand(ROWS, 1, 8, 8, generator=generator), torch.arange(ROWS) % CLASSES)


def network(seed: int) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES)


def teacher(seed: int = 7) -> Counting:
    """Return a network that is sure of its answers; its batch normalization has seen some data."""
    model = network(seed)
    model(data().x)
    with torch.no_grad():
        model.head.weight.mul_(10)
    return Counting(model).eval()


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"learning_rate": 1e-2, "epochs": 2, "batch_size": 128, **changes})


def fresh_state(chosen: Recipe) -> TrainState:
    model = network(0)
    return TrainState(model, build_optimizer(chosen, list(model.parameters())), CLASSES, seed=5)


def train(defense: Defense, chosen: Recipe, knows: nn.Module, **changes: Any) -> tuple[nn.Module, TrainingLoop]:
    loop = TrainingLoop(data(), None, chosen, teachers={"teacher": lambda: knows}, **changes)
    return defense.fit(fresh_state(chosen), loop), loop


def equal(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("variant", ["paper", "released_code"])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 3.0), (0.5, 1.0), (0.5, 10.0), (1.0, 0.7)])
def test_loss_equals_a_naive_twin(alpha: float, temperature: float, variant: str) -> None:
    logits, y, known = example()
    got = distillation(logits, y, known, alpha=alpha, temperature=temperature, variant=variant)
    assert got.tolist() == pytest.approx(naive(logits, y, known, alpha, temperature, variant), rel=1e-10)


@pytest.mark.parametrize(("variant", "classes_in_kl"), [("paper", 1), ("released_code", 4)])
def test_gradient_equals_its_closed_form(variant: str, classes_in_kl: int) -> None:
    logits, y, known = example()
    logits.requires_grad_(True)
    known.requires_grad_(True)
    loss = distillation(logits, y, known, alpha=0.3, temperature=5.0, variant=variant).sum()
    got, through_teacher = torch.autograd.grad(loss, [logits, known], allow_unused=True)
    pull = 5.0 * ((logits / 5).softmax(1) - (known / 5).softmax(1)) / classes_in_kl
    expected = 0.3 * pull + 0.7 * (logits.softmax(1) - F.one_hot(y, 4))
    torch.testing.assert_close(got, expected.detach(), rtol=1e-10, atol=1e-14)
    assert through_teacher is None


def test_the_divergence_weighs_by_the_teacher() -> None:
    """KL(teacher || student) of (0.9, 0.1) against (0.5, 0.5); the other direction would be 0.51."""
    known = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    student = torch.zeros(1, 2, dtype=torch.float64)
    got = distillation(student, torch.tensor([0]), known, alpha=1.0, temperature=1.0).item()
    assert got == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2)) and got == pytest.approx(0.368, abs=1e-3)


def test_a_student_that_agrees_has_only_the_cross_entropy_left() -> None:
    logits, y, _ = example()
    got = distillation(logits, y, logits + 3.0, alpha=0.4, temperature=2.0)
    torch.testing.assert_close(got, 0.6 * F.cross_entropy(logits, y, reduction="none"))


def test_at_high_temperature_logits_are_matched() -> None:
    """The limit of T^2 * KL is half the mean square of the differences between centered logits (Hinton et al., 2.1)."""
    logits, y, known = example()
    difference = (logits - logits.mean(1, keepdim=True)) - (known - known.mean(1, keepdim=True))
    got = distillation(logits, y, known, alpha=1.0, temperature=1e4)
    torch.testing.assert_close(got, difference.square().mean(1) / 2, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_exact_enough_in_float32_at_the_highest_temperature_of_the_sweep() -> None:
    logits, y, known = example(50, 10)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        student = logits.detach().to(dtype, copy=True).requires_grad_(True)
        loss = distillation(student, y, known.to(dtype), alpha=0.5, temperature=100.0).mean()
        gradients.append(torch.autograd.grad(loss, student)[0].double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-4 * gradients[0].abs().max().item())


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    terms = distillation(logits, torch.tensor([1]), -logits, alpha=0.5, temperature=1.0)
    (gradient,) = torch.autograd.grad(terms.mean(), logits)
    assert terms.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("norm", ["model", "group"])
def test_the_teacher_is_the_undefended_model_of_the_same_network(norm: str) -> None:
    assert distilled(norm=norm).teachers() == {"teacher": Teacher({"name": "none", "norm": norm}, own_rows=False)}
    assert isinstance(validate(Defense.Config, {"norm": norm}, "defense"), Defense.Config)


@pytest.mark.parametrize("augmentation", [(), ("crop", "flip")])
def test_alpha_zero_equals_none_bit_for_bit(augmentation: tuple[str, ...]) -> None:
    chosen = recipe(augmentation=augmentation)
    model, loop = train(distilled(alpha=0.0), chosen, teacher())
    undefended, expected = train(Defense(Defense.Config()), chosen, teacher())
    assert equal(model, undefended)
    assert [row["train/loss"] for row in loop.history] == [row["train/loss"] for row in expected.history]


@pytest.mark.parametrize("variant", ["paper", "released_code"])
@pytest.mark.parametrize("augmentation", [(), ("crop", "flip")])
def test_fit_equals_a_training_written_out(augmentation: tuple[str, ...], variant: str) -> None:
    chosen, knows = recipe(augmentation=augmentation), teacher()
    model, loop = train(distilled(alpha=0.7, temperature=4.0, variant=variant), chosen, knows)
    state = fresh_state(chosen)
    for state.epoch in range(2):
        for batch in loop.batches(state):
            answers = knows.inner(batch.x).detach()
            losses = distillation(state.model(batch.x), batch.y, answers, alpha=0.7, temperature=4.0, variant=variant)
            state.optimizer.zero_grad()
            losses.mean().backward()
            state.optimizer.step()
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_asked_once_without_augmentation_and_per_batch_with_it() -> None:
    plain, augmented = teacher(), teacher()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    train(distilled(), recipe(), plain)
    assert sum(rows for rows, _, _ in plain.asked) == ROWS
    train(distilled(), recipe(augmentation=("flip",)), augmented)
    assert [rows for rows, _, _ in augmented.asked] == [128, 128, 44] * 2
    assert not any(in_training or with_gradient for _, in_training, with_gradient in plain.asked + augmented.asked)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("augmentation", [(), ("crop", "flip")])
def test_a_resumed_training_ends_with_the_same_bits(augmentation: tuple[str, ...], tmp_path: Path) -> None:
    chosen = recipe(augmentation=augmentation)
    expected, _ = train(distilled(), chosen, teacher())

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise StoppedError

    keeper = OnDisk(tmp_path / "work")
    with pytest.raises(StoppedError):
        train(distilled(), chosen, teacher(), checkpointer=keeper, on_epoch=interrupt)
    resumed, loop = train(distilled(), chosen, teacher(), checkpointer=keeper)
    assert equal(resumed, expected) and len(loop.history) == 2


def test_training_moves_toward_the_teacher() -> None:
    knows = teacher()
    answers = knows.inner(data().x).detach()
    gaps = []
    for alpha in (0.0, 1.0):
        model, _ = train(distilled(alpha=alpha, temperature=2.0), recipe(epochs=8), knows)
        logits = model.eval()(data().x)
        gaps.append(distillation(logits, data().y, answers, alpha=1.0, temperature=2.0).mean().item())
    assert gaps[1] < 0.5 * gaps[0]


def test_the_loss_without_a_teacher_is_refused() -> None:
    fold = data()
    with pytest.raises(TypeError, match="call fit"):
        distilled().loss(fresh_state(recipe()), Batch(fold.x, fold.y, torch.arange(ROWS)))


def test_defaults_are_those_of_the_released_code() -> None:
    config = distilled().config
    assert (config.alpha, config.temperature, config.variant) == (0.5, 10.0, "paper")


@pytest.mark.parametrize(
    "bad", [{"alpha": -0.1}, {"alpha": 1.1}, {"temperature": 0.0}, {"variant": "reference"}, {"T": 10}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="defense"):
        validate(Distillation.Config, bad, "defense")
