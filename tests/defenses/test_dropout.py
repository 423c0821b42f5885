from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.dropout import Dropout
from oakum.models._dropout import SampleDropout
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.seeding import derive_seed, keyed_uniform, sample_keys
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, NoCheckpoints, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES, WIDTH, ROWS = 3, 40, 30


def dropout(**settings: Any) -> Dropout:
    return Dropout(validate(Dropout.Config, settings, "defense"))


class TwoLayers(MLP):
    """Drops twice, with a second layer of its own."""

    def __init__(self, config: MLP.Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        self.second_dropout = SampleDropout()

    def dropout_layers(self) -> list[SampleDropout]:
        return [self.head_dropout, self.second_dropout]

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.layers[0](x.flatten(1))
        return self.head(self.second_dropout(self.head_dropout(hidden))), [hidden]


class Undroppable(MLP):
    def dropout_layers(self) -> list[SampleDropout]:
        return []


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
    return LabeledData(torch.rand(ROWS, 8, generator=generator), torch.arange(ROWS) % CLASSES)


def network(cls: type[MLP] = MLP) -> MLP:
    torch.manual_seed(0)
    return cls(MLP.Config(hidden=(WIDTH,)), InputShape((8,)), CLASSES)


def fresh_state(defense: Defense, cls: type[MLP] = MLP, seed: int = 4) -> TrainState:
    model = defense.build(network(cls))
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.2, momentum=0.9)
    return TrainState(model, optimizer, num_classes=CLASSES, seed=seed)


def batch_of(rows: Tensor) -> Batch:
    fold = data()
    return Batch(fold.x[rows], fold.y[rows], rows)


def logits_of(state: TrainState, defense: Defense, rows: Tensor) -> Tensor:
    defense.loss(state, batch_of(rows))
    assert state.last_logits is not None
    return state.last_logits


def train(defense: Defense, **changes: Any) -> tuple[nn.Module, TrainingLoop]:
    chosen = Recipe(optimizer="sgd", learning_rate=0.2, epochs=4, batch_size=8)
    state = fresh_state(defense)
    state.optimizer = build_optimizer(chosen, list(state.model.parameters()))
    loop = TrainingLoop(data(), None, chosen, **changes)
    return defense.fit(state, loop), loop


def equal(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_build_switches_every_layer_on_and_keeps_the_names_of_weights() -> None:
    model = network(TwoLayers)
    names = list(model.state_dict())
    built = dropout(rate=0.3).build(model)
    assert built is model and list(built.state_dict()) == names
    assert [layer.rate for layer in model.dropout_layers()] == [0.3, 0.3]


def test_group_normalization_is_taken_along() -> None:
    model = SmallCNN(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES)
    built = dropout(norm="group").build(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in built.modules())
    assert model.head_dropout.rate == 0.5


def test_a_model_without_dropout_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose another model"):
        dropout().build(network(Undroppable))


def test_rate_zero_equals_none_bit_for_bit() -> None:
    model, loop = train(dropout(rate=0.0))
    undefended, expected = train(Defense(Defense.Config()))
    assert equal(model, undefended)
    assert [row["train/loss"] for row in loop.history] == [row["train/loss"] for row in expected.history]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_loss_equals_a_sample_by_sample_twin(rate: float) -> None:
    defense = dropout(rate=rate)
    state = fresh_state(defense)
    state.step = 11
    rows = torch.tensor([5, 0, 29, 17])
    got = defense.loss(state, batch_of(rows)).item()
    model, total = network(), 0.0
    for row in rows.tolist():
        hidden = model.layers[0](data().x[row]).detach()
        draws = keyed_uniform(sample_keys(derive_seed(4, "dropout", 0, 11), torch.tensor([row])), WIDTH)[0]
        kept = [float(h) / (1 - rate) if u >= rate else 0.0 for h, u in zip(hidden, draws, strict=True)]
        total += F.cross_entropy(model.head(torch.tensor(kept)), data().y[row]).item() / len(rows)
    assert got == pytest.approx(total, rel=1e-6)


def test_masks_belong_to_samples_whatever_the_batch() -> None:
    defense = dropout()
    state = fresh_state(defense)
    whole = logits_of(state, defense, torch.arange(ROWS))
    for rows in (torch.arange(ROWS)[1::3], torch.arange(ROWS).flip(0), torch.tensor([12])):
        torch.testing.assert_close(logits_of(state, defense, rows), whole[rows])


def test_masks_change_with_seed_step_and_layer() -> None:
    defense = dropout()
    state = fresh_state(defense, TwoLayers)
    rows = torch.arange(ROWS)
    seen = []
    for state.seed, state.step in ((4, 0), (4, 1), (5, 0), (4, 0)):
        defense.loss(state, batch_of(rows))
        seen.append([layer.keys for layer in state.model.dropout_layers()])
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[3], strict=True))
    keys = torch.cat([part for pair in seen[:3] for part in pair])
    assert len(keys.unique()) == 3 * 2 * ROWS


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    defense = dropout()
    state = fresh_state(defense)
    torch.manual_seed(1)
    first, after = logits_of(state, defense, torch.arange(ROWS)), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    assert torch.equal(logits_of(state, defense, torch.arange(ROWS)), first)


def test_shards_add_up_to_the_global_batch() -> None:
    defense = dropout()
    state = fresh_state(defense)

    def gradient(rows: Tensor) -> Tensor:
        loss = defense.loss(state, batch_of(rows))
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(state.model.parameters()))])

    shards = [torch.arange(ROWS)[rank::4] for rank in range(4)]
    together = sum(gradient(rows) * (len(rows) / ROWS) for rows in shards)
    torch.testing.assert_close(together, gradient(torch.arange(ROWS)), rtol=1e-4, atol=1e-6)


def test_the_released_model_drops_nothing() -> None:
    model, _ = train(dropout())
    released = dropout().release(model, seed=0).eval()
    plain = network()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(released(data().x), plain.eval()(data().x))


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected, _ = train(dropout())
    assert not equal(expected, train(Defense(Defense.Config()))[0])

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(dropout(), checkpointer=OnDisk(tmp_path / "work"), on_epoch=interrupt)
    resumed, loop = train(dropout(), checkpointer=OnDisk(tmp_path / "work"))
    assert equal(resumed, expected) and len(loop.history) == 4


def test_a_wrapped_model_gets_the_same_masks(tmp_path: Path) -> None:
    defense = dropout()
    alone, wrapped = fresh_state(defense), fresh_state(defense)
    expected = logits_of(alone, defense, torch.arange(ROWS))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped.model = DistributedDataParallel(wrapped.model)
        assert torch.equal(logits_of(wrapped, defense, torch.arange(ROWS)), expected)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("bad", [{"rate": 1.0}, {"rate": -0.1}, {"rate": "0.5"}, {"p": 0.5}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="defense"):
        validate(Dropout.Config, bad, "defense")
