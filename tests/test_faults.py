"""Whatever stops a run, the same command goes on and finds the same numbers, and MLflow holds each of them once."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
import yaml

from oakum import _store_files, faults, tracking, tracking_runs
from oakum._store_files import LocalFiles
from oakum.datasets.base import prepare
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.pipeline import runner
from oakum.pipeline.executor import MAX_RETRIES
from oakum.session import RunOptions, make_plan, run
from oakum.session_home import Home
from oakum.store import Store
from oakum.tracking_destination import Destination, UnreachableError
from oakum.tracking_outbox import is_dead, this_driver
from oakum.training import loop
from oakum.training.checkpoint import save_parts

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[1]
SECONDS_TO_DIE = 10.0
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
# Two drivers go from one meeting to the next together, so that both train, and both publish, at the same time.
MEET = """
import os, time
from collections import Counter
from pathlib import Path
from oakum.pipeline import runner
from oakum.training import loop

visits = Counter()

def meet(point):
    if point not in {"train.before_first_checkpoint", "train.between_epochs", "stage.before_publish"}:
        return
    visits[point] += 1
    place = Path(os.environ["OAKUM_HOME"]) / "meetings" / f"{point}-{visits[point]}"
    place.mkdir(parents=True, exist_ok=True)
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(place.iterdir())) < 2:
        assert time.monotonic() < deadline, f"nobody else came to {place.name}"
        time.sleep(0.001)

loop.fault_point = runner.fault_point = meet
"""
CLOCK_OFF = """
import time
right_time = time.time
time.time = lambda: right_time() + {hours} * 3600
"""


@pytest.fixture
def command(finished_short: Any) -> list[object]:
    return ["run", finished_short.file, "--executor", "serial", "--checkpoint-seconds", "0"]


@pytest.fixture
def require_same(
    finished_short: Any, record_of: Callable[..., Any], numbers: Callable[..., Any], tracked: Callable[..., Any]
) -> Callable[[Home], None]:
    """Compare a home with the undisturbed run: every number, every entry, and every point in MLflow."""

    def compare(home: Home) -> None:
        assert numbers(record_of(home, "short")) == numbers(finished_short.record)
        store = Store.open(home.store_uri)
        assert store.verify() == []
        assert Counter(entry.kind for entry in store.entries()) == {"train": 1, "answers": 1, "membership": 1}
        assert [row["epoch"] for row in train_history(home)] == [0, 1, 2]
        points = tracked(home)
        assert points == tracked(finished_short.home)
        assert points.keys() == {("run", ""), ("cell", "none|0")}
        found = [(key, step) for key, _, step in points["cell", "none|0"]]
        assert len(set(found)) == len(found) and ("train/loss", 2) in found and ("utility/test_accuracy", 0) in found
        assert left_alive(home) == []

    return compare


def left_alive(home: Home) -> list[str]:
    """Return the processes that were started for a home and are still there ten seconds later."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while (found := started_for(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def started_for(home: Home) -> list[str]:
    processes = psutil.process_iter(["pid", "cmdline", "environ"])
    return [str(each) for each in processes if (each.info["environ"] or {}).get("OAKUM_HOME") == str(home.folder)]


def train_history(home: Home) -> list[dict[str, Any]]:
    store = Store.open(home.store_uri)
    (key,) = store.published("train")
    manifest = store.manifest("train", key)
    assert manifest is not None
    rows: list[dict[str, Any]] = json.loads(store.read(manifest, "history.json"))["epochs"]
    return rows


@pytest.mark.faults(row="kill -9 of the driver")
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


@pytest.mark.faults(row="kill -9 of the driver")
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


@pytest.mark.faults(row="SIGTERM and Ctrl-C")
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


@pytest.mark.faults(row="a full disk")
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
    assert numbers(result.record) == numbers(finished_short.record) and store.verify() == []


@pytest.mark.faults(row="a full disk")
def test_a_quota_of_the_system_is_explained(home: Home, command: list[object], start: Callable[..., Any]) -> None:
    """RLIMIT_FSIZE: the operating system itself refuses to write more than 2 kB into a file."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    answer = start(*command, "--no-tracking", home=home, before=limit).answer()
    assert answer.code == 3 and "the disk is full; free some space" in answer.err
    assert Store.open(home.store_uri).entries() == []


@pytest.mark.faults(row="a tracking server away for a while")
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


@pytest.mark.faults(row="a tracking server away for a while")
def test_a_tracking_server_that_returns_before_the_end_gets_all_without_another_command(
    home: Home,
    command: list[object],
    oakum: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    require_same: Callable[[Home], None],
) -> None:
    """It goes between two epochs, once the run is open; the last stage waits until it is there again."""
    away, seen, visits = threading.Event(), threading.Event(), Counter[str]()
    probe = Destination.probe

    def answer(*_: object) -> None:
        if away.is_set():
            seen.set()
            raise ConnectionResetError("the server went away")

    def answer_probe(destination: Destination) -> None:
        if away.is_set():
            raise UnreachableError("the server is away")
        probe(destination)

    def wait_for_an_empty_outbox() -> None:
        deadline = time.monotonic() + 60
        while Store.open(home.store_uri).list_documents("outbox"):
            assert time.monotonic() < deadline, "nobody tried again"
            time.sleep(0.05)

    def visit(point: str) -> None:
        visits[point] += 1
        if point == "train.between_epochs" and visits[point] == 1:
            wait_for_an_empty_outbox()
            away.set()
        if point == "stage.before_publish" and visits[point] == 3:
            assert seen.wait(60), "nothing was delivered while the server was away"
            assert Store.open(home.store_uri).list_documents("outbox")
            away.clear()
            wait_for_an_empty_outbox()

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_RETRY_SECONDS", 0.2)
        patch.setattr(tracking_runs, "fault_point", answer)
        patch.setattr(Destination, "probe", answer_probe)
        for module in (loop, runner):
            patch.setattr(module, "fault_point", visit)
        told = oakum(*command, home=home)
    assert told.code == 0 and "MLflow tracking" not in told.err and visits["stage.before_publish"] == 3
    assert Store.open(home.store_uri).list_documents("outbox") == []
    require_same(home)


@pytest.mark.faults(row="an exception in the tracking thread")
@pytest.mark.parametrize(("write", "later"), [(1, "sync"), (12, "run")])
def test_an_exception_in_the_tracking_thread_ends_the_tracking_alone(
    write: int,
    later: str,
    home: Home,
    command: list[object],
    oakum: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    require_same: Callable[[Home], None],
) -> None:
    """One that nobody foresaw, at the first write to MLflow and in the middle of an event."""
    writes = Counter[str]()

    def fail(point: str) -> None:
        writes[point] += 1
        if writes["tracking.after_write"] == write:
            raise RuntimeError("nobody thought of this\nand it has two lines")

    with monkeypatch.context() as patch:
        patch.setattr(tracking_runs, "fault_point", fail)
        answer = oakum(*command, home=home)
    assert answer.code == 0 and "Traceback" not in answer.err
    (told,) = [line for line in answer.err.splitlines() if "MLflow" in line]
    assert "events wait in the store (RuntimeError: nobody thought of this); nothing is lost" in told
    assert Store.open(home.store_uri).list_documents("outbox")
    completed = oakum(*command, home=home) if later == "run" else oakum("sync", home=home)
    assert completed.code == 0
    assert Store.open(home.store_uri).list_documents("outbox") == []
    require_same(home)


class Shaky:
    """Makes file operations of a store fail by chance, in the threads that run stages and that deliver to MLflow.

    One call in twenty fails: half of them before anything is done, half after all is done (the answer was lost). One
    write in twenty stops in the middle.
    """

    chance = 0.05

    def __init__(self, seed: int) -> None:
        self.failures = Counter[str]()
        self._draws = defaultdict[str, Random](lambda: Random(seed))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        guard, write_all = LocalFiles._guard, _store_files._write_all

        @contextmanager
        def shaky_guard(files: LocalFiles, path: str) -> Iterator[None]:
            with guard(files, path):
                self._fail("before", self.chance / 2)
                yield
                self._fail("after", self.chance / 2)

        def shaky_write(descriptor: int, data: bytes) -> None:
            half = len(data) // 2
            write_all(descriptor, bytes(data)[:half])
            self._fail("in the middle", self.chance)
            write_all(descriptor, bytes(data)[half:])

        patch.setattr(LocalFiles, "_guard", shaky_guard)
        patch.setattr(_store_files, "_write_all", shaky_write)

    def _fail(self, when: str, chance: float) -> None:
        thread = threading.current_thread().name
        if thread.startswith(("oakum-stage", "oakum-tracking")) and self._draws[thread[:11]].random() < chance:
            self.failures[when] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.faults(row="a store that fails at random")
def test_a_store_that_fails_at_random_costs_time_alone(
    home: Home,
    command: list[object],
    oakum: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    require_same: Callable[[Home], None],
) -> None:
    shaky = Shaky(seed=1)
    answers: list[Any] = []
    with monkeypatch.context() as patch:
        shaky.install(patch)
        while not answers or answers[-1].code != 0:
            answers.append(oakum(*command, home=home))
            assert answers[-1].code in {0, 3} and len(answers) <= 20, answers[-1].err
    assert all(shaky.failures[when] for when in ("before", "after", "in the middle")), shaky.failures
    assert any("again: train none/0 clean (StoreError: " in answer.err for answer in answers)
    assert all("Input/output error: check that the store can be reached" in each.err for each in answers[:-1])
    assert oakum(*command, home=home).code == 0
    require_same(home)
    store = Store.open(home.store_uri)
    assert store.gc(dry_run=False, min_age_seconds=0.0).entries == ()
    require_same(home)


@pytest.mark.faults(row="a driver whose clock is off by an hour")
@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_a_clock_that_is_off_changes_no_number_and_removes_nothing(
    hours: int,
    home: Home,
    command: list[object],
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    require_same: Callable[[Home], None],
) -> None:
    """The first driver's clock is wrong, and that of whoever collects garbage; the second driver's is right."""
    before = CLOCK_OFF.format(hours=hours)
    killed = start(*command, home=home, before=before, **{faults.VARIABLE: "store.after_payload"}).answer()
    assert killed.code == KILLED, killed.err
    store = Store.open(home.store_uri)
    kept = payload_and_work(home)
    assert kept, "nothing young was left that could be lost"
    right_time = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: right_time() + hours * 3600)
        store.gc(dry_run=False, min_age_seconds=1800.0)
    assert payload_and_work(home) == kept
    assert start(*command, home=home).answer().code == 0
    assert [abs(row["finished"] - right_time()) > 1800 for row in train_history(home)] == [True] * 3
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: right_time() + hours * 3600)
        assert store.gc(dry_run=False, min_age_seconds=1800.0).entries == ()
    require_same(home)


@pytest.mark.faults(row="a driver whose clock is off by an hour")
@pytest.mark.skipif(not psutil.LINUX, reason="elsewhere the system keeps when a process started")
@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
def test_a_clock_that_is_set_meanwhile_declares_no_living_driver_dead(
    hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells when it was booted by the clock of today: setting it moves the start of every process."""
    driver, booted = this_driver(), psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + hours * 3600)
    assert not is_dead(driver)
    assert is_dead(driver.rpartition("/")[0] + "/1")


def payload_and_work(home: Home) -> list[Path]:
    store = Path(home.store_uri)
    return sorted(path for folder in ("objects", "work") for path in (store / folder).rglob("*") if path.is_file())


@pytest.mark.faults(row="two drivers of one experiment at the same time")
def test_two_drivers_at_the_same_time_leave_one_set_of_entries(
    home: Home, command: list[object], start: Callable[..., Any], require_same: Callable[[Home], None]
) -> None:
    running = [start(*command, home=home, before=MEET) for _ in range(2)]
    answers = [each.answer() for each in running]
    assert [answer.code for answer in answers] == [0, 0], [answer.err for answer in answers]
    assert not any("again:" in answer.err for answer in answers)
    meetings = {place.name: len(list(place.iterdir())) for place in (home.folder / "meetings").iterdir()}
    visits = {"train.before_first_checkpoint": 1, "train.between_epochs": 3, "stage.before_publish": 3}
    assert meetings == {f"{point}-{visit + 1}": 2 for point, count in visits.items() for visit in range(count)}
    objects = Path(home.store_uri) / "objects"
    attempts = {(entry.key, entry.attempt) for entry in Store.open(home.store_uri).entries()}
    assert {(path.parent.name, path.name) for path in objects.glob("*/*")} == attempts, "a loser's payload was left"
    require_same(home)


@pytest.mark.faults(row="two drivers of one experiment at the same time")
def test_a_figure_is_replaced_whole(copied: Any, oakum: Callable[..., Any]) -> None:
    """One driver may deliver the figures to MLflow while the other writes them again."""
    figure = sorted((copied.home.report("tiny").parent / "figures").glob("*.png"))[0]
    with figure.open("rb") as old:
        assert oakum("report", "tiny", home=copied.home).code == 0
        assert figure.is_file() and os.fstat(old.fileno()).st_nlink == 0, "it was written over in its place"


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


@pytest.mark.faults(row="a damaged entry")
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


@pytest.mark.faults(row="a damaged entry")
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
    assert Store.open(copied.home.store_uri).verify() == []


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


ROWS_OF_A_CARD = """
import pytest
from tests.fault_card import ROWS

@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.faults(row=row)) for row in ROWS[LEFT_OUT:]])
def test_row(row):
    assert row != "a full disk"

@pytest.mark.faults
def test_of_no_row():
    raise AssertionError
"""


def test_the_card_has_every_row_or_is_refused(tmp_path: Path) -> None:
    card = tmp_path / "results" / "faults.json"

    def write(left_out: int) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "test_rows.py"
        file.write_text(ROWS_OF_A_CARD.replace("LEFT_OUT", str(left_out)))
        options = ["-q", "-c", os.devnull, f"--rootdir={tmp_path}", "-p", "tests.fault_card", f"--fault-card={card}"]
        command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(file)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    refused = write(left_out=1)
    assert refused.returncode == pytest.ExitCode.USAGE_ERROR and not card.exists()
    assert "the fault card cannot be written: no test for 'kill -9 of a training worker'" in refused.stderr
    assert write(left_out=0).returncode == pytest.ExitCode.TESTS_FAILED
    rows = json.loads(card.read_text())["rows"]
    assert [row["fault"] for row in rows if not row["passed"]] == ["a full disk"]
    assert len(rows) == 13 and all(len(row["tests"]) == 1 for row in rows)
