from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oakum.config import ConfigError, validate
from oakum.defenses._advreg_surrogate import (
    Form,
    Surrogate,
    attack_inputs,
    label_vectors,
    penalties,
    surrogate_loss,
)
from oakum.defenses.advreg import SURROGATE, SURROGATE_ACCURACY, SURROGATE_STEPS, AdvReg
from oakum.defenses.base import Defense
from oakum.models.base import Classifier, InputShape, count_parameters
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.models.strided_cnn import StridedCNN
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES = 3
FIRST_OTHER = 1000
FORMS = {
    "paper": ({}, False),
    "released_code": ({"variant": "released_code"}, False),
    "purchase": ({"variant": "released_code", "surrogate": "purchase"}, False),
    "cifar": ({"variant": "released_code", "surrogate": "cifar"}, True),
    "relaxloss": ({"variant": "relaxloss"}, False),
    "relaxloss on images": ({"variant": "relaxloss"}, True),
    "chosen": ({"inputs": "sorted_softmax", "penalty": "centered_square", "surrogate": "image"}, False),
}


def defense(**settings: Any) -> AdvReg:
    return AdvReg(validate(AdvReg.Config, settings, "advreg"))


def surrogate_of(name: str, classes: int = CLASSES, seed: int = 0, *, is_large: bool = False) -> Surrogate:
    settings, is_image = FORMS[name]
    form = defense(**settings).form(is_image)
    surrogate = Surrogate(form, classes, torch.Generator().manual_seed(seed)).double()
    if is_large:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in surrogate.parameters():
                scale = parameter.shape[-1] ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return surrogate


def example(count: int = 5, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def naive_input(row: list[float], form: Form) -> list[float]:
    if "softmax" in form.inputs:
        total = sum(math.exp(value) for value in row)
        row = [math.exp(value) / total for value in row]
    return sorted(row) if "sorted" in form.inputs else row


def naive_label(label: int, classes: int, form: Form) -> list[float]:
    return [1.0 if c == label else (-1.0 if form.has_signed_labels else 0.0) for c in range(classes)]


def naive_odds(weights: dict[str, np.ndarray], logits: list[float], label: int, form: Form) -> float:
    """Follow one sample through the network that the names of the weights describe."""

    def branch(name: str, values: np.ndarray, is_linear: bool = False) -> np.ndarray:
        for number in sorted({int(key.split(".")[1]) for key in weights if key.startswith(f"{name}.")}):
            values = weights[f"{name}.{number}.weight"] @ values + weights[f"{name}.{number}.bias"]
            values = values if is_linear else np.where(values > 0, values, 0.0)
        return values

    joined = branch("scores", np.array(naive_input(logits, form)))
    if any(key.startswith("labels.") for key in weights):
        vector = np.array(naive_label(label, len(logits), form))
        joined = np.concatenate([joined, branch("labels", vector, is_linear=form.layout == "texas")])
    return float(weights["output.weight"][0] @ branch("head", joined) + weights["output.bias"][0])


def arrays(surrogate: Surrogate) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in surrogate.state_dict().items()}


def belief(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def naive_surrogate_loss(member: list[float], other: list[float], form: Form) -> float:
    terms = []
    for odds, target in [(odds, 1.0) for odds in member] + [(odds, 0.0) for odds in other]:
        d = belief(odds)
        is_log = form.loss == "cross_entropy"
        terms.append(-math.log(d if target else 1 - d) if is_log else (d - target) ** 2)
    return sum(terms) / len(terms)


def naive_penalty(odds: float, form: Form) -> float:
    d = belief(odds)
    return {"log": math.log(d) / 2, "linear": d - 0.5, "square": d * d, "centered_square": (d - 0.5) ** 2}[form.penalty]


@pytest.mark.parametrize("name", FORMS)
def test_the_surrogate_equals_a_naive_twin(name: str) -> None:
    surrogate = surrogate_of(name, is_large=True)
    logits, y = example()
    expected = [
        naive_odds(arrays(surrogate), row, label, surrogate.form)
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    assert len({round(value, 6) for value in expected}) == len(expected)
    assert surrogate(logits, y).tolist() == pytest.approx(expected, rel=1e-10)


def test_each_form_plays_what_was_published() -> None:
    forms = {name: defense(**settings).form(is_image) for name, (settings, is_image) in FORMS.items()}
    assert forms["paper"] == Form("texas", "softmax", False, "cross_entropy", "log")
    assert forms["released_code"] == Form("texas", "logits", False, "squared_error", "linear")
    assert forms["purchase"] == Form("purchase", "logits", False, "squared_error", "linear")
    assert forms["cifar"] == Form("cifar", "logits", True, "squared_error", "square")
    assert forms["relaxloss"] == Form("texas", "sorted_logits", True, "squared_error", "linear")
    assert forms["relaxloss on images"] == Form("image", "sorted_logits", True, "squared_error", "linear")
    assert forms["chosen"] == Form("image", "sorted_softmax", False, "cross_entropy", "centered_square")
    assert defense(surrogate="cifar").form(True).penalty == "log"
    assert defense(variant="relaxloss", freeze_hidden=True).form(True).freezes_hidden


def test_inputs_and_labels() -> None:
    logits, y = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([2])
    p = logits.softmax(1)
    assert torch.equal(attack_inputs(logits, "logits"), logits)
    assert torch.equal(attack_inputs(logits, "sorted_logits"), torch.tensor([[-1.0, 0.5, 2.0]]))
    assert torch.equal(attack_inputs(logits, "softmax"), p)
    assert torch.equal(attack_inputs(logits, "sorted_softmax"), p[:, [1, 2, 0]])
    assert label_vectors(y, 3, signed=False).tolist() == [[0, 0, 1]]
    assert label_vectors(y, 3, signed=True).tolist() == [[-1, -1, 1]]


def test_the_image_surrogate_does_not_see_the_label() -> None:
    logits, y = example()
    blind, seeing = surrogate_of("relaxloss on images", is_large=True), surrogate_of("relaxloss", is_large=True)
    assert torch.equal(blind(logits, y), blind(logits, (y + 1) % CLASSES))
    assert not torch.equal(seeing(logits, y), seeing(logits, (y + 1) % CLASSES))


@pytest.mark.parametrize("name", FORMS)
def test_losses_and_their_gradients_equal_a_naive_twin(name: str) -> None:
    form = surrogate_of(name).form
    member = torch.tensor([0.3, -1.7, 2.5, 0.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([1.1, -0.4, 0.9, -3.0], dtype=torch.float64, requires_grad=True)
    loss = surrogate_loss(member, other, form.loss)
    assert loss.item() == pytest.approx(naive_surrogate_loss(member.tolist(), other.tolist(), form), rel=1e-12)
    assert penalties(member, form.penalty).tolist() == pytest.approx(
        [naive_penalty(odds, form) for odds in member.tolist()], rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda a, b: surrogate_loss(a, b, form.loss), (member, other))
    assert torch.autograd.gradcheck(lambda a: penalties(a, form.penalty), member)


@pytest.mark.parametrize("name", FORMS)
def test_certain_surrogates_give_finite_losses(name: str) -> None:
    form = surrogate_of(name).form
    odds = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = surrogate_loss(odds, odds, form.loss) + penalties(odds, form.penalty).sum()
    value.backward()
    assert value.isfinite() and odds.grad is not None and odds.grad.isfinite().all()


def test_at_one_half_the_log_and_linear_penalties_agree_in_slope() -> None:
    odds = torch.zeros(1, requires_grad=True)
    slopes = {
        kind: float(torch.autograd.grad(penalties(odds, kind).sum(), odds)[0])
        for kind in ("log", "linear", "square", "centered_square")
    }
    assert slopes == {"log": 0.25, "linear": 0.25, "square": 0.25, "centered_square": 0.0}


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("released_code", 20, 53_249),
        # 100-1024-512-64, 100-128-64, 128-512-256-128-64-1 and 128-256-128-64-1 with biases.
        ("purchase", 100, 103_424 + 524_800 + 32_832 + 12_928 + 8_256 + 66_048 + 131_328 + 32_896 + 8_256 + 65),
        ("cifar", 100, 103_424 + 524_800 + 32_832 + 12_928 + 8_256 + 33_024 + 32_896 + 8_256 + 65),
        ("relaxloss on images", 100, 100 * 100 + 100 + 101),
    ],
)
def test_layouts_have_the_published_sizes(name: str, classes: int, count: int) -> None:
    surrogate = surrogate_of(name, classes)
    assert count_parameters(surrogate) == count
    assert all(parameter.requires_grad for parameter in surrogate.parameters())


def test_weights_start_as_published_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = surrogate_of("paper", 100), surrogate_of("paper", 100), surrogate_of("paper", 100, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert not torch.equal(value, other.state_dict()[name])
    assert first.scores[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    image = surrogate_of("relaxloss on images", 100)
    for layer in (image.scores[0], image.output):
        assert layer.weight.abs().max() <= 0.1 and layer.bias.abs().max() <= 0.1
        assert layer.weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.2)


def test_freezing_leaves_only_the_last_layer_to_train() -> None:
    settings = {"variant": "relaxloss", "freeze_hidden": True, "surrogate": "image"}
    initial = game(settings)[0].extras[SURROGATE].state_dict()
    final = play(settings)[0].extras[SURROGATE].state_dict()
    assert {name for name in final if not torch.equal(final[name], initial[name])} == {"output.weight", "output.bias"}


def fold(count: int, first: int, classes: int = CLASSES, width: int = 6) -> LabeledData:
    """Rows whose first feature tells them apart: position plus `first`, in ten-thousandths."""
    generator = torch.Generator().manual_seed(first)
    x = torch.rand(count, width, generator=generator)
    x[:, 0] = (torch.arange(count) + first) / 10_000
    return LabeledData(x, torch.randint(classes, (count,), generator=generator))


def ids(x: Tensor) -> list[int]:
    return (10_000 * x.flatten(1)[:, 0].double()).round().long().tolist()


def game(
    settings: dict[str, Any],
    *,
    members: int = 20,
    others: int = 30,
    epochs: int = 4,
    batch_size: int = 8,
    seed: int = 0,
    **loop_options: Any,
) -> tuple[TrainState, TrainingLoop]:
    recipe = Recipe(learning_rate=1e-2, epochs=epochs, batch_size=batch_size)
    torch.manual_seed(seed)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((6,)), CLASSES)
    running = TrainState(model, build_optimizer(recipe, list(model.parameters())), CLASSES, seed)
    loop = TrainingLoop(fold(members, 0), None, recipe, folds={"reference": fold(others, FIRST_OTHER)}, **loop_options)
    return defense(**settings).prepare(running), loop


def play(settings: dict[str, Any], **options: Any) -> tuple[TrainState, TrainingLoop]:
    running, loop = game(settings, **options)
    defense(**settings).fit(running, loop)
    return running, loop


@pytest.mark.parametrize("name", FORMS)
def test_the_target_pays_the_cross_entropy_and_the_weighted_penalty(name: str) -> None:
    settings, is_image = FORMS[name]
    chosen = defense(**settings, alpha=1.7, warmup_epochs=2)
    torch.manual_seed(0)
    shape = InputShape((1, 2, 3)) if is_image else InputShape((6,))
    model = MLP(MLP.Config(hidden=(4,)), shape, CLASSES).double()
    running = chosen.prepare(TrainState(model, torch.optim.SGD(model.parameters(), lr=1.0), CLASSES, 0, epoch=2))
    surrogate = running.extras[SURROGATE]
    surrogate.load_state_dict(surrogate_of(name, is_large=True).state_dict())
    x = torch.rand(5, *shape.dims, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 1, 0])
    batch = Batch(x, y, torch.arange(5))

    def naive() -> float:
        total = 0.0
        for row, label in zip(model(x).tolist(), y.tolist(), strict=True):
            cross_entropy = math.log(sum(math.exp(value) for value in row)) - row[label]
            odds = naive_odds(arrays(surrogate), row, label, surrogate.form)
            total += cross_entropy + 1.7 * naive_penalty(odds, surrogate.form)
        return total / len(y)

    loss = chosen.loss(running, batch)
    loss.backward()
    assert loss.item() == pytest.approx(naive(), rel=1e-10)
    assert all(parameter.grad is None for parameter in surrogate.parameters())
    bias = model.head.bias
    for c in range(CLASSES):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                bias[c] += step
                values.append(naive())
                bias[c] -= step
        assert float(bias.grad[c]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    running.epoch = 1
    assert chosen.loss(running, batch).item() == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-14)


@pytest.mark.parametrize("settings", [{"surrogate": "image"}, {"surrogate": "image", "variant": "relaxloss"}])
def test_a_surrogate_step_is_adam_on_the_naive_gradient(settings: dict[str, Any]) -> None:
    """The first step of the game, on the target's first weights: Adam moves by lr * g / (|g| + 1e-8)."""
    settings = {**settings, "warmup_epochs": 0, "held_out": 0.0}
    running, loop = game(settings, members=8, others=8, epochs=1)
    running.model.double()
    running.extras[SURROGATE].double()
    loop.train, loop.folds = (
        LabeledData(loop.train.x.double(), loop.train.y),
        {"reference": LabeledData(loop.folds["reference"].x.double(), loop.folds["reference"].y)},
    )
    before, form = arrays(running.extras[SURROGATE]), running.extras[SURROGATE].form
    answers = {
        side: list(zip(running.model(data.x).tolist(), data.y.tolist(), strict=True))
        for side, data in (("member", loop.train), ("other", loop.folds["reference"]))
    }

    def naive(weights: dict[str, np.ndarray]) -> float:
        odds = {side: [naive_odds(weights, *pair, form) for pair in pairs] for side, pairs in answers.items()}
        return naive_surrogate_loss(odds["member"], odds["other"], form)

    defense(**settings).fit(running, loop)
    after = arrays(running.extras[SURROGATE])
    assert loop.history[0][SURROGATE_STEPS] == 1
    checked = 0
    for name in before:
        for position in range(0, before[name].size, 19):
            values = []
            for step in (1e-5, -1e-5):
                moved = {key: value.copy() for key, value in before.items()}
                moved[name].flat[position] += step
                values.append(naive(moved))
            gradient = (values[0] - values[1]) / 2e-5
            if abs(gradient) < 1e-5:
                continue
            expected = before[name].flat[position] - 1e-3 * gradient / (abs(gradient) + 1e-8)
            assert after[name].flat[position] == pytest.approx(expected, abs=1e-6)
            checked += 1
    assert checked >= 10


class Recorder:
    """Keeps which rows the target was asked about, in which mode and epoch."""

    def __init__(self, running: TrainState) -> None:
        self.calls: list[tuple[int, bool, list[int]]] = []
        running.model.register_forward_pre_hook(
            lambda module, inputs: self.calls.append((running.epoch, module.training, ids(inputs[0])))
        )

    def surrogate_batches(self, epoch: int) -> list[list[int]]:
        """Rows of the surrogate's steps: both sides in one call."""
        mixed = [(e, rows) for e, _, rows in self.calls if min(rows) < FIRST_OTHER <= max(rows)]
        return [rows for e, rows in mixed if e == epoch]


def record(settings: dict[str, Any], **options: Any) -> tuple[Recorder, TrainState, TrainingLoop]:
    running, loop = game(settings, **options)
    recorder = Recorder(running)
    defense(**settings).fit(running, loop)
    return recorder, running, loop


def test_the_players_take_turns_as_the_settings_say() -> None:
    settings = {"surrogate": "image", "warmup_epochs": 2, "surrogate_warmup_epochs": 3, "surrogate_steps": 1.5}
    recorder, _, loop = record(settings | {"held_out": 0.0}, members=16)
    # 16 members make 2 batches of 8: 3 passes are 6 steps; 2 target steps at 1.5 are 3.
    assert [row.get(SURROGATE_STEPS, 0) for row in loop.history] == [0, 6, 6 + 3, 3]
    kinds = ["target" if training else "surrogate" for _, training, _ in recorder.calls]
    surrogate, target = ["surrogate"], ["target"]
    assert kinds == (
        target * 2 + surrogate * 6 + target * 2 + surrogate * 6 + (surrogate + target + surrogate * 2 + target) * 2
    )


def test_a_ratio_below_one_skips_steps_of_the_surrogate() -> None:
    settings = {"surrogate": "image", "warmup_epochs": 0, "surrogate_steps": 0.25}
    _, loop = play(settings, members=16, epochs=6)
    assert [row.get(SURROGATE_STEPS, 0) for row in loop.history] == [0, 1, 0, 1, 0, 1]


def test_surrogate_batches_are_balanced_and_pass_over_every_row() -> None:
    settings = {"surrogate": "image", "warmup_epochs": 1, "surrogate_warmup_epochs": 0, "held_out": 0.0}
    recorder, _, loop = record(settings, members=20, others=12, epochs=6)
    batches = [rows for epoch in range(6) for rows in recorder.surrogate_batches(epoch)]
    assert len(batches) == sum(row.get(SURROGATE_STEPS, 0) for row in loop.history) == 5 * 3
    assert all([row < FIRST_OTHER for row in rows] == [True] * 8 + [False] * 8 for rows in batches)
    # The stream of step k starts at row 8 k; the first three steps belong to the warm-up epoch and are not taken.
    for side, count in ((slice(0, 8), 20), (slice(8, 16), 12)):
        stream = [row for rows in batches for row in rows[side]]
        start = -(3 * 8) % count
        passes = [stream[i : i + count] for i in range(start, len(stream) - count + 1, count)]
        assert len(passes) >= 4
        assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == count for one in passes)
        assert passes[0] != passes[1]


def test_held_out_rows_measure_the_surrogate_and_never_train_it() -> None:
    settings = {"surrogate": "image", "held_out": 0.25, "surrogate_steps": 3.0}
    recorder, running, loop = record(settings, members=20, others=30, epochs=6)
    met = {row for epoch in range(6) for rows in recorder.surrogate_batches(epoch) for row in rows}
    members = torch.tensor(sorted(set(range(20)) - met))
    others = torch.tensor(sorted(set(range(30)) - {row - FIRST_OTHER for row in met}))
    measured = [rows for _, training, rows in recorder.calls if not training and not (met & set(rows))]
    assert [sorted(rows) for rows in measured] == [members.tolist(), (others + FIRST_OTHER).tolist()] * 6
    reference = loop.folds["reference"]
    surrogate = running.extras[SURROGATE]
    with torch.no_grad():
        found = surrogate(running.model.eval()(loop.train.x[members]), loop.train.y[members]) > 0
        refused = surrogate(running.model(reference.x[others]), reference.y[others]) <= 0
    expected = (int(found.sum()) + int(refused.sum())) / 10
    assert loop.history[-1][SURROGATE_ACCURACY] == pytest.approx(expected)
    assert all(0 <= row[SURROGATE_ACCURACY] <= 1 for row in loop.history)
    assert SURROGATE_ACCURACY not in play(settings | {"held_out": 0.0})[1].history[0]
    targets = {row for _, training, rows in recorder.calls for row in rows if training}
    assert targets == set(range(20))


def test_listeners_get_the_row_with_the_accuracy() -> None:
    seen: list[dict[str, Any]] = []
    _, loop = play({"surrogate": "image"}, on_epoch=lambda row: seen.append(dict(row)))
    assert seen == loop.history and all(SURROGATE_ACCURACY in row for row in seen)


def images(count: int, seed: int) -> LabeledData:
    generator = torch.Generator().manual_seed(seed)
    return LabeledData(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % CLASSES)


NETWORKS: dict[str, tuple[type[Classifier], Any]] = {
    "dropout": (StridedCNN, StridedCNN.Config(width=2, hidden=8)),
    "batch normalization": (SmallCNN, SmallCNN.Config(width=2)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", ["paper", "released_code", "relaxloss"])
def test_alpha_zero_trains_the_target_of_none_bit_for_bit(network: str, variant: str) -> None:
    model_class, config = NETWORKS[network]
    recipe = Recipe(learning_rate=1e-2, epochs=3, batch_size=8)
    states, histories = [], []
    for chosen in (Defense(Defense.Config()), defense(alpha=0.0, variant=variant, surrogate_steps=2.0)):
        torch.manual_seed(0)
        model = model_class(config, InputShape((1, 8, 8)), CLASSES)
        running = TrainState(model, build_optimizer(recipe, list(model.parameters())), CLASSES, 0)
        loop = TrainingLoop(images(20, 0), images(6, 2), recipe, folds={"reference": images(20, 1)})
        chosen.fit(chosen.prepare(running), loop)
        states.append(model.state_dict())
        histories.append([{k: v for k, v in row.items() if k.startswith(("train/", "val/"))} for row in loop.history])
    assert loop.history[-1][SURROGATE_STEPS] == 6
    assert histories[0] == histories[1]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_players_do_not_move_each_other() -> None:
    """Surrogate steps leave the target as it is, its batch statistics too, and the target's step the surrogate."""
    recipe = Recipe(epochs=2, batch_size=8)
    chosen = defense(warmup_epochs=0)
    model = SmallCNN(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES)
    running = chosen.prepare(TrainState(model, build_optimizer(recipe, list(model.parameters())), CLASSES, 0))
    surrogate = running.extras[SURROGATE]
    snapshots: list[tuple[bool, dict[str, Tensor], dict[str, Tensor]]] = []

    def watch(module: Classifier, inputs: Any) -> None:
        copies = ({k: v.clone() for k, v in each.state_dict().items()} for each in (module, surrogate))
        snapshots.append((module.training, *copies))

    model.register_forward_pre_hook(watch)
    loop = TrainingLoop(images(16, 0), None, recipe, folds={"reference": images(16, 1)})
    chosen.fit(running, loop)
    compared = 0
    for (is_target, target, second), (next_is_target, next_target, next_second) in itertools.pairwise(snapshots):
        if is_target:
            assert all(torch.equal(second[name], next_second[name]) for name in second)
        elif next_is_target:
            assert all(torch.equal(target[name], next_target[name]) for name in target)
            assert not torch.equal(second["output.bias"], next_second["output.bias"])
            compared += 1
    assert compared == 4


def test_members_come_to_look_undecided() -> None:
    """Against an overfitted target the surrogate's beliefs move toward 0.5, and members toward the others."""

    def random_labels(seed: int) -> LabeledData:
        generator = torch.Generator().manual_seed(seed)
        return LabeledData(torch.rand(60, 20, generator=generator), torch.randint(CLASSES, (60,), generator=generator))

    distance, difference = [], []
    for alpha in (0.0, 5.0):
        recipe = Recipe(learning_rate=2e-2, epochs=25, batch_size=20)
        torch.manual_seed(0)
        model = MLP(MLP.Config(hidden=(64,), activation="relu"), InputShape((20,)), CLASSES)
        chosen = defense(alpha=alpha, surrogate_steps=4.0, held_out=0.0)
        running = TrainState(model, build_optimizer(recipe, list(model.parameters())), CLASSES, 0)
        loop = TrainingLoop(random_labels(0), None, recipe, folds={"reference": random_labels(1)})
        chosen.fit(chosen.prepare(running), loop)
        with torch.no_grad():
            member, other = (
                running.extras[SURROGATE](model.eval()(data.x), data.y).sigmoid().mean().item()
                for data in (loop.train, loop.folds["reference"])
            )
        distance.append(abs(member - 0.5))
        difference.append(member - other)
    assert distance[0] > 0.1 and distance[1] < distance[0] / 2
    assert difference[0] > 0.2 and 0 < difference[1] < difference[0] / 2


class OnDisk:
    """Keeps every checkpoint in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        target = self.folder / str(epoch)
        target.mkdir(parents=True)
        save_parts(target, parts, record)

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        found = sorted(self.folder.iterdir(), key=lambda path: int(path.name)) if self.folder.exists() else []
        return load_parts(found[-1], parts) if found else None


@pytest.mark.parametrize("settings", [{"surrogate_steps": 1.5, "warmup_epochs": 2}, {"variant": "relaxloss"}])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_training_ends_with_the_same_bits(stop: int, settings: dict[str, Any], tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == stop:
            raise StoppedError

    expected, undisturbed = play(settings)
    with pytest.raises(StoppedError):
        play(settings, checkpointer=OnDisk(tmp_path / "work"), on_epoch=interrupt)
    found, resumed = play(settings, checkpointer=OnDisk(tmp_path / "work"))
    for mine, theirs in ((found.model, expected.model), (found.extras[SURROGATE], expected.extras[SURROGATE])):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())
    times = {"seconds", "finished"}
    assert [{k: v for k, v in row.items() if k not in times} for row in resumed.history] == [
        {k: v for k, v in row.items() if k not in times} for row in undisturbed.history
    ]


def test_the_game_follows_from_the_seed_alone() -> None:
    first = play({})[0].extras[SURROGATE].state_dict()
    torch.rand(7)
    again = play({})[0].extras[SURROGATE].state_dict()
    other = play({}, seed=1)[0].extras[SURROGATE].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["output.weight"], other["output.weight"])


@pytest.mark.parametrize("folds", [{}, {"reference": LabeledData(torch.empty(0, 6), torch.empty(0, dtype=torch.long))}])
def test_a_missing_reference_fold_is_named(folds: dict[str, LabeledData]) -> None:
    running, loop = game({})
    loop.folds = folds
    with pytest.raises(ConfigError, match="fold 'reference'; add it to"):
        defense().fit(running, loop)
    assert AdvReg.reads == ("reference",)


def test_tiny_folds_are_passed_over_several_times_a_batch() -> None:
    _, loop = play({"held_out": 0.0}, members=20, others=2)
    assert loop.history[-1][SURROGATE_STEPS] == 3


def test_a_warm_up_without_end_is_refused() -> None:
    recipe = Recipe(epochs=3)
    assert defense(warmup_epochs=2).check_training(recipe, 100) == []
    assert defense(warmup_epochs=3, alpha=0.0).check_training(recipe, 100) == []
    with pytest.raises(ConfigError, match=r"leaves none of the 3 epochs.*lower defense.warmup_epochs"):
        defense(warmup_epochs=3).check_training(recipe, 100)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": -0.1},
        {"variant": "reference"},
        {"surrogate": "mlp"},
        {"inputs": "probabilities"},
        {"penalty": "hinge"},
        {"surrogate_steps": 0.0},
        {"surrogate_learning_rate": 0.0},
        {"warmup_epochs": -1},
        {"held_out": 1.0},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validate(AdvReg.Config, bad, "defense")
