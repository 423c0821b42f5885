"""Searches through Ray Tune: the trials of one process, whatever happens to the clients that wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load

from oakum.records import StageRef
from oakum.search.records import SearchRecord
from oakum.session import Home
from oakum.session_search import search
from oakum.session_search_request import SearchOptions
from oakum.store import Store

pytestmark = pytest.mark.ray

TRIALS = 4
# One process and two sum the same float32 numbers in another order.
TOLERANCE = 1e-4


@pytest.fixture
def run(
    on_kept_ray: None,
    make_home: Callable[..., Home],
    short: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
) -> Callable[..., SearchRecord]:
    """Search the short experiment in a home of its own, on the tests' Ray or in this process."""

    space = tmp_path / "relaxloss.yaml"
    space.write_text(yaml.safe_dump({"defense.alpha": {"sampler": "uniform", "low": 0.2, "high": 1.4}}))
    file = write(short)

    def run_search(executor: str, **changes: Any) -> SearchRecord:
        options = SearchOptions(
            file, space, ("min membership/loss/auc",), trials=TRIALS, sampler="random", executor=executor,
            confirm=0, repeats=0, track=False,
        )  # fmt: skip
        return search(replace(options, **changes), make_home(f"{executor}-{len(changes)}")).record

    return run_search


def trials(record: SearchRecord) -> list[Any]:
    return [(each.number, each.point, each.state, each.values, set(each.stages)) for each in record.trials]


def test_a_search_through_tune_has_the_trials_of_one_process(run: Callable[..., SearchRecord]) -> None:
    found = run("ray")
    assert [trial.state for trial in found.trials] == ["complete"] * TRIALS
    assert trials(found) == trials(run("serial"))


def test_a_generation_of_a_population_waits_for_the_one_before(run: Callable[..., SearchRecord]) -> None:
    asked: dict[str, Any] = {"sampler": "population", "population": 2, "trials": 4}
    found = run("ray", **asked)
    assert [trial.state for trial in found.trials] == ["stopped"] * 2 + ["complete"] * 2
    assert {trial.parent for trial in found.trials} & {0, 1} and found.trials[2].parent == found.trials[3].parent
    assert trials(found) == trials(run("serial", **asked))


def test_trials_that_train_with_two_workers_end_and_have_the_numbers_of_one(
    run: Callable[..., SearchRecord], tmp_path: Path
) -> None:
    """On two CPUs: Tune's clients hold none of those that a trial's gang waits for."""
    # A gentle training without batch normalization: where the loss jumps about, it magnifies rounding.
    gentle = ["model={name: strided_cnn, width: 4, hidden: 16, dropout: 0.0}", "recipe.optimizer=sgd"]
    two = run("ray", trials=2, overrides=[*gentle, "execution.workers=2"])
    one = run("serial", trials=2, overrides=gentle)
    assert [trial.state for trial in two.trials] == ["complete"] * 2, [trial.error for trial in two.trials]
    assert [trial.point for trial in two.trials] == [trial.point for trial in one.trials]
    for found, expected in zip(two.trials, one.trials, strict=True):
        assert found.values == pytest.approx(expected.values, abs=0.02)
        # Who trains is no part of a key.
        assert found.stages == expected.stages
        for ref in found.stages:
            if ref.kind == "train":
                own, its = (trained(tmp_path / name / "store", ref) for name in ("ray-2", "serial-2"))
                assert (own.workers, its.workers) == (2, 1)
                for name, value in its.weights.items():
                    assert torch.allclose(own.weights[name], value, rtol=TOLERANCE, atol=TOLERANCE), name


@dataclass(frozen=True)
class Trained:
    workers: int
    weights: dict[str, torch.Tensor]


def trained(store_folder: Path, ref: StageRef) -> Trained:
    store = Store.open(store_folder)
    manifest = store.manifest(ref.kind, ref.key)
    assert manifest is not None
    return Trained(manifest.provenance["workers"], load(store.read(manifest, "model.safetensors")))


@pytest.mark.faults
def test_a_client_that_is_killed_hands_its_number_in_again(run: Callable[..., SearchRecord]) -> None:
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                if "Trainable.train" in title_of(process):
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = run("ray")
    killer.join()
    assert killed, "no client was met"
    assert [trial.state for trial in found.trials] == ["complete"] * TRIALS
    assert trials(found) == trials(run("serial"))


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
