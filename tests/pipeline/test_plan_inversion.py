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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attacks": {"inversion": ["gmi"], "identities": 6}}, "attacks.identities asks for 6 of 5 private classes"),
        ({"attacks": {"inversion": ["gmi", "gmi"]}}, "gmi is listed twice for the same cells"),
        ({"priors": {"dcgan": {}}}, "attack 'kedmi' searches a prior with discriminator and generator"),
    ],
)
def test_what_does_not_fit_is_refused(plan: Callable[..., Plan], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(**change)


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
            *("top1", "top1.second", "top1.control", "top1.unoptimized", "disagreement"),
            *("knn2.evaluator", "knn2.evaluator.control", "feature2.evaluator", "fd.evaluator"),
            *("precision.k3", "recall.k5", "density.k5", "coverage.k3"),
        }
        assert all(0 <= found[name].value <= 1 for name in ("top1", "top1.second", "top1.control", "top1.unoptimized"))
    assert "inversion/kedmi_transfer/top1" in relaxed.metrics and "inversion/kedmi_transfer/top1" not in none.metrics
    assert result.record.chance["inversion/vmi-gaussian/top1"] == 0.1
    store = Store.open(home.store_uri)
    judge = store.manifest(none.stages["judge.clean.kedmi"].kind, none.stages["judge.clean.kedmi"].key)
    table = pq.read_table(io.BytesIO(store.read(judge, "judgements.parquet"))).to_pydict()
    assert table["class"] == [0, 0, 1, 1, 2, 2] and table["restart"] == [0, 1] * 3
    assert {"correct", "correct_second"} <= table.keys()
    assert judge.summary["profile"]["shares_private_images"] is False
    part = none.stages["inversion.clean.gmi.1"]
    tensors = load(store.read(store.manifest(part.kind, part.key), "reconstructions.safetensors"))
    assert tensors["images"].shape == (1, 2, 1, 8, 8) and tensors["images"].dtype == np.uint8
    assert tensors["unoptimized"].shape[1:] == (1, 8, 8)
