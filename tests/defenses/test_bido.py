from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oakum.config import ConfigError, validate
from oakum.defenses import bido as bido_module
from oakum.defenses.base import Defense
from oakum.defenses.bido import SKIPPED_BATCHES, BiDO, layer_dependences
from oakum.metrics import dependence as dep
from oakum.models.base import Classifier, InputShape
from oakum.models.mlp import MLP
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES = 4


def data(count: int = 48, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 12, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def fresh_state() -> TrainState:
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16, 8)), InputShape((12,)), CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return TrainState(model, optimizer, num_classes=CLASSES, seed=0)


def train(defense: Defense, epochs: int = 3, batch: int = 16) -> tuple[list[float], TrainState]:
    x, y = data()
    state, values = fresh_state(), []
    for state.epoch in range(epochs):
        for index in torch.arange(len(y)).split(batch):
            state.optimizer.zero_grad()
            loss = defense.loss(state, Batch(x[index], y[index], index))
            loss.backward()
            state.optimizer.step()
            values.append(loss.item())
    return values, state


def bido(**settings) -> BiDO:
    return BiDO(BiDO.Config(**{"lambda_x": 0.05, "lambda_y": 0.5, **settings}))


def test_strength_zero_equals_none_bit_for_bit() -> None:
    values, state = train(bido(lambda_x=0.0, lambda_y=0.0))
    expected, undefended = train(Defense(Defense.Config()))
    assert values == expected
    for mine, theirs in zip(state.model.parameters(), undefended.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not state.counters


@pytest.mark.parametrize("measure", ["hsic", "coco"])
@pytest.mark.parametrize("label_kernel", ["gaussian", "linear", "imq"])
@pytest.mark.parametrize("sigma", [5.0, "median"])
def test_loss_equals_a_layer_by_layer_twin(measure: str, label_kernel: str, sigma: float | str) -> None:
    x, y = data(20)
    state = fresh_state()
    value = bido(measure=measure, label_kernel=label_kernel, sigma=sigma).loss(state, Batch(x, y, torch.arange(20)))
    logits, taps = state.model(x, with_taps=True)
    total = F.cross_entropy(logits, y)
    for tap in taps:
        z = dep.prepare(dep.kernel_matrix(tap, "gaussian", sigma), measure)
        on_x = dep.prepare(dep.kernel_matrix(x, "gaussian", sigma), measure)
        on_y = dep.prepare(dep.kernel_matrix(F.one_hot(y, CLASSES).float(), label_kernel, sigma), measure)
        total = total + 0.05 * dep.dependence(z, on_x, measure) - 0.5 * dep.dependence(z, on_y, measure)
    torch.testing.assert_close(value, total.float(), rtol=1e-5, atol=1e-5)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_kernels_of_input_and_labels_are_made_and_prepared_once(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    prepared: list[tuple[int, ...]] = []

    def count_kernel(rows: torch.Tensor, *settings: object) -> torch.Tensor:
        made.append(tuple(rows.shape))
        return dep.kernel_matrix(rows, *settings)

    def count_prepared(kernels: torch.Tensor, measure: str) -> object:
        prepared.append(tuple(kernels.shape))
        return dep.prepare(kernels, measure)

    monkeypatch.setattr(bido_module, "kernel_matrix", count_kernel)
    monkeypatch.setattr(bido_module, "prepare", count_prepared)
    x, y = data(20)
    hidden = [torch.rand(20, width) for width in (9, 8, 7)]
    layer_dependences(hidden, x, F.one_hot(y, CLASSES).float(), measure=measure)
    assert sorted(made) == sorted([(20, 12), (20, CLASSES), (20, 9), (20, 8), (20, 7)])
    assert sorted(prepared) == [(3, 20, 20), (20, 20), (20, 20)]


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_gradient_equals_finite_differences(measure: str) -> None:
    x, y = data(9)
    onehot = F.one_hot(y, CLASSES).double()
    hidden = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def penalty(z: torch.Tensor) -> torch.Tensor:
        on_input, on_label = layer_dependences([z, z[:, :2].tanh()], x.double(), onehot, measure=measure)
        return on_input.sum() - 3 * on_label.sum()

    assert torch.autograd.gradcheck(penalty, hidden, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("settings", "which"), [({"lambda_y": 0.0, "lambda_x": 0.3}, 0), ({"lambda_x": 0.0}, 1)])
def test_training_moves_the_dependence_that_is_weighed(settings: dict, which: int) -> None:
    x, y = data()

    def measured(state: TrainState) -> float:
        _, taps = state.model(x, with_taps=True)
        return layer_dependences(taps, x, F.one_hot(y, CLASSES).float(), measure="hsic")[which].sum().item()

    defended, plain = (train(defense, 30)[1] for defense in (bido(**settings), Defense(Defense.Config())))
    assert (measured(defended) < measured(plain)) if which == 0 else (measured(defended) > measured(plain))


def test_small_and_one_class_batches_fall_back_to_cross_entropy_and_are_counted() -> None:
    x, y = data(20)
    plain = Defense(Defense.Config())
    for rows, labels in ((7, y[:7]), (20, torch.full((20,), 2))):
        state = fresh_state()
        batch = Batch(x[:rows], labels, torch.arange(rows))
        value = bido().loss(state, batch)
        value.backward()
        assert value.item() == plain.loss(fresh_state(), batch).item()
        assert state.counters[SKIPPED_BATCHES] == 1
    state = fresh_state()
    bido().loss(state, Batch(x[:8], y[:8], torch.arange(8)))
    assert state.counters[SKIPPED_BATCHES] == 0


@pytest.mark.parametrize(
    ("recipe", "rows", "said"),
    [
        (Recipe(batch_size=1), 100, "would have 1 row"),
        (Recipe(batch_size=7), 100, "would have 7 rows"),
        (Recipe(batch_size=64), 5, "would have 5 rows"),
        (Recipe(batch_size=16, images_per_class=16), 100, "would have images of one class"),
    ],
)
def test_a_recipe_all_of_whose_batches_would_be_skipped_is_refused(recipe: Recipe, rows: int, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"every batch {said}, and training would be that of no defense; "):
        bido().check_training(recipe, rows)
    assert bido(lambda_x=0.0, lambda_y=0.0).check_training(recipe, rows) == []


@pytest.mark.parametrize("recipe", [Recipe(batch_size=8), Recipe(batch_size=16, images_per_class=8)])
def test_a_recipe_with_measurable_batches_is_not_warned_of(recipe: Recipe) -> None:
    assert bido().check_training(recipe, 9) == []


@pytest.mark.parametrize("measure", ["hsic", "coco"])
@pytest.mark.parametrize("sigma", [5.0, "median"])
def test_a_step_never_waits_for_the_device(measure: str, sigma: float | str) -> None:
    """The meta device holds no data: whatever is read back to the host fails there."""
    x, y = data(16)
    state = fresh_state()
    state.model.to("meta")
    batch = Batch(x.to("meta"), y.to("meta"), torch.arange(16), y)
    bido(measure=measure, sigma=sigma).loss(state, batch).backward()
    assert state.counters[SKIPPED_BATCHES] == 0
    with pytest.raises(NotImplementedError, match="meta"):
        Batch(x.to("meta"), y.to("meta"), torch.arange(16))


def test_the_whole_batch_decides_not_a_worker_s_part_of_it() -> None:
    """A worker whose few samples are of one class takes part, as long as the batch of all workers has several."""
    x, y = data(16)
    state = fresh_state()
    one_class = Batch(x, torch.zeros(16, dtype=torch.long), torch.arange(16), y)
    bido().loss(state, one_class)
    assert state.counters[SKIPPED_BATCHES] == 0
    bido().loss(state, Batch(x, y, torch.arange(16), torch.zeros(16, dtype=torch.long)))
    assert state.counters[SKIPPED_BATCHES] == 1


def test_dead_layers_have_finite_gradients() -> None:
    """A layer whose outputs are all equal has no dependence; COCO's square root must not turn that into NaN."""
    x, y = data(16)
    for measure in ("hsic", "coco"):
        state = fresh_state()
        with torch.no_grad():
            for parameter in state.model.layers[0].parameters():
                parameter.zero_()
        bido(measure=measure).loss(state, Batch(x, y, torch.arange(16))).backward()
        assert all(parameter.grad.isfinite().all() for parameter in state.model.parameters())


def test_images_are_flattened_and_bfloat16_layers_are_measured_in_float32() -> None:
    state = fresh_state()
    state.autocast_dtype = torch.bfloat16
    x, y = data(16)
    value = bido().loss(state, Batch(x.view(16, 3, 2, 2), y, torch.arange(16)))
    assert value.dtype == torch.float32 and value.isfinite()


def test_names_of_measures_and_kernels_ignore_case() -> None:
    config = validate(
        BiDO.Config,
        {"lambda_x": 1.0, "lambda_y": 50, "measure": "COCO", "label_kernel": "IMQ", "sigma": "Median"},
        "defense",
    )
    assert (config.measure, config.label_kernel, config.sigma) == ("coco", "imq", "median")


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"lambda_x": 0.05},
        {"lambda_x": -1.0, "lambda_y": 0.0},
        {"lambda_x": 0.0, "lambda_y": 1.0, "measure": "cka"},
        {"lambda_x": 0.0, "lambda_y": 1.0, "sigma": 0.0},
        {"lambda_x": 0.0, "lambda_y": 1.0, "sigma": "mean"},
        {"lambda_x": 0.0, "lambda_y": 1.0, "label_kernel": "rbf"},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="defense"):
        validate(BiDO.Config, bad, "defense")


class Tapless(Classifier):
    pass


def test_check_refuses_models_without_taps_and_warns_of_what_fails() -> None:
    with pytest.raises(ConfigError, match="tap points"):
        bido().check(Tapless, 10)
    assert bido(lambda_x=0.0, lambda_y=0.0).check(Tapless, 10) == []
    assert bido().check(MLP, 10) == []
    assert "ablation" in bido(lambda_y=0.0).check(MLP, 10)[0]
    assert "no effect" in bido(coco_norm="spectral").check(MLP, 10)[0]
