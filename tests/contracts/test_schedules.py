"""What every registered defense promises of settings that change during training; a new one needs no edit here.

Parts of a training go through `oakum.pipeline.training.fit`, as stages do, and know of each other what a part leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oakum import registry
from oakum.config import ConfigError, validate
from oakum.pipeline.context import build_defense, build_network
from oakum.pipeline.experiment import resolve_method
from oakum.pipeline.training import fit
from oakum.seeding import derive_seed, torch_generator
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.recipe import Recipe

NAMES = list(registry.available("defenses"))
SCHEDULABLE = [name for name in NAMES if registry.load("defenses", name).schedulable]
CLASSES, EPOCHS = 5, 3
RECIPE = {"optimizer": "sgd", "learning_rate": 0.05, "epochs": EPOCHS, "milestones": [2], "gamma": 0.5, "batch_size": 9}
# Where the rule of `_another` would lead to a setting without effect: a loss above either target.
ANOTHER = {("relaxloss", "alpha"): 3.0}
# A surrogate that plays from the first epoch on.
OWN = {"advreg": {"warmup_epochs": 0}}


def _fold(name: str, rows: int) -> LabeledData:
    generator = torch_generator(derive_seed(3, f"fold/{name}"))
    y = torch.randint(CLASSES, (rows,), generator=generator)
    return LabeledData(torch.rand(rows, 1, 8, 8, generator=generator) * (1 + y.view(-1, 1, 1, 1)) / CLASSES, y)


def _config(defense: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": 3,
        "model": {"name": "small_cnn", "width": 4},
        "input_shape": [1, 8, 8],
        "num_classes": CLASSES,
        "defense": defense,
        "recipe": recipe,
    }


def _teacher(config: dict[str, Any], name: str) -> torch.nn.Module:
    wanted = build_defense(config["defense"]).teachers()[name]
    torch.manual_seed(5)
    return build_network({**config, "defense": wanted.defense}).eval()


def train(entry: dict[str, Any], folder: Path) -> tuple[dict[str, Tensor], TrainingLoop]:
    """Train a setting with its schedule, each phase in a loop of its own."""
    method = resolve_method("defenses", entry, "settings.mine")
    phases = method.cls(method.config).phases(EPOCHS)
    start = None
    for (begin, options), end in zip(phases.items(), [*list(phases)[1:], None], strict=True):
        recipe = RECIPE if end is None else {**RECIPE, "stop_after": end}
        config = _config({"name": method.name, **options.model_dump(mode="json")}, recipe)
        left = folder / str(begin)
        left.mkdir(parents=True)
        defense = build_defense(config["defense"])
        loop = TrainingLoop(
            train=_fold("train", 39),
            val=None,
            recipe=validate(Recipe, config["recipe"], "recipe"),
            folds={name: _fold(name, 30) for name in defense.reads},
            teachers={name: partial(_teacher, config, name) for name in defense.teachers()},
            start=start,
            end=None if end is None else left,
        )
        module = fit(config, loop, torch.device("cpu"))
        start = partial(Path, left)
    return module.state_dict(), loop


def without_times(loop: TrainingLoop) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in {"seconds", "finished"}} for row in loop.history]


def _another(name: str, setting: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_another(name, setting, each) for each in value]
    return ANOTHER.get((name, setting), 0.7 * value + 0.1)


@pytest.mark.parametrize("name", SCHEDULABLE)
def test_parts_with_the_same_settings_are_one_training(
    name: str, example: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    entry = {**example(name), **OWN.get(name, {})}
    expected, whole = train(entry, tmp_path / "whole")
    found, last = train({**entry, "schedule": {1: {}, 2: {}}}, tmp_path / "parts")
    assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert without_times(last) == without_times(whole) and len(last.history) == EPOCHS


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, setting) for name in SCHEDULABLE for setting in registry.load("defenses", name).schedulable],
)
def test_what_can_be_scheduled_has_effect_from_its_epoch_on(
    name: str, setting: str, example: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    entry = {**example(name), **OWN.get(name, {})}
    value = getattr(resolve_method("defenses", entry, "mine").config, setting)
    changed = {**entry, "schedule": {1: {setting: _another(name, setting, value)}}}
    expected, plain = train(entry, tmp_path / "plain")
    found, scheduled = train(changed, tmp_path / "scheduled")
    assert without_times(scheduled)[0] == without_times(plain)[0]
    assert any(not torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_scheduled_is_refused(name: str, example: Callable[[str], dict[str, Any]]) -> None:
    cls = registry.load("defenses", name)
    settings = set(cls.Config.model_fields) - set(cls.schedulable) - {"schedule"}
    assert set(cls.schedulable) <= set(cls.Config.model_fields) and "norm" in settings
    for setting in settings:
        with pytest.raises(ConfigError) as caught:
            method = resolve_method("defenses", {**example(name), "schedule": {1: {setting: None}}}, "mine")
            method.cls(method.config).phases(EPOCHS)
        if cls.schedulable:
            assert f"schedule.1: {setting!r} cannot change during training; what can: " in str(caught.value)
        else:
            assert "schedule" in str(caught.value)
