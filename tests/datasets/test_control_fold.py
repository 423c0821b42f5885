"""The fold of the no-target control knows no private class and nobody of the private and public folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oakum.config import ConfigError, validate
from oakum.datasets import base
from oakum.datasets._folds import FoldsConfig, draw_folds, private_classes
from oakum.datasets._prepared import Labels, PreparedData
from oakum.pipeline.folds import FoldSet, LoadedFolds, Selection

LABELS = np.repeat(np.arange(6), [50, 40, 30, 20, 10, 5])
DIGITS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
PEOPLE: list[dict[str, Any]] = [
    {"from": {"min_images": 40}, "take": {"train": 60, "test": "rest"}},
    {"from": {"min_images": 20, "max_images": 39}, "take": {"control": "rest"}},
    {"from": {"max_images": 19}, "take": {"public": "rest"}},
]
HALVES: list[dict[str, Any]] = [
    {"from": {"classes": [0, 1, 2, 3, 4]}, "take": {"train": 200, "test": "rest"}},
    {"from": {"classes": [5, 6, 7, 8, 9]}, "take": {"control": 150, "public": "rest"}},
]
# What docs and reports recommend for lfw64: 62 people with at least 20 images, at most 50 of each.
LFW: list[dict[str, Any]] = [
    {"from": {"min_images": 20}, "per_class_max": 50, "take": {"test": 413, "train": "rest"}},
    {"from": {"min_images": 10, "max_images": 19, "first_identities": 62}, "take": {"control": "rest"}},
    {"from": {"max_images": 9}, "take": {"public": "rest"}},
]


def config(rules: list[dict[str, Any]], **more: Any) -> FoldsConfig:
    return validate(FoldsConfig, {"rules": rules, **more}, "test.yaml: data.folds")


def fold_set(rules: list[dict[str, Any]], labels: np.ndarray, identities: np.ndarray | None = None) -> FoldSet:
    """Return the folds of seed index 0 of data that lies nowhere."""
    selection = Selection("faces", None, {"rules": rules}, experiment_seed=3, seed_index=0)
    facts: dict[str, Any] = {"name": "faces", "digest": "0" * 64}
    return FoldSet(
        selection, PreparedData.model_construct(**facts), Labels(labels, np.full(len(labels), "all"), identities)
    )


def test_control_is_drawn_from_the_experiment_seed_alone() -> None:
    rules = config(HALVES)
    first, second = (draw_folds(rules, DIGITS, None, None, 5, index) for index in (0, 1))
    np.testing.assert_array_equal(first["control"], second["control"])
    assert not np.array_equal(first["train"], second["train"])
    assert not np.array_equal(first["control"], draw_folds(rules, DIGITS, None, None, 6, 0)["control"])


def test_control_changes_no_other_fold_of_earlier_experiments() -> None:
    """Its rule comes last here; evaluation, public and the private folds are drawn as they were without it."""
    rules = [
        {"from": {"classes": [0, 1]}, "take": {"evaluation": 20, "train": 30}},
        {"from": {"classes": [2]}, "take": {"public": 10}},
    ]
    with_control = [*rules, {"from": {"classes": [3]}, "take": {"control": 9}}]
    before, after = (draw_folds(config(each), LABELS, None, None, 1, 2) for each in (rules, with_control))
    assert set(after) - set(before) == {"control"}
    for fold, rows in before.items():
        np.testing.assert_array_equal(rows, after[fold])


def test_control_classes_are_not_private() -> None:
    assert private_classes(config(PEOPLE), LABELS, None, LABELS) == (0, 1)
    assert private_classes(config(HALVES), DIGITS, None, None) == (0, 1, 2, 3, 4)
    with pytest.raises(ConfigError, match="no rule fills a private fold"):
        draw_folds(config(PEOPLE[1:]), LABELS, None, LABELS, 0, 0)


def test_without_persons_control_and_public_may_share_classes_but_no_sample() -> None:
    folds = draw_folds(config(HALVES), DIGITS, None, None, 0, 0)
    assert set(DIGITS[folds["control"]]) == set(DIGITS[folds["public"]]) == {5, 6, 7, 8, 9}
    assert not set(folds["control"]) & set(folds["public"])


def test_with_persons_control_and_public_may_share_nobody() -> None:
    with pytest.raises(ConfigError, match=r"5 identities \(the first: 5\) are in both control and public"):
        draw_folds(config(HALVES), DIGITS, None, DIGITS, 0, 0)
    folds = draw_folds(config(PEOPLE), LABELS, None, LABELS, 0, 0)
    assert {fold: set(LABELS[rows]) for fold, rows in folds.items()} == {
        "train": {0, 1},
        "test": {0, 1},
        "control": {2, 3},
        "public": {4, 5},
    }


def test_a_person_of_another_class_is_refused_too() -> None:
    """The classes differ (with and without glasses, say), the person does not."""
    person = np.array([7, 7, 8, 8, 7, 9])
    glasses = np.array([0, 0, 0, 0, 1, 1])
    rules = config(
        [{"from": {"classes": [0]}, "take": {"train": 4}}, {"from": {"classes": [1]}, "take": {"control": 2}}]
    )
    with pytest.raises(ConfigError, match=r"1 identities \(the first: 7\) are in both control and train"):
        draw_folds(rules, glasses, None, person, 0, 0)


@pytest.mark.parametrize("identities", [None, DIGITS])
@pytest.mark.parametrize(
    "rules",
    [
        [{"take": {"train": 100, "control": 100}}],
        [{"from": {"part": "train"}, "take": {"train": 90}}, {"from": {"part": "test"}, "take": {"control": 50}}],
    ],
)
def test_private_classes_in_control_are_refused(rules: list[dict[str, Any]], identities: np.ndarray | None) -> None:
    with pytest.raises(ConfigError, match="are private and in control; the control must not know them"):
        draw_folds(config(rules), DIGITS, np.repeat(["train", "test"], 300), identities, 0, 0)


def test_listed_private_classes_are_private_even_where_no_fold_draws_them() -> None:
    rules = [{"from": {"classes": [0]}, "take": {"train": 9}}, {"from": {"classes": [1]}, "take": {"control": 9}}]
    draw_folds(config(rules), DIGITS, None, None, 0, 0)
    with pytest.raises(ConfigError, match=r"1 classes \(the first: 1\) are private and in control"):
        draw_folds(config(rules, private_classes=[0, 1]), DIGITS, None, None, 0, 0)


def test_public_may_share_classes_with_private_folds_only_where_no_persons_are_known() -> None:
    rules = config([{"take": {"train": 100, "public": 100}}])
    folds = draw_folds(rules, DIGITS, None, None, 0, 0)
    assert not set(folds["public"]) & set(folds["train"])
    with pytest.raises(ConfigError, match=r"10 identities \(the first: 0\) are in both public and train"):
        draw_folds(rules, DIGITS, None, DIGITS, 0, 0)


def test_misspelled_control() -> None:
    with pytest.raises(ConfigError, match="unknown fold 'controll'; did you mean 'control'"):
        config([{"take": {"controll": 5}}])


def test_fold_set_numbers_the_classes_of_the_control() -> None:
    folds = fold_set(HALVES, DIGITS)
    rows = folds.require("control")
    assert folds.control_classes == (5, 6, 7, 8, 9)
    np.testing.assert_array_equal(folds.class_index(rows, "control"), DIGITS[rows] - 5)
    assert set(folds.class_index(rows)) == {-1}
    assert set(folds.class_index(folds.require("train"), "control")) == {-1}


def test_fold_set_keeps_as_many_control_classes_as_there_are_private_ones() -> None:
    rules: list[dict[str, Any]] = [
        {"from": {"classes": [4, 5]}, "take": {"train": 100}},
        {"from": {"classes": [9, 2, 6]}, "take": {"control": "rest"}},
    ]
    folds = fold_set(rules, DIGITS)
    assert folds.control_classes == (2, 6)
    assert np.bincount(DIGITS[folds.require("control")]).tolist() == [0, 0, 60, 0, 0, 0, 60]
    assert len(draw_folds(folds.config, DIGITS, None, None, 3, 0)["control"]) == 180
    fewer = fold_set([rules[0], {"from": {"classes": [9]}, "take": {"control": "rest"}}], DIGITS)
    assert fewer.control_classes == (9,)


def test_samples_of_the_control_come_with_its_class_indices(prepared_digits: Path) -> None:
    rules = [
        {"from": {"classes": [0, 1, 2]}, "take": {"train": 50}},
        {"from": {"classes": [3, 5, 7, 9]}, "take": {"control": 200, "public": "rest"}},
    ]
    loaded = LoadedFolds(Selection("digits", None, {"rules": rules}, experiment_seed=0, seed_index=1), prepared_digits)
    control, original = loaded.labeled("control", "control"), loaded.labeled("control", "all")
    assert loaded.control_classes == (3, 5, 7)
    assert [loaded.control_classes[index] for index in control.y.tolist()] == original.y.tolist()
    assert set(control.y.tolist()) == {0, 1, 2}
    assert len(control) == len(loaded.rows["control"]) < 200
    loaded.check({"control": loaded.digest("control")})


def test_fold_set_without_control_says_so() -> None:
    with pytest.raises(ConfigError, match="needs fold 'control'"):
        _ = fold_set(HALVES[:1], DIGITS).control_classes


def test_cap_and_size_of_the_control() -> None:
    rules: list[dict[str, Any]] = [
        {"from": {"min_images": 50}, "take": {"train": 50}},
        {"from": {"max_images": 40, "first_identities": 3}, "per_class_max": 25, "take": {"control": "rest"}},
        {"take": {"public": "rest"}},
    ]
    folds = draw_folds(config(rules), LABELS, None, LABELS, 0, 0)
    assert np.bincount(LABELS[folds["control"]]).tolist() == [0, 25, 25, 20]
    # Rows above the cap stay with their rule: nobody of the control slips into `public`.
    assert set(LABELS[folds["public"]]) == {4, 5}


@pytest.mark.usefixtures("shared_data")
def test_the_recommended_split_of_lfw(data_home: Path) -> None:
    base.prepare("lfw64", data_home)
    labels = base.load_labels("lfw64", data_home)
    assert labels.identity is not None
    for index in (0, 1):
        folds = draw_folds(config(LFW), labels.y, labels.part, labels.identity, 0, index)
        people = {fold: np.unique(labels.identity[rows]) for fold, rows in folds.items()}
        assert {fold: len(each) for fold, each in people.items()} == {
            "train": 62,
            "test": 62,
            "control": 62,
            "public": 5591,
        }
        assert np.bincount(labels.y[folds["train"]]).max() == 40
        assert np.bincount(labels.y[folds["control"]]).max() <= 19
        assert len(folds["public"]) == 8909
        share = len(folds["test"]) / (len(folds["test"]) + len(folds["train"]))
        assert abs(share - 0.2) < 0.001


def test_the_recommended_split_of_cifar10() -> None:
    labels = np.concatenate([np.repeat(np.arange(10), 5000), np.repeat(np.arange(10), 1000)])
    parts = np.repeat(["train", "test"], [50_000, 10_000])
    rules: list[dict[str, Any]] = [
        {
            "from": {"classes": [0, 1, 2, 3, 4], "part": "train"},
            "take": {"evaluation": 5000, "val": 1000, "train": "rest"},
        },
        {"from": {"classes": [0, 1, 2, 3, 4], "part": "test"}, "take": {"test": "rest"}},
        {"from": {"classes": [5, 6, 7, 8, 9]}, "take": {"evaluation": 5000, "control": 10_000, "public": "rest"}},
    ]
    folds = draw_folds(config(rules), labels, parts, None, 0, 0)
    assert {fold: len(rows) for fold, rows in folds.items()} == {
        "evaluation": 10_000,
        "public": 15_000,
        "control": 10_000,
        "val": 1000,
        "train": 19_000,
        "test": 5000,
    }
    assert private_classes(config(rules), labels, parts, None) == (0, 1, 2, 3, 4)
    assert np.bincount(labels[folds["control"]]).tolist() == [0, 0, 0, 0, 0, 2000, 2000, 2000, 2000, 2000]
