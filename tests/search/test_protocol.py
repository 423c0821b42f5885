"""Honest selection: what a trial may see, what confirms it, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from oakum.config import ConfigError
from oakum.search.objectives import parse_floor, parse_objective
from oakum.search.protocol import check_keys_after, confirmation_experiment, confirmed_key, trial_experiment

SEEDS = (1000, 1001)


def experiment(**changes: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "data": {"name": "digits"},
        "folds": {"rules": [{"take": {"train": 100, "val": 20, "test": 50, "evaluation": 30}}]},
        "model": "small_cnn",
        "settings": {"none": "none", "other": "dropout"},
        "seeds": [0, 1],
        "canaries": {"fold": "canary"},
        "priors": {"wgan_gp": {}},
        "evaluation": {
            "model": "strided_cnn",
            "recipe": {"epochs": 4},
            "second": {"model": "mlp", "recipe": {"epochs": 9}},
            "extractors": ["faceres"],
        },
        "attacks": {
            "membership": ["loss", {"name": "lira"}],
            "inversion": [
                {"name": "gmi", "restarts": 2},
                {"name": "gmi", "as": "long", "settings": ["other"], "seeds": [0]},
            ],
        },
        **changes,
    }  # fmt: skip


def trial(objective: str, *floors: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    return trial_experiment(
        data or experiment(), [parse_objective(objective)], [parse_floor(text) for text in floors], SEEDS, 5
    )


def test_a_trial_on_inversion_sees_half_of_the_classes_the_first_judge_and_no_test_fold() -> None:
    base = experiment()
    before = copy.deepcopy(base)
    data = trial("min inversion/long/top1", "utility/val_accuracy >= 0.9", data=base)
    assert base == before
    assert data["attacks"] == {
        "membership": [],
        "inversion": [{"name": "gmi", "as": "long"}],
        "nonmembers": "val",
        "identities": 3,
    }
    assert data["evaluation"]["second"] is None and data["evaluation"]["extractors"] == []
    assert data["settings"] == {"none": "none"} and data["seeds"] == [1000, 1001]
    assert data["folds"]["sealed"] == ["test"] and "canaries" not in data


def test_a_trial_on_membership_trains_no_judge_and_no_prior() -> None:
    data = trial("min membership/lira/auc")
    assert data["attacks"]["membership"] == [{"name": "lira"}] and data["attacks"]["inversion"] == []
    assert not {"evaluation", "priors", "canaries"} & set(data)


def test_canaries_are_planted_when_they_are_asked_about() -> None:
    data = trial("min canary/loss/auc")
    assert data["canaries"]["fold"] == "canary" and data["attacks"]["membership"] == ["loss"]


@pytest.mark.parametrize("canaries", [{"fold": "planted"}, {}])
def test_canaries_that_scored_trials_do_not_score_the_confirmation(canaries: dict[str, Any]) -> None:
    base = experiment(canaries=canaries)
    fold = canaries.get("fold", "canary")
    searched = trial("min canary/loss/auc", data=base)
    confirmed = confirmation_experiment(base, "c", {}, trial=searched)
    for data, part in ((searched, "search"), (confirmed, "confirmation")):
        assert data["canaries"] == {**canaries, "part": part}
        assert data["folds"]["sealed"] == sorted(["test", fold])
    untouched = confirmation_experiment(base, "c", {}, trial=trial("min membership/loss/auc", data=base))
    assert untouched["canaries"] == canaries and untouched["folds"]["sealed"] == ["test"]


def test_the_confirmation_has_own_seeds_test_folds_all_attacks_and_the_judges_exchanged() -> None:
    data = confirmation_experiment(experiment(), "mine-confirmed", {"trial-3": {"name": "dropout", "rate": 0.2}})
    assert data["name"] == "mine-confirmed" and data["seeds"] == [0, 1]
    assert data["settings"] == {"none": "none", "trial-3": {"name": "dropout", "rate": 0.2}}
    assert data["folds"]["sealed"] == ["test"]
    assert data["attacks"]["nonmembers"] == "test" and "identities" not in data["attacks"]
    assert data["attacks"]["inversion"][1] == {"name": "gmi", "as": "long", "seeds": [0]}
    assert data["evaluation"]["model"] == "mlp" and data["evaluation"]["recipe"] == {"epochs": 9}
    assert data["evaluation"]["second"] == {"model": "strided_cnn", "recipe": {"epochs": 4}}
    assert data["evaluation"]["extractors"] == ["faceres"] and data["canaries"] == {"fold": "canary"}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("min membership/shadow_nn/auc", r"no membership attack 'shadow_nn'.*loss, lira"),
        ("min inversion/kedmi/top1", r"no inversion attack 'kedmi'.*gmi, long"),
        ("max utility/test_accuracy", r"test fold.*utility/val_accuracy"),
        ("min inversion/gmi/top1.second", "second judge"),
    ],
)
def test_what_a_search_may_not_ask_for(objective: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trial(objective)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1001]}, "seed 1001 is both"),
        ({"evaluation": {"model": "strided_cnn"}}, "evaluation.second"),
        ({"folds": {"released": {"of": "relaxloss"}}}, "folds.rules"),
        ({"folds": {"rules": [{"take": {"train": 1, "val": 1}}]}}, "fold `test`"),
        ({"folds": {"rules": [{"take": {"train": 1, "test": 1}}]}}, "fold `val`"),
    ],
)
def test_experiments_that_cannot_be_searched_honestly(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trial("min inversion/gmi/top1", data=experiment(**changes))


def test_a_missing_metric_is_named_with_what_there_is() -> None:
    found = check_keys_after(
        ["membership/loss/auc", "utility/val_accuracy"], [parse_objective("min membership/loss/acu")], []
    )
    assert found == "no stage yields 'membership/loss/acu'; there is: membership/loss/auc"
    assert check_keys_after(["a/b"], [parse_objective("min a/b")], []) is None
    assert confirmed_key("utility/val_accuracy") == "utility/test_accuracy"
