"""Two processes train one model under Ray Train."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load

from oakum.records import CellRecord
from oakum.session import RunResult
from oakum.session_home import Home
from oakum.store import Store

pytestmark = pytest.mark.ray

EPOCHS = 40
# The first is that of both runs; all of them say how much numbers vary by chance.
SEEDS = [0, 1, 2]
# One process and two sum the same float32 numbers in another order.
TOLERANCE = 1e-4
# After ten times as many epochs.
LONG_TOLERANCE = 1e-3


def test_two_workers_train_the_model_of_one_and_resume_after_a_loss(
    run_on_ray: Callable[..., RunResult],
    run_serially: Callable[[Path, Home], RunResult],
    kill_worker: Any,
    short: dict[str, Any],
    write: Callable[[dict[str, Any]], Path],
    make_home: Callable[..., Home],
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A gentle training: where the loss jumps about, it magnifies rounding.
    short["recipe"].update(epochs=EPOCHS, optimizer="sgd", learning_rate=0.01)
    short["model"] = {"name": "strided_cnn", "width": 4, "hidden": 16, "dropout": 0.0}
    alone, together = make_home("alone"), make_home("together")
    expected = run_serially(write({**short, "seeds": SEEDS}), alone)
    short["execution"] = {"workers": 2}
    killer = kill_worker("ray::RayTrainWorker", together)
    result = run_on_ray(write(short), together, checkpoint_seconds=0.2)
    killer.join()
    assert not result.failures and not result.skipped
    assert killer.killed_at is not None, "the training was over before a worker could be killed"
    assert capsys.readouterr().err.count("again: train none/0 clean (LostGangError") == 1
    one, two = Trained(alone, expected), Trained(together, result)
    assert (one.workers, two.workers) == (1, 2)
    assert two.history[0]["finished"] < killer.killed_at < two.history[-1]["finished"], "it did not resume"
    assert [row["epoch"] for row in two.history] == list(range(EPOCHS))
    assert all(
        math.isclose(a["train/loss"], b["train/loss"], rel_tol=TOLERANCE)
        for a, b in zip(one.history, two.history, strict=True)
    )
    assert one.model.keys() == two.model.keys()
    for name, value in one.model.items():
        assert torch.allclose(value, two.model[name], rtol=TOLERANCE, atol=TOLERANCE), name
    (found,) = result.record.cells
    for name in ("utility/test_accuracy", "membership/loss/auc"):
        first, *others = [value_of(cell, name) for cell in expected.record.cells]
        spread = max(first, *others) - min(first, *others)
        assert abs(value_of(found, name) - first) < spread < 0.2, name


def value_of(cell: CellRecord, name: str) -> float:
    value = cell.metrics[name].value
    assert value is not None
    return value


def test_a_rank_that_cannot_reach_its_peers_does_not_hide_what_ended_one_of_them() -> None:
    from ray.train import WorkerGroupError

    from oakum.distributed.data_parallel import LostGangError, _cause

    unreachable = RuntimeError("[/src/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:60821")
    own = RuntimeError("the training loss is not finite in epoch 3")
    assert isinstance(_cause(WorkerGroupError("", {0: unreachable})), LostGangError)
    assert _cause(WorkerGroupError("", {0: unreachable, 1: own})) is own
    assert _cause(WorkerGroupError("", {0: own})) is own


@pytest.mark.slow
@pytest.mark.faults(row="a node lost and another added")
@pytest.mark.parametrize("fewest", [1, 2])
def test_a_gang_whose_node_is_lost_goes_on_with_fewer_or_waits_for_another(
    fewest: int,
    cluster: Any,
    checkout: Path,
    run_serially: Callable[[Path, Home], RunResult],
    short: dict[str, Any],
    make_home: Callable[[str], Home],
) -> None:
    """Nodes have room for one worker each."""
    short["recipe"].update(epochs=400, optimizer="sgd", learning_rate=0.01)
    short["model"] = {"name": "strided_cnn", "width": 4, "hidden": 16, "dropout": 0.0}
    alone, together = make_home("alone"), make_home("together")
    file = checkout / "jobs" / "experiments" / "short.yaml"
    short["execution"] = {"workers": 2, "min_workers": fewest}
    file.write_text(yaml.safe_dump(short, sort_keys=False))
    cluster.have_nodes(2)
    job = cluster.start_job(checkout, together, "run.py", "jobs/experiments/short.yaml", "--checkpoint-seconds", "0.2")
    store = Store.open(together.store_uri)
    deadline = time.monotonic() + 300
    while not list((Path(together.store_uri) / "work").glob("*/*/*/state.json")):
        assert job.poll() is None and time.monotonic() < deadline, job.printed()
        time.sleep(0.05)
    assert store.published("train") == set(), "the training was over before the node could be lost"
    cluster.lose_node()
    lost_at = time.time()
    if fewest == 2:
        cluster.have_nodes(2)
    assert job.wait(600) == 0, job.printed()
    assert job.printed().count("again: train none/0 clean (LostGangError") >= 1
    (key,) = store.published("train")
    manifest = store.manifest("train", key)
    assert manifest is not None and manifest.provenance["workers"] == fewest
    rows = json.loads(store.read(manifest, "history.json"))["epochs"]
    assert [row["epoch"] for row in rows] == list(range(400))
    assert rows[0]["finished"] < lost_at < rows[-1]["finished"]
    short["execution"] = {"workers": 1}
    file.write_text(yaml.safe_dump(short, sort_keys=False))
    expected = Trained(alone, run_serially(file, alone))
    found = load(store.read(manifest, "model.safetensors"))
    for name, value in expected.model.items():
        assert torch.allclose(value, found[name], rtol=LONG_TOLERANCE, atol=LONG_TOLERANCE), name
    assert store.verify() == []


class Trained:
    """What the store holds of the training of a run's first cell."""

    def __init__(self, home: Home, result: RunResult) -> None:
        store = Store.open(home.store_uri)
        ref = result.record.cells[0].stages["target.clean"]
        manifest = store.manifest(ref.kind, ref.key)
        assert manifest is not None
        self.workers: int = manifest.provenance["workers"]
        self.history: list[dict[str, Any]] = json.loads(store.read(manifest, "history.json"))["epochs"]
        self.model: dict[str, torch.Tensor] = load(store.read(manifest, "model.safetensors"))
