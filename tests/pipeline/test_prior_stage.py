"""The stage that trains a prior: killed between its checkpoints, it goes on and stores the same networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum import session
from oakum.session import RunOptions
from oakum.session_home import Home
from oakum.store import Store

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
