"""Processes and nodes that are lost in the middle of a run on Ray: what they worked on starts again elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from oakum import faults, session
from oakum.records import RunRecord
from oakum.session import RunOptions, RunResult
from oakum.session_home import Home
from oakum.store import Manifest, Store

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SECONDS_TO_DIE = 10.0
# Four minutes of two quiet cores; a busy machine has fewer.
SECONDS_OF_QUICKSTART = 1800.0
KINDS = ("train", "prior", "answers", "membership", "inversion", "judge")
Numbers = Callable[[RunRecord], dict[tuple[str, ...], Any]]


def waiting_at(point: str, key: str, note: Path) -> Callable[..., Any]:
    """Return a `run_stage` for workers: the stage of `key` waits at `point` once, after it noted its process."""

    def run_stage(task: Any, settings: Any) -> Any:
        from oakum.pipeline import runner
        from oakum.training import loop

        def wait(name: str) -> None:
            if name == point:
                note.with_suffix(".part").write_text(str(os.getpid()))
                note.with_suffix(".part").rename(note)
                time.sleep(600)

        # Only in a process that is killed: others go on to run the next tests' stages.
        if task.key == key and not note.exists():
            modules: tuple[Any, ...] = (runner, loop)
            for module in modules:
                module.fault_point = wait
        return runner.run_stage(task, settings)

    return run_stage


class Killer(threading.Thread):
    """Kills the process that a note names.

    Attributes:
        killed: (process id, unix time), or None if nobody wrote the note.
    """

    def __init__(self, note: Path) -> None:
        super().__init__(daemon=True)
        self.killed: tuple[int, float] | None = None
        self._note = note

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self._note.exists():
                self.killed = int(self._note.read_text()), time.time()
                os.kill(self.killed[0], signal.SIGKILL)
                return
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        pytest.param("train", "train.between_epochs", marks=pytest.mark.faults(row="kill -9 of a training worker")),
        pytest.param("membership", "stage.before_publish", marks=pytest.mark.faults(row="kill -9 of an attack task")),
        pytest.param("inversion", "stage.before_publish", marks=pytest.mark.faults(row="kill -9 of an attack task")),
    ],
)
def test_a_stage_whose_worker_is_killed_comes_out_the_same(
    kind: str,
    point: str,
    run_on_ray: Callable[..., RunResult],
    copied: Any,
    numbers: Numbers,
    own_environment: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a finished run one stage is missing: a training is killed after an epoch, an attack when it has its result."""
    from oakum.distributed import on_ray

    store = Store.open(copied.home.store_uri)
    key = next(ref.key for _, ref in sorted(copied.record.cells[0].stages.items()) if ref.kind == kind)
    before = entry(store, kind, key)
    store.set_aside(kind, key, "a test")
    own_environment.setattr(on_ray, "_run_stage", waiting_at(point, key, tmp_path / "note"))
    killer = Killer(tmp_path / "note")
    killer.start()
    result = run_on_ray(copied.file, copied.home, checkpoint_seconds=0.0)
    killer.join()
    assert capsys.readouterr().err.count(f"again: {before.label} (WorkerCrashedError") == 1
    assert not result.failures and not result.skipped and result.ran == 1
    assert numbers(result.record) == numbers(copied.record)
    after = entry(store, kind, key)
    assert after.attempt != before.attempt and after.content == before.content
    assert store.verify() == []
    assert killer.killed is not None
    process, killed_at = killer.killed
    assert ends(lambda: not psutil.pid_exists(process))
    if kind == "train":
        rows = json.loads(store.read(after, "history.json"))["epochs"]
        kept = [(0, True), (1, False), (2, False)]
        assert [(row["epoch"], row["finished"] < killed_at) for row in rows] == kept


def entry(store: Store, kind: str, key: str) -> Manifest:
    manifest = store.manifest(kind, key)
    assert manifest is not None
    return manifest


def ends(is_over: Callable[[], bool]) -> bool:
    """Tell whether something is over within ten seconds."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while not is_over():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def out_of_memory_once(notes: Path) -> Callable[..., Any]:
    """Return a `run_stage` for workers: one kind of stage raises Ray's error, two kinds are killed from within."""
    variable = faults.VARIABLE

    def run_stage(task: Any, settings: Any) -> Any:
        from ray.exceptions import OutOfMemoryError

        from oakum.pipeline import runner

        note = notes / task.kind
        if note.exists():
            return runner.run_stage(task, settings)
        note.touch()
        if task.kind == "answers":
            raise OutOfMemoryError("the task asked for more than there is")
        os.environ[variable] = "train.between_epochs" if task.kind == "train" else "stage.before_publish"
        return runner.run_stage(task, settings)

    return run_stage


@pytest.mark.faults(row="out of memory")
def test_a_stage_that_runs_out_of_memory_starts_again(
    on_kept_ray: None,
    home: Home,
    finished_short: Any,
    record_of: Callable[[Home, str], RunRecord],
    numbers: Numbers,
    tracked: Callable[[Home], Any],
    own_environment: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The kernel kills the training, the answers' task raises, and Ray's monitor kills the attack."""
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    from oakum.distributed import on_ray

    notes, get = tmp_path / "notes", ray.get
    notes.mkdir()

    def get_as_with_the_monitor(*arguments: Any, **options: Any) -> Any:
        """Tell of the attack's death as Ray does where its own monitor was the killer."""
        try:
            return get(*arguments, **options)
        except WorkerCrashedError:
            if not (notes / "membership").exists():
                raise
            raise OutOfMemoryError("Task was killed due to the node running low on memory") from None

    own_environment.setattr(on_ray, "_run_stage", out_of_memory_once(notes))
    own_environment.setattr(ray, "get", get_as_with_the_monitor)
    result = session.run(RunOptions(finished_short.file, quiet=True, checkpoint_seconds=0.0), home)
    assert re.findall(r"^again: (.*) \((\w+): ", capsys.readouterr().err, re.MULTILINE) == [
        ("train none/0 clean", "WorkerCrashedError"),
        ("answers none/0 clean", "OutOfMemoryError"),
        ("loss none/0 clean", "OutOfMemoryError"),
    ]
    assert not result.failures and not result.skipped
    assert numbers(record_of(home, "short")) == numbers(finished_short.record)
    assert tracked(home) == tracked(finished_short.home)
    store = Store.open(home.store_uri)
    assert len(store.entries()) == 3 and store.verify() == []
    store.gc(dry_run=False, min_age_seconds=0.0)
    assert len(store.entries()) == 3 and store.verify() == []
    assert ends(lambda: not stages_at_work())


@pytest.mark.slow
@pytest.mark.faults(row="a node lost and another added")
def test_a_run_as_a_job_outlives_a_node(
    cluster: Any,
    checkout: Path,
    make_home: Callable[[str], Home],
    run_serially: Callable[[Path, Home], RunResult],
    record_of: Callable[[Home, str], RunRecord],
    short: dict[str, Any],
    numbers: Numbers,
) -> None:
    """Nodes have one CPU each: two trainings that run at the same time are on two nodes, and the newer node is lost."""
    home, undisturbed = make_home("lost-node"), make_home("undisturbed")
    short["recipe"]["epochs"] = 300
    short["settings"]["relaxloss"] = {"name": "relaxloss", "alpha": 1.2}
    file = checkout / "jobs" / "experiments" / "short.yaml"
    file.write_text(yaml.safe_dump(short, sort_keys=False))
    cluster.have_nodes(2)
    job = cluster.start_job(checkout, home, "run.py", "jobs/experiments/short.yaml", "--checkpoint-seconds", "0.2")
    store = Store.open(home.store_uri)
    deadline = time.monotonic() + 180
    while len(running("ray::train ")) < 2 or len(checkpointed(home)) < 2:
        assert job.poll() is None and time.monotonic() < deadline, job.printed()
        assert store.published("train") == set(), "a training was over before the node could be lost"
        time.sleep(0.1)
    cluster.lose_node()
    cluster.have_nodes(2)
    assert job.wait(300) == 0, job.printed()
    again = [line for line in job.printed().splitlines() if line.startswith("again: ")]
    assert len(again) == 1 and again[0].startswith("again: train "), job.printed()
    expected = run_serially(file, undisturbed)
    assert numbers(record_of(home, "short")) == numbers(expected.record)
    assert len(store.entries()) == 6 and store.verify() == []
    for key in store.published("train"):
        rows = json.loads(store.read(entry(store, "train", key), "history.json"))["epochs"]
        assert [row["epoch"] for row in rows] == list(range(300))
    labels = ("ray::train ", "ray::answers ", "ray::loss ")
    assert ends(lambda: not running("jobs/run.py") and not any(running(label) for label in labels))


@pytest.mark.slow
@pytest.mark.faults(row="a node lost and another added")
def test_the_quickstart_as_a_job_outlives_a_node(
    cluster: Any,
    checkout: Path,
    make_home: Callable[[str], Home],
    on_kept_ray: None,
    record_of: Callable[[Home, str], RunRecord],
    numbers: Numbers,
    model_bytes: Callable[[Home, RunRecord], Any],
    tracked: Callable[[Home], Any],
    tmp_path: Path,
) -> None:
    """The README's experiment, whole and tracked: its first run is undisturbed, its second loses one node of two."""
    file, home, undisturbed = "jobs/experiments/quickstart.yaml", make_home("lost-node"), make_home("undisturbed")
    expected = session.run(RunOptions(checkout / file, quiet=True), undisturbed)
    assert not expected.failures and not expected.skipped
    cluster.have_nodes(2)
    home_for_job = [f"OAKUM_HOME={home.folder}", "MLFLOW_TRACKING_URI=", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false"]
    submit = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--"]
    log, store = tmp_path / "job.log", Store.open(home.store_uri)
    with log.open("w") as out:
        command = [*submit, "env", *home_for_job, "python", "jobs/run.py", file]
        job = subprocess.Popen(command, cwd=checkout, env=cluster.environment, stdout=out, stderr=out)

    def wait_for(is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_OF_QUICKSTART
        while not is_there():
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    # Long stages go first: with a seventh of them stored, half of the work is done.
    wait_for(lambda: stored(store) >= expected.ran // 7 and len(stages_at_work()) == 2)
    cluster.lose_node()
    when_lost = stored(store)
    wait_for(lambda: stored(store) > when_lost)
    cluster.have_nodes(2)
    wait_for(lambda: len(stages_at_work()) == 2)
    when_added = stored(store)
    assert job.wait(SECONDS_OF_QUICKSTART) == 0, log.read_text()
    again = re.findall(r"^again: .*$", log.read_text(), re.MULTILINE)
    assert len(again) == 1 and expected.ran // 7 <= when_lost < when_added < expected.ran
    found = record_of(home, "quickstart")
    assert numbers(found) == numbers(expected.record)
    assert model_bytes(home, found) == model_bytes(undisturbed, expected.record)
    points = tracked(home)
    assert points == tracked(undisturbed) and len(points) > len(found.cells)
    for (level, _), series in points.items():
        assert len({(name, step) for name, _, step in series}) == len(series), level
    assert stored(store) == len(store.entries()) == expected.ran and store.verify() == []
    assert ends(lambda: not running("jobs/run.py") and not stages_at_work())


@pytest.mark.slow
@pytest.mark.faults(row="SIGTERM and Ctrl-C")
def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(
    cluster: Any,
    checkout: Path,
    make_home: Callable[[str], Home],
    run_serially: Callable[[Path, Home], RunResult],
    record_of: Callable[[Home, str], RunRecord],
    short: dict[str, Any],
    numbers: Numbers,
    tmp_path: Path,
) -> None:
    """With the commands of docs/jobs.md; what the job does can be read while it runs."""
    home, undisturbed = make_home("stopped"), make_home("undisturbed")
    short["recipe"]["epochs"] = 1500
    file, log, store = Path("jobs/experiments/short.yaml"), tmp_path / "job.log", Store.open(home.store_uri)
    (checkout / file).write_text(yaml.safe_dump(short, sort_keys=False))

    def ray(*arguments: object, out: Path = tmp_path / "ray.log") -> subprocess.Popen[bytes]:
        command = ["ray", "job", *map(str, arguments)]
        with out.open("wb") as file:
            return subprocess.Popen(command, cwd=checkout, env=cluster.environment, stdout=file, stderr=file)

    def submit(name: str, *options: str) -> subprocess.Popen[bytes]:
        place = ["--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--submission-id", name]
        run = ["env", f"OAKUM_HOME={home.folder}", "python", "jobs/run.py", file, "--no-tracking"]
        return ray("submit", *place, *options, "--", *run, "--checkpoint-seconds", "0.2")

    cluster.have_nodes(1)
    assert submit("short-1", "--no-wait").wait(60) == 0
    following = ray("logs", "-f", "short-1", out=log)
    deadline = time.monotonic() + 180
    # The log is followed with some delay: the training has to last longer.
    while not (checkpointed(home) and "train none/0 clean" in log.read_text()):
        assert following.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    assert "3 stages: 0 stored, 3 to run" in log.read_text() and not store.entries()
    assert ray("stop", "short-1").wait(60) == 0
    stopped_at = time.time()
    assert ends(lambda: not running("jobs/run.py") and not stages_at_work())
    assert following.wait(60) is not None and checkpointed(home) and not store.entries()
    assert submit("short-2").wait(300) == 0, (tmp_path / "ray.log").read_text()
    assert numbers(record_of(home, "short")) == numbers(run_serially(checkout / file, undisturbed).record)
    assert len(store.entries()) == 3 and store.verify() == []
    (key,) = store.published("train")
    rows = json.loads(store.read(entry(store, "train", key), "history.json"))["epochs"]
    assert [row["epoch"] for row in rows] == list(range(short["recipe"]["epochs"]))
    assert rows[0]["finished"] < stopped_at < rows[-1]["finished"]


def stages_at_work() -> list[str]:
    """Return the labels of running stages: they alone among the titles of Ray's processes have several words."""
    return [title for title in map(str.strip, running("ray::")) if title.startswith("ray::") and " " in title]


def stored(store: Store) -> int:
    """Return how many stages are in the store."""
    return sum(len(store.published(kind)) for kind in KINDS)


def checkpointed(home: Home) -> set[str]:
    """Return the keys of trainings that left a checkpoint and are not over."""
    return {path.parent.parent.name for path in (Path(home.store_uri) / "work").glob("*/*/*.json")}


def running(text: str) -> list[str]:
    """Return the titles of the tests' processes that hold a text."""
    titles = []
    for process in psutil.Process().children(recursive=True):
        try:
            titles.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return [title for title in titles if text in title]
