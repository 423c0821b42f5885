"""Which stages a plan has, what their keys depend on, and what no stage may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from oakum import registry
from oakum.config import ConfigError, apply_overrides
from oakum.models.mlp import MLP
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.folds import LoadedFolds
from oakum.pipeline.plan import Plan, build_plan
from oakum.records import RunRecord
from oakum.session import Home, RunOptions, run


@pytest.fixture
def plan(tiny: dict[str, Any], prepared_digits: Path) -> Callable[..., Plan]:
    """Return the plan of the tiny experiment with some values changed."""

    def build(*changes: str) -> Plan:
        return build_plan(resolve_experiment(apply_overrides(tiny, list(changes)), "t.yaml"), prepared_digits, "t.yaml")

    return build


def keys(plan: Plan, role: str) -> list[str]:
    return [cell.stages[role].key for cell in plan.cells]


def test_stages_come_after_their_inputs_and_once(plan: Callable[..., Plan]) -> None:
    seen: list[str] = []
    for stage in plan("seeds=[0, 1]").stages():
        assert all(each.key in seen for each in stage.inputs.values())
        seen.append(stage.key)
    # Shared: evaluation model and prior. A cell: 2 trainings, 2 answers, 2 x 2 attacks, an inversion and its judge.
    assert len(seen) == len(set(seen)) == 2 + 4 * 10


def test_a_cell_has_every_role(plan: Callable[..., Plan]) -> None:
    targets = [f"{part}.{target}" for part in ("target", "answers") for target in ("clean", "canary")]
    attacks = [f"membership.{target}.{name}" for target in ("clean", "canary") for name in ("loss", "entropy")]
    expected = {*targets, *attacks, "inversion.clean.gmi", "judge.clean.gmi"}
    assert all(cell.stages.keys() == expected for cell in plan().cells)
    assert plan().shared.keys() == {"evaluation", "prior.wgan_gp"}


def test_only_the_final_metrics_read_the_test_fold(plan: Callable[..., Plan]) -> None:
    for stage in plan().stages():
        assert "test" not in stage.folds or stage.kind in {"answers", "membership"}
        if stage.kind == "train":
            assert stage.folds.keys() <= {"train", "train+canaries", "val", "evaluation"}
        if stage.kind == "prior":
            assert stage.folds.keys() == {"public"}


def test_settings_of_one_seed_are_paired(plan: Callable[..., Plan]) -> None:
    found = plan("seeds=[0, 1]")
    seeds = {cell.seed: set() for cell in found.cells}
    for cell in found.cells:
        seeds[cell.seed].add(
            (cell.stages["target.clean"].config["seed"], cell.stages["inversion.clean.gmi"].config["seed"])
        )
    assert all(len(each) == 1 for each in seeds.values()) and seeds[0] != seeds[1]


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "description=words",
        "seeds=[0, 1]",
        "execution.workers=2",
        "execution.gpus=1.0",
        "settings.third={name: relaxloss, alpha: 0.1}",
        "attacks.membership=[confidence, entropy, loss]",
    ],
)
def test_what_changes_no_number_changes_no_key(plan: Callable[..., Plan], change: str) -> None:
    before = {stage.key for stage in plan().stages()}
    assert before <= {stage.key for stage in plan(change).stages()}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("recipe.epochs=4", {"prior.wgan_gp", "evaluation"}),
        ("recipe.batch_size=32", {"prior.wgan_gp", "evaluation"}),
        ("model.width=3", {"prior.wgan_gp", "evaluation"}),
        ("settings.none={name: relaxloss, alpha: 0.3}", {"prior.wgan_gp", "evaluation"}),
        (
            "evaluation.recipe.epochs=2",
            {"prior.wgan_gp", "target.clean", "inversion.clean.gmi", "membership.clean.loss"},
        ),
        ("priors.wgan_gp.method.critic_updates=5", {"evaluation", "target.clean", "membership.clean.loss"}),
        ("attacks.inversion.0.iterations=3", {"prior.wgan_gp", "evaluation", "target.clean", "membership.clean.loss"}),
        ("experiment_seed=1", set()),
        ("execution.threads=2", set()),
        ("data.image_size=16", set()),
    ],
)
def test_what_changes_numbers_changes_the_keys_that_depend_on_it(
    plan: Callable[..., Plan], change: str, same: set[str]
) -> None:
    def by_role(found: Plan) -> dict[str, str]:
        cell = next(cell for cell in found.cells if cell.setting == "none")
        return {role: stage.key for role, stage in [*found.shared.items(), *cell.stages.items()]}

    before, after = by_role(plan()), by_role(plan(change))
    expected = same | ({"answers.clean", "answers.canary", "target.canary"} if "target.clean" in same else set())
    if "target.clean" in same:
        expected |= {role for role in before if role.startswith("membership.")}
    assert {role for role in before if before[role] == after[role]} == expected


def test_more_seeds_extend_the_same_run(plan: Callable[..., Plan]) -> None:
    one, two = plan(), plan("seeds=[0, 1]")
    assert one.run_key == two.run_key and one.plan_key != two.plan_key
    assert plan("description=words").run_key == one.run_key != plan("recipe.epochs=4").run_key
    assert plan().plan_key == one.plan_key


def test_a_stable_method_puts_its_version_into_the_key(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = registry.load("attacks.membership", "loss")
    before = plan().cells[0].stages["membership.clean.loss"]
    for other in (registry.load("defenses", "none"), registry.load("models", "small_cnn"), loss):
        monkeypatch.setattr(other, "version", 1)
    first = plan().cells[0].stages["membership.clean.loss"]
    monkeypatch.setattr(loss, "version", 2)
    second = plan().cells[0].stages["membership.clean.loss"]
    assert (first.fingerprint, second.fingerprint) == ("version:1,1,1", "version:2,1,1")
    assert len({before.key, first.key, second.key}) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model=mcnn"], "model 'mcnn' takes 32x32 images"),
        (["evaluation.model=mcnn"], "model 'mcnn' takes 32x32 images"),
        (["data.image_size=20"], "prior 'wgan_gp' makes square images"),
        (["canaries.fold=canaries"], "needs fold 'canaries'"),
        (["folds.rules.0.take.train=100000"], "take asks for"),
        (["folds.rules.0.from.classes=[0, 11]"], "no class 11"),
        (["folds.private_classes=[0, 1]"], "which private_classes does not list"),
        (["folds.rules.0.take={train: 50, test: 50}", "canaries=", "recipe.select=best_val"], "needs fold 'val'"),
        (["folds.rules.1.take={evaluation: 10}"], "needs fold 'public'"),
        (["recipe.drop_last=true", "recipe.batch_size=101"], "drop_last"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_work(
    plan: Callable[..., Plan], changes: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(*changes)
    assert said in str(caught.value)


def test_a_defense_that_needs_hidden_layers_refuses_a_model_without(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("a_model_without_taps")

    class Tapless(MLP):
        tap_names = ()

        class Config(MLP.Config):
            pass

    Tapless.__module__ = module.__name__
    module.Tapless = Tapless  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    installed = registry.available
    monkeypatch.setattr(
        registry,
        "available",
        lambda kind: installed(kind) | ({"tapless": module.__name__} if kind == "models" else {}),
    )
    settings = "settings={none: none, mine: {name: bido, lambda_x: 0.1, lambda_y: 0.5}}"
    with pytest.raises(ConfigError, match=r"t\.yaml: settings.mine: defense 'bido' needs hidden layers, but model"):
        plan("model=tapless", settings)


def test_warnings_say_which_setting(plan: Callable[..., Plan]) -> None:
    assert plan().warnings == ()
    (warning,) = plan("settings.relaxloss.alpha=1.5").warnings
    assert warning.startswith("settings.relaxloss: ")


def test_the_records_data_names_what_was_used(plan: Callable[..., Plan]) -> None:
    data = plan("seeds=[0, 2]").data
    assert data["public"] is True and data["class_names"] == list("01234") and data["input_shape"] == [1, 8, 8]
    assert data["folds"]["train"] == 100 and data["evaluation_classes"] == 10
    assert data["fold_digests"].keys() == {"0", "2"}


def test_permuted_test_labels_change_no_released_model(
    short: dict[str, Any],
    write: Callable[..., Path],
    make_home: Callable[..., Home],
    model_bytes: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short["settings"] = {"none": "none", "relaxloss": {"name": "relaxloss", "alpha": 1.2}}
    short["canaries"] = {"fold": "canary"}
    short["recipe"]["select"] = "best_val"
    options = RunOptions(write(short), executor="serial", track=False, quiet=True)
    homes = make_home("plain"), make_home("permuted")
    plain = run(options, homes[0]).record
    draw = LoadedFolds.__init__

    def permuted(self: LoadedFolds, *arguments: Any) -> None:
        draw(self, *arguments)
        y, rows = self.samples.y.copy(), self.rows["test"]
        y[rows] = np.random.default_rng(0).permutation(y[rows])
        self.samples = self.labels = replace(self.samples, y=y)

    monkeypatch.setattr(LoadedFolds, "__init__", permuted)
    other = run(options, homes[1]).record
    assert model_bytes(homes[0], plain) == model_bytes(homes[1], other)

    def accuracies(record: RunRecord) -> list[Any]:
        return [cell.metrics["utility/test_accuracy"] for cell in record.cells]

    assert accuracies(plain) != accuracies(other)
