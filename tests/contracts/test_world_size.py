"""One, two and four processes train the same model, with every registered defense and without an edit for a new one.

A bare gloo group runs the loop that Ray Train runs: ten steps of SGD in float64 (eight for DP-SGD, which draws its own
batches) on a network without batch normalization, in batches of 9 rows that no group divides evenly, with a last one of
3 that leaves a rank of four without rows.

Losses of steps agree to a relative 1e-8, weights to an absolute 1e-7, and weights of ranks are equal. No defense is
excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oakum import registry

NAMES = list(registry.available("defenses"))
WORLD_SIZES = (2, 4)
ROWS = {"train": 39, "val": 10, "other": 30}
RECIPE = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 1e-3,
    "epochs": 2,
    "milestones": [1],
    "gamma": 0.5,
    "batch_size": 9,
}
CLASSES = 5
# As many steps as others take, and accounting of less cost.
OWN = {
    "early_stopping": {"epoch": 2},
    "dpsgd": {"epsilon": None, "noise_multiplier": 1.0, "accountant": "rdp"},
}
# What an example does not show: (defense with settings, changes of the recipe).
FURTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "augmented": ({"name": "none"}, {"augmentation": ["crop", "flip", "cutout"]}),
    "batches of classes": ({"name": "none"}, {"images_per_class": 3, "epochs": 4}),
    "best epoch": ({"name": "none"}, {"select": "best_val"}),
    # The loss of an untrained network, ln 5: shards lie on either side, and so do steps.
    "relaxloss near its target": ({"name": "relaxloss", "alpha": 1.61}, {}),
    "relaxloss, released code": (
        {"name": "relaxloss", "alpha": 1.61, "variant": "released_code", "flatten_incorrect_only": False},
        {},
    ),
    "bido, coco": ({"name": "bido", "lambda_x": 1.0, "lambda_y": 5.0, "measure": "coco", "sigma": "median"}, {}),
    "advreg, released code": (
        {"name": "advreg", "variant": "released_code", "warmup_epochs": 0, "surrogate_steps": 1.5},
        {},
    ),
    "dpsgd, mostly clipped": (
        {"name": "dpsgd", "noise_multiplier": 0.1, "max_grad_norm": 0.5, "accountant": "rdp"},
        {},
    ),
    "dpsgd, ghost": ({"name": "dpsgd", "noise_multiplier": 0.1, "per_sample": "ghost", "accountant": "rdp"}, {}),
    # e^-2 of the batches are empty for all ranks.
    "dpsgd, empty batches": (
        {"name": "dpsgd", "noise_multiplier": 0.1, "accountant": "rdp"},
        {"batch_size": 2, "epochs": 1, "milestones": [], "gamma": 0.1},
    ),
    "distillation, augmented": ({"name": "distillation"}, {"augmentation": ["crop", "flip"]}),
    "negative label smoothing": ({"name": "label_smoothing", "epsilon": -0.1}, {}),
}
# With batch normalization over the global batch: hidden layers that a loss reads, layers that stay in eval mode, and
# forward passes in eval mode between the steps.
NORMALIZED = {
    "none": {"name": "none"},
    "bido": {"name": "bido", "lambda_x": 0.05, "lambda_y": 0.5},
    "transfer_freeze": {"name": "transfer_freeze", "first_trainable": "block2"},
    "advreg": {"name": "advreg", "warmup_epochs": 0},
}


def job(defense: dict[str, Any], **recipe: Any) -> dict[str, Any]:
    config = {
        "seed": 3,
        "model": {"name": "small_cnn", "width": 4},
        "input_shape": [1, 8, 8],
        "num_classes": CLASSES,
        "defense": {"norm": "group", **defense},
        "recipe": {**RECIPE, **recipe},
    }
    return {"config": config, "rows": ROWS}


def assert_groups_train_what_one_trains(
    gang: Any, asked: dict[str, Any], alone: dict[str, Any] | None = None, world_sizes: tuple[int, ...] = WORLD_SIZES
) -> None:
    if alone is None:
        (alone,) = gang.train(1, asked)
    assert len(alone["losses"]) >= 8 and np.std(alone["losses"]) > 0
    for world_size in world_sizes:
        ranks = gang.train(world_size, asked)
        for found in ranks:
            np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-8, atol=0)
            assert found["weights"].keys() == alone["weights"].keys()
            for name, value in alone["weights"].items():
                np.testing.assert_allclose(found["weights"][name], value, rtol=0, atol=1e-7, err_msg=name)
                np.testing.assert_array_equal(found["weights"][name], ranks[0]["weights"][name], err_msg=name)
            assert numbers(found) == pytest.approx(numbers(alone), rel=1e-8)


def numbers(trained: dict[str, Any]) -> dict[str, float]:
    """Return what a training reports, but times."""
    rows = {f"{row['epoch']}/{name}": value for row in trained["history"] for name, value in row.items()}
    return {name: value for name, value in {**rows, **trained["metrics"]}.items() if not is_time(name)}


def is_time(name: str) -> bool:
    return name.endswith(("/seconds", "/finished"))


@pytest.mark.parametrize("name", NAMES)
def test_every_defense_trains_the_same_model_with_any_number_of_workers(
    name: str, gang: Any, example: Callable[[str], dict[str, Any]]
) -> None:
    assert_groups_train_what_one_trains(gang, job({**example(name), **OWN.get(name, {})}))


@pytest.mark.parametrize("case", FURTHER)
def test_variants_train_the_same_model_with_four_workers(case: str, gang: Any) -> None:
    defense, recipe = FURTHER[case]
    assert_groups_train_what_one_trains(gang, job(defense, **recipe), world_sizes=(4,))


@pytest.mark.parametrize("name", ["none", "advreg"])
def test_a_group_goes_on_where_another_ended(name: str, gang: Any, tmp_path: Path) -> None:
    defense = {"name": name, **({"warmup_epochs": 0} if name == "advreg" else {})}
    whole = gang.train(2, job(defense))
    gang.train(2, {**job(defense, stop_after=1), "end": str(tmp_path)})
    for found, expected in zip(gang.train(2, {**job(defense), "start": str(tmp_path)}), whole, strict=True):
        assert found["losses"] == expected["losses"][len(expected["losses"]) // 2 :]
        assert numbers(found) == numbers(expected)
        for key, value in expected["weights"].items():
            np.testing.assert_array_equal(found["weights"][key], value, err_msg=key)


def test_shards_are_uneven_and_some_have_no_rows(gang: Any) -> None:
    shards = [rank["shards"] for rank in gang.train(4, job({"name": "none"}))]
    assert shards == [[3, 3, 3, 3, 1] * 2 if rank == 0 else [2, 2, 2, 2, int(rank < 3)] * 2 for rank in range(4)]
    defense, recipe = FURTHER["dpsgd, empty batches"]
    steps = list(zip(*(rank["shards"] for rank in gang.train(2, job(defense, **recipe))), strict=True))
    assert {(0, 0), (1, 0), (1, 1)} <= set(steps)


@pytest.mark.parametrize("case", NORMALIZED)
def test_with_global_batch_norm_groups_train_what_one_process_trains_with_torch(case: str, gang: Any) -> None:
    """Running statistics are among the weights; the batch of 3 leaves one rank of four without rows."""
    defense = {**NORMALIZED[case], "norm": "model"}
    (alone,) = gang.train(1, job(defense, batch_norm="local"))
    (same,) = gang.train(1, job(defense, batch_norm="global"))
    assert alone["losses"] == same["losses"] and any(name.endswith("running_var") for name in alone["weights"])
    assert_groups_train_what_one_trains(gang, job(defense, batch_norm="global"), alone)


def test_local_batch_norm_depends_on_the_number_of_workers(gang: Any) -> None:
    (alone,), (first, _) = (gang.train(world_size, job({"name": "none", "norm": "model"})) for world_size in (1, 2))
    assert abs(first["losses"][0] / alone["losses"][0] - 1) > 1e-3
