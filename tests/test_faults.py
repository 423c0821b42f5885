"""Whatever stops a run, the same command goes on and finds the same numbers, and MLflow holds each of them once."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum import _store_files, faults
from oakum.datasets.base import prepare
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.pipeline.executor import MAX_RETRIES
from oakum.session import Home, RunOptions, make_plan, run
from oakum.store import Store
from oakum.training.checkpoint import save_parts

pytestmark = pytest.mark.faults

KILLED = -signal.SIGKILL
POINTS = [
    "train.before_first_checkpoint",
    "train.between_epochs",
    "store.after_payload",
    "store.after_manifest",
    "tracking.before_delivery",
    "tracking.after_delivery",
]
# The stage's thread stays between two epochs, so that a signal finds the run in the middle of a training.
STAY_BETWEEN_EPOCHS = """
import time
from oakum.training import loop
loop.fault_point = lambda point: time.sleep(600 if point == "train.between_epochs" else 0)
"""


@pytest.fixture
def command(finished_short: Any) -> list[object]:
    return ["run", finished_short.file, "--executor", "serial", "--checkpoint-seconds", "0"]


@pytest.fixture
def require_same(
    finished_short: Any, record_of: Callable[..., Any], numbers: Callable[..., Any], tracked: Callable[..., Any]
) -> Callable[[Home], None]:
    """Compare a home with the undisturbed run: every number, and every point in MLflow."""

    def compare(home: Home) -> None:
        assert numbers(record_of(home, "short")) == numbers(finished_short.record)
        points = tracked(home)
        assert points == tracked(finished_short.home)
        assert points.keys() == {("run", ""), ("cell", "none|0")}
        found = [(key, step) for key, _, step in points["cell", "none|0"]]
        assert len(set(found)) == len(found) and ("train/loss", 2) in found and ("utility/test_accuracy", 0) in found

    return compare


def train_history(home: Home) -> list[dict[str, Any]]:
    store = Store.open(home.store_uri)
    (key,) = store.published("train")
    manifest = store.manifest("train", key)
    assert manifest is not None
    rows: list[dict[str, Any]] = json.loads(store.read(manifest, "history.json"))["epochs"]
    return rows


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(
    point: str, home: Home, command: list[object], start: Callable[..., Any], require_same: Callable[[Home], None]
) -> None:
    killed = start(*command, home=home, **{faults.VARIABLE: point}).answer()
    assert killed.code == KILLED, killed.err
    ended = time.time()
    resumed = start(*command, home=home).answer()
    assert resumed.code == 0, resumed.err
    require_same(home)
    kept = {"train.between_epochs": 1, "store.after_payload": 3}.get(point, 0)
    assert sum(row["finished"] < ended for row in train_history(home)) >= kept


def test_killed_again_and_again(
    home: Home, command: list[object], start: Callable[..., Any], require_same: Callable[[Home], None]
) -> None:
    points = (
        "store.after_work_payload",
        "train.between_epochs",
        "store.after_work_marker",
        "stage.before_publish",
        "store.after_payload",
        "tracking.after_write:5",
    )
    for point in points:
        assert start(*command, home=home, **{faults.VARIABLE: point}).answer().code == KILLED
    assert start(*command, home=home).answer().code == 0
    require_same(home)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_ends_a_training_and_the_same_command_goes_on(
    number: signal.Signals,
    code: int,
    home: Home,
    command: list[object],
    start: Callable[..., Any],
    require_same: Callable[[Home], None],
) -> None:
    running = start(*command, home=home, before=STAY_BETWEEN_EPOCHS)
    work = Path(home.store_uri) / "work"
    while not list(work.glob("*/*/*.json")):
        assert running.process.is_alive(), running.err
        time.sleep(0.02)
    os.kill(running.process.pid, number)
    answer = running.answer()
    assert answer.code == code
    assert "oakum: stopped; the same command goes on where this run left off" in answer.err
    assert "Traceback" not in answer.err
    ended = time.time()
    assert start(*command, home=home).answer().code == 0
    assert [row["finished"] < ended for row in train_history(home)] == [True, False, False]
    require_same(home)


def test_a_loss_that_is_not_finite_fails_its_stage_and_nothing_else(
    home: Home, tiny: dict[str, Any], write: Callable[..., Path], oakum: Callable[..., Any]
) -> None:
    tiny["recipe"] |= {"milestones": [1], "gamma": 1.0e35}
    tiny["settings"] = {"none": "none"}
    answer = oakum("run", write(tiny), "--executor", "serial", "--no-tracking", "--checkpoint-seconds", "0", home=home)
    assert answer.code == 3
    assert "stage failed: train none/0 clean" in answer.err and "not finite in epoch " in answer.err
    assert "Mend the cause and run the same command again" in answer.err
    store = Store.open(home.store_uri)
    assert len(store.published("prior")) == len(store.published("train")) == 1
    plan = make_plan(tiny, "tiny.yaml", home, None)
    kept = store.work(plan.cells[0].stages["target.clean"].key).latest()
    assert kept is not None and kept[0] >= 1


def test_a_full_disk_publishes_nothing_by_halves(
    home: Home,
    finished_short: Any,
    numbers: Callable[..., Any],
    oakum: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_all = _store_files._write_all
    tries = []

    def quota(descriptor: int, data: bytes) -> None:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        if place.endswith("model.safetensors"):
            tries.append(place)
            write_all(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(descriptor, data)

    command = ["run", finished_short.file, "--executor", "serial", "--no-tracking"]
    with monkeypatch.context() as patch:
        patch.setattr(_store_files, "_write_all", quota)
        answer = oakum(*command, home=home)
    assert answer.code == 3 and len(tries) == MAX_RETRIES + 1
    assert "No space left on device: the disk is full; free some space" in answer.err and home.store_uri in answer.err
    store = Store.open(home.store_uri)
    assert store.published("train") == set() and store.verify() == []
    assert not list(Path(home.store_uri).rglob("model.safetensors"))
    assert oakum(*command, home=home).code == 0
    result = run(RunOptions(finished_short.file, executor="serial", track=False), home)
    assert numbers(result.record) == numbers(finished_short.record)


def test_a_quota_of_the_system_is_explained(home: Home, command: list[object], start: Callable[..., Any]) -> None:
    """RLIMIT_FSIZE: the operating system itself refuses to write more than 2 kB into a file."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    answer = start(*command, "--no-tracking", home=home, before=limit).answer()
    assert answer.code == 3 and "the disk is full; free some space" in answer.err
    assert Store.open(home.store_uri).entries() == []


def test_a_tracking_server_that_is_away_delays_nothing_but_the_tracking(
    home: Home,
    command: list[object],
    oakum: Callable[..., Any],
    own_environment: pytest.MonkeyPatch,
    require_same: Callable[[Home], None],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        own_environment.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
    answer = oakum(*command, home=home)
    assert answer.code == 0
    assert "events wait in the store" in answer.err and "`oakum sync`" in answer.err
    assert len(Store.open(home.store_uri).list_documents("outbox")) == 5
    refused = oakum("sync", home=home)
    assert refused.code == 3 and refused.out == "delivered 0, waiting 5\n"
    own_environment.delenv("MLFLOW_TRACKING_URI")
    delivered = oakum("sync", home=home)
    assert (delivered.code, delivered.out) == (0, "delivered 5, waiting 0\n")
    require_same(home)


def flip(file: Path) -> None:
    """Change one bit in the middle of a read-only file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)


def payload(home: Home, kind: str, key: str, name: str) -> Path:
    manifest = Store.open(home.store_uri).manifest(kind, key)
    assert manifest is not None
    return Path(home.store_uri) / manifest.object_path(name)


def test_a_damaged_model_is_computed_again_when_it_is_needed(
    copied: Any, oakum: Callable[..., Any], numbers: Callable[..., Any]
) -> None:
    cell = copied.record.cells[0]
    store = Store.open(copied.home.store_uri)
    key = cell.stages["target.clean"].key
    before = store.manifest("train", key)
    flip(payload(copied.home, "train", key, "model.safetensors"))
    verified = oakum("store", "verify", home=copied.home)
    assert verified.code == 3 and f"train {key[:12]} model.safetensors" in verified.out
    # Nothing needs the model until a stage that reads it is missing.
    store.set_aside("inversion", cell.stages["inversion.clean.gmi"].key, "a test")
    answer = oakum("run", copied.file, "--executor", "serial", "--no-tracking", home=copied.home)
    assert answer.code == 0 and "an input was damaged and is computed again" in answer.err
    assert list((Path(copied.home.store_uri) / "damaged" / "train").iterdir())
    after = store.manifest("train", key)
    assert before is not None and after is not None
    assert (after.attempt != before.attempt, after.files["model.safetensors"]) == (
        True,
        before.files["model.safetensors"],
    )
    again = run(RunOptions(copied.file, executor="serial", track=False), copied.home)
    assert again.ran == 0 and numbers(again.record) == numbers(copied.record)
    assert oakum("store", "verify", home=copied.home).code == 0


def test_damage_that_a_report_meets_is_computed_again(
    copied: Any, oakum: Callable[..., Any], numbers: Callable[..., Any]
) -> None:
    key = copied.record.cells[0].stages["inversion.clean.gmi"].key
    flip(payload(copied.home, "inversion", key, "reconstructions.safetensors"))
    answer = oakum("report", "tiny", home=copied.home)
    assert answer.code == 3
    assert "reconstructions.safetensors is damaged" in answer.err and "run the experiment again" in answer.err
    again = run(RunOptions(copied.file, executor="serial", track=False), copied.home)
    assert again.ran == 1 and numbers(again.record) == numbers(copied.record)
    flip(payload(copied.home, "inversion", key, "reconstructions.safetensors"))
    copied.home.report("tiny").unlink()
    again = run(RunOptions(copied.file, executor="serial", track=False), copied.home)
    assert again.ran == 1 and numbers(again.record) == numbers(copied.record)
    assert again.report is not None and again.report.is_file()


@pytest.mark.parametrize("damage", ["cut off", "one bit"])
def test_damaged_samples_name_the_command_that_helps(
    damage: str, home: Home, finished_short: Any, oakum: Callable[..., Any], numbers: Callable[..., Any]
) -> None:
    samples = home.data / "digits" / "samples.parquet"
    if damage == "one bit":
        flip(samples)
    else:
        samples.write_bytes(samples.read_bytes()[:-100])
    command = ["run", finished_short.file, "--executor", "serial", "--no-tracking"]
    answer = oakum(*command, home=home)
    assert answer.code in {2, 3} and "Traceback" not in answer.err.split("stage failed")[0]
    assert "data set 'digits' is damaged" in answer.err and "oakum data prepare digits --force" in answer.err
    assert Store.open(home.store_uri).entries() == []
    prepare("digits", home.data, force=True)
    assert oakum(*command, home=home).code == 0
    again = run(RunOptions(finished_short.file, executor="serial", track=False), home)
    assert numbers(again.record) == numbers(finished_short.record)


def test_a_checkpoint_of_another_architecture_is_refused(
    home: Home, finished_short: Any, oakum: Callable[..., Any], tmp_path: Path
) -> None:
    plan = make_plan(yaml.safe_load(finished_short.file.read_text()), "short.yaml", home, None)
    key = plan.cells[0].stages["target.clean"].key
    other = MLP(MLP.Config(hidden=(4,)), InputShape((1, 8, 8)), 5)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    parts = {name: other for name in ("model", "optimizer", "best", "snapshots")}
    save_parts(folder, parts, {"epoch": 1, "step": 7, "history": []})
    Store.open(home.store_uri).work(key).save(1, folder)
    answer = oakum("run", finished_short.file, "--executor", "serial", "--no-tracking", home=home)
    assert answer.code == 3
    assert "CheckpointError" in answer.err and "this is a checkpoint of another architecture" in answer.err


def test_a_point_is_visited_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    monkeypatch.setenv(faults.VARIABLE, "here:3")
    for visit in range(1, 4):
        faults.fault_point("elsewhere")
        faults.fault_point("here")
        assert bool(killed) == (visit == 3)
    assert killed == [signal.SIGKILL]
    monkeypatch.setenv(faults.VARIABLE, "here:soon")
    with pytest.raises(ValueError, match="soon"):
        faults.fault_point("here")
    faults.fault_point("elsewhere")
