"""Two processes train one model under Ray Train."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
