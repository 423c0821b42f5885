"""Shadow models, teachers and snapshots: what is planned, what they may read, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from oakum.config import ConfigError, apply_overrides
from oakum.metrics.membership import balanced_accuracy, select_class_thresholds, select_threshold
from oakum.pipeline.executor import Ledger
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Cell, Plan, build_plan
from oakum.session import Home, RunOptions, run
from oakum.store import Store

TARGET_FOLDS = {"train", "test", "val", "reference", "canary", "train+canaries"}
TAKE = {
    **{"evaluation": 100, "canary": 60, "train": 100, "test": 120, "val": 40},
    **{"shadow_train": 90, "shadow_test": 90, "reference": 60, "shadow_reference": 60, "shadow_val": 40},
}


@pytest.fixture
def shadowed(tiny: dict[str, Any]) -> dict[str, Any]:
    """The tiny experiment with folds for shadow models and without inversion."""
    data = {name: value for name, value in tiny.items() if name not in {"evaluation", "prior", "canaries"}}
    data["folds"]["rules"][0]["take"] = dict(TAKE)
    data["folds"]["rules"] = data["folds"]["rules"][:1]
    return {**data, "name": "shadowed", "attacks": {"membership": ["loss", "modified_entropy"]}}


@pytest.fixture
def plan(shadowed: dict[str, Any], prepared_digits: Path) -> Callable[..., Plan]:
    def build(*changes: str) -> Plan:
        experiment = resolve_experiment(apply_overrides(shadowed, list(changes)), "t.yaml")
        return build_plan(experiment, prepared_digits, "t.yaml")

    return build


def cell(found: Plan, setting: str) -> Cell:
    return next(each for each in found.cells if each.setting == setting)


SETTINGS = (
    "settings={none: none, advreg: advreg, taught: distillation, memguard: memguard, "
    "selena: {name: selena, teachers: 3, left_out: 1}, "
    "early: {name: early_stopping, epoch: 2}, earlier: {name: early_stopping, epoch: 1}}"
)


def test_no_shadow_stage_reads_a_fold_of_the_target(plan: Callable[..., Plan]) -> None:
    found = plan(SETTINGS, "attacks.membership=[loss, nn, grad_w_l2]")
    shadows = [stage for stage in found.stages() if stage.part == "shadow"]
    kinds = {stage.kind for stage in shadows}
    assert kinds == {"train", "snapshot", "answers", "gradients"}
    for stage in shadows:
        assert not set(stage.folds) & TARGET_FOLDS, stage.label
        assert all(each.part == "shadow" for each in stage.inputs.values()), stage.label


def test_no_target_or_teacher_reads_a_fold_of_the_adversary(plan: Callable[..., Plan]) -> None:
    for stage in plan(SETTINGS).stages():
        if stage.part == "target":
            assert set(stage.folds) <= {"train", "val", "reference"}, stage.label


def test_the_reference_fold_is_read_by_those_who_declare_it(plan: Callable[..., Plan]) -> None:
    found = plan(SETTINGS)
    for setting in ("advreg", "memguard"):
        stages = cell(found, setting).stages
        assert "reference" in stages["target.clean"].folds
        assert "shadow_reference" in stages["shadow.matched"].folds
    assert "reference" not in cell(found, "none").stages["target.clean"].folds


def test_the_vanilla_shadow_is_the_matched_one_of_none_and_shared(plan: Callable[..., Plan]) -> None:
    found = plan(SETTINGS)
    keys = {each.stages["shadow.vanilla"].key for each in found.cells}
    assert keys == {cell(found, "none").stages["shadow.matched"].key}


def test_a_teacher_on_the_whole_fold_is_the_undefended_model_itself(plan: Callable[..., Plan]) -> None:
    found = plan(SETTINGS)
    taught, none = cell(found, "taught").stages, cell(found, "none").stages
    assert taught["target.clean"].inputs["teacher.teacher"].key == none["target.clean"].key
    assert taught["shadow.matched"].inputs["teacher.teacher"].key == none["shadow.matched"].key


def test_teachers_with_rows_of_their_own_have_seeds_of_their_own(plan: Callable[..., Plan]) -> None:
    stages = cell(plan(SETTINGS), "selena").stages
    teachers = [stages[role] for role in stages if role.startswith("teacher.clean.")]
    assert len(teachers) == 3 == len({stage.config["seed"] for stage in teachers})
    shadow = [stages[role] for role in stages if role.startswith("shadow_teacher.matched.")]
    assert len(shadow) == 3 and not {stage.key for stage in shadow} & {stage.key for stage in teachers}


def test_snapshots_share_one_training(plan: Callable[..., Plan]) -> None:
    found = plan(SETTINGS)
    early, earlier = cell(found, "early").stages, cell(found, "earlier").stages
    assert early["training.clean"].key == earlier["training.clean"].key
    assert early["training.clean"].config["snapshots"] == [1, 2]
    assert early["target.clean"].key != earlier["target.clean"].key


def test_a_snapshot_is_the_model_of_a_training_that_ended_there(
    shadowed: dict[str, Any], make_home: Any, write: Any
) -> None:
    shadowed["settings"] = {
        "early": {"name": "early_stopping", "epoch": 2},
        "last": {"name": "early_stopping", "epoch": 3},
    }
    shadowed["settings"]["none"] = "none"
    home = make_home()
    record = run(RunOptions(write(shadowed), executor="serial", track=False, quiet=True), home).record
    store = Store.open(home.store_uri)
    cells = {each.setting: each for each in record.cells}

    def weights(setting: str) -> bytes:
        ref = cells[setting].stages["target.clean"]
        manifest = store.manifest(ref.kind, ref.key)
        assert manifest is not None
        return store.read(manifest, "model.safetensors")

    assert weights("last") == weights("none") != weights("early")
    seconds = {setting: each.metrics["cost/train_seconds"].value for setting, each in cells.items()}
    assert 0 < seconds["early"] < seconds["last"]


def test_a_recipe_that_selects_needs_a_validation_fold_for_the_shadow_too(plan: Callable[..., Plan]) -> None:
    found = plan("recipe.select=best_val")
    assert "shadow_val" in cell(found, "none").stages["shadow.matched"].folds
    without = {fold: count for fold, count in TAKE.items() if fold != "shadow_val"}
    with pytest.raises(ConfigError, match="needs fold 'shadow_val'"):
        plan("recipe.select=best_val", f"folds.rules.0.take={json.dumps(without)}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["folds.rules.0.take={train: 100, test: 100}", "attacks.membership=[nn]"], "'nn' is fitted on a shadow model"),
        (["folds.rules.0.take={train: 100, test: 100}", "settings.none=advreg"], "'advreg' trains on fold 'reference'"),
        (["folds.rules.0.take={train: 100, val: 100}"], "needs fold 'test'"),
        (["settings.none={name: early_stopping, epoch: 99}"], "epoch"),
        (["settings.none={name: none, norm: batch}"], "norm"),
    ],
)
def test_what_cannot_be_is_refused_before_work(plan: Callable[..., Plan], changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(*changes)


def test_a_class_that_a_shadow_fold_misses_is_said(plan: Callable[..., Plan]) -> None:
    found = plan(f"folds.rules.0.take={json.dumps({**TAKE, 'shadow_test': 3})}")
    assert any("fold 'shadow_test' has no sample of class" in text for text in found.warnings)
    assert not plan().warnings


def test_a_masking_defense_brings_the_label_only_attack(plan: Callable[..., Plan]) -> None:
    assert "membership.clean.label_only" not in cell(plan(), "none").stages
    masked = plan("settings.hamp={name: hamp, gamma: 0.5, alpha: 0.03}")
    assert all("membership.clean.label_only" in each.stages for each in masked.cells)


def test_choosing_settings_never_reads_the_test_fold(plan: Callable[..., Plan]) -> None:
    found = plan("attacks.nonmembers=val", "attacks.membership=[loss, grad_x_l2]")
    assert all("test" not in stage.folds for stage in found.stages())


@pytest.mark.parametrize(
    ("only", "kinds"),
    [
        (("target",), {("target", "train")}),
        (("shadow",), {("shadow", "train"), ("shadow", "answers")}),
        (("attack",), {("attack", "answers"), ("attack", "membership")}),
        (("train",), {("target", "train"), ("shadow", "train")}),
    ],
)
def test_parts_of_a_run_can_be_asked_for(
    plan: Callable[..., Plan], tmp_path: Path, only: tuple[str, ...], kinds: set[tuple[str, str]]
) -> None:
    ledger = Ledger.of(plan().stages(), Store.open(tmp_path / "store"), observer=None, only=only)  # type: ignore[arg-type]
    assert {(stage.part, stage.kind) for stage in ledger.outstanding()} == kinds


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, prepared_digits: Path) -> tuple[Home, Any]:
    """A finished run with shadows."""
    import yaml

    folder = tmp_path_factory.mktemp("shadowed")
    data = {
        "name": "judged",
        "data": {"name": "digits"},
        "folds": {"private_classes": [0, 1, 2], "rules": [{"from": {"classes": [0, 1, 2]}, "take": {
            "train": 60, "test": 80, "shadow_train": 70, "shadow_test": 50}}]},
        "model": {"name": "mlp", "hidden": [32]},
        "recipe": {"learning_rate": 1e-2, "epochs": 12, "batch_size": 16},
        "settings": {"none": "none", "relaxloss": {"name": "relaxloss", "alpha": 0.5}},
        "seeds": [0],
        "attacks": {"membership": ["loss", "nn", "correctness", "grad_x_l2"], "gradient_points": 40},
    }  # fmt: skip
    file = folder / "judged.yaml"
    file.write_text(yaml.safe_dump(data))
    home = Home(folder, str(folder / "store"))
    home.data.symlink_to(prepared_digits)
    return home, run(RunOptions(file, executor="serial", track=False, quiet=True), home).record


def table(home: Home, found: Any, role: str, file: str) -> dict[str, np.ndarray]:
    store = Store.open(home.store_uri)
    manifest = store.manifest(found.stages[role].kind, found.stages[role].key)
    assert manifest is not None
    columns = pq.read_table(store.fetch(manifest, file)).to_pydict()
    return {name: np.array(values) for name, values in columns.items()}


@pytest.mark.parametrize(("shadow", "suffix"), [("matched", ""), ("vanilla", ".vanilla_shadow")])
def test_thresholds_come_from_the_shadow_alone(judged: tuple[Home, Any], shadow: str, suffix: str) -> None:
    home, record = judged
    for found in record.cells:
        evidence = table(home, found, "membership.clean.loss", "evidence.parquet")
        answers = table(home, found, f"shadow_answers.{shadow}", "answers.parquet")
        scores = answers["log_probs"][np.arange(len(answers["label"])), answers["label"]]
        member = answers["fold"] == "shadow_train"
        threshold = select_threshold(scores[member], scores[~member])
        value = found.metrics[f"membership/loss/balanced_accuracy{suffix}"].value
        assert value == pytest.approx(balanced_accuracy(evidence["score"], evidence["is_member"], threshold))
        by_class = select_class_thresholds(scores, member, answers["label"], 3)[evidence["label"]]
        value = found.metrics[f"membership/loss/balanced_accuracy_per_class{suffix}"].value
        assert value == pytest.approx(balanced_accuracy(evidence["score"], evidence["is_member"], by_class))


def test_an_auc_that_needs_no_shadow_stands_once(judged: tuple[Home, Any]) -> None:
    _, record = judged
    for found in record.cells:
        names = set(found.metrics)
        assert "membership/loss/auc.vanilla_shadow" not in names
        assert {"membership/nn/auc", "membership/nn/auc.vanilla_shadow"} <= names
        assert "membership/correctness/balanced_accuracy" in names


def test_correctness_is_the_gap_between_the_accuracies(judged: tuple[Home, Any]) -> None:
    _, record = judged
    for found in record.cells:
        gap = found.metrics["utility/train_accuracy"].value - found.metrics["utility/test_accuracy"].value
        value = found.metrics["membership/correctness/balanced_accuracy"].value
        assert value == pytest.approx(0.5 + gap / 2)


def test_gradient_attacks_ask_about_the_first_points_of_each_fold(judged: tuple[Home, Any]) -> None:
    home, record = judged
    found = record.cells[0]
    evidence = table(home, found, "membership.clean.grad_x_l2", "evidence.parquet")
    assert (evidence["is_member"].sum(), (~evidence["is_member"]).sum()) == (40, 40)
    stored = table(home, found, "gradients.clean", "gradients.parquet")
    by_row = dict(zip(stored["row"], stored["x/l2"], strict=True))
    assert evidence["score"] == pytest.approx([-by_row[row] for row in evidence["row"]])
    assert set(stored) == {"fold", "row"} | {
        f"{of}/{name}" for of in "xw" for name in ("l1", "l2", "min", "max", "mean", "skewness", "kurtosis")
    }
