"""The stage that trains a prior: killed between its checkpoints, it goes on and stores the same networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from oakum import session
from oakum.config import ConfigError
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Plan, build_plan
from oakum.pipeline.runner import run_stage
from oakum.pipeline.stage import WorkerSettings
from oakum.session import RunOptions
from oakum.session_home import Home
from oakum.store import Store
from oakum.weights import weights_folder, write_weights

GAN = {"width": 2, "latent_size": 4, "batch_size": 8, "log_every": 1}


@pytest.fixture
def file(tiny: dict[str, Any], write: Callable[[dict[str, Any]], Path]) -> Path:
    """Three priors of four updates each, with a checkpoint after every update; one of them looks at the target."""
    del tiny["canaries"]
    tiny["data"]["image_size"] = 16
    tiny["settings"] = {"none": "none"}
    tiny["recipe"]["epochs"] = 1
    tiny["priors"] = {
        "wgan_gp": {"method": {**GAN, "critic_updates": 4, "critic_per_generator": 2}},
        "dcgan": {"method": {**GAN, "updates": 4}},
        "inversion_gan": {"method": {**GAN, "discriminator_updates": 4, "discriminator_per_generator": 2}},
    }
    tiny["attacks"]["inversion"] = [
        {"name": "gmi", "iterations": 2, "restarts": 1},
        {"name": "vmi", "family": "gaussian", "prior": "dcgan", "steps": 2, "restarts": 1},
        {"name": "kedmi", "iterations": 2, "restarts": 1, "samples": 1},
    ]
    return write(tiny)


def trained(home: Home) -> dict[str, tuple[dict[str, str], Any]]:
    """Return label -> (SHA-256 of each network, history) of every stored prior."""
    store = Store.open(home.store_uri)
    return {
        entry.label: (
            {name: file["sha256"] for name, file in entry.files.items() if name.endswith(".safetensors")},
            json.loads(store.read(entry, "history.json")),
        )
        for entry in store.entries()
        if entry.kind == "prior"
    }


@pytest.mark.faults(row="kill -9 of the driver")
def test_killed_after_any_checkpoint_a_prior_comes_out_the_same(
    file: Path, make_home: Callable[..., Home], start: Callable[..., Any], own_environment: pytest.MonkeyPatch
) -> None:
    whole, killed = make_home("whole"), make_home("killed")
    options = RunOptions(
        file, executor="serial", only=("train", "prior"), track=False, checkpoint_seconds=0.0, quiet=True
    )
    assert not session.run(options, whole).failures
    arguments = ("run", file, "--executor", "serial", "--no-tracking", "--checkpoint-seconds", 0, "--only")
    assert start(*arguments, "train", home=killed).answer().code == 0
    codes = []
    while not codes or (codes[-1] == -9 and len(codes) < 6):
        command = start(*arguments, "prior", home=killed, OAKUM_FAULT="store.after_work_marker:3")
        codes.append(command.answer().code)
    assert codes == [-9, -9, -9, -9, 0]
    found = trained(killed)
    assert found == trained(whole)
    assert [[row["step"] for row in history["epochs"]] for _, history in found.values()] == [[1, 2, 3, 4]] * 3


FACTS = {"origin": "a test", "architecture": "wgan_gp", "license_note": "free"}
IMPORTED = {"generator": "their-generator", "critic": "their-critic"}


@pytest.fixture
def plan(tiny: dict[str, Any], home: Home) -> Callable[..., Plan]:
    """Return the plan of GMI on small GANs, with this entry for the prior."""
    del tiny["canaries"]
    tiny["settings"] = {"none": "none"}

    def build(**prior: Any) -> Plan:
        method = {"name": "wgan_gp", **GAN, "critic_updates": 4, "critic_per_generator": 2, **prior.pop("method", {})}
        data = {**tiny, "priors": {"wgan_gp": {"method": method, **prior}}}
        return build_plan(resolve_experiment(data, "t.yaml"), home.data, "t.yaml")

    return build


def run_all(plan: Plan, home: Home) -> Store:
    for stage in plan.stages():
        run_stage(stage.task(), WorkerSettings(home.store_uri, home.data))
    return Store.open(home.store_uri)


def payload(store: Store, kind: str, key: str) -> tuple[Any, dict[str, bytes]]:
    manifest = store.manifest(kind, key)
    assert manifest is not None
    return manifest.summary, {name: store.read(manifest, name) for name in manifest.files}


def test_an_imported_prior_is_searched_as_it_is(plan: Callable[..., Plan], home: Home) -> None:
    own = plan()
    store = run_all(own, home)
    _, trained = payload(store, "prior", own.shared["prior.wgan_gp"].key)
    for part, name in IMPORTED.items():
        write_weights(weights_folder(home.data), name, load(trained[f"{part}.safetensors"]), **FACTS)
    imported = plan(weights=IMPORTED)
    stage = imported.shared["prior.wgan_gp"]
    assert stage.key != own.shared["prior.wgan_gp"].key and not stage.folds
    assert [warning for warning in imported.warnings if warning.startswith("priors.wgan_gp: used as it was imported")]
    run_all(imported, home)
    summary, files = payload(store, "prior", stage.key)
    assert summary == {"metrics": {}, "steps": 0} and json.loads(files.pop("history.json")) == {"epochs": []}
    assert files == {name: trained[name] for name in files} and len(files) == 3
    attack = "inversion.clean.gmi"
    first, second = (found.cells[0].stages[attack] for found in (own, imported))
    assert first.key != second.key
    assert payload(store, "inversion", first.key)[1] == payload(store, "inversion", second.key)[1]


def test_the_public_fold_is_not_needed_by_an_imported_prior(
    plan: Callable[..., Plan], tiny: dict[str, Any], home: Home
) -> None:
    del tiny["folds"]["rules"][1]["take"]["public"]
    with pytest.raises(ConfigError, match=r"public"):
        plan()
    for name in IMPORTED.values():
        write_weights(weights_folder(home.data), name, {"w": torch.zeros(1)}, **FACTS)
    assert plan(weights=IMPORTED).shared["prior.wgan_gp"].config["weights"].keys() == IMPORTED.keys()


def test_imported_priors_that_do_not_fit_are_refused(plan: Callable[..., Plan], home: Home) -> None:
    with pytest.raises(ConfigError, match=r"priors.wgan_gp.weights: give weights for each of generator, critic, and"):
        plan(weights={"generator": "their-generator"})
    with pytest.raises(ConfigError, match=r"the weights 'their-critic' are not in .*write them with `oakum import`"):
        plan(weights=IMPORTED)
    target_specific = {"name": "inversion_gan", **GAN, "discriminator_updates": 4, "discriminator_per_generator": 2}
    data = {"method": {**target_specific}, "weights": {"generator": "a", "discriminator": "b"}}
    with pytest.raises(ConfigError, match=r"'inversion_gan' is trained against the model that it attacks"):
        resolve_experiment({**plan().experiment.document(), "priors": {"inversion_gan": data}}, "t.yaml")
    for name in IMPORTED.values():
        write_weights(weights_folder(home.data), name, {"w": torch.zeros(1)}, **FACTS)
    stage = plan(weights=IMPORTED).shared["prior.wgan_gp"]
    with pytest.raises(ConfigError, match=r"'their-critic' as the prior's critic: .*; give weights of this method"):
        run_stage(stage.task(), WorkerSettings(home.store_uri, home.data))
    assert Store.open(home.store_uri).manifest("prior", stage.key) is None


def test_without_imported_networks_keys_say_nothing_of_them(plan: Callable[..., Plan]) -> None:
    found = plan()
    assert "weights" not in found.experiment.document()["priors"]["wgan_gp"]
    assert "weights" not in found.shared["prior.wgan_gp"].config
