"""What every registered defense promises, on tiny data; a new defense file is covered without an edit here.

A defense whose settings have no defaults is tried with the first point of the grid in `search_spaces/<name>.yaml`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load

from oakum import registry
from oakum.config import ConfigError, validate
from oakum.models.mlp import MLP
from oakum.pipeline import context
from oakum.pipeline.executor import Failure
from oakum.pipeline.runner import run_stage
from oakum.pipeline.stage import WorkerSettings
from oakum.records import CellRecord
from oakum.session import Home, RunOptions, make_plan, run
from oakum.store import Manifest, Store
from oakum.training import loop

NAMES = list(registry.available("defenses"))
CLASSES = 5
PRIVATE = {"train": 100, "test": 120, "val": 40, "canary": 60}


@dataclass(frozen=True)
class Contract:
    """One run of all defenses."""

    home: Home
    file: Path
    cells: dict[str, CellRecord]
    failures: list[Failure]

    def stage(self, name: str, role: str) -> Manifest:
        failed = [each.error for each in self.failures if each.stage.label.split("/")[0].endswith(name)]
        assert not failed, failed
        ref = self.cells[name].stages[role]
        manifest = Store.open(self.home.store_uri).manifest(ref.kind, ref.key)
        assert manifest is not None, f"{role} was not run"
        return manifest

    def read(self, name: str, role: str, file: str) -> bytes:
        return Store.open(self.home.store_uri).read(self.stage(name, role), file)

    def table(self, name: str, role: str, file: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = pq.read_table(io.BytesIO(self.read(name, role, file))).to_pydict()
        return found


@pytest.fixture(scope="module")
def contract(
    tmp_path_factory: pytest.TempPathFactory,
    finished: Any,
    prepared_digits: Path,
    example: Callable[[str], dict[str, Any]],
) -> Contract:
    folder = tmp_path_factory.mktemp("contract")
    data = yaml.safe_load(finished.file.read_text())
    data |= {"name": "contract", "settings": {name: example(name) for name in NAMES}}
    data["recipe"]["epochs"] = 2
    data["folds"]["rules"][0]["take"] |= {
        "shadow_train": 80,
        "shadow_test": 80,
        "reference": 80,
        "shadow_reference": 80,
    }
    file = folder / "contract.yaml"
    file.write_text(yaml.safe_dump(data))
    home = Home(folder, str(folder / "store"))
    home.data.symlink_to(prepared_digits)
    result = run(RunOptions(file, executor="serial", track=False, quiet=True), home)
    return Contract(home, file, {cell.setting: cell for cell in result.record.cells}, result.failures)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["clean", "canary"])
def test_it_trains_and_keeps_what_is_documented(contract: Contract, name: str, target: str) -> None:
    manifest = contract.stage(name, f"target.{target}")
    assert manifest.files.keys() == {"model.safetensors", "history.json", "config.json"}
    weights = load(contract.read(name, f"target.{target}", "model.safetensors"))
    assert weights and all(torch.isfinite(value).all() for value in weights.values())
    history = json.loads(contract.read(name, f"target.{target}", "history.json"))["epochs"]
    assert [row["epoch"] for row in history] == list(range(len(history))) and 1 <= len(history) <= 2
    assert all(row.keys() >= {"train/loss", "train/accuracy", "val/accuracy", "seconds", "finished"} for row in history)
    config = json.loads(contract.read(name, f"target.{target}", "config.json"))
    assert config == manifest.key_document["config"] and config["defense"]["name"] == name
    assert manifest.summary["metrics"].keys() >= {"train_accuracy", "train_loss", "val_accuracy"}
    assert all(each["kind"] == "train" for each in manifest.provenance["inputs"].values())


@pytest.mark.parametrize("name", NAMES)
def test_it_releases_a_model_that_answers(contract: Contract, name: str) -> None:
    assert contract.stage(name, "answers.clean").files.keys() == {"answers.parquet"}
    table = contract.table(name, "answers.clean", "answers.parquet")
    assert {fold: table["fold"].count(fold) for fold in set(table["fold"])} == {"train": 100, "test": 120, "val": 40}
    log_probs = np.array(table["log_probs"])
    assert log_probs.shape == (260, CLASSES) and np.isfinite(log_probs).all()
    assert np.exp(log_probs).sum(axis=1) == pytest.approx(np.ones(260))
    test = [i for i, fold in enumerate(table["fold"]) if fold == "test"]
    correct = np.mean([log_probs[i].argmax() == table["label"][i] for i in test])
    assert contract.cells[name].metrics["utility/test_accuracy"].value == pytest.approx(correct)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_releases_is_deterministic_and_on_gradients_way(contract: Contract, name: str) -> None:
    manifest = contract.stage(name, "target.clean")
    config = manifest.key_document["config"]
    module = context.build_network(config)
    module.load_state_dict(load(contract.read(name, "target.clean", "model.safetensors")))
    released = context.build_defense(config["defense"]).release(module, 3).eval()
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    logits = released(x)
    assert torch.equal(logits, released(x)) and logits.shape == (4, CLASSES)
    logits.log_softmax(dim=1).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("target", "members", "others"), [("clean", 100, 120), ("canary", 30, 30)])
def test_membership_attacks_run(contract: Contract, name: str, target: str, members: int, others: int) -> None:
    for attack in ("loss", "entropy"):
        role = f"membership.{target}.{attack}"
        assert contract.stage(name, role).files.keys() == {"evidence.parquet"}
        table = contract.table(name, role, "evidence.parquet")
        assert table.keys() == {"row", "label", "score", "is_member"}
        assert (table["is_member"].count(True), table["is_member"].count(False)) == (members, others)
        assert len(set(table["row"])) == members + others and np.isfinite(table["score"]).all()
        value = contract.cells[name].metrics[f"{'membership' if target == 'clean' else target}/{attack}/auc"]
        assert value.value is not None and 0 <= value.low <= value.value <= value.high <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shadow", ["matched", "vanilla"])
def test_its_shadow_is_trained_alike_on_folds_of_the_adversary(contract: Contract, name: str, shadow: str) -> None:
    target, own = (contract.stage(name, role).key_document for role in ("target.clean", f"shadow.{shadow}"))
    if shadow == "matched":
        assert own["config"]["defense"] == target["config"]["defense"]
    else:
        assert own["config"]["defense"]["name"] == "none"
    assert own["config"]["recipe"] == target["config"]["recipe"] and own["config"]["seed"] != target["config"]["seed"]
    roles = [role for role in contract.cells[name].stages if role.startswith("shadow")]
    read = {fold for role in roles for fold in contract.stage(name, role).key_document["folds"]}
    assert read <= {"shadow_train", "shadow_test", "shadow_reference", "public"}
    values = contract.cells[name].metrics
    suffix = ".vanilla_shadow" if shadow == "vanilla" else ""
    for attack in ("loss", "entropy"):
        for metric in ("balanced_accuracy", "balanced_accuracy_per_class"):
            assert 0 <= values[f"membership/{attack}/{metric}{suffix}"].value <= 1


@pytest.mark.parametrize("name", NAMES)
def test_inversion_attacks_run_and_are_judged(contract: Contract, name: str) -> None:
    assert contract.stage(name, "inversion.clean.gmi").files.keys() == {"reconstructions.safetensors"}
    tensors = load(contract.read(name, "inversion.clean.gmi", "reconstructions.safetensors"))
    assert tensors["images"].shape == (CLASSES, 2, 1, 8, 8) and tensors["images"].dtype == torch.float32
    assert tensors["classes"].tolist() == list(range(CLASSES))
    assert contract.stage(name, "judge.clean.gmi").files.keys() == {"judgments.parquet"}
    table = contract.table(name, "judge.clean.gmi", "judgments.parquet")
    assert table.keys() == {"class", "restart", "predicted", "correct", "confidence"}
    assert table["class"] == [label for label in range(CLASSES) for _ in range(2)] and table["restart"] == [0, 1] * 5
    top1 = contract.cells[name].metrics["inversion/gmi/top1"].value
    assert top1 == pytest.approx(np.mean(table["correct"]))


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_it_ends_with_the_same_bytes(
    contract: Contract, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = yaml.safe_load(contract.file.read_text())
    plan = make_plan(data, "contract.yaml", contract.home, None)
    stages = next(cell for cell in plan.cells if cell.setting == name).stages
    role = "training.canary" if "training.canary" in stages else "target.canary"
    stage = stages[role]
    settings = WorkerSettings(str(tmp_path / "store"), contract.home.data, checkpoint_seconds=0.0)
    for each in stage.inputs.values():
        run_stage(each.task(), settings)
    before = Store.open(settings.store_uri).published("train")

    class StoppedError(Exception):
        pass

    def stop(point: str) -> None:
        if point == "train.between_epochs":
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fault_point", stop)
        with pytest.raises(StoppedError):
            run_stage(stage.task(), settings)
    store = Store.open(settings.store_uri)
    assert store.work(stage.key).latest() is not None and store.published("train") == before
    run_stage(stage.task(), settings)
    manifest = store.manifest("train", stage.key)
    assert manifest is not None and store.work(stage.key).latest() is None
    assert manifest.files["model.safetensors"] == contract.stage(name, role).files["model.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_at_once_whether_it_can_serve_a_model(name: str, example: Callable[[str], dict[str, Any]]) -> None:
    class Tapless(MLP):
        tap_names = ()

    cls = registry.load("defenses", name)
    options = example(name)
    del options["name"]
    defense = cls(validate(cls.Config, options, name))
    assert isinstance(defense.check(MLP, 10), list)
    if cls.needs_taps:
        with pytest.raises(ConfigError, match=f"defense {name!r} needs hidden layers"):
            defense.check(Tapless, 10)
