from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oakum.config import ConfigError
from oakum.datasets._canaries import plant
from oakum.pipeline.folds import CANARY_TRAIN_FOLD, LoadedFolds, Selection, plan_folds
from oakum.seeding import derive_seed


@pytest.fixture
def selection(tiny: dict[str, Any]) -> Selection:
    return Selection("digits", None, tiny["folds"], experiment_seed=0, seed_index=0, canary_fold="canary")


@pytest.fixture
def loaded(selection: Selection, prepared_digits: Path) -> LoadedFolds:
    return LoadedFolds(selection, prepared_digits)


FOLDS = ["train", "val", "test", "public", "evaluation", "canary", CANARY_TRAIN_FOLD]


def test_planning_and_loading_draw_the_same_folds(
    selection: Selection, loaded: LoadedFolds, prepared_digits: Path
) -> None:
    planned = plan_folds(selection, prepared_digits)
    assert planned.rows.keys() == loaded.rows.keys()
    loaded.check({fold: planned.digest(fold) for fold in FOLDS})


@pytest.mark.parametrize("fold", FOLDS)
def test_a_fold_that_was_not_planned_is_refused(loaded: LoadedFolds, fold: str) -> None:
    with pytest.raises(ConfigError, match="oakum data prepare digits --force"):
        loaded.check({fold: "0" * 64})


def test_digests_differ_by_fold_seed_and_size(selection: Selection, prepared_digits: Path) -> None:
    chosen = [selection, replace(selection, seed_index=1), replace(selection, image_size=16)]
    digests = [[plan_folds(each, prepared_digits).digest(fold) for fold in FOLDS] for each in chosen]
    assert len({*digests[0], *digests[2]}) == 2 * len(FOLDS)
    shared = {FOLDS.index("public"), FOLDS.index("evaluation")}
    assert all((digests[0][i] == digests[1][i]) == (i in shared) for i in range(len(FOLDS)))


def test_labels_of_a_fold(loaded: LoadedFolds) -> None:
    private, original = loaded.points("train"), loaded.points("train", labels="all")
    assert private.y.tolist() == [loaded.private_classes.index(label) for label in original.y.tolist()]
    assert private.x.dtype == torch.float32 and private.x.min() >= 0 and private.x.max() <= 1
    assert private.rows.tolist() == loaded.rows["train"].tolist()
    labeled = loaded.labeled("evaluation", "all")
    assert sorted(set(labeled.y.tolist())) == list(range(10))


def test_canaries_are_never_labeled_right_and_half_of_them_are_members(loaded: LoadedFolds) -> None:
    canaries = loaded.canaries
    points = loaded.points("canary")
    assert canaries.is_member.sum() == len(canaries.rows) // 2
    assert (canaries.planted_label != loaded.class_index(canaries.rows)).all()
    assert points.y.tolist() == canaries.planted_label.tolist()


def test_a_search_and_its_confirmation_share_no_canary_under_any_seed(
    selection: Selection, tiny: dict[str, Any], prepared_digits: Path
) -> None:
    folds = {**tiny["folds"], "sealed": ["canary", "test"]}

    def planted(part: Any, seed: int) -> LoadedFolds:
        chosen = replace(selection, folds=folds, seed_index=seed, canary_part=part)
        return LoadedFolds(chosen, prepared_digits)

    def others(found: LoadedFolds) -> set[int]:
        return {row for fold, rows in found.rows.items() if fold != "canary" for row in rows.tolist()}

    search = [planted("search", seed) for seed in (1000, 1001)]
    confirmation = [planted("confirmation", seed) for seed in (0, 1, 2)]
    (first, *_), (last, *_) = search, confirmation
    halves = [set(first.canaries.rows.tolist()), set(last.canaries.rows.tolist())]
    assert not halves[0] & halves[1] and len(halves[0]) == len(halves[1]) == 30
    assert halves[0] | halves[1] == set(planted("all", 7).canaries.rows.tolist())
    for half, found in zip(halves, (search, confirmation), strict=True):
        assert all(set(each.canaries.rows.tolist()) == half for each in found)
        assert len({tuple(each.canaries.members.tolist()) for each in found}) == len(found)
        assert len({each.digest("canary") for each in found}) == len(found)
        for each in found:
            assert set(each.points("canary").rows.tolist()) == half
            trained = set(each.canary_training_points().rows.tolist()) - set(each.rows["train"].tolist())
            assert trained == set(each.canaries.members.tolist()) < half
            assert not (halves[0] | halves[1]) & others(each)


def test_by_default_every_candidate_is_planted(selection: Selection, prepared_digits: Path) -> None:
    found = plan_folds(replace(selection, seed_index=3), prepared_digits)
    rows = found.rows["canary"]
    expected = plant(rows, found.class_index(rows), 5, derive_seed(0, "canaries", 3))
    assert found.canaries.rows.tolist() == rows.tolist()
    assert found.canaries.planted_label.tolist() == expected.planted_label.tolist()
    assert found.canaries.is_member.tolist() == expected.is_member.tolist()


def test_the_canary_training_fold_is_the_training_fold_and_the_chosen_canaries(loaded: LoadedFolds) -> None:
    points, train = loaded.canary_training_points(), loaded.points("train")
    chosen = loaded.canaries.is_member
    assert points.rows.tolist() == [*train.rows.tolist(), *loaded.canaries.rows[chosen].tolist()]
    assert points.y.tolist() == [*train.y.tolist(), *loaded.canaries.planted_label[chosen].tolist()]
    assert torch.equal(points.x[: len(train)], train.x)
    assert len(loaded.labeled(CANARY_TRAIN_FOLD, "private")) == len(points)


def test_folds_share_no_sample(loaded: LoadedFolds) -> None:
    rows = np.concatenate(list(loaded.rows.values()))
    assert len(np.unique(rows)) == len(rows)


def test_a_missing_fold_is_named(loaded: LoadedFolds) -> None:
    with pytest.raises(ConfigError, match=r"needs fold 'reference'; let `folds.rules` take it \(drawn: canary, "):
        loaded.require("reference")
