"""Folds are disjoint, stratified, deterministic, and the shared ones do not know the seed index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oakum.config import ConfigError, validate
from oakum.datasets._folds import (
    PRIVATE,
    SHARED,
    FoldsConfig,
    draw_folds,
    fold_digest,
    private_classes,
    relabel,
)


def config(*rules: dict[str, Any], **more: Any) -> FoldsConfig:
    return validate(FoldsConfig, {"rules": list(rules), **more}, "test.yaml: data.folds")


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[fold], second[fold]) for fold in first)


LABELS = np.repeat(np.arange(6), [50, 40, 30, 20, 10, 5])

takes = st.dictionaries(st.sampled_from(SHARED + PRIVATE), st.integers(1, 12), min_size=1, max_size=6)


@st.composite
def plans(draw: st.DrawFn) -> tuple[FoldsConfig, np.ndarray]:
    """One or two rules over disjoint or overlapping classes, and labels with enough rows for them."""
    sizes = draw(st.lists(st.integers(20, 60), min_size=4, max_size=6))
    labels = np.random.default_rng(draw(st.integers(0, 100))).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rules: list[dict[str, Any]] = [{"from": {"classes": [0, 1]}, "take": draw(takes) | {"val": 3}}]
    if draw(st.booleans()):
        rules.append({"from": {"classes": [1, 2, 3]}, "take": draw(takes)})
    if draw(st.booleans()):
        rules[-1]["take"]["train"] = "rest"
    used = [sum(count for count in rule["take"].values() if count != "rest") for rule in rules]
    available = [sum(sizes[:2]), sum(sizes[2:4])]
    for rule, needed, there in zip(rules, used, available, strict=False):
        if needed >= there:
            rule["take"] = {"val": 3}
    return config(*rules), labels


@settings(max_examples=150, deadline=None)
@given(plan=plans(), seed=st.integers(0, 10**6), index=st.integers(0, 50))
def test_folds_are_disjoint_and_of_the_right_size(plan: tuple[FoldsConfig, np.ndarray], seed: int, index: int) -> None:
    rules, labels = plan
    folds = draw_folds(rules, labels, None, None, seed, index)
    every = np.concatenate(list(folds.values()))
    assert len(np.unique(every)) == len(every)
    assert all(rows.dtype == np.int64 for rows in folds.values())
    wanted: dict[str, int] = {}
    free = np.ones(len(labels), dtype=bool)
    for rule in rules.rules:
        pool = free & np.isin(labels, rule.from_.classes)
        free &= ~pool
        fixed = sum(count for count in rule.take.values() if count != "rest")
        for fold, count in rule.take.items():
            wanted[fold] = wanted.get(fold, 0) + (int(pool.sum()) - fixed if count == "rest" else count)
    assert {fold: len(rows) for fold, rows in folds.items()} == wanted


@settings(max_examples=80, deadline=None)
@given(plan=plans(), seed=st.integers(0, 10**6), first=st.integers(0, 20), second=st.integers(21, 40))
def test_deterministic_and_shared_folds_equal_over_seed_indices(
    plan: tuple[FoldsConfig, np.ndarray], seed: int, first: int, second: int
) -> None:
    rules, labels = plan
    folds = draw_folds(rules, labels, None, None, seed, first)
    assert same(folds, draw_folds(rules, labels, None, None, seed, first))
    others = draw_folds(rules, labels, None, None, seed, second)
    for fold in SHARED:
        if fold in folds:
            np.testing.assert_array_equal(folds[fold], others[fold])


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 80), min_size=1, max_size=8),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_stratified_by_largest_remainder(sizes: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = max(1, int(fraction * len(labels)))
    folds = draw_folds(config({"take": {"train": count}}), labels, None, None, seed, 0)
    found = np.bincount(labels[folds["train"]], minlength=len(sizes))
    exact = np.asarray(sizes) * count / len(labels)
    assert (np.abs(found - exact) < 1).all()
    assert found.sum() == count


def test_later_folds_are_stratified_too() -> None:
    labels = np.repeat(np.arange(3), [600, 300, 100])
    rules = config({"take": {"evaluation": 200, "train": 400, "test": 200, "val": "rest"}})
    folds = draw_folds(rules, labels, None, None, 1, 0)
    for fold, rows in folds.items():
        shares = np.bincount(labels[rows], minlength=3) / len(rows)
        np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.01, err_msg=fold)


def test_seed_index_and_experiment_seed_change_private_folds() -> None:
    rules = config({"take": {"train": 60, "test": 60, "evaluation": 30}})
    first, second = (draw_folds(rules, LABELS, None, None, 0, index) for index in (0, 1))
    assert not np.array_equal(first["train"], second["train"])
    other = draw_folds(rules, LABELS, None, None, 1, 0)
    assert not np.array_equal(first["evaluation"], other["evaluation"])


def test_folds_come_in_random_order() -> None:
    rows = draw_folds(config({"take": {"train": 100}}), LABELS, None, None, 0, 0)["train"]
    assert not np.array_equal(rows, np.sort(rows))
    two = config(
        {"from": {"classes": [0]}, "take": {"evaluation": 40}}, {"from": {"classes": [1]}, "take": {"evaluation": 40}}
    )
    mixed = LABELS[draw_folds(two, LABELS, None, None, 0, 0)["evaluation"]]
    assert 5 < mixed[:40].sum() < 35


def test_parts_first_match_and_rest() -> None:
    labels = np.tile(np.arange(10), 20)
    parts = np.where(np.arange(200) < 150, "train", "test")
    rules = config(
        {"from": {"classes": [0, 1, 2, 3, 4], "part": "train"}, "take": {"evaluation": 20, "val": 10, "train": "rest"}},
        {"from": {"classes": [0, 1, 2, 3, 4], "part": "test"}, "take": {"test": "rest"}},
        {"from": {"classes": [5, 6, 7, 8, 9]}, "take": {"evaluation": 20, "public": "rest"}},
    )
    folds = draw_folds(rules, labels, parts, None, 0, 0)
    assert {fold: len(rows) for fold, rows in folds.items()} == {
        "evaluation": 40,
        "val": 10,
        "train": 45,
        "test": 25,
        "public": 80,
    }
    assert set(parts[folds["train"]]) == {"train"}
    assert set(parts[folds["test"]]) == {"test"}
    assert private_classes(rules, labels, parts, None) == (0, 1, 2, 3, 4)
    everything_left = config({"from": {"classes": [0]}, "take": {"train": "rest"}}, {"take": {"test": "rest"}})
    folds = draw_folds(everything_left, labels, parts, None, 0, 0)
    assert len(folds["test"]) == 180
    assert 0 not in labels[folds["test"]]


def test_permuted_labels_of_a_fold_change_nothing_outside_its_rule() -> None:
    """The split looks at labels only to stratify: classes of other rules keep their folds."""
    rules = config(
        {"from": {"classes": [0, 1]}, "take": {"train": 40}}, {"from": {"classes": [2]}, "take": {"test": 9}}
    )
    permuted = LABELS.copy()
    permuted[LABELS < 2] = LABELS[LABELS < 2][::-1]
    first, second = (draw_folds(rules, labels, None, None, 0, 0) for labels in (LABELS, permuted))
    np.testing.assert_array_equal(np.sort(LABELS[first["train"]]), np.sort(permuted[second["train"]]))
    np.testing.assert_array_equal(first["test"], second["test"])


def test_per_class_max() -> None:
    rules = config({"take": {"train": "rest"}, "per_class_max": 20})
    folds = draw_folds(rules, LABELS, None, None, 0, 0)
    assert np.bincount(LABELS[folds["train"]]).tolist() == [20, 20, 20, 20, 10, 5]
    same_rows = draw_folds(rules, LABELS, None, None, 0, 1)
    assert set(folds["train"]) == set(same_rows["train"])


def test_identities() -> None:
    rules = config(
        {"from": {"min_images": 30}, "take": {"train": 60, "test": "rest"}},
        {"from": {"max_images": 29}, "take": {"public": "rest"}},
    )
    folds = draw_folds(rules, LABELS, None, LABELS, 0, 0)
    assert set(LABELS[folds["train"]]) == {0, 1, 2}
    assert set(LABELS[folds["public"]]) == {3, 4, 5}
    two = config({"from": {"first_identities": 2}, "take": {"train": "rest"}}, {"take": {"public": "rest"}})
    assert set(LABELS[draw_folds(two, LABELS, None, LABELS, 0, 0)["train"]]) == {0, 1}
    tied = np.array([3, 3, 1, 1, 2])
    one = config({"from": {"first_identities": 1}, "take": {"train": "rest"}})
    assert set(tied[draw_folds(one, tied, None, tied, 0, 0)["train"]]) == {1}


def test_person_in_public_and_private_is_refused() -> None:
    rules = config({"take": {"train": 50, "public": 50}})
    with pytest.raises(ConfigError, match=r"identities .* are in both public and train; give them to different rules"):
        draw_folds(rules, LABELS, None, LABELS, 0, 0)
    draw_folds(rules, LABELS, None, None, 0, 0)
    shared_people = config({"from": {"min_images": 30}, "take": {"evaluation": 30, "train": 30}})
    draw_folds(shared_people, LABELS, None, LABELS, 0, 0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"take": {"train": 156}}, r"rules\.0\.take asks for 156 rows; its selection has 155"),
        ({"take": {"train": 100, "test": 56}}, "asks for 156 rows; its selection has 155"),
        ({"take": {"train": 155, "test": "rest"}}, "asks for 155 rows and leaves nothing for the rest"),
        ({"from": {"classes": [5]}, "take": {"train": 6}}, "asks for 6 rows; its selection has 5"),
        ({"take": {"train": 30}, "per_class_max": 4}, "asks for 30 rows; its selection has 24"),
        ({"from": {"classes": [9]}, "take": {"train": 1}}, "no class 9; classes are 0 to 5"),
        ({"from": {"part": "trian"}, "take": {"train": 1}}, "no part 'trian'; parts are all"),
        ({"from": {"classes": []}, "take": {"train": 1}}, "selects no rows: no row satisfies"),
        ({"from": {"min_images": 999}, "take": {"train": 1}}, "selects no rows"),
        ({"from": {"first_identities": 7}, "take": {"train": 1}}, "asks for 7 of 6 identities"),
    ],
)
def test_impossible_rules(rule: dict[str, Any], message: str) -> None:
    parts = np.full(len(LABELS), "all")
    with pytest.raises(ConfigError, match=message):
        draw_folds(config(rule), LABELS, parts, LABELS, 0, 0)


def test_rules_that_do_not_fit_the_data() -> None:
    with pytest.raises(ConfigError, match="has no identities"):
        draw_folds(config({"from": {"min_images": 2}, "take": {"train": 1}}), LABELS, None, None, 0, 0)
    with pytest.raises(ConfigError, match="parts are not known"):
        draw_folds(config({"from": {"part": "train"}, "take": {"train": 1}}), LABELS, None, None, 0, 0)
    twice = config({"take": {"train": 1}}, {"from": {"classes": [0]}, "take": {"test": 1}})
    with pytest.raises(ConfigError, match=r"rules\.1\.from selects no rows: earlier rules took all of them"):
        draw_folds(twice, LABELS, None, None, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rules": []}, "rules: at least one rule"),
        ({"rules": [{"take": {}}]}, "take"),
        ({"rules": [{"take": {"train": 0}}]}, "take"),
        ({"rules": [{"take": {"train": "all"}}]}, "take"),
        ({"rules": [{"take": {"train": 1.5}}]}, "take"),
        ({"rules": [{"take": {"trian": 5}}]}, "unknown fold 'trian'; did you mean 'train'"),
        ({"rules": [{"take": {"zebra": 5}}]}, "folds: evaluation, public"),
        ({"rules": [{"take": {"train": "rest", "test": "rest"}}]}, "only one fold"),
        ({"rules": [{"form": {}, "take": {"train": 1}}]}, "unknown key"),
        ({"rules": [{"from": {"class": [1]}, "take": {"train": 1}}]}, "did you mean 'classes'"),
    ],
)
def test_bad_configuration(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(FoldsConfig, data, "test.yaml: data.folds")


def test_one_mistake_is_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        config({"form": {}, "take": {"train": 1}})
    assert str(caught.value) == "test.yaml: data.folds.rules.0.form: unknown key; did you mean 'from'?"


def test_configuration_round_trip() -> None:
    rules = config({"from": {"classes": [0, 1]}, "take": {"train": 5, "test": "rest"}})
    plain = rules.model_dump(mode="json")
    assert plain["rules"][0]["from"]["classes"] == [0, 1]
    assert validate(FoldsConfig, plain, "again") == rules


def test_private_classes() -> None:
    rules = config({"from": {"classes": [2, 0]}, "take": {"train": 5}}, {"take": {"public": 5}})
    assert private_classes(rules, LABELS, None, None) == (0, 2)
    named = config({"from": {"classes": [2, 0]}, "take": {"train": 5}}, private_classes=[3, 2, 0])
    assert private_classes(named, LABELS, None, None) == (0, 2, 3)
    narrow = config({"from": {"classes": [2, 0]}, "take": {"train": 5}}, private_classes=[0])
    with pytest.raises(ConfigError, match="class 2, which private_classes does not list"):
        private_classes(narrow, LABELS, None, None)
    with pytest.raises(ConfigError, match="no rule fills a private fold"):
        private_classes(config({"take": {"public": 5}}), LABELS, None, None)


def test_relabel() -> None:
    np.testing.assert_array_equal(relabel(np.array([5, 2, 0, 9, 2]), (2, 5)), [1, 0, -1, -1, 0])
    assert relabel(np.array([], dtype=np.int64), (1,)).dtype == np.int64


def test_fold_digest_sees_data_size_rows_and_their_order() -> None:
    rows = np.array([3, 1, 2])
    digests = {
        fold_digest("a" * 64, None, rows),
        fold_digest("b" * 64, None, rows),
        fold_digest("a" * 64, 16, rows),
        fold_digest("a" * 64, None, rows[::-1]),
        fold_digest("a" * 64, None, rows[:2]),
    }
    assert len(digests) == 5
    assert fold_digest("a" * 64, 16, rows) == fold_digest("a" * 64, 16, rows.astype(np.int32))


def test_known_folds_stay_what_they_were() -> None:
    """Guards against a change of NumPy's generator or of the drawing: stored results would lose their meaning."""
    rules = config({"take": {"evaluation": 4, "train": 6}})
    folds = draw_folds(rules, LABELS, None, None, 7, 2)
    assert {fold: rows.tolist() for fold, rows in folds.items()} == KNOWN


KNOWN = {"evaluation": [17, 104, 122, 80], "train": [81, 58, 130, 112, 49, 7]}
