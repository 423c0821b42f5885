"""What a plan says of batches and judges before hours of training show it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum.config import ConfigError
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Plan, build_plan

PRIVATE, OTHERS = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
FROZEN = {"none": "none", "frozen": {"name": "transfer_freeze", "first_trainable": "block2"}}


@pytest.fixture
def plan(tiny: dict[str, Any], prepared_digits: Path) -> Callable[..., Plan]:
    """Plan the tiny experiment with other rows for its folds and with changed parts."""

    def build(private: dict[str, int] | None = None, others: dict[str, int] | None = None, **changes: Any) -> Plan:
        rules = tiny["folds"]["rules"]
        for rule, take in zip(rules, (private, others), strict=True):
            rule["take"] = {**rule["take"], **(take or {})}
        for part, values in changes.items():
            tiny[part] = {**tiny[part], **values} if part in ("recipe", "evaluation") else values
        return build_plan(resolve_experiment(tiny, "t.yaml"), prepared_digits, "t.yaml")

    return build


def single_row(fold: str) -> str:
    return (
        f"recipe: the last batch of fold {fold!r} holds one sample, which batch normalization over a single position "
        "cannot use; choose another batch_size, or drop_last"
    )


@pytest.mark.parametrize("rows", [96, 97, 98])
def test_a_control_whose_last_batch_is_one_row_is_warned_of(plan: Callable[..., Plan], rows: int) -> None:
    expected = (single_row("control"),) if rows == 97 else ()
    assert plan(others={"control": rows}).warnings == expected


def test_dropping_the_last_batch_or_leaving_out_the_attacks_ends_that_warning(plan: Callable[..., Plan]) -> None:
    assert plan(others={"control": 97}, recipe={"drop_last": True}).warnings == ()
    assert plan(recipe={"drop_last": False}, attacks={"membership": ["loss"]}).warnings == ()


def test_the_source_of_frozen_layers_is_warned_of_where_there_is_one(plan: Callable[..., Plan]) -> None:
    assert plan(others={"public": 193}).warnings == ()
    assert plan(settings=FROZEN).warnings == (single_row("public"),)


def test_the_source_of_frozen_layers_is_not_drawn_by_class(plan: Callable[..., Plan]) -> None:
    """So neither does it lack a class, nor does the target's recipe keep its last batch from holding one row."""
    recipe = {"batch_size": 20, "images_per_class": 4}
    assert plan(others={"public": 201}, settings=FROZEN, recipe=recipe).warnings == (single_row("public"),)


def test_shadow_models_are_warned_of_too(plan: Callable[..., Plan]) -> None:
    halves = {"shadow_train": 33, "shadow_test": 32, "shadow_val": 10}
    assert plan(private=halves).warnings == (single_row("shadow_train"),)


@pytest.mark.parametrize(
    ("place", "batch", "said"),
    [
        (
            "recipe",
            24,
            "t.yaml: recipe: a batch of 24 with images_per_class 4 draws 6 classes, but fold 'train' has 5; lower "
            "batch_size or raise images_per_class",
        ),
        (
            "evaluation",
            44,
            "t.yaml: evaluation.recipe: a batch of 44 with images_per_class 4 draws 11 classes, but fold 'evaluation' "
            "has 10; lower batch_size or raise images_per_class",
        ),
    ],
)
def test_more_classes_in_a_batch_than_there_are_is_refused_by_the_plan(
    plan: Callable[..., Plan], place: str, batch: int, said: str
) -> None:
    def change(batch_size: int) -> dict[str, Any]:
        recipe = {"epochs": 1, "batch_size": batch_size, "images_per_class": 4}
        return {place: recipe if place == "recipe" else {"recipe": recipe}}

    assert plan(**change(batch - 4)).warnings == ()
    with pytest.raises(ConfigError) as caught:
        plan(**change(batch))
    assert str(caught.value) == said


FACENET64, FACENET112 = {"name": "facenet64"}, {"name": "facenet112"}
MLP = {"name": "mlp", "hidden": [8]}
STRIDED = {"name": "strided_cnn", "width": 2, "hidden": 8}


def resnet(name: str, width: int, depth: int = 10) -> dict[str, Any]:
    return {"name": name, "width": width, "depth": depth, "embedding": 4}


@pytest.mark.parametrize(
    ("size", "target", "judge", "second", "doubtful"),
    [
        (64, FACENET64, FACENET112, None, ["evaluation.model: 'facenet112'"]),
        (16, resnet("resnet_cls", 2), resnet("resnet_cls_h", 3), MLP, ["evaluation.model: 'resnet_cls_h'"]),
        (16, resnet("resnet_cls", 2), MLP, resnet("resnet_cls_h", 3), ["evaluation.second.model: 'resnet_cls_h'"]),
        (16, resnet("resnet_cls", 2), resnet("resnet_cls_h", 2, depth=34), MLP, []),
        (16, MLP, resnet("resnet_cls", 2), resnet("resnet_cls_h", 3), []),
        (16, {"name": "small_cnn", "width": 4}, STRIDED, MLP, []),
    ],
    ids=["facenets", "two widths", "two widths, second", "two depths", "two widths of judges", "other networks"],
)
def test_a_judge_of_the_targets_architecture_at_another_size_is_warned_of(
    plan: Callable[..., Plan],
    size: int,
    target: dict[str, Any],
    judge: dict[str, Any],
    second: dict[str, Any] | None,
    doubtful: list[str],
) -> None:
    evaluation = {"model": judge, **({"second": {"model": second, "recipe": {"epochs": 1}}} if second else {})}
    found = plan(data={"name": "digits", "image_size": size}, model=target, evaluation=evaluation).warnings
    assert found == tuple(
        f"{which} has the target's architecture at another size: it may err as the target does, which flatters the "
        "attack accuracy; choose another architecture, or trust only what a judge that has another one confirms"
        for which in doubtful
    )


def test_judges_are_not_warned_of_where_nothing_is_judged(plan: Callable[..., Plan]) -> None:
    judged = {"model": resnet("resnet_cls", 2), "evaluation": {"model": resnet("resnet_cls_h", 3)}}
    data = {"name": "digits", "image_size": 16}
    assert plan(data=data, **judged, attacks={"membership": ["loss"]}).warnings == ()
