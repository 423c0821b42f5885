"""Stages on Ray: the numbers of one process, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum.pipeline.admission import find_misfit
from oakum.pipeline.stage import Resources
from oakum.session import RunResult
from oakum.session_home import Home
from oakum.store import Store

pytestmark = pytest.mark.ray

Run = Callable[..., RunResult]
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fan_out.py"


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
    from oakum.distributed.on_ray import OnRay

    wanted = Resources(cpus=8, gpus=1, workers=4)
    assert find_misfit(wanted, OnRay().capacity()) is not None
    assert find_misfit(wanted, OnRay(max_cpus=32, max_gpus=4).capacity()) is None


def test_a_gang_is_compared_with_the_nodes_that_are_there(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers of three CPUs fit ten CPUs, but not two nodes of five; a node that is dead has no room."""
    import ray

    from oakum.distributed.on_ray import OnRay

    wanted = Resources(cpus=3, workers=3)
    nodes = [{"Alive": True, "Resources": {"CPU": 5.0}}, {"Alive": True, "Resources": {"CPU": 5.0}}]
    nodes.append({"Alive": False, "Resources": {"CPU": 5.0}})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    problem = find_misfit(wanted, OnRay().capacity())
    assert problem is not None and "its nodes have room for 2 of them" in problem
    # An autoscaler that stops at what is there cannot help; of what it may add, the sizes are not known.
    assert find_misfit(wanted, OnRay(max_cpus=10).capacity()) == problem
    assert find_misfit(wanted, OnRay(max_cpus=15).capacity()) is None
    nodes[2]["Alive"] = True
    assert find_misfit(wanted, OnRay().capacity()) is None


def test_models_travel_through_the_store_and_never_with_a_task(
    run_on_ray: Run, short: dict[str, Any], write: Callable[..., Path], home: Home, own_environment: pytest.MonkeyPatch
) -> None:
    """What Ray carries is names and numbers, whatever the size of the model that a stage reads."""
    from ray import cloudpickle

    from oakum.distributed.on_ray import OnRay

    sizes: dict[str, int] = {}
    start = OnRay._start

    def measured(executor: OnRay, task: Any, settings: Any) -> Any:
        sizes[task.kind] = len(cloudpickle.dumps((task, settings)))
        return start(executor, task, settings)

    own_environment.setattr(OnRay, "_start", measured)
    short["model"] = {"name": "mlp", "hidden": [512, 512]}
    result = run_on_ray(write(short), home)
    assert not result.failures and sizes.keys() == {"train", "answers", "membership"}
    store = Store.open(home.store_uri)
    (key,) = store.published("train")
    manifest = store.manifest("train", key)
    assert manifest is not None and manifest.files["model.safetensors"]["bytes"] > 1_000_000
    assert max(sizes.values()) < 8_000


@pytest.mark.slow
def test_the_benchmark_of_the_fan_out_works(tmp_path: Path) -> None:
    """Its short form; what it compares is asserted to be equal in there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    out, trace = tmp_path / "card.json", tmp_path / "trace.json"
    command = [sys.executable, str(BENCHMARK), "--short", "--out", str(out), "--trace", str(trace)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert answer.returncode == 0, answer.stderr
    card = json.loads(out.read_text())
    assert card["short"] and card["throughput"]["pairs"] and card["trace"]["nodes_used"] == 2
    spans = json.loads(trace.read_text())
    assert len(spans) == card["trace"]["stages"] == 12
    ends = [0.0, 0.0]
    for node, start, end, _ in spans:
        # To a millisecond, as the trace is rounded.
        assert ends[node] <= start + 0.002 and start < end, "two stages on a node's only CPU"
        ends[node] = end
