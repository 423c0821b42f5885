from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import binom, kstest, norm
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses._dpsgd_accounting import RDP_ORDERS, Mechanism, guarantee, noise_for
from oakum.defenses._dpsgd_gradients import PoissonSampling, PrivateGradients, require_per_sample_gradients
from oakum.defenses.base import Defense
from oakum.defenses.dpsgd import DPSGD
from oakum.models.base import Classifier, InputShape
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.collective import Collective
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.optimizers import build_optimizer, build_scheduler
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

PLATFORM = Path(__file__).parents[2] / "platform"
CLASSES = 3
PER_SAMPLE = pytest.mark.parametrize("per_sample", ["hooks", "ghost"])


def dpsgd(**settings: Any) -> DPSGD:
    budget = {} if "epsilon" in settings else {"noise_multiplier": 0.5}
    return DPSGD(DPSGD.Config(**{**budget, **settings}))


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"optimizer": "sgd", "learning_rate": 0.1, "epochs": 3, "batch_size": 8, **changes})


def data(count: int = 40, image: bool = False, dtype: torch.dtype = torch.float32) -> LabeledData:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, *((1, 8, 8) if image else (6,)), generator=generator)
    return LabeledData(x.to(dtype), torch.randint(CLASSES, (count,), generator=generator))


def network(image: bool = False) -> Classifier:
    torch.manual_seed(0)
    if image:
        return SmallCNN(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES)
    return MLP(MLP.Config(hidden=(8, 5)), InputShape((6,)), CLASSES)


def fresh_state(
    defense: Defense,
    chosen: Recipe,
    model: Classifier,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> TrainState:
    built = defense.build(model).to(dtype)
    optimizer = build_optimizer(chosen, list(built.parameters()))
    scheduler = build_scheduler(chosen, optimizer)
    return defense.prepare(TrainState(built, optimizer, CLASSES, seed, scheduler=scheduler, **changes))


def train(
    defense: Defense, chosen: Recipe, rows: LabeledData, model: Classifier | None = None, **changes: Any
) -> tuple[dict[str, Tensor], TrainingLoop]:
    loop = changes.pop("loop", None) or TrainingLoop(rows, None, chosen)
    state = fresh_state(defense, chosen, model or network(rows.x.dim() == 4), dtype=rows.x.dtype, **changes)
    return defense.fit(state, loop).state_dict(), loop


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# Training


@PER_SAMPLE
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"momentum": 0.9, "weight_decay": 1e-2, "milestones": (2,)}, {"optimizer": "adam", "learning_rate": 1e-3}],
    ids=["sgd", "adam"],
)
def test_without_noise_and_clipping_full_batches_train_as_without_the_defense(
    per_sample: str, image: bool, changes: dict[str, Any]
) -> None:
    chosen = recipe(batch_size=100, **changes)
    rows = data(image=image, dtype=torch.float64)
    none = Defense(Defense.Config(norm="group"))
    expected, plain = train(none, chosen, rows)
    found, loop = train(dpsgd(noise_multiplier=0.0, max_grad_norm=1e9, per_sample=per_sample), chosen, rows)
    assert largest_difference(found, expected) < 1e-6
    assert largest_difference(found, none.build(network(image)).double().state_dict()) > 1e-3
    for mine, theirs in zip(loop.history, plain.history, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
        assert mine["train/accuracy"] == theirs["train/accuracy"]


def gradients_of_rows(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the flat gradient of each row, by a loop."""
    found = []
    for row, label in zip(x, y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(row[None]), label[None]).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    model.zero_grad()
    return found


@PER_SAMPLE
@pytest.mark.parametrize("image", [False, True])
def test_a_step_follows_clipped_gradients_over_the_expected_batch_size(per_sample: str, image: bool) -> None:
    rows = data(30, image, torch.float64)
    chosen = recipe(learning_rate=1.0, momentum=0.0, epochs=1, batch_size=16)
    model = Defense(Defense.Config(norm="group")).build(network(image)).double()
    state = fresh_state(Defense(Defense.Config()), chosen, model, dtype=torch.float64)
    first = next(iter(PoissonSampling(30, 16).batches(state)))
    assert 2 < len(first) != 16
    gradients = gradients_of_rows(model, rows.x[first], rows.y[first])
    lengths = [math.sqrt(sum(value**2 for value in gradient.tolist())) for gradient in gradients]
    largest = sorted(lengths)[len(lengths) // 2]
    # Opacus divides by the norm plus 1e-6.
    expected = sum(g * min(1.0, largest / (length + 1e-6)) for g, length in zip(gradients, lengths, strict=True)) / 16

    defense = dpsgd(noise_multiplier=0.0, max_grad_norm=largest, per_sample=per_sample)
    state = defense.prepare(state)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    taken = []

    class StoppedError(Exception):
        pass

    def stop(_: Any, __: Any, ___: Any) -> None:
        taken.append(torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()]))
        raise StoppedError

    state.optimizer.register_step_post_hook(stop)
    with pytest.raises(StoppedError):
        defense.fit(state, TrainingLoop(rows, None, chosen))
    torch.testing.assert_close(before - taken[0], expected, rtol=1e-9, atol=1e-12)


class Scale(nn.Module):
    """A layer that Opacus has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 2.0, 1.5, -1.0]).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


LAYERS = {
    "padded": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "without bias": lambda: nn.Conv2d(4, 4, 1, bias=False),
    "same": lambda: nn.Conv2d(4, 4, 2, padding="same", dilation=2),
    "grouped": lambda: nn.Conv2d(4, 8, (1, 3), padding=(0, 1), groups=2),
    "strided": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1),
    "on one pixel": lambda: nn.Sequential(nn.Conv2d(4, 4, 8), nn.Conv2d(4, 4, 3, padding=1)),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)),
    "layer norm": lambda: nn.LayerNorm([4, 8, 8]),
    "own": Scale,
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients_equal_a_loop_in_every_memory_format(name: str, channels_last: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[name](), nn.Flatten(), nn.LazyLinear(CLASSES)).double()
    x, y = torch.rand(3, 4, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1])
    model(x)
    expected = gradients_of_rows(model, x, y)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=1.0), CLASSES, 1, channels_last=channels_last)
    gradients = PrivateGradients(
        state, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=3, per_sample="hooks"
    )
    gradients.loss(state, Batch(x, y, torch.arange(3))).backward()
    found = torch.cat([parameter.grad_sample.flatten(1) for parameter in model.parameters()], dim=1)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-12)


@PER_SAMPLE
def test_noise_has_the_promised_spread_and_changes_with_the_step(per_sample: str) -> None:
    """With hardly any expected rows most batches are empty, and a step is noise alone."""
    model = MLP(MLP.Config(hidden=(150, 100)), InputShape((6,)), CLASSES)
    chosen = recipe(learning_rate=1.0, momentum=0.0, epochs=1, batch_size=1)
    defense = dpsgd(noise_multiplier=0.7, max_grad_norm=3.0, per_sample=per_sample)
    state = fresh_state(defense, chosen, model)
    loop = TrainingLoop(data(20), None, chosen)
    sizes = [len(batch) for batch in PoissonSampling(20, 1).batches(state)]
    seen = [torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])]
    state.optimizer.register_step_post_hook(
        lambda *_: seen.append(torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()]))
    )
    defense.fit(state, loop)
    steps = [before - after for before, after in pairwise(seen)]
    alone = [step for step, size in zip(steps, sizes, strict=True) if size == 0]
    assert len(steps) == 20 and len(alone) >= 4
    for noise in alone:
        assert kstest(noise.double().numpy(), norm(scale=2.1).cdf).pvalue > 1e-4
    for one, other in pairwise(alone):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / math.sqrt(len(one))
    assert loop.history[0]["train/loss"] > 0


@pytest.mark.parametrize("image", [False, True])
def test_ghost_clipping_equals_hooks(image: bool) -> None:
    rows = data(image=image)
    chosen = recipe(batch_size=4, momentum=0.9)
    hooks, ghost = (
        train(dpsgd(max_grad_norm=0.5, per_sample=per_sample), chosen, rows, channels_last=image)
        for per_sample in ("hooks", "ghost")
    )
    assert largest_difference(hooks[0], ghost[0]) < 1e-5
    assert hooks[1].history[-1]["train/loss"] == pytest.approx(ghost[1].history[-1]["train/loss"], rel=1e-4)
    assert largest_difference(hooks[0], train(dpsgd(max_grad_norm=1.0), chosen, rows)[0]) > 1e-2


@PER_SAMPLE
def test_the_trained_model_keeps_its_names_and_no_hooks(per_sample: str) -> None:
    model = network(image=True)
    state = fresh_state(dpsgd(per_sample=per_sample), chosen := recipe(epochs=1), model)
    names = list(state.model.state_dict())
    module = dpsgd(per_sample=per_sample).fit(state, TrainingLoop(data(image=True), data(6, image=True), chosen))
    assert list(module.state_dict()) == names
    assert not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks for layer in module.modules()
    )
    assert not any(hasattr(parameter, "grad_sample") for parameter in module.parameters())
    module(torch.rand(2, 1, 8, 8)).sum().backward()


def test_augmented_images_in_empty_batches_and_bfloat16_recipes_train() -> None:
    chosen = recipe(epochs=1, batch_size=1, augmentation=("crop", "flip"), precision="bfloat16")
    rows = data(12, image=True)
    _, loop = train(dpsgd(), chosen, rows, autocast_dtype=torch.bfloat16)
    assert loop.history[0]["train/loss"] > 0
    (warning,) = dpsgd().check_training(chosen, 12)
    assert "float32 instead of bfloat16" in warning


class OnDisk:
    """Keeps every checkpoint in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        target = self.folder / str(epoch)
        target.mkdir(parents=True)
        save_parts(target, parts, record)

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        found = sorted(self.folder.iterdir()) if self.folder.exists() else []
        return load_parts(found[-1], parts) if found else None


@PER_SAMPLE
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_training_ends_with_the_same_bits(per_sample: str, optimizer: str, tmp_path: Path) -> None:
    rows, chosen = data(), recipe(optimizer=optimizer, milestones=(2,))
    defense = dpsgd(per_sample=per_sample)
    expected, undisturbed = train(defense, chosen, rows)

    class StoppedError(Exception):
        pass

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        broken = TrainingLoop(rows, None, chosen, OnDisk(tmp_path / "work"), on_epoch=interrupt)
        train(defense, chosen, rows, loop=broken)
    torch.rand(5)
    found, resumed = train(defense, chosen, rows, loop=TrainingLoop(rows, None, chosen, OnDisk(tmp_path / "work")))
    assert [row["train/loss"] for row in resumed.history] == [row["train/loss"] for row in undisturbed.history]
    assert largest_difference(found, expected) == 0
    assert resumed.metrics == undisturbed.metrics
    assert largest_difference(train(defense, chosen, rows, seed=2)[0], expected) > 0


# Sampling


def test_every_row_joins_every_batch_with_the_same_probability() -> None:
    sampling = PoissonSampling(rows=50, expected=10)
    assert (sampling.rate, sampling.steps_per_epoch) == (0.2, 5)
    state = fresh_state(Defense(Defense.Config()), recipe(), network())
    members = torch.zeros(400 * 5, 50)
    for state.epoch in range(400):
        for step, chosen in enumerate(sampling.batches(state)):
            members[5 * state.epoch + step, chosen] = 1
    count = len(members)
    spread = math.sqrt(0.2 * 0.8 / count)
    assert float((members.mean(0) - 0.2).abs().max()) < 4.5 * spread
    assert float(torch.corrcoef(members.T).fill_diagonal_(0).abs().max()) < 5.5 / math.sqrt(count)
    assert float(torch.corrcoef(members[:60]).fill_diagonal_(0).abs().max()) < 5.5 / math.sqrt(50)
    sizes = members.sum(1).long()
    assert abs(float(sizes.double().mean()) - 10) < 4.5 * math.sqrt(8 / count)
    for size in range(7, 14):
        expected = binom(50, 0.2).pmf(size)
        assert abs(float((sizes == size).double().mean()) - expected) < 4.5 * math.sqrt(expected / count)


def test_batches_depend_on_seed_epoch_and_step_alone() -> None:
    state = fresh_state(Defense(Defense.Config()), recipe(), network())

    def drawn(seed: int, epoch: int) -> list[list[int]]:
        state.seed, state.epoch = seed, epoch
        return [batch.tolist() for batch in PoissonSampling(40, 8).batches(state)]

    first = drawn(1, 0)
    torch.rand(3)
    assert drawn(1, 0) == first
    assert len({str(batch) for batch in first + drawn(1, 1) + drawn(2, 0)}) == 15


@pytest.mark.parametrize(
    ("rows", "size", "rate", "steps"), [(100, 16, 0.16, 6), (100, 100, 1.0, 1), (7, 4, 4 / 7, 2), (1, 1, 1.0, 1)]
)
def test_rate_and_steps_of_an_epoch(rows: int, size: int, rate: float, steps: int) -> None:
    sampling = PoissonSampling(rows, size)
    assert (sampling.rate, sampling.steps_per_epoch) == (rate, steps)


def test_batches_larger_than_the_fold_hold_all_of_it() -> None:
    _, loop = train(dpsgd(), recipe(batch_size=999, epochs=2), data())
    assert loop.metrics["privacy/sample_rate"].value == 1 and loop.metrics["privacy/steps"].value == 2


# Accounting


def exact_epsilon_of_full_batches(noise: float, mechanism: Mechanism) -> float:
    """The Gaussian mechanism, `steps` times, is one with noise / sqrt(steps) (Balle, Wang 2018, Theorem 8)."""
    mean = math.sqrt(mechanism.steps) / noise

    def excess(epsilon: float) -> float:
        high, low = norm.logcdf(-epsilon / mean + mean / 2), epsilon + norm.logcdf(-epsilon / mean - mean / 2)
        return math.exp(high) - math.exp(low) - mechanism.delta

    return brentq(excess, 0.0, mean**2 + 40 * mean + 40)


def exact_epsilon_of_one_sampled_step(noise: float, mechanism: Mechanism) -> float:
    """Solve P(S) - exp(epsilon) Q(S) = delta over likelihood-ratio sets S, for both orders of the neighbors."""
    rate = mechanism.sample_rate

    def removed(epsilon: float) -> float:
        cut = noise**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
        without = norm.sf(cut / noise)
        return (1 - rate) * without + rate * norm.sf((cut - 1) / noise) - math.exp(epsilon) * without

    def added(epsilon: float) -> float:
        inside = (math.exp(-epsilon) - 1 + rate) / rate
        if inside <= 0:
            return 0.0
        cut = noise**2 * math.log(inside) + 0.5
        without = norm.cdf(cut / noise)
        mixed = (1 - rate) * without + rate * norm.cdf((cut - 1) / noise)
        return without - math.exp(epsilon) * mixed

    return brentq(lambda epsilon: max(removed(epsilon), added(epsilon)) - mechanism.delta, 1e-9, 100)


@pytest.mark.parametrize(("noise", "steps"), [(5.0, 50), (1.0, 10), (0.5, 50), (20.0, 50)])
def test_full_batches_have_the_epsilon_of_the_gaussian_mechanism(noise: float, steps: int) -> None:
    mechanism = Mechanism(1.0, steps, 1e-5)
    exact = exact_epsilon_of_full_batches(noise, mechanism)
    tight, loose = (guarantee(noise, mechanism, accountant).epsilon for accountant in ("prv", "rdp"))
    assert exact <= tight <= 1.02 * exact + 0.03
    assert tight <= loose <= 1.15 * exact + 0.2


@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.1), (1.0, 0.5), (0.7, 0.02), (3.0, 0.3)])
def test_one_step_has_the_epsilon_of_the_sampled_gaussian_mechanism(noise: float, rate: float) -> None:
    mechanism = Mechanism(rate, 1, 1e-4)
    exact = exact_epsilon_of_one_sampled_step(noise, mechanism)
    found = guarantee(noise, mechanism, "prv")
    assert exact <= found.epsilon <= 1.01 * exact + 0.03


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.01, 1000), (0.8, 0.16, 18), (2.0, 0.064, 480)])
def test_the_renyi_bound_equals_numerical_integration(noise: float, rate: float, steps: int) -> None:
    delta = 1e-5

    def epsilon(order: float) -> float:
        def moment(z: float) -> float:
            ratio = 1 - rate + rate * math.exp((2 * z - 1) / (2 * noise**2))
            return math.exp(order * math.log(ratio) + norm.logpdf(z, scale=noise))

        integral = quad(moment, -12 * noise, order + 12 * noise, limit=500, points=[0, 1, order])[0]
        renyi = steps * math.log(integral) / (order - 1)
        return renyi + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)

    expected = min(epsilon(order) for order in RDP_ORDERS if 1.25 <= order <= 16)
    assert guarantee(noise, Mechanism(rate, steps, delta), "rdp").epsilon == pytest.approx(expected, rel=1e-6)


def test_the_bound_falls_with_noise_and_stays_finite_where_noise_is_tiny() -> None:
    mechanism = Mechanism(128 / 25000, 300 * 195, 1e-5)
    bounds = [guarantee(noise, mechanism, "prv") for noise in (0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 100.0)]
    values = [bound.epsilon for bound in bounds]
    assert all(math.isfinite(value) for value in values) and values == sorted(values, reverse=True)
    assert [bound.note for bound in bounds[:3]] == ["RDP accountant"] * 3
    assert bounds[4].note == "PRV accountant" and values[4] < guarantee(1.0, mechanism, "rdp").epsilon
    # Each row is expected in 300 batches; its own noise alone then gives 300 / (2 noise^2).
    assert 1.0 < values[1] / (300 / (2 * 0.01**2)) < 1.5


def test_without_noise_there_is_no_bound() -> None:
    found = guarantee(0.0, Mechanism(0.1, 10, 1e-5), "prv")
    assert found.epsilon is None and "no guarantee" in found.note


@pytest.mark.parametrize("target", [8.0, 100.0, 1e5])
def test_a_wanted_epsilon_gets_no_more_noise_than_it_needs(target: float) -> None:
    mechanism = Mechanism(0.05, 100, 1e-5)
    noise = noise_for(target, mechanism, "prv")
    assert guarantee(noise, mechanism, "prv").epsilon <= target
    assert guarantee(0.995 * noise, mechanism, "prv").epsilon > target
    assert noise_for(target, mechanism, "rdp") >= 0.999 * noise


def test_an_epsilon_out_of_reach_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"no noise reaches epsilon 1e-05 .* raise epsilon or delta, or train fewer"):
        dpsgd(epsilon=1e-5).check_training(recipe(), 1000)


def test_metrics_state_the_guarantee() -> None:
    rows, chosen = data(80), recipe(epochs=2, batch_size=8)
    _, loop = train(dpsgd(epsilon=8.0, max_grad_norm=1.5, delta=1e-3), chosen, rows)
    value = {name: metric.value for name, metric in loop.metrics.items()}
    noise = noise_for(8.0, Mechanism(0.1, 20, 1e-3), "prv")
    assert 7.8 < value.pop("privacy/epsilon") <= 8.0
    assert value == {
        "privacy/delta": 1e-3,
        "privacy/noise_multiplier": noise,
        "privacy/max_grad_norm": 1.5,
        "privacy/sample_rate": 0.1,
        "privacy/steps": 20.0,
    }
    assert loop.metrics["privacy/epsilon"].note == "add/remove neighbors, Poisson sampling, PRV accountant"
    assert loop.metrics["privacy/epsilon"].wants == "low"


def test_metrics_of_other_choices() -> None:
    rows = data(40)
    chosen = recipe(epochs=2, select="best_val")
    loop = TrainingLoop(rows, data(6), chosen)
    _, loop = train(dpsgd(noise_multiplier=0.0), chosen, rows, loop=loop)
    epsilon = loop.metrics["privacy/epsilon"]
    assert epsilon.value is None and "no guarantee" in epsilon.note and "validation rows" in epsilon.note
    assert loop.metrics["privacy/delta"].value == 1e-5
    short = TrainingLoop(rows, None, recipe(epochs=9), snapshots=(1, 2))
    _, short = train(dpsgd(noise_multiplier=1.0), recipe(epochs=9), rows, loop=short)
    assert short.metrics["privacy/steps"].value == 10 and len(short.history) == 2


def test_delta_shrinks_with_large_folds() -> None:
    chosen = recipe(epochs=1, batch_size=10_000)
    _, loop = train(dpsgd(), chosen, data(20_000))
    assert loop.metrics["privacy/delta"].value == pytest.approx(5e-6)


def test_a_weak_guarantee_is_warned_of() -> None:
    assert dpsgd().check_training(recipe(), 100) == []
    (warning,) = dpsgd(delta=0.02).check_training(recipe(), 100)
    assert "one of 100 rows" in warning and "below 0.01" in warning
    (warning,) = dpsgd(noise_multiplier=0.0).check_training(recipe(), 100)
    assert "nothing is guaranteed" in warning


# Refusals


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "exactly one of epsilon"),
        ({"epsilon": 8.0, "noise_multiplier": 1.0}, "exactly one of epsilon"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"noise_multiplier": -0.1}, "noise_multiplier"),
        ({"noise_multiplier": 1.0, "max_grad_norm": 0.0}, "max_grad_norm"),
        ({"noise_multiplier": 1.0, "delta": 1.0}, "delta"),
        ({"noise_multiplier": 1.0, "accountant": "gdp"}, "accountant"),
        ({"noise_multiplier": 1.0, "per_sample": "functorch"}, "per_sample"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(DPSGD.Config, bad, "defense")


def test_layers_without_per_sample_gradients_are_named() -> None:
    defense = dpsgd(norm="model")
    with pytest.raises(ConfigError, match=r"layer '[\w.]+' \(BatchNorm2d\) mixes the rows .* set norm: group"):
        fresh_state(defense, recipe(), network(image=True))
    with pytest.raises(ConfigError, match=r"layer '1' \(BatchNorm1d\)"):
        require_per_sample_gradients(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)))
    with pytest.raises(ConfigError, match=r"layer 'memory' \(LSTM\) .* choose another model"):
        require_per_sample_gradients(nn.ModuleDict({"memory": nn.LSTM(2, 2)}))
    odd = nn.Linear(2, 2)
    odd.register_buffer("seen", torch.zeros(1))
    with pytest.raises(ConfigError, match=r"layer '0' \(Linear\) has both weights and buffers"):
        require_per_sample_gradients(nn.Sequential(odd))


def test_activations_that_overwrite_their_input_are_kept_from_it() -> None:
    overwriting, ordinary = network(image=True), network(image=True)
    for layer in overwriting.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.inplace = True
    chosen, rows = recipe(epochs=1), data(image=True)
    first, second = (train(dpsgd(), chosen, rows, model)[0] for model in (overwriting, ordinary))
    assert largest_difference(first, second) == 0


# Several workers


def trained_by_all(rank: int, world: int) -> dict[str, Tensor]:
    """Return weights of both ways; batches of 1 expected row leave most shards empty."""
    result = {}
    for per_sample in ("hooks", "ghost"):
        for size in (1, 12):
            defense = dpsgd(max_grad_norm=0.5, per_sample=per_sample, accountant="rdp")
            rows = data(24, dtype=torch.float64)
            weights, loop = train(
                defense,
                recipe(epochs=1, batch_size=size, momentum=0.9),
                rows,
                collective=Collective(rank, world),
            )
            result[f"{per_sample}/{size}"] = torch.cat([value.flatten() for value in weights.values()])
            result[f"{per_sample}/{size}/losses"] = torch.tensor([row["train/loss"] for row in loop.history])
    return result


def test_two_workers_draw_one_mask_and_one_noise(tmp_path: Path) -> None:
    """And Opacus' import leaves the root logger of these processes alone."""
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(rank)], stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    expected = trained_by_all(0, 1)
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-9, msg=name)


if __name__ == "__main__":
    folder, own_rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=own_rank, world_size=2)
    torch.save(trained_by_all(own_rank, 2), folder / f"{own_rank}.pt")
    dist.destroy_process_group()
    assert not logging.getLogger().handlers
