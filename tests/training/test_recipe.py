from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from oakum.config import ConfigError, validate
from oakum.training.optimizers import autocast_dtype, build_optimizer, build_scheduler
from oakum.training.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0}, "recipe.learning_rate"),
        ({"epochs": -1}, "recipe.epochs"),
        ({"batch_size": 2.5}, "recipe.batch_size"),
        ({"optimizer": "adamw"}, "'adam' or 'sgd'"),
        ({"lerning_rate": 0.1}, "did you mean 'learning_rate'?"),
        ({"momentum": 0.9}, "no effect with optimizer 'adam'"),
        ({"nesterov": True}, "no effect with optimizer 'adam'"),
        ({"epochs": 3, "milestones": [1, 3]}, r"[3] change nothing in 3 epochs; write epochs from 1 to 2"),
        ({"epochs": 3, "milestones": [-3, 0]}, r"[-3, 0] change nothing"),
        ({"gamma": 0.5}, "gamma has no effect without milestones"),
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"learning_rate": "1e-3"}, "write 0.001"),
        ({"images_per_class": 0}, "recipe.images_per_class"),
        ({"batch_size": 10, "images_per_class": 4}, "batch_size 10 is no multiple of images_per_class 4"),
        ({"images_per_class": 4, "drop_last": True}, "drop_last has no effect with images_per_class"),
        ({"augmentation": ["cutouts"]}, "recipe.augmentation"),
        ({"epochs": 3, "stop_after": 4}, "stop_after 4 is beyond the 3 epochs"),
        ({"epochs": 3, "stop_after": 0}, "recipe.stop_after"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, options, "tiny.yaml: recipe")
    assert said in str(caught.value)


def test_batches_of_classes_and_cutouts_can_be_asked_for() -> None:
    chosen = validate(Recipe, {"batch_size": 64, "images_per_class": 4, "augmentation": ["flip", "cutout"]}, "recipe")
    assert (chosen.images_per_class, chosen.augmentation) == (4, ("flip", "cutout"))


def test_only_a_recipe_that_stops_early_says_so() -> None:
    whole, stopped = Recipe(epochs=3), validate(Recipe, {"epochs": 3, "milestones": [2], "stop_after": 1}, "recipe")
    assert whole.trained_epochs == 3 and "stop_after" not in whole.model_dump()
    assert stopped.trained_epochs == 1 and stopped.model_dump(mode="json")["stop_after"] == 1
    assert validate(Recipe, stopped.model_dump(mode="json"), "again") == stopped


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


def test_the_optimizers_are_those_of_torch() -> None:
    adam = build_optimizer(Recipe(learning_rate=0.1, weight_decay=0.2), parameters())
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.1, 0.2)
    sgd = build_optimizer(Recipe(optimizer="sgd", nesterov=True), parameters())
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.9, True)
    assert build_optimizer(Recipe(optimizer="sgd", momentum=0.0), parameters()).param_groups[0]["momentum"] == 0


def test_the_rate_falls_at_the_milestones() -> None:
    chosen = Recipe(epochs=4, milestones=(1, 3), gamma=0.1, learning_rate=1.0)
    optimizer = build_optimizer(chosen, parameters())
    scheduler = build_scheduler(chosen, optimizer)
    assert scheduler is not None
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert build_scheduler(Recipe(), optimizer) is None


def test_precision() -> None:
    assert autocast_dtype(Recipe()) is None
    assert autocast_dtype(Recipe(precision="bfloat16")) is torch.bfloat16
