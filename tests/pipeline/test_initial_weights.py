"""Training that starts from weights in the folder of weights: from the plan's keys to the trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from oakum.config import ConfigError
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.models.vgg16_bn1d import VGG16BN1d
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Plan, build_plan
from oakum.pipeline.runner import run_stage
from oakum.pipeline.stage import Stage, WorkerSettings
from oakum.published_weights import import_torchvision
from oakum.session_home import Home
from oakum.store import Store
from oakum.weights import WeightsFile, weights_folder, write_weights

FACTS = {"origin": "a test", "architecture": "mlp", "license_note": "free"}
MODEL = {"name": "mlp", "hidden": [4]}
STANDING_STILL = {"optimizer": "sgd", "learning_rate": 1.0e-30, "epochs": 1, "batch_size": 16}


def mlp(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return MLP(MLP.Config(hidden=(4,)), InputShape((1, 8, 8)), 5).state_dict()


@pytest.fixture
def plan(short: dict[str, Any], home: Home) -> Callable[..., Plan]:
    """Return the plan of a short experiment on a tiny network that hardly moves, with a part of it changed."""

    def build(**changes: Any) -> Plan:
        data = {**short, "recipe": STANDING_STILL, "model": MODEL, **changes}
        return build_plan(resolve_experiment(data, "short.yaml"), home.data, "short.yaml")

    return build


@pytest.fixture
def write_initial(home: Home) -> Callable[..., WeightsFile]:
    def write(seed: int) -> WeightsFile:
        return write_weights(weights_folder(home.data), "mine", mlp(seed), **FACTS)

    return write


def target(plan: Plan) -> Stage:
    return plan.cells[0].stages["target.clean"]


def trained(stage: Stage, home: Home) -> dict[str, Tensor]:
    """Train the stage's model and return its weights."""
    run_stage(stage.task(), WorkerSettings(home.store_uri, home.data))
    store = Store.open(home.store_uri)
    manifest = store.manifest(stage.kind, stage.key)
    assert manifest is not None
    return load_file(store.fetch(manifest, "model.safetensors"))


STARTING = {"model": {**MODEL, "initial_weights": "mine"}}


def test_the_key_holds_the_hash_of_the_weights(
    plan: Callable[..., Plan], write_initial: Callable[..., WeightsFile]
) -> None:
    first = write_initial(1)
    stage = target(plan(**STARTING))
    assert stage.key_document()["config"]["initial_weights_sha256"] == first.sha256
    second = write_initial(2)
    again = target(plan(**STARTING))
    assert again.config["initial_weights_sha256"] == second.sha256 != first.sha256 and again.key != stage.key
    assert write_initial(1).sha256 == first.sha256 and target(plan(**STARTING)).key == stage.key
    plain = target(plan())
    assert "initial_weights_sha256" not in plain.config and plain.key not in {stage.key, again.key}


def test_training_starts_from_the_weights(
    plan: Callable[..., Plan], write_initial: Callable[..., WeightsFile], home: Home
) -> None:
    write_initial(1)
    found, plain = trained(target(plan(**STARTING)), home), trained(target(plan()), home)
    initial = mlp(1)
    assert found.keys() == plain.keys() == initial.keys()
    for name, value in initial.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-25)
        assert not torch.equal(plain[name], value)


def test_other_bytes_under_the_planned_name_are_refused(
    plan: Callable[..., Plan], write_initial: Callable[..., WeightsFile], home: Home
) -> None:
    write_initial(1)
    stage = target(plan(**STARTING))
    write_initial(2)
    with pytest.raises(ConfigError, match=r"the weights 'mine' on this machine are not the ones that were planned; "):
        trained(stage, home)
    assert Store.open(home.store_uri).manifest(stage.kind, stage.key) is None
    write_initial(1)
    torch.testing.assert_close(trained(stage, home)["head.weight"], mlp(1)["head.weight"], rtol=0, atol=1e-25)


def test_weights_that_are_absent_or_damaged_are_refused_before_anything_runs(
    plan: Callable[..., Plan], write_initial: Callable[..., WeightsFile]
) -> None:
    with pytest.raises(ConfigError, match=r"the weights 'mine' are not in .*write them with `oakum import`"):
        plan(**STARTING)
    written = write_initial(1)
    written.path.write_bytes(written.path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ConfigError, match=r"the weights 'mine' are damaged: .*its SHA-256 differs"):
        plan(**STARTING)


def test_weights_of_another_network_are_refused(
    plan: Callable[..., Plan], write_initial: Callable[..., WeightsFile], home: Home
) -> None:
    write_initial(1)
    wider = target(plan(model={"name": "mlp", "hidden": [6], "initial_weights": "mine"}))
    with pytest.raises(ConfigError, match=r"the initial weights are not those of MLP on \(1, 8, 8\)"):
        trained(wider, home)


# One evaluation model that is used as it was imported: of all ten digits, like the rows of its fold.
JUDGED = {
    "recipe": {"epochs": 1},
    "evaluation": {"model": {**MODEL, "initial_weights": "judge"}, "recipe": {"epochs": 0}},
}


def judge_of(classes: int, home: Home) -> dict[str, Tensor]:
    """Write an evaluation model of so many classes, and return its weights."""
    torch.manual_seed(5)
    weights = MLP(MLP.Config(hidden=(4,)), InputShape((1, 8, 8)), classes).state_dict()
    write_weights(weights_folder(home.data), "judge", weights, **FACTS)
    return weights


def test_an_imported_judge_is_used_as_it_is(tiny: dict[str, Any], home: Home) -> None:
    weights = judge_of(10, home)
    stage = build_plan(resolve_experiment({**tiny, **JUDGED}, "t.yaml"), home.data, "t.yaml").shared["evaluation"]
    found = trained(stage, home)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    manifest = Store.open(home.store_uri).manifest(stage.kind, stage.key)
    assert manifest is not None and manifest.summary["epochs"] == 0 and manifest.summary["metrics"] == {}


def test_an_imported_judge_of_other_classes_is_refused(tiny: dict[str, Any], home: Home) -> None:
    judge_of(7, home)
    stage = build_plan(resolve_experiment({**tiny, **JUDGED}, "t.yaml"), home.data, "t.yaml").shared["evaluation"]
    with pytest.raises(ConfigError, match=r"'judge' leave head\. of mlp random: they are not those of 10 classes"):
        trained(stage, home)


def test_what_is_neither_trained_nor_imported_is_refused(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigError, match=r"recipe.*epochs 0 is for evaluation models.*; targets need 1 or more"):
        plan(recipe={"epochs": 0})
    judge = {"model": {"name": "strided_cnn", "width": 2}, "recipe": {"epochs": 0}}
    with pytest.raises(ConfigError, match=r"evaluation: epochs 0 uses .* but 'strided_cnn' has no initial_weights; "):
        plan(evaluation=judge)
    second = {"model": {"name": "small_cnn", "width": 4}, "recipe": {"epochs": 1}, "second": judge}
    with pytest.raises(ConfigError, match=r"evaluation.second: epochs 0 uses the model as it was imported"):
        plan(evaluation=second)


FACE = {"name": "vgg16_bn1d", "width": 1}
AT_32 = {"name": "digits", "image_size": 32}


def test_a_target_without_the_start_of_its_paper_is_warned_of(
    plan: Callable[..., Plan], short: dict[str, Any], home: Home
) -> None:
    def warnings(model: dict[str, Any]) -> tuple[str, ...]:
        return plan(model=model, data=AT_32).warnings

    (warning,) = warnings(FACE)
    assert warning == (
        "model: vgg16_bn1d starts from random values, although its published recipe starts from ImageNet weights; get "
        "them with `oakum import torchvision --name NAME` (color images, default width) and set model.initial_weights: "
        "NAME"
    )
    network = VGG16BN1d(VGG16BN1d.Config(width=1), InputShape((1, 32, 32)), 5)
    write_weights(weights_folder(home.data), "mine", network.state_dict(), **FACTS)
    assert warnings({**FACE, "initial_weights": "mine"}) == ()
    assert warnings({"name": "vgg19_evaluator", "width": 1}) == warnings(MODEL) == ()


def torchvision_names(network: VGG16BN1d) -> dict[str, Tensor]:
    """Return the convolutions' tensors as torchvision numbers them, in one row, and a tensor of its classifier."""
    found: dict[str, Tensor] = {}
    number = 0
    for stage in network.stages.children():
        for layer in stage.children():
            found |= {f"features.{number}.{name}": value for name, value in layer.state_dict().items()}
            number += 1
    return {**found, "classifier.0.weight": torch.zeros(2, 2)}


def test_torchvision_s_convolutions_become_a_start(home: Home, tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = VGG16BN1d(VGG16BN1d.Config(width=1), InputShape((3, 32, 32)), 7)
    file = tmp_path / "vgg16_bn.pth"
    torch.save(torchvision_names(published), file)
    written = import_torchvision(file, "start", weights_folder(home.data))
    assert written.facts["origin"] == "vgg16_bn.pth"
    assert written.facts["architecture"] == "vgg16_bn1d without its head"
    torch.manual_seed(2)
    model = VGG16BN1d(VGG16BN1d.Config(width=1), InputShape((3, 32, 32)), 5)
    drawn = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_initial(load_file(written.path))
    assert set(model.left_as_drawn) == {"feature_norm.", "head."}
    for name, value in model.state_dict().items():
        expected = published.state_dict() if name.startswith("stages.") else drawn
        assert torch.equal(value, expected[name]), name
