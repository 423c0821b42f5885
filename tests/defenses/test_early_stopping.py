from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oakum import registry
from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense, Snapshot
from oakum.defenses.early_stopping import EarlyStopping
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, NoCheckpoints, TrainingLoop
from oakum.training.optimizers import build_optimizer, build_scheduler
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState

CLASSES, EPOCHS = 3, 6


def stopping(**settings: Any) -> EarlyStopping:
    return EarlyStopping(validate(EarlyStopping.Config, settings, "defense"))


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


def data(seed: int = 1) -> LabeledData:
    generator = torch.Generator().manual_seed(seed)
    return LabeledData(torch.rand(30, 8, generator=generator), torch.arange(30) % CLASSES)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"learning_rate": 1e-2, "epochs": EPOCHS, "batch_size": 8, "milestones": (2, 4), **changes})


def fresh_state(chosen: Recipe) -> TrainState:
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(16,)), InputShape((8,)), CLASSES)
    optimizer = build_optimizer(chosen, list(model.parameters()))
    return TrainState(model, optimizer, CLASSES, 4, scheduler=build_scheduler(chosen, optimizer))


def train(defense: Defense, chosen: Recipe, **changes: Any) -> tuple[dict[str, Tensor], TrainingLoop]:
    loop = TrainingLoop(data(), data(9), chosen, **changes)
    module: nn.Module = defense.fit(fresh_state(chosen), loop)
    return module.state_dict(), loop


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


UNDEFENDED = Defense(Defense.Config())


@pytest.mark.parametrize("select", ["last", "best_val"])
@pytest.mark.parametrize("epoch", [1, 3, EPOCHS])
def test_fit_equals_the_snapshot_of_the_undefended_training(epoch: int, select: str) -> None:
    chosen = recipe(select=select)
    _, whole = train(UNDEFENDED, chosen, snapshots=(1, 3, EPOCHS))
    found, loop = train(stopping(epoch=epoch), chosen)
    assert equal(found, whole.kept[epoch])
    assert [row["train/loss"] for row in loop.history] == [row["train/loss"] for row in whole.history[:epoch]]


def test_the_last_epoch_equals_none_bit_for_bit() -> None:
    assert equal(train(stopping(epoch=EPOCHS), recipe())[0], train(UNDEFENDED, recipe())[0])


def test_an_earlier_stop_is_another_model() -> None:
    assert not equal(train(stopping(epoch=2), recipe())[0], train(stopping(epoch=3), recipe())[0])


def test_the_learning_rate_follows_the_whole_recipe() -> None:
    _, loop = train(stopping(epoch=3), recipe())
    assert [row["learning_rate"] for row in loop.history] == pytest.approx([1e-2, 1e-2, 1e-3])


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected, _ = train(stopping(epoch=4), recipe())

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(stopping(epoch=4), recipe(), checkpointer=OnDisk(tmp_path / "work"), on_epoch=interrupt)
    found, loop = train(stopping(epoch=4), recipe(), checkpointer=OnDisk(tmp_path / "work"))
    assert equal(found, expected) and len(loop.history) == 4
    again, _ = train(
        stopping(epoch=4),
        recipe(),
        checkpointer=OnDisk(tmp_path / "work"),
        on_epoch=lambda row: pytest.fail("trained again"),
    )
    assert equal(again, expected)


@pytest.mark.parametrize("norm", ["model", "group"])
def test_stops_are_snapshots_of_one_undefended_training(norm: str) -> None:
    first, second = stopping(epoch=2, norm=norm).snapshot(), stopping(epoch=5, norm=norm).snapshot()
    assert first == Snapshot({"name": "none", "norm": norm}, 2) and second.epoch == 5
    assert first.defense == second.defense
    document = dict(first.defense)
    cls = registry.load("defenses", document.pop("name"))
    assert cls is Defense and validate(cls.Config, document, "defense").norm == norm


def test_a_stop_after_the_end_is_refused() -> None:
    assert stopping(epoch=EPOCHS).check_training(recipe(), 30) == []
    with pytest.raises(ConfigError, match=r"at most recipe\.epochs \(6\)"):
        stopping(epoch=EPOCHS + 1).check_training(recipe(), 30)


def test_a_recipe_that_selects_by_itself_is_warned_of() -> None:
    (warning,) = stopping(epoch=2).check_training(recipe(select="best_val"), 30)
    assert "best_val has no effect" in warning


@pytest.mark.parametrize("bad", [{}, {"epoch": 0}, {"epoch": 2.5}, {"epoch": "3"}, {"epochs": 3}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match="defense"):
        validate(EarlyStopping.Config, bad, "defense")
