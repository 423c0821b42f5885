"""Released splits: sizes, order and what an experiment gets of them; rows are compared in tests/golden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from oakum.config import ConfigError, validate
from oakum.datasets._folds import FoldsConfig, draw_folds, private_classes
from oakum.datasets._released_splits import relaxloss_cifar, relaxloss_purchase, relaxloss_texas

LABELS = np.random.default_rng(0).permutation(np.arange(60_000) % 10)
PARTS = np.repeat(["train", "test"], [50_000, 10_000])


def config(**changes: Any) -> FoldsConfig:
    return validate(FoldsConfig, {"released": {"of": "relaxloss"}, **changes}, "test.yaml: folds")


def distinct(folds: dict[str, np.ndarray]) -> int:
    return len(np.unique(np.concatenate(list(folds.values()))))


def test_cifar_covers_every_row_once() -> None:
    folds = relaxloss_cifar(60_000, 1000)
    assert {len(rows) for rows in folds.values()} == {12_000}
    assert distinct(folds) == 60_000
    assert all(rows.dtype == np.int64 for rows in folds.values())


def naive_tabular(order: list[int], seed: int, purchase: bool) -> dict[str, list[int]]:
    """The released rule, row by row."""
    count = len(order)
    pools = {"train": [], "reference": [], "test": []}
    for position, row in enumerate(order):
        pools["train" if position < int(0.4 * count) else "reference" if position < int(0.6 * count) else "test"] += [
            row
        ]
    if purchase:
        pools["test"] = pools["test"][: len(pools["train"])]
    np.random.seed(seed)
    folds = {"reference": pools["reference"]}
    for name in ("train", "test"):
        positions = list(range(len(pools[name])))
        np.random.shuffle(positions)
        half = len(positions) // 2
        others = positions[half:] if purchase else sorted(positions[half:])
        folds[f"shadow_{name}"] = [pools[name][i] for i in positions[:half]]
        folds[name] = [pools[name][i] for i in others]
    return folds


@pytest.mark.parametrize("rows", [100, 101, 104, 1003])
@pytest.mark.parametrize("purchase", [True, False])
def test_tabular_splits_follow_the_released_rule(rows: int, purchase: bool) -> None:
    order = np.random.default_rng(rows).permutation(rows)
    folds = (relaxloss_purchase if purchase else relaxloss_texas)(order, 7)
    expected = naive_tabular(order.tolist(), 7, purchase)
    assert {name: found.tolist() for name, found in folds.items()} == expected
    assert distinct(folds) == sum(len(found) for found in folds.values())


def test_purchase_leaves_one_row_out() -> None:
    order = np.random.default_rng(1).permutation(197_324)
    folds = relaxloss_purchase(order, 1000)
    assert distinct(folds) == 197_323
    assert order[-1] not in np.concatenate(list(folds.values()))


def test_an_experiment_gets_every_fold_of_the_membership_side() -> None:
    folds = draw_folds(config(), LABELS, PARTS, None, 3, 0)
    released = relaxloss_cifar(60_000, 1000)
    for name in ("train", "test", "shadow_train", "shadow_test"):
        np.testing.assert_array_equal(folds[name], released[name])
    reserve = [folds["val"], folds["reference"], folds["shadow_reference"]]
    assert [len(rows) for rows in reserve] == [2_000, 5_000, 5_000]
    np.testing.assert_array_equal(np.concatenate(reserve), released["reference"])
    assert distinct(folds) == 60_000


def test_a_seed_index_is_another_run_of_the_released_code() -> None:
    second = draw_folds(config(), LABELS, PARTS, None, 3, 1)
    np.testing.assert_array_equal(second["train"], relaxloss_cifar(60_000, 1001)["train"])
    other = draw_folds(config(released={"of": "relaxloss", "seed": 1001}), LABELS, PARTS, None, 0, 0)
    np.testing.assert_array_equal(second["shadow_reference"], other["shadow_reference"])


def test_every_class_is_private() -> None:
    assert private_classes(config(), LABELS, PARTS, None) == tuple(range(10))
    with pytest.raises(ConfigError, match="class 2, which private_classes does not list"):
        private_classes(config(private_classes=[0, 1]), LABELS, PARTS, None)


def test_other_data_is_refused() -> None:
    for labels, parts in ((LABELS[:-1], PARTS[:-1]), (LABELS, None), (LABELS, PARTS[::-1])):
        with pytest.raises(ConfigError, match="released split of cifar10 and cifar100 only; use `rules`"):
            draw_folds(config(), labels, parts, None, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": [{"take": {"train": 5}}]}, "folds.rules: `released` gives every fold; leave out one of the two"),
        ({"released": None}, "folds.rules: at least one rule is needed, or `released`"),
        ({"released": {"of": "relaxlos"}}, "folds.released.of: Input should be 'relaxloss'"),
        ({"released": {"of": "relaxloss", "seed": -1}}, "folds.released.seed: "),
        ({"released": {"of": "relaxloss", "sed": 1}}, "folds.released.sed: unknown key; did you mean 'seed'?"),
    ],
)
def test_bad_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert str(caught.value).startswith(f"test.yaml: {message}")
    assert "\n" not in str(caught.value)


def test_configuration_round_trip() -> None:
    plain = config().model_dump(mode="json", by_alias=True)
    assert validate(FoldsConfig, plain, "again") == config()
