"""Settings that change during training: which stages they are planned as, and what comes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum.config import ConfigError, apply_overrides
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Cell, Plan, build_plan
from oakum.pipeline.runner import run_stage
from oakum.pipeline.stage import Stage, WorkerSettings
from oakum.session import Home, RunOptions, run
from oakum.store import Manifest, Store
from oakum.training import loop

SHADOWS = '{"shadow_train": 60, "shadow_test": 60, "shadow_reference": 40, "reference": 40, "train": 80, "test": 80}'
STATE = {"state.safetensors", "state.json"}


@pytest.fixture
def plan(short: dict[str, Any], prepared_digits: Path) -> Callable[..., Plan]:
    """Return the plan of the short experiment, five epochs long, with other settings and some values changed."""

    def build(settings: dict[str, Any], *changes: str) -> Plan:
        data = apply_overrides({**short, "settings": settings}, ["recipe.epochs=5", *changes])
        return build_plan(resolve_experiment(data, "t.yaml"), prepared_digits, "t.yaml")

    return build


def scheduled(alpha: float, schedule: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {"name": "relaxloss", "alpha": alpha, "schedule": schedule}


def cell(found: Plan, setting: str) -> Cell:
    return next(each for each in found.cells if each.setting == setting)


def chain(last: Stage) -> list[Stage]:
    """Return the parts of a training, the first one first."""
    return [*(chain(last.inputs["start"]) if "start" in last.inputs else []), last]


def test_a_schedule_is_a_chain_of_plain_trainings(plan: Callable[..., Plan]) -> None:
    found = plan({"mine": scheduled(1.0, {2: {"alpha": 2.0}, 4: {"alpha": 0.5}})})
    stages = cell(found, "mine").stages
    parts = chain(stages["target.clean"])
    assert [part.config["defense"]["alpha"] for part in parts] == [1.0, 2.0, 0.5]
    assert [part.config["recipe"].get("stop_after") for part in parts] == [2, 4, None]
    assert all("schedule" not in part.config["defense"] for part in parts)
    assert [stages["phase.clean.2"], stages["phase.clean.4"]] == parts[:2]
    assert [part.label for part in parts[:2]] == ["train mine/0 clean to epoch 2", "train mine/0 clean to epoch 4"]
    assert {part.kind for part in parts} == {"train"} and {part.part for part in parts} == {"target"}


def test_schedules_that_begin_alike_share_what_they_share(plan: Callable[..., Plan]) -> None:
    found = plan(
        {
            "one": scheduled(1.0, {2: {"alpha": 2.0}, 4: {"alpha": 0.5}}),
            "other": scheduled(1.0, {4: {"alpha": 0.7}, 2: {"alpha": 2.0}}),
            "sooner": scheduled(1.0, {1: {"alpha": 2.0}, 4: {"alpha": 0.5}}),
            "plain": {"name": "relaxloss", "alpha": 1.0},
        }
    )
    one, other, sooner = (chain(cell(found, name).stages["target.clean"]) for name in ("one", "other", "sooner"))
    assert [part.key for part in one[:2]] == [part.key for part in other[:2]] and one[2].key != other[2].key
    assert not {part.key for part in one} & {part.key for part in sooner}
    assert len(chain(cell(found, "plain").stages["target.clean"])) == 1


def test_a_shorter_training_is_the_beginning_of_a_longer_one(plan: Callable[..., Plan]) -> None:
    settings = {"mine": scheduled(1.0, {2: {"alpha": 2.0}, 4: {}})}
    whole = chain(cell(plan(settings), "mine").stages["target.clean"])
    for epochs, parts in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
        found = chain(cell(plan(settings, f"recipe.stop_after={epochs}"), "mine").stages["target.clean"])
        assert len(found) == parts
        assert [part.key for part in found[:-1]] == [part.key for part in whole[: parts - 1]]
        assert (found[-1].key in {part.key for part in whole}) == (epochs in (2, 4))
    stopped = plan({"mine": {"name": "relaxloss", "alpha": 1.0}}, "recipe.stop_after=2")
    assert cell(stopped, "mine").stages["target.clean"].key == whole[0].key


def test_what_has_no_schedule_does_not_know_the_word(plan: Callable[..., Plan]) -> None:
    found = plan({"none": "none", "mine": scheduled(1.0, {}), "same": {"name": "relaxloss", "alpha": 1.0}})
    assert cell(found, "mine").stages["target.clean"].key == cell(found, "same").stages["target.clean"].key
    text = json.dumps([found.experiment.document(), *(stage.key_document() for stage in found.stages())])
    assert "schedule" not in text and "stop_after" not in text
    assert all("schedule" not in each.method.parameters() for each in found.cells)
    kept = plan({"mine": scheduled(1.0, {2: {"alpha": 2.0}})})
    assert kept.cells[0].method.parameters()["schedule"] == {"2": {"alpha": 2.0}}


def test_matched_shadows_follow_the_schedule_and_vanilla_ones_do_not(plan: Callable[..., Plan]) -> None:
    settings = {"none": "none", "mine": scheduled(1.0, {2: {"alpha": 2.0}})}
    found = plan(settings, f"folds.rules.0.take={SHADOWS}")
    stages = cell(found, "mine").stages
    parts = chain(stages["shadow.matched"])
    assert [part.config["defense"]["alpha"] for part in parts] == [1.0, 2.0]
    assert stages["shadow_phase.matched.2"] == parts[0] and {part.part for part in parts} == {"shadow"}
    assert all(fold.startswith("shadow_") for part in parts for fold in part.folds)
    assert stages["shadow.vanilla"].key == cell(found, "none").stages["shadow.matched"].key


@pytest.mark.parametrize("changes", [[], ["recipe.stop_after=3"]], ids=["all epochs", "some"])
def test_all_parts_have_the_same_teacher_and_it_sees_every_epoch(plan: Callable[..., Plan], changes: list[str]) -> None:
    taught = {"name": "distillation", "schedule": {2: {"temperature": 4.0}}}
    stages = cell(plan({"none": "none", "taught": taught}, *changes), "taught").stages
    teachers = {part.inputs["teacher.teacher"].key for part in chain(stages["target.clean"])}
    assert teachers == {cell(plan({"none": "none"}), "none").stages["target.clean"].key}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (scheduled(1.0, {0: {"alpha": 2.0}}), "relaxloss: schedule.0: training has the epochs 0 to 4"),
        (scheduled(1.0, {5: {"alpha": 2.0}}), "relaxloss: schedule.5: training has the epochs 0 to 4"),
        (scheduled(1.0, {2: {"alpha": -2.0}}), "relaxloss: schedule.2.alpha: Input should be greater than or equal"),
        (scheduled(1.0, {2: {"alhpa": 2.0}}), "'alhpa' cannot change during training; what can: alpha"),
        (scheduled(1.0, {2: {"upper": 0.5}}), "'upper' cannot change during training; what can: alpha"),
        (scheduled(1.0, {2: 5}), "schedule.2"),  # type: ignore[dict-item]
        ({"name": "none", "schedule": {2: {}}}, "defense 'none' has no setting that can change during training"),
        ({"name": "early_stopping", "epoch": 3, "schedule": {2: {"epoch": 4}}}, "'early_stopping' has no setting"),
        ({"name": "dpsgd", "epsilon": 3.0, "schedule": {2: {"epsilon": 4.0}}}, "'dpsgd' has no setting"),
        ({"name": "label_smoothing", "epsilon": 0.1, "schedule": {2: {"epsilon": 1.5}}}, "schedule.2.epsilon"),
    ],
)
def test_schedules_that_cannot_be_are_refused_before_work(
    plan: Callable[..., Plan], entry: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan({"none": "none", "mine": entry})
    assert said in str(caught.value) and "settings.mine" in str(caught.value)


def test_warnings_are_those_of_every_phase(plan: Callable[..., Plan]) -> None:
    (warning,) = plan({"mine": scheduled(1.0, {2: {"alpha": 1.5}, 3: {"alpha": 0.5}})}).warnings
    assert "alpha 1.5 is close to the loss of a uniform guess" in warning


def test_a_stop_after_the_last_trained_epoch_is_refused(plan: Callable[..., Plan]) -> None:
    entry = {"name": "early_stopping", "epoch": 3}
    assert plan({"mine": entry}, "recipe.stop_after=3")
    with pytest.raises(ConfigError, match=r"after 3 epochs, but recipe.stop_after ends training after 2; lower"):
        plan({"mine": entry}, "recipe.stop_after=2")


def without_times(history: bytes) -> list[dict[str, Any]]:
    rows = json.loads(history)["epochs"]
    return [{name: value for name, value in row.items() if name not in {"seconds", "finished"}} for row in rows]


def test_parts_make_the_model_of_one_training_also_when_one_is_interrupted(
    short: dict[str, Any], make_home: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short["recipe"] |= {"epochs": 4, "select": "best_val"}
    short["settings"] = {
        "whole": {"name": "relaxloss", "alpha": 1.2},
        "parts": scheduled(1.2, {1: {}, 3: {"alpha": 1.2}}),
        "other": scheduled(1.2, {1: {}, 3: {"alpha": 0.1}}),
    }
    home: Home = make_home()
    record = run(RunOptions(write(short), executor="serial", track=False, quiet=True), home).record
    store = Store.open(home.store_uri)
    stages = {each.setting: each.stages for each in record.cells}

    def stored(setting: str, role: str) -> Manifest:
        manifest = store.manifest(stages[setting][role].kind, stages[setting][role].key)
        assert manifest is not None
        return manifest

    whole, parts = stored("whole", "target.clean"), stored("parts", "target.clean")
    assert whole.files["model.safetensors"] == parts.files["model.safetensors"]
    assert without_times(store.read(parts, "history.json")) == without_times(store.read(whole, "history.json"))
    assert parts.summary["metrics"] == whole.summary["metrics"] and parts.summary["epochs"] == 4
    assert not STATE & set(parts.files) and set(stored("parts", "phase.clean.3").files) > STATE
    assert not store.verify(), "going on with a state changed it"
    assert stages["other"]["phase.clean.3"] == stages["parts"]["phase.clean.3"]
    assert (
        without_times(store.read(stored("other", "target.clean"), "history.json"))[:3]
        == without_times(store.read(whole, "history.json"))[:3]
    )

    data = resolve_experiment(apply_overrides(short, []), "t.yaml")
    planned = cell(build_plan(data, home.data, "t.yaml"), "parts").stages
    settings = WorkerSettings(str(tmp_path / "again"), home.data, checkpoint_seconds=0.0)

    class KilledError(Exception):
        pass

    def kill(point: str) -> None:
        if point == "train.between_epochs":
            raise KilledError

    run_stage(planned["phase.clean.1"].task(), settings)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(loop, "fault_point", kill)
        run_stage(planned["phase.clean.3"].task(), settings)
    run_stage(planned["phase.clean.3"].task(), settings)
    run_stage(planned["target.clean"].task(), settings)
    again = Store.open(settings.store_uri).manifest("train", planned["target.clean"].key)
    assert again is not None and again.files["model.safetensors"] == whole.files["model.safetensors"]
