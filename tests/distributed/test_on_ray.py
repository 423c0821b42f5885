"""Stages on Ray: the numbers of one process, whatever happens to the workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum.session import Home, RunResult
from oakum.store import Store

pytestmark = pytest.mark.ray

Run = Callable[..., RunResult]


def test_ray_and_one_process_have_the_same_numbers_and_models(
    run_on_ray: Run, finished: Any, home: Home, numbers: Any, model_bytes: Any
) -> None:
    result = run_on_ray(finished.file, home)
    assert not result.failures and not result.skipped
    assert numbers(result.record) == numbers(finished.record)
    assert model_bytes(home, result.record) == model_bytes(finished.home, finished.record)


def test_a_killed_worker_costs_no_more_than_the_epochs_since_its_checkpoint(
    run_on_ray: Run,
    run_serially: Run,
    kill_worker: Any,
    short: dict[str, Any],
    write: Any,
    make_home: Callable[..., Home],
    numbers: Any,
    model_bytes: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short["recipe"]["epochs"] = 150
    file = write(short)
    home, undisturbed = make_home("killed"), make_home("undisturbed")
    killer = kill_worker("ray::train none/0 clean", home)
    result = run_on_ray(file, home, checkpoint_seconds=0.3)
    killer.join()
    assert killer.killed_at is not None, "the training was over before it could be killed"
    assert capsys.readouterr().err.count("again: train none/0 clean (WorkerCrashedError") == 1
    assert not result.failures
    finished_at = [row["finished"] for row in history(home, result)]
    assert len(finished_at) == 150 and finished_at[0] < killer.killed_at < finished_at[-1]
    expected = run_serially(file, undisturbed)
    assert numbers(result.record) == numbers(expected.record)
    assert model_bytes(home, result.record) == model_bytes(undisturbed, expected.record)


def history(home: Home, result: RunResult) -> list[dict[str, Any]]:
    store = Store.open(home.store_uri)
    ref = result.record.cells[0].stages["target.clean"]
    manifest = store.manifest(ref.kind, ref.key)
    assert manifest is not None
    epochs: list[dict[str, Any]] = json.loads(store.read(manifest, "history.json"))["epochs"]
    return epochs


def test_an_exception_of_a_method_fails_its_dependents_alone(
    run_on_ray: Run, short: dict[str, Any], write: Callable[..., Path], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    short["settings"]["exploding"] = {"name": "bido", "lambda_x": 1e38, "lambda_y": 1e38}
    result = run_on_ray(write(short), home)
    (failure,) = result.failures
    assert failure.stage.label == "train exploding/0 clean"
    assert failure.error.startswith("TrainingDivergedError: the training loss is not finite in epoch 0")
    assert "run_epoch" in failure.trace, "the worker's frames are lost"
    assert sorted(result.skipped) == ["answers exploding/0 clean", "loss exploding/0 clean"]
    assert "again:" not in capsys.readouterr().err
    (cell,) = [cell for cell in result.record.cells if cell.setting == "none"]
    assert cell.metrics["membership/loss/auc"].value is not None


def test_what_can_never_run_is_refused_before_anything_is_started(
    run_on_ray: Run, short: dict[str, Any], write: Callable[..., Path], home: Home
) -> None:
    from oakum.config import ConfigError

    short["execution"] = {"threads": 999}
    with pytest.raises(ConfigError, match=r"asks for 999 CPUs, but the largest node has 2; lower execution\.threads"):
        run_on_ray(write(short), home)
    assert not Store.open(home.store_uri).entries()


def test_what_an_autoscaler_may_reach_counts_as_there(own_ray: None) -> None:
    from oakum.distributed.on_ray import OnRay, find_misfit
    from oakum.pipeline.stage import Resources

    wanted = Resources(cpus=8, gpus=1, workers=4)
    assert find_misfit(wanted, OnRay().capacity()) is not None
    assert find_misfit(wanted, OnRay(max_cpus=32, max_gpus=4).capacity()) is None
