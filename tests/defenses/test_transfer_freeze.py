from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses.base import Teacher
from oakum.defenses.transfer_freeze import PartlyFrozen, TransferFreeze
from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import MCNN
from oakum.models.small_cnn import SmallCNN
from oakum.models.strided_cnn import StridedCNN
from oakum.pipeline.training import initial_state
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, NoCheckpoints, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES, PUBLIC_CLASSES, ROWS = 3, 7, 24


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


def freezing(first_trainable: str = "block3", **settings: Any) -> TransferFreeze:
    options = {"first_trainable": first_trainable, **settings}
    return TransferFreeze(validate(TransferFreeze.Config, options, "defense"))


def network(seed: int = 0, classes: int = CLASSES, width: int = 2) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(SmallCNN.Config(width=width), InputShape((1, 8, 8)), classes)


def data() -> LabeledData:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(ROWS) % CLASSES
    return LabeledData((torch.rand(ROWS, 1, 8, 8, generator=generator) + y.view(-1, 1, 1, 1)) / CLASSES, y)


def pretrained(width: int = 2) -> SmallCNN:
    """Return a released model of other classes, whose normalization has seen data."""
    model = network(9, PUBLIC_CLASSES, width)
    for _ in range(3):
        model(data().x)
    return model.eval()


def train(
    defense: TransferFreeze, known: nn.Module | None = None, recipe: Recipe | None = None, **changes: Any
) -> tuple[nn.Module, TrainingLoop]:
    chosen = recipe or Recipe(optimizer="sgd", learning_rate=0.1, weight_decay=0.1, epochs=3, batch_size=8)
    model = defense.build(network())
    optimizer = build_optimizer(chosen, [each for each in model.parameters() if each.requires_grad])
    state = TrainState(model, optimizer, CLASSES, seed=5)
    source = known or pretrained()
    loop = TrainingLoop(data(), None, chosen, teachers={"source": lambda: source}, **changes)
    return defense.fit(state, loop), loop


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("classifier."): value.clone() for name, value in module.state_dict().items()}


def equal(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("first_trainable", "frozen"),
    [
        ("block1", set()),
        ("block3", {"block1", "block2"}),
        ("head", {"block1", "block2", "block3"}),
        ("block2.1", {"block1", "block2.0"}),
    ],
)
def test_what_is_frozen_keeps_the_bits_of_the_source(first_trainable: str, frozen: set[str]) -> None:
    trained, _ = train(freezing(first_trainable))
    source, start, found = state_of(pretrained()), state_of(network()), state_of(trained)
    for name, value in found.items():
        is_frozen = name.startswith(tuple(f"{each}." for each in frozen))
        if name.startswith("head."):
            assert not torch.equal(value, start[name]) and value.shape[0] == CLASSES
        else:
            assert torch.equal(value, source[name]) == is_frozen, name


def test_the_trained_body_starts_from_the_source_and_the_head_is_fresh() -> None:
    trained, _ = train(freezing("block2"), recipe=Recipe(optimizer="sgd", learning_rate=1e-30, epochs=1, batch_size=8))
    source, start, found = state_of(pretrained()), state_of(network()), state_of(trained)
    parameters = {name for name, _ in network().named_parameters()}
    for name in parameters:
        expected = (start if name.startswith("head.") else source)[name]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-25)


def test_a_head_as_wide_as_the_source_s_is_fresh_too() -> None:
    known = network(9, CLASSES).eval()
    trained, _ = train(freezing("head"), known, Recipe(optimizer="sgd", learning_rate=1e-30, epochs=1, batch_size=8))
    assert torch.equal(state_of(trained)["head.weight"], network().head.weight)


def test_a_normalization_before_the_head_counts_as_head_where_the_model_says_so() -> None:
    class Headed(SmallCNN):
        head_modules = ("block3", "head")

    torch.manual_seed(0)
    built = freezing("block2").build(Headed(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES))
    recipe = Recipe(optimizer="sgd", learning_rate=1e-30, epochs=1, batch_size=8)
    state = TrainState(built, build_optimizer(recipe, list(built.parameters())), CLASSES, seed=5)
    loop = TrainingLoop(data(), None, recipe, teachers={"source": pretrained})
    found = state_of(freezing("block2").fit(state, loop))
    assert torch.equal(found["block3.0.weight"], network().block3[0].weight)
    assert torch.equal(found["block2.0.weight"], pretrained().block2[0].weight)


def test_frozen_parameters_are_not_optimized_and_frozen_modules_stay_in_eval_mode() -> None:
    model = freezing("block3").build(network())
    trainable = {name.split(".")[1] for name, each in model.named_parameters() if each.requires_grad}
    assert trainable == {"block3", "head"}
    for mode in (True, False, True):
        model.train(mode)
        modes = {name: module.training for name, module in model.classifier.named_modules() if name}
        assert not any(training for name, training in modes.items() if name.startswith(("block1", "block2")))
        assert all(training == mode for name, training in modes.items() if not name.startswith(("block1", "block2")))
        assert model.training == mode


def test_a_block_that_is_frozen_in_part_trains_its_rest() -> None:
    model = freezing("block2.1").build(network()).train()
    assert not model.classifier.block2[0].training and model.classifier.block2[1].training
    assert model.classifier.block2.training and not model.classifier.block1[1].training


def test_a_dropout_layer_of_its_own_is_left_to_the_head() -> None:
    model = StridedCNN(StridedCNN.Config(width=2, hidden=8), InputShape((1, 8, 8)), CLASSES)
    assert freezing("head").build(model).train().classifier.dropout.training


def test_a_parameter_that_the_model_itself_freezes_stays_frozen() -> None:
    model = network()
    model.block3[1].bias.requires_grad_(False)
    assert not freezing("block3").build(model).classifier.block3[1].bias.requires_grad


def test_it_answers_as_the_classifier() -> None:
    model, plain = freezing().build(network()).eval(), network().eval()
    logits, taps = model(data().x, with_taps=True)
    assert torch.equal(logits, plain(data().x)) and len(taps) == 3 and model.num_classes == CLASSES
    assert torch.equal(model(data().x), logits)


def test_the_teacher_is_the_undefended_model_of_the_public_fold() -> None:
    assert freezing(norm="group").teachers() == {"source": Teacher({"name": "none", "norm": "group"}, public=True)}
    assert freezing(source="weights").teachers() == {}
    with pytest.raises(ValueError, match="not on both"):
        Teacher({"name": "none"}, own_rows=True, public=True)


class Loaded(SmallCNN):
    """A model with a file of initial weights, loaded already."""

    class Config(SmallCNN.Config):
        initial_weights: str | None = None


def loaded(path: str | None) -> Classifier:
    torch.manual_seed(9)
    model = Loaded(Loaded.Config(width=2, initial_weights=path), InputShape((1, 8, 8)), CLASSES)
    model(data().x)
    return model


def test_initial_weights_are_kept_without_a_teacher() -> None:
    defense = freezing("block3", source="weights")
    model, start = defense.build(loaded("resnet.safetensors")), state_of(loaded("resnet.safetensors"))
    recipe = Recipe(optimizer="sgd", learning_rate=0.1, epochs=2, batch_size=8)
    optimizer = build_optimizer(recipe, [each for each in model.parameters() if each.requires_grad])
    loop = TrainingLoop(data(), None, recipe)
    found = state_of(defense.fit(TrainState(model, optimizer, CLASSES, seed=5), loop))
    for name, value in found.items():
        assert torch.equal(value, start[name]) == name.startswith(("block1.", "block2.")), name


class Still(TrainingLoop):
    """Trains nothing: the network is as it was at the start."""

    def run(self, state: TrainState, loss: Any) -> nn.Module:
        return state.model


def start_of(settings: dict[str, Any], model: dict[str, Any], initial: dict[str, Tensor] | None) -> TrainState:
    config = {
        "model": {**model, "initial_weights": "mine"},
        "defense": {"name": "transfer_freeze", **settings},
        "input_shape": [3, 32, 32],
        "num_classes": CLASSES,
        "seed": 11,
    }
    return initial_state(config, Recipe(epochs=1), torch.device("cpu"), initial)


@pytest.mark.parametrize("source", ["weights", "public"])
@pytest.mark.parametrize(
    ("model", "first_trainable", "fresh"),
    [
        ({"name": "small_cnn", "width": 2}, "block3", ("head.",)),
        ({"name": "vgg16_bn1d", "width": 2}, "stages.4", ("feature_norm.", "head.")),
        ({"name": "vgg16_bn1d", "width": 2}, "head", ("head.",)),
    ],
    ids=["small_cnn", "vgg16", "vgg16 with a frozen feature_norm"],
)
def test_a_head_that_the_initial_weights_fit_is_fresh_too(
    model: dict[str, Any], first_trainable: str, fresh: tuple[str, ...], source: str
) -> None:
    settings = {"first_trainable": first_trainable, "source": source}
    drawn = state_of(start_of(settings, model, None).model)
    initial = {name: value + 1 for name, value in drawn.items()}
    state = start_of(settings, model, initial)
    assert torch.equal(state_of(state.model)["head.weight"], initial["head.weight"])
    known: Any = start_of(settings, model, {name: value + 2 for name, value in drawn.items()}).model.classifier
    teachers = {"source": lambda: known} if source == "public" else {}
    before = torch.get_rng_state()
    loop = Still(data(), None, Recipe(epochs=1), teachers=teachers)
    found = state_of(freezing(**settings).fit(state, loop))
    kept = state_of(known) if source == "public" else initial
    for name, value in found.items():
        assert torch.equal(value, (drawn if name.startswith(fresh) else kept)[name]), name
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", [network, lambda: loaded(None)], ids=["unknown to the model", "not given"])
def test_models_without_initial_weights_are_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"set model\.initial_weights or defense\.source: public"):
        freezing(source="weights").build(model())


@pytest.mark.parametrize("name", ["block4", "block", "head_dropout", "block1.3", "classifier.block1"])
def test_unknown_layers_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"no layer '{name}' .* one of block1, block2, block3, head, or to a layer"):
        freezing(name).build(network())


def test_a_source_with_another_network_is_refused_and_changes_nothing() -> None:
    with pytest.raises(
        ConfigError, match=r"needs 'block1\.0\.weight' with shape \(2, 1, 3, 3\), but its source has it"
    ):
        train(freezing(), pretrained(width=4))
    other = StridedCNN(StridedCNN.Config(width=2, hidden=8), InputShape((1, 8, 8)), CLASSES)
    with pytest.raises(ConfigError, match="but its source has none"):
        train(freezing(), other)


def test_a_frozen_tensor_that_changes_is_an_error() -> None:
    class Careless(TransferFreeze):
        def loss(self, state: TrainState, batch: Batch) -> Tensor:
            with torch.no_grad():
                state.model.classifier.block1[1].running_mean.add_(1e-3)
            return super().loss(state, batch)

    with pytest.raises(RuntimeError, match=r"changed the frozen tensor 'block1\.1\.running_mean'"):
        train(Careless(freezing().config))


def test_it_learns() -> None:
    _, loop = train(freezing(), recipe=Recipe(learning_rate=1e-2, epochs=15, batch_size=8))
    assert loop.history[-1]["train/accuracy"] > 0.8 > loop.history[0]["train/accuracy"]


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected, _ = train(freezing())

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(freezing(), checkpointer=OnDisk(tmp_path / "work"), on_epoch=interrupt)
    resumed, loop = train(freezing(), checkpointer=OnDisk(tmp_path / "work"))
    assert equal(resumed, expected) and len(loop.history) == 3


def test_group_normalization_is_taken_along() -> None:
    built = freezing(norm="group").build(network())
    assert isinstance(built, PartlyFrozen)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in built.modules())


@pytest.mark.parametrize("bad", [{}, {"first_trainable": ""}, {"first_trainable": "head", "source": "imagenet"}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="defense"):
        validate(TransferFreeze.Config, bad, "defense")


def test_layers_that_no_weights_fit_are_not_frozen_at_random() -> None:
    model = MCNN(MCNN.Config(initial_weights="mine"), InputShape((1, 32, 32)), 5)
    other = MCNN(MCNN.Config(), InputShape((1, 32, 32)), 7)
    model.load_initial(other.state_dict())
    assert model.left_as_drawn == ("head.",)
    weights = TransferFreeze.Config(source="weights", first_trainable="block3")
    assert isinstance(TransferFreeze(weights).build(model), PartlyFrozen)
    model.left_as_drawn = ("block1.", "head.")
    with pytest.raises(ConfigError, match=r"nothing that fits 'block1.*at random values"):
        TransferFreeze(weights).build(model)


def test_initial_weights_trained_with_another_normalization_are_refused() -> None:
    model = SmallCNN(SmallCNN.Config(width=2, initial_weights="mine"), InputShape((1, 8, 8)), CLASSES)
    freezing(source="weights").build(model)
    with pytest.raises(ConfigError, match="norm 'group' would replace the normalization that the initial weights"):
        freezing(source="weights", norm="group").build(model)
