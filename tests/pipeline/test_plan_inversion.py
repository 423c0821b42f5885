"""Which stages several inversion attacks, their priors, judges and the no-target control add; a run of all of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load

from oakum.config import ConfigError
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Plan, build_plan
from oakum.session import Home, RunOptions, run
from oakum.store import Store

PRIVATE, CONTROL = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
SMALL_GAN = {"width": 2, "latent_size": 4, "batch_size": 8}


@pytest.fixture
def many(tiny: dict[str, Any]) -> dict[str, Any]:
    """Three attacks with three kinds of priors, two judges, a control, and tasks of two classes."""
    data = {**tiny, "name": "many", "seeds": [0, 1]}
    del data["canaries"]
    data["folds"]["rules"][1]["take"] = {"evaluation": 100, "control": 100, "public": 200}
    data["evaluation"] |= {"second": {"model": {"name": "mlp", "hidden": [8]}, "recipe": {"epochs": 1}}}
    data["evaluation"]["real_per_class"] = 15
    data["priors"] = {
        "inversion_gan": {
            "method": {
                **SMALL_GAN,
                "discriminator_updates": 5,
                "minibatch_outputs": 2,
                "minibatch_kernel": 2,
            }
        },
        "wgan_gp": {"method": {**SMALL_GAN, "critic_updates": 4, "critic_per_generator": 2}},
    }
    data["attacks"] = {
        "identities": 3,
        "classes_per_task": 2,
        "inversion": [
            {"name": "gmi", "iterations": 2, "restarts": 2},
            {"name": "kedmi", "iterations": 2, "samples": 2, "restarts": 1},
            {"name": "kedmi_transfer", "iterations": 2, "samples": 2, "restarts": 1, "settings": ["relaxloss"]},
            {"name": "vmi", "as": "vmi-gaussian", "family": "gaussian", "batch": 4, "steps": 2, "seeds": [1]},
        ],
    }
    return data


@pytest.fixture
def plan(many: dict[str, Any], prepared_digits: Path) -> Callable[..., Plan]:
    def build(**changes: Any) -> Plan:
        return build_plan(resolve_experiment({**many, **changes}, "t.yaml"), prepared_digits, "t.yaml")

    return build


def cells(plan: Plan) -> dict[tuple[str, int], dict[str, Any]]:
    return {(cell.setting, cell.seed): cell.stages for cell in plan.cells}


def test_which_of_several_fitting_priors_is_searched_is_said(plan: Callable[..., Plan], many: dict[str, Any]) -> None:
    assert not any("searches prior" in text for text in plan().warnings)
    priors = {"mine": {"method": {"name": "wgan_gp", **SMALL_GAN}}, **many["priors"]}
    gmi = {"name": "gmi", "iterations": 2, "restarts": 2}
    taken = plan(priors=priors, attacks={"inversion": [gmi]})
    (warning,) = [text for text in taken.warnings if "searches prior" in text]
    assert warning == (
        "attack 'gmi' searches prior 'mine', the first of mine, wgan_gp, which all have what it needs; name the one "
        "that you mean with `prior:`"
    )
    assert "prior.mine" in taken.shared
    named = plan(priors=priors, attacks={"inversion": [{**gmi, "prior": "wgan_gp"}]})
    assert "prior.wgan_gp" in named.shared and not any("searches prior" in text for text in named.warnings)


def test_attacks_meet_the_cells_that_they_name(plan: Callable[..., Plan]) -> None:
    judged = {
        where: {role.removeprefix("judge.clean.") for role in stages if role.startswith("judge.")}
        for where, stages in cells(plan()).items()
    }
    assert judged == {
        ("none", 0): {"gmi", "kedmi"},
        ("relaxloss", 0): {"gmi", "kedmi", "kedmi_transfer"},
        ("none", 1): {"gmi", "kedmi", "vmi-gaussian"},
        ("relaxloss", 1): {"gmi", "kedmi", "kedmi_transfer", "vmi-gaussian"},
    }


def test_a_prior_belongs_to_all_cells_or_to_one_target(plan: Callable[..., Plan]) -> None:
    found = plan()
    assert found.shared.keys() == {"evaluation", "second", "prior.wgan_gp"}
    where = cells(found)
    own = {cell: stages["prior.clean.kedmi"].key for cell, stages in where.items()}
    assert len(set(own.values())) == 4
    for (setting, seed), stages in where.items():
        assert stages["prior.clean.kedmi"].inputs["target"] is stages["target.clean"]
        assert stages["inversion.clean.gmi.0"].inputs["prior"].key == found.shared["prior.wgan_gp"].key
        if setting == "relaxloss":
            transferred = stages["prior.clean.kedmi_transfer"]
            assert transferred.key == own["none", seed]
            attacked = stages["inversion.clean.kedmi_transfer.0"]
            assert attacked.inputs["target"].key == stages["target.clean"].key
            assert attacked.inputs["prior"].key == transferred.key
        if seed == 1:
            assert stages["inversion.clean.vmi-gaussian.1"].inputs["prior"].key == found.shared["prior.wgan_gp"].key


def test_classes_are_split_over_tasks(plan: Callable[..., Plan]) -> None:
    stages = cells(plan())["none", 0]
    assert [stages[f"inversion.clean.gmi.{n}"].config["classes"] for n in (0, 1)] == [[0, 1], [2]]
    whole = cells(plan(attacks={"inversion": [{"name": "gmi", "iterations": 2}]}))["none", 0]
    assert whole["inversion.clean.gmi"].config["classes"] == [0, 1, 2, 3, 4]


def test_the_control_is_one_undefended_model_of_other_classes_for_each_seed(plan: Callable[..., Plan]) -> None:
    where = cells(plan())
    models = {cell: stages["control_target.clean"] for cell, stages in where.items()}
    assert models["none", 0].key == models["relaxloss", 0].key != models["none", 1].key
    model = models["relaxloss", 0]
    assert model.folds.keys() == {"control"} and model.config["labels"] == "control"
    assert model.config["defense"]["name"] == "none"
    stages = where["relaxloss", 0]
    assert stages["control.gmi.0"].inputs["target"].key == model.key
    assert stages["prior.control.kedmi"].inputs["target"].key == model.key
    assert stages["control.kedmi.1"].config["seed"] == stages["inversion.clean.kedmi.1"].config["seed"]
    assert {"inversion.0", "inversion.1", "control.0", "control.1"} <= stages["judge.clean.kedmi"].inputs.keys()


def test_judges_may_learn_from_the_targets_own_images(plan: Callable[..., Plan], many: dict[str, Any]) -> None:
    found = plan(evaluation={**many["evaluation"], "fold": "train"})
    assert found.shared.keys() == {"evaluation.0", "evaluation.1", "second.0", "second.1", "prior.wgan_gp"}
    judge = found.shared["evaluation.1"]
    assert judge.config["labels"] == "private" and judge.config["num_classes"] == len(PRIVATE)
    assert cells(found)["none", 1]["judge.clean.gmi"].inputs["evaluator"].key == judge.key
    assert found.data["evaluation_classes"] == len(PRIVATE)


def test_the_variant_with_another_prior_draws_as_kedmi_does(plan: Callable[..., Plan]) -> None:
    stages = cells(plan())["relaxloss", 0]
    seeds = {name: stages[f"inversion.clean.{name}.0"].config["seed"] for name in ("gmi", "kedmi", "kedmi_transfer")}
    assert seeds["kedmi_transfer"] == seeds["kedmi"] != seeds["gmi"]


def test_the_control_releases_its_last_epoch_where_targets_release_their_best(
    plan: Callable[..., Plan], many: dict[str, Any]
) -> None:
    recipe = {**many["recipe"], "select": "best_val"}
    stages = cells(plan(recipe=recipe))["relaxloss", 0]
    target, control = (stages[f"{role}.clean"].config["recipe"] for role in ("target", "control_target"))
    assert target["select"] == "best_val" and control == {**target, "select": "last"}
    assert stages["control.gmi.0"].inputs["target"] is stages["control_target.clean"]
    assert stages["prior.control.kedmi"].inputs["target"] is stages["control_target.clean"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attacks": {"inversion": ["gmi"], "identities": 6}}, "attacks.identities asks for 6 of 5 private classes"),
        ({"attacks": {"inversion": ["gmi", "gmi"]}}, "gmi is listed twice for the same cells"),
        ({"priors": {"dcgan": {}}}, "attack 'kedmi' searches a prior with discriminator and generator"),
        (
            {"attacks": {"inversion": [{"name": "vmi", "prior": "wgan_gp", "flow_levels": 3}]}},
            "a flow of 3 levels halves the latent 2 times and needs 2 or more numbers at the top, but the latent has 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(plan: Callable[..., Plan], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(**change)


@pytest.mark.parametrize(
    ("rules", "changes", "said"),
    [
        (
            [([0, 1, 2, 3, 4], {"evaluation": 50, "train": 100, "test": 50, "public": 50}), (CONTROL, {"control": 99})],
            {},
            "fold 'public' has images of private class 0: a prior would be shown what its attack has to find out",
        ),
        (
            [
                ([0, 1, 3, 4], {"evaluation": 50, "train": 80, "test": 50}),
                ([2], {"train": 20}),
                (CONTROL, {"public": 99}),
            ],
            {},
            "judges learn from fold 'evaluation', which has no image of private class 2",
        ),
        (
            [
                ([0, 1, 3, 4], {"evaluation": 50, "train": 80, "test": 50}),
                ([2], {"evaluation": 20, "test": 9}),
                (CONTROL, {"public": 99}),
            ],
            {},
            "reconstructions are compared with fold 'train', which has no image of private class 2",
        ),
        (
            [([0], {"evaluation": 20, "train": 40, "test": 20}), (CONTROL, {"public": 99})],
            {
                "folds": {"private_classes": [0]},
                "attacks": {"identities": None},
                "settings": {"relaxloss": "none"},
                "priors": {"inversion_gan": {"method": {"name": "wgan_gp", **SMALL_GAN}}},
            },
            "needs 2 private classes or more",
        ),
        (
            [(PRIVATE, {"evaluation": 50, "train": 100, "test": 50}), (CONTROL, {"public": 99, "control": 49})],
            {"recipe": {"batch_size": 50, "drop_last": True}},
            "drop_last leaves no batch: fold 'control' has 49 samples, batch_size is 50",
        ),
        (
            [(PRIVATE, {"evaluation": 50, "train": 100, "test": 50}), (CONTROL, {"public": 99})],
            {"evaluation": {"recipe": {"epochs": 1, "select": "best_val"}}},
            "needs fold 'val'",
        ),
    ],
    ids=[
        "public is private",
        "judges never saw it",
        "no real image",
        "one class",
        "a control without a batch",
        "a judge without val",
    ],
)
def test_folds_that_an_attack_cannot_be_judged_with_are_refused(
    many: dict[str, Any], prepared_digits: Path, rules: Any, changes: dict[str, Any], said: str
) -> None:
    many["folds"]["rules"] = [{"from": {"classes": classes}, "take": take} for classes, take in rules]
    many["attacks"]["inversion"] = [{"name": "gmi", "iterations": 2}]
    for part, values in changes.items():
        many[part] |= values
    with pytest.raises(ConfigError, match=said):
        build_plan(resolve_experiment(many, "t.yaml"), prepared_digits, "t.yaml")


def test_judges_have_outputs_for_the_classes_that_they_learn(many: dict[str, Any], prepared_digits: Path) -> None:
    outputs = {}
    for name, takes in {"private": {"public": 99}, "all": {"public": 99, "evaluation": 50}}.items():
        many["folds"]["rules"] = [
            {"from": {"classes": PRIVATE}, "take": {"evaluation": 50, "train": 100, "test": 50}},
            {"from": {"classes": CONTROL}, "take": takes},
        ]
        plan = build_plan(resolve_experiment(many, "t.yaml"), prepared_digits, "t.yaml")
        judge = plan.shared["evaluation"].config
        outputs[judge["labels"]] = judge["num_classes"]
        assert judge["labels"] == name and plan.data["evaluation_classes"] == judge["num_classes"]
    assert outputs == {"private": len(PRIVATE), "all": 10}


@pytest.mark.parametrize(
    ("target", "judge", "second", "said"),
    [
        (
            "resnet_cls",
            "resnet_cls_h",
            "mlp",
            "evaluation.model: 'resnet_cls_h' is the same network as that of the target",
        ),
        ("mlp", "resnet_cls", "resnet_cls_h", "evaluation.second.model: .* as that of evaluation.model"),
    ],
)
def test_one_network_under_two_names_is_refused(
    plan: Callable[..., Plan], many: dict[str, Any], target: str, judge: str, second: str, said: str
) -> None:
    def model(name: str) -> dict[str, Any]:
        return {"name": name, **({"hidden": [8]} if name == "mlp" else {"depth": 10, "width": 2, "embedding": 4})}

    evaluation = {**many["evaluation"], "model": model(judge), "second": {"model": model(second)}}
    with pytest.raises(ConfigError, match=said):
        plan(data={"name": "digits", "image_size": 16}, model=model(target), evaluation=evaluation)


def test_a_control_needs_as_many_classes_as_the_target(plan: Callable[..., Plan], many: dict[str, Any]) -> None:
    folds = yaml.safe_load(yaml.safe_dump(many["folds"]))
    folds["rules"] = [
        folds["rules"][0],
        {"from": {"classes": [5, 6]}, "take": {"evaluation": 50, "control": 50}},
        {"from": {"classes": [7, 8, 9]}, "take": {"evaluation": 50, "public": 200}},
    ]
    with pytest.raises(ConfigError, match="fold 'control' has 2 classes; the control needs as many as there are"):
        plan(folds=folds)


def test_every_attack_runs_and_is_judged(many: dict[str, Any], prepared_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(prepared_digits)
    home = Home(tmp_path, str(tmp_path / "store"))
    file = tmp_path / "many.yaml"
    file.write_text(yaml.safe_dump({**many, "seeds": [1]}))
    result = run(RunOptions(file=file, executor="serial", track=False), home)
    assert not result.failures
    none, relaxed = result.record.cells
    for attack in ("gmi", "kedmi", "vmi-gaussian"):
        found = {key.split("/", 2)[2]: value for key, value in none.metrics.items() if f"/{attack}/" in key}
        assert found.keys() >= {
            *("top1", "top1.second", "top1.control", "top1.unoptimized", "disagreement", "faint"),
            *("top1.second.control", "top1.second.unoptimized"),
            *("knn2.evaluator", "knn2.evaluator.control", "feature2.evaluator", "fd.evaluator"),
            *("accuracy_on_real.evaluator", "accuracy_on_real.second"),
            *("precision.k3", "recall.k5", "density.k5", "coverage.k3"),
        }
        assert all(0 <= found[name].value <= 1 for name in ("top1", "top1.second", "top1.control", "top1.unoptimized"))
    assert "inversion/kedmi_transfer/top1" in relaxed.metrics and "inversion/kedmi_transfer/top1" not in none.metrics
    assert result.record.chance["inversion/vmi-gaussian/top1"] == 0.1
    store = Store.open(home.store_uri)
    judge = store.manifest(none.stages["judge.clean.kedmi"].kind, none.stages["judge.clean.kedmi"].key)
    table = pq.read_table(io.BytesIO(store.read(judge, "judgments.parquet"))).to_pydict()
    assert table["class"] == [0, 0, 1, 1, 2, 2] and table["restart"] == [0, 1] * 3
    assert {"correct", "correct_second"} <= table.keys()
    profile = judge.summary["profile"]
    assert profile["shares_private_images"] == {"evaluator": False, "second": False}
    assert [profile[role] for role in ("evaluator", "second")] == [
        next(item.stage.key for item in result.record.shared if item.role == role) for role in ("evaluation", "second")
    ]
    assert profile["real"]["per_class"] == 15 and profile["real"]["images"] == 45
    assert profile["made"] == {"classes": 3, "per_class": 2}
    part = none.stages["inversion.clean.gmi.1"]
    tensors = load(store.read(store.manifest(part.kind, part.key), "reconstructions.safetensors"))
    assert tensors["images"].shape == (1, 2, 1, 8, 8) and tensors["images"].dtype == np.float32
    assert tensors["unoptimized"].shape[1:] == (1, 8, 8)
