"""Tracking into real SQLite databases: nothing lost, nothing doubled, nothing private."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oakum import faults
from oakum.records import CellRecord, MetricValue, RunRecord, SharedRecord, StageRef, sha256_hex
from oakum.store import Store
from oakum.tracking import CellHeader, RunHeader, SharedHeader, Tracker, sync, tracking_uri, ui_command, where_to_look
from oakum.tracking_destination import Destination, UnreachableError
from oakum.tracking_outbox import Event, Outbox, finish_event, open_event, stage_events
from oakum.tracking_runs import flatten, metric_name

PLATFORM = Path(__file__).parents[1] / "platform"
EPOCHS = 3
TABLES = ("params", "metrics", "latest")
SETTINGS = {"none": ("none", {}), "bido 0.05/0.5": ("bido", {"lambda_x": 0.05, "lambda_y": 0.5, "soft": True})}


@dataclass
class Lab:
    """A home with a store in which a small run is published."""

    home: Path
    store: Store
    record: RunRecord

    @property
    def header(self) -> RunHeader:
        return RunHeader.of(self.record)

    @property
    def database(self) -> Path:
        return self.home / "mlflow" / "mlflow.db"

    def events(self) -> list[Event]:
        return [open_event(self.header), *stage_events(self.record), finish_event(self.record, [self.report()])]

    def report(self) -> Path:
        path = self.home / "report.html"
        path.write_text("<p>report</p>")
        return path

    def put(self, events: list[Event]) -> None:
        for event in events:
            Outbox(self.store).put(event)

    def forget_ledger(self) -> None:
        for name in self.store.list_documents("delivered"):
            self.store.delete_document(name)

    def track(self, record: RunRecord | None = None, uri: str | None = None) -> Any:
        record = record or self.record
        tracker = Tracker(self.store, self.home, uri)
        tracker.start()
        tracker.open_run(RunHeader.of(record))
        tracker.finish(record, [self.report()])
        return tracker.close()


def parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def publish(store: Store, scratch: Path, kind: str, place: str) -> StageRef:
    history = [
        {"epoch": epoch, "train/loss": 1.0 / (epoch + 1), "val/accuracy": 0.5 + epoch / 10, "finished": 1.76e9 + epoch}
        for epoch in range(EPOCHS)
    ]
    files = {
        "train": {
            "model.safetensors": place.encode(),
            "history.json": json.dumps({"epochs": history}).encode(),
            "config.json": b"{}",
        },
        "answers": {"answers.parquet": parquet(row=[0, 1])},
        "membership": {"evidence.parquet": parquet(score=[0.1, 0.9])},
        "inversion": {"reconstructions.safetensors": b"images"},
    }[kind]
    key = sha256_hex(f"{kind}|{place}".encode())
    folder = scratch / key
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    folds = {"train": sha256_hex(b"train"), "val": sha256_hex(b"val")}
    store.publish(
        kind, key, folder, key_document={"folds": folds}, label=place, summary={}, provenance={"seconds": 2.0}
    )  # fmt: skip
    return StageRef(kind, key)


def build_cell(store: Store, scratch: Path, setting: str, seed: int) -> CellRecord:
    defense, parameters = SETTINGS[setting]
    stages = {
        role: publish(store, scratch, kind, f"{setting}|{seed}|{role}")
        for role, kind in {
            "target.clean": "train",
            "target.canary": "train",
            "answers.clean": "answers",
            "membership.clean.loss": "membership",
            "inversion.clean.gmi": "inversion",
        }.items()
    }
    metrics = {
        "utility/test_accuracy": MetricValue(0.9 + seed / 100, 0.85, 0.95, "high"),
        "membership/loss/auc": MetricValue(0.6, wants="low"),
        "membership/loss/tpr_at_fpr_0.01": MetricValue(None, wants="low", note="1,000 non-members needed"),
        "cost/train_seconds": MetricValue(2.0),
    }
    return CellRecord(setting, defense, parameters, seed, metrics, stages, ("constant scores",) if seed else ())


def build_lab(home: Path, *, public: bool = True, seeds: int = 1, settings: tuple[str, ...] = tuple(SETTINGS)) -> Lab:
    store, scratch = Store.open(home / "store"), home / "scratch"
    cells = tuple(build_cell(store, scratch, setting, seed) for setting in settings for seed in range(seeds))
    evaluator = SharedRecord("evaluator", publish(store, scratch, "train", "evaluator"), {"model": "mlp"}, {})
    record = RunRecord(
        name="quick",
        description="Two settings.",
        run_key=sha256_hex(b"run"),
        plan_key=sha256_hex(f"plan {seeds}".encode()),
        config={"name": "quick", "seeds": list(range(seeds)), "recipe": {"epochs": EPOCHS, "learning_rate": 0.1}},
        data={
            "name": "drawn", "digest": sha256_hex(b"data"), "public": public, "folds": {"train": 10, "val": 5},
            "class_names": ["ann", "bob"], "input_shape": [1, 4, 4],
        },
        chance={"membership/loss/auc": 0.5},
        cells=cells,
        shared=(evaluator,),
        code={"oakum": "0.1.0", "commit": "c" * 40, "dirty": False},
        seconds={"train": 4.0},
    )  # fmt: skip
    return Lab(home, store, record)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database made once by `Destination.prepare`; copying it saves each test the migrations."""
    home = tmp_path_factory.mktemp("template")
    destination = Destination.of(home, f"sqlite:///{home}/mlflow/mlflow.db")
    destination.prepare()
    assert destination.database is not None
    return destination.database


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(faults.VARIABLE, raising=False)


@pytest.fixture
def make_lab(tmp_path: Path, empty_database: Path) -> Callable[..., Lab]:
    def make(name: str = "home", **options: Any) -> Lab:
        home = tmp_path / name
        (home / "mlflow").mkdir(parents=True)
        shutil.copy(empty_database, home / "mlflow" / "mlflow.db")
        return build_lab(home, **options)

    return make


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return sorted(connection.execute(query).fetchall())


def dump(lab: Lab) -> dict[str, Any]:
    """Everything in the database that MLflow shows, and every artifact."""
    tables = {
        "experiments": "SELECT experiment_id, name, lifecycle_stage FROM experiments",
        "runs": "SELECT run_uuid, name, status, start_time, end_time, lifecycle_stage FROM runs",
        "params": "SELECT run_uuid, key, value FROM params",
        "metrics": "SELECT run_uuid, key, value, timestamp, step FROM metrics",
        "latest": "SELECT run_uuid, key, value, timestamp, step FROM latest_metrics",
        "tags": "SELECT run_uuid, key, value FROM tags",
        "datasets": "SELECT dataset_uuid, name, digest FROM datasets",
        "inputs": "SELECT source_id, destination_id FROM inputs",
    }
    found: dict[str, Any] = {name: rows(lab.database, query) for name, query in tables.items()}
    root = lab.home / "mlflow" / "artifacts"
    found["artifacts"] = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".artifact.uploading.")
    }
    return found


def tree(lab: Lab) -> dict[str, Any]:
    """The same by what runs stand for instead of by their random ids, without who delivered them."""
    found = dump(lab)
    tags: dict[str, dict[str, str]] = {}
    for run, key, value in found["tags"]:
        tags.setdefault(run, {})[key] = value
    place = {run: f"{own['oakum.run_key'][:6]}/{own['oakum.level']}/{own['oakum.owner']}" for run, own in tags.items()}
    experiments = {name for _, name, _ in found["experiments"]}
    result: dict[str, Any] = {"experiments": experiments, "count": len(place)}
    for run, title, status, start, end, stage in found["runs"]:
        own = {key: value for key, value in tags[run].items() if key not in {"oakum.driver", "mlflow.parentRunId"}}
        result[place[run]] = {
            "facts": (title, status, start, end, stage),
            "tags": own,
            "parent": place.get(tags[run].get("mlflow.parentRunId", "")),
            **{name: sorted(row[1:] for row in found[name] if row[0] == run) for name in TABLES},
            "inputs": len([row for row in found["inputs"] if row[1] == run]),
            "artifacts": {
                path.split(run, 1)[1]: digest for path, digest in found["artifacts"].items() if run in path
            },
        }  # fmt: skip
    return result


def the_run(lab: Lab, place: str) -> dict[str, Any]:
    return next(value for key, value in tree(lab).items() if key.endswith(f"/{place}"))


def in_child(work: Callable[[], object], *, fault: str = "") -> int:
    """Run `work` in a forked process and return its exit code (negative: the signal that ended it)."""

    def start() -> None:
        os.environ[faults.VARIABLE] = fault
        work()

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python with its arguments in sys.argv."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PLATFORM), **environment},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@contextmanager
def listening(*, answers: bytes | None = None) -> Iterator[str]:
    """A server that accepts connections and gives one answer, or none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answers is not None:
                    connection.recv(4096)
                    connection.sendall(answers)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_run_becomes_a_tree_of_runs(lab: Lab) -> None:
    status = lab.track()
    assert (status.pending, status.error, status.warning) == (0, None, None)
    assert status.delivered == 1 + 11 + 1
    found = tree(lab)
    assert found["experiments"] == {"Default", "quick"}
    assert found["count"] == 1 + 2 + 1
    parent, cell = the_run(lab, "run/"), the_run(lab, "cell/bido 0.05/0.5|0")
    assert cell["parent"].endswith("run/") and the_run(lab, "shared/evaluator")["parent"] == cell["parent"]
    assert {run["facts"][1] for key, run in found.items() if "/" in key} == {"FINISHED"}
    assert parent["tags"]["mlflow.note.content"] == "Two settings."
    assert "/artifacts/report/report.html" in parent["artifacts"]
    assert Outbox(lab.store).names() == []


def test_a_cell_holds_all_its_numbers_in_one_row(lab: Lab) -> None:
    lab.track()
    cell = the_run(lab, "cell/bido 0.05/0.5|0")
    params = dict(cell["params"])
    assert params["bido.lambda_x"] == "0.05" and params["seed"] == "0" and params["recipe.learning_rate"] == "0.1"
    latest = {key: value for key, value, *_ in cell["latest"]}
    assert latest["utility/test_accuracy"] == 0.9 and latest["membership/loss/auc"] == 0.6
    assert (latest["utility/test_accuracy/low"], latest["utility/test_accuracy/high"]) == (0.85, 0.95)
    assert "membership/loss/tpr_at_fpr_0.01" not in latest
    assert cell["tags"]["oakum.unresolved"] == "membership/loss/tpr_at_fpr_0.01"
    stage = next(cell for cell in lab.record.cells if cell.defense == "bido").stages["membership.clean.loss"]
    assert cell["tags"]["oakum.stage.membership.clean.loss"] == stage.key


def test_histories_keep_their_own_steps_and_times(lab: Lab) -> None:
    lab.track()
    points = the_run(lab, "cell/none|0")["metrics"]
    clean = sorted((step, stamp) for key, _, stamp, step in points if key == "train/loss")
    assert clean == [(epoch, int((1.76e9 + epoch) * 1000)) for epoch in range(EPOCHS)]
    assert len([key for key, *_ in points if key == "canary/train/loss"]) == EPOCHS


def test_private_data_stays_in_the_store(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(public=False)
    picture = lab.home / "roc.png"
    picture.write_bytes(b"picture")
    tracker = Tracker(lab.store, lab.home)
    tracker.start()
    tracker.open_run(lab.header)
    tracker.finish(lab.record, [lab.report(), picture])
    assert tracker.close().warning is None
    names = {Path(path).name for path in dump(lab)["artifacts"]}
    assert names == {"model.safetensors", "history.json", "config.json", "record.json", "report.html"}
    cell, parent = the_run(lab, "cell/none|0"), the_run(lab, "run/")
    assert cell["tags"]["oakum.withheld.membership.clean.loss"] == "evidence.parquet"
    assert parent["tags"]["oakum.withheld.report"] == "roc.png"
    for file in (lab.home / "mlflow").rglob("*"):
        assert not file.is_file() or b"bob" not in file.read_bytes()


def test_a_data_set_that_does_not_say_so_is_not_public(lab: Lab) -> None:
    lab.record.data.pop("public")
    lab.track()
    assert "evidence.parquet" not in {Path(path).name for path in dump(lab)["artifacts"]}


def test_public_evidence_is_uploaded_but_no_answers(lab: Lab) -> None:
    lab.track()
    names = {Path(path).name for path in dump(lab)["artifacts"]}
    assert {"evidence.parquet", "reconstructions.safetensors"} <= names and "answers.parquet" not in names


def test_odd_labels_are_only_data(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(settings=("none",))
    label = "a'b\" |`//../x\N{SNOWMAN}" + "y" * 300
    cell = replace(lab.record.cells[0], setting=label, metrics={f"membership/{label}/auc": MetricValue(0.5)})
    record = replace(lab.record, cells=(cell,))
    assert lab.track(record).warning is None
    assert lab.track(record).delivered == 0
    assert the_run(lab, f"cell/{label}|0")["facts"][1] == "FINISHED"


def test_delivering_everything_twice_changes_nothing(lab: Lab) -> None:
    events = lab.events()
    lab.put(events)
    assert sync(lab.store, lab.home).pending == 0
    before = dump(lab)
    lab.forget_ledger()
    lab.put(events)
    status = sync(lab.store, lab.home)
    assert (status.delivered, status.pending) == (len(events), 0)
    assert dump(lab) == before


def test_a_retried_stage_is_one_event(lab: Lab) -> None:
    cell = lab.record.cells[0]
    manifest = lab.store.manifest("train", cell.stages["target.clean"].key)
    assert manifest is not None
    tracker = Tracker(lab.store, lab.home, closed_port())
    tracker.open_run(lab.header)
    for _ in range(3):
        tracker.stage_finished(lab.record.run_key, CellHeader.of(cell), "target.clean", manifest)
    tracker.stage_finished(lab.record.run_key, SharedHeader("evaluator", {}), "evaluator", manifest)
    assert len(Outbox(lab.store).names()) == 3


def test_a_stage_of_another_run_is_a_mistake(lab: Lab) -> None:
    manifest = lab.store.manifest("train", lab.record.cells[0].stages["target.clean"].key)
    assert manifest is not None
    with pytest.raises(ValueError, match="open_run"):
        Tracker(lab.store, lab.home).stage_finished("f" * 64, SharedHeader("x", {}), "x", manifest)


def test_a_finished_plan_run_again_writes_nothing_and_imports_no_mlflow(lab: Lab) -> None:
    lab.track()
    before, content = dump(lab), lab.database.read_bytes()
    (lab.home / "record.json").write_text(json.dumps(replace(lab.record, seconds={}, code={}).to_json()))
    code = """
import json, sys, time
from pathlib import Path
from oakum.records import RunRecord
from oakum.store import Store
from oakum.tracking import RunHeader, Tracker
home = Path(sys.argv[1])
begin = time.perf_counter()
record = RunRecord.from_json(json.loads((home / "record.json").read_text()))
tracker = Tracker(Store.open(home / "store"), home)
tracker.start()
tracker.open_run(RunHeader.of(record))
tracker.finish(record, [home / "another.html"])
status = tracker.close()
print(status, [name for name in ("mlflow", "torch", "ray", "pyarrow", "numpy") if name in sys.modules])
print(time.perf_counter() - begin)
"""
    done = run_python(code, lab.home)
    assert done.stderr == "" and done.stdout.startswith("TrackingStatus(delivered=0, pending=0, error=None) []"), done
    assert float(done.stdout.splitlines()[1]) < 1.0
    assert lab.database.read_bytes() == content and dump(lab) == before


def test_more_seeds_extend_the_same_run(lab: Lab, tmp_path: Path) -> None:
    lab.track()
    first = {run for run, *_ in dump(lab)["runs"]}
    shutil.rmtree(lab.home / "scratch")
    more = build_lab(lab.home, seeds=2)
    assert lab.track(more.record).warning is None
    found = tree(lab)
    assert found["count"] == 1 + 4 + 1 and first < {run for run, *_ in dump(lab)["runs"]}
    assert {run["facts"][1] for key, run in found.items() if "/" in key} == {"FINISHED"}
    assert lab.track(more.record).delivered == 0


def test_a_lost_database_is_filled_again(lab: Lab, empty_database: Path) -> None:
    # In a process of its own: MLflow keeps connections to the file that is removed.
    assert in_child(lab.track) == 0
    before = tree(lab)
    shutil.rmtree(lab.home / "mlflow")
    status = lab.track()
    assert status.pending == 0 and status.delivered == 13
    after = tree(lab)
    assert {key: run["latest"] for key, run in after.items() if "/cell/" in key} == {
        key: run["latest"] for key, run in before.items() if "/cell/" in key
    }


def test_two_drivers_at_once_make_one_tree(lab: Lab) -> None:
    def drive() -> None:
        assert lab.track().pending == 0

    context = multiprocessing.get_context("fork")
    drivers = [context.Process(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    reference = tree(lab)
    assert reference["count"] == 4 and Outbox(lab.store).names() == []
    for run in (run for key, run in reference.items() if "/" in key):
        keys = [(key, step) for key, _, _, step in run["metrics"]]
        assert len(keys) == len(set(keys)) and run["facts"][1] == "FINISHED"


def count_writes(make_lab: Callable[..., Lab]) -> int:
    """How often a delivery of everything passes `tracking.after_write`."""
    lab, many = make_lab("count", settings=("none",)), 10**6
    lab.put(lab.events())
    reader, writer = os.pipe()

    def work() -> None:
        sync(lab.store, lab.home)
        os.write(writer, os.environ[faults.VARIABLE].encode())

    assert in_child(work, fault=f"tracking.after_write:{many}") == 0
    return many - int(os.read(reader, 100).decode().partition(":")[2])


@pytest.mark.faults
def test_killed_anywhere_in_a_delivery_loses_and_doubles_nothing(make_lab: Callable[..., Lab]) -> None:
    whole = make_lab("whole", settings=("none",))
    events = whole.events()
    whole.put(events)
    sync(whole.store, whole.home)
    expected = tree(whole)
    writes = count_writes(make_lab)
    assert writes > 40
    points = [f"tracking.after_write:{round(1 + step * (writes - 1) / 9)}" for step in range(10)]
    points += [f"tracking.{side}_delivery:{count}" for side in ("before", "after") for count in (2, len(events))]
    for index, point in enumerate(points):
        home = make_lab(f"killed{index}").home
        shutil.rmtree(home / "store")
        shutil.copytree(whole.home / "store", home / "store")
        lab = Lab(home, Store.open(home / "store"), whole.record)
        lab.forget_ledger()
        lab.put(events)
        assert in_child(lambda lab=lab: sync(lab.store, lab.home), fault=point) == -signal.SIGKILL, point
        assert sync(lab.store, lab.home).pending == 0
        assert tree(lab) == expected, point


@pytest.mark.faults
def test_a_killed_driver_is_set_right_when_its_run_is_resumed(lab: Lab) -> None:
    def drive() -> None:
        lab.track()

    assert in_child(drive, fault="tracking.after_delivery:5") == -signal.SIGKILL
    stale = the_run(lab, "run/")
    assert stale["facts"][1] == "RUNNING" and Outbox(lab.store).names()
    assert lab.track().warning is None
    found = tree(lab)
    assert found["count"] == 4
    assert {run["facts"][1] for key, run in found.items() if "/" in key} == {"FINISHED"}


@pytest.mark.faults
def test_a_run_that_nobody_resumes_is_marked_killed(lab: Lab) -> None:
    def drive() -> None:
        tracker = Tracker(lab.store, lab.home)
        tracker.start()
        tracker.open_run(replace(lab.header, run_key=sha256_hex(b"other"), plan_key="0"))
        while Outbox(lab.store).names():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(drive) == -signal.SIGKILL
    assert rows(lab.database, "SELECT status FROM runs") == [("RUNNING",)]
    lab.track()
    assert ("KILLED",) in rows(lab.database, "SELECT status FROM runs")
    assert len(rows(lab.database, "SELECT status FROM runs WHERE status = 'FINISHED'")) == 4


def test_a_last_event_that_an_earlier_driver_left_does_not_leave_the_run_open(lab: Lab) -> None:
    lab.put([finish_event(lab.record, [])])
    tracker = Tracker(lab.store, lab.home)
    tracker.open_run(lab.header)
    tracker.start()
    while Outbox(lab.store).names():
        time.sleep(0.05)
    tracker.finish(lab.record)
    assert tracker.close().warning is None
    assert {status for (status,) in rows(lab.database, "SELECT status FROM runs")} == {"FINISHED"}
    lab.forget_ledger()
    lab.put([finish_event(lab.record, [])])
    sync(lab.store, lab.home)
    lab.put([open_event(lab.header)])
    sync(lab.store, lab.home)
    assert {status for (status,) in rows(lab.database, "SELECT status FROM runs")} == {"FINISHED"}


def test_a_run_that_stops_early_gets_its_outcome_and_can_be_resumed(lab: Lab) -> None:
    tracker = Tracker(lab.store, lab.home)
    tracker.start()
    tracker.open_run(lab.header)
    cell = lab.record.cells[0]
    manifest = lab.store.manifest("train", cell.stages["target.clean"].key)
    assert manifest is not None
    tracker.stage_finished(lab.record.run_key, CellHeader.of(cell), "target.clean", manifest)
    assert tracker.close(outcome="FAILED").pending == 0
    assert rows(lab.database, "SELECT status FROM runs") == [("FAILED",), ("FAILED",)]
    lab.track()
    assert {status for (status,) in rows(lab.database, "SELECT status FROM runs")} == {"FINISHED"}


@pytest.mark.faults
def test_four_creators_make_one_database(tmp_path: Path, empty_database: Path) -> None:
    labs = [build_lab(tmp_path / "home", settings=())]
    lab = labs[0]
    gate = multiprocessing.get_context("fork").Event()

    def create() -> None:
        gate.wait()
        destination = Destination.of(lab.home)
        destination.prepare()
        print(destination.identity())

    context = multiprocessing.get_context("fork")
    creators = [context.Process(target=create) for _ in range(4)]
    for creator in creators:
        creator.start()
    gate.set()
    for creator in creators:
        creator.join(120)
    assert [creator.exitcode for creator in creators] == [0] * 4
    files = sorted(path.name for path in (lab.home / "mlflow").iterdir())
    assert files == [".create.lock", "mlflow.db"]
    assert lab.database.stat().st_mode & 0o077 == 0
    assert lab.track().warning is None


@pytest.mark.faults
def test_a_database_whose_creator_was_killed_is_made_anew(tmp_path: Path, empty_database: Path) -> None:
    lab = build_lab(tmp_path / "home with space", settings=())
    leftover = lab.home / "mlflow" / ".mlflow.db.123.tmp-journal"
    process = multiprocessing.get_context("fork").Process(target=lambda: Destination.of(lab.home).prepare())
    process.start()
    while not list(lab.home.glob("mlflow/.mlflow.db.*.tmp")):
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.join()
    leftover.write_bytes(b"half")
    assert not lab.database.exists()
    assert lab.track().warning is None
    assert not list(lab.home.glob("mlflow/.mlflow.db.*"))


def test_a_server_that_is_away_costs_seconds_and_loses_nothing(make_lab: Callable[..., Lab]) -> None:
    expected = make_lab("reference")
    expected.track()
    lab = make_lab()
    begin = time.monotonic()
    status = lab.track(uri=closed_port())
    assert time.monotonic() - begin < 3
    assert status.delivered == 0 and status.pending == 13 and status.warning is not None
    assert "oakum sync" in status.warning and "does not answer" in status.warning
    status = sync(lab.store, lab.home)
    assert (status.delivered, status.pending, status.error) == (13, 0, None)
    assert tree(lab).keys() == tree(expected).keys()
    for found, wanted in zip(
        the_run(lab, "cell/none|0")["latest"], the_run(expected, "cell/none|0")["latest"], strict=True
    ):
        assert found[:2] == wanted[:2]
    assert lab.track().delivered == 0


def test_the_next_run_delivers_what_an_earlier_one_left(lab: Lab) -> None:
    other = replace(lab.record, run_key=sha256_hex(b"other"), plan_key="1" * 64)
    lab.track(other, uri=closed_port())
    status = lab.track()
    assert (status.delivered, status.pending) == (26, 0)
    assert tree(lab)["count"] == 8


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 503 away\r\nContent-Length: 0\r\n\r\n", b"what?\r\n\r\n"])
def test_a_server_that_hangs_or_talks_nonsense_is_away(lab: Lab, answer: bytes | None) -> None:
    begin = time.monotonic()
    with listening(answers=answer) as uri:
        status = lab.track(uri=uri)
    assert time.monotonic() - begin < 6
    assert status.pending == 13 and status.error is not None and "UnreachableError" in status.error


def test_a_server_that_answers_anything_is_there() -> None:
    with listening(answers=b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n") as uri:
        Destination.of(Path("/nowhere"), f"{uri}/prefix").probe()
    with pytest.raises(UnreachableError, match=r"postgresql\+psycopg2://127\.0\.0\.1:1/db does not answer"):
        Destination.of(Path("/nowhere"), "postgresql+psycopg2://user:secret@127.0.0.1:1/db").probe()


def test_a_full_store_is_told_at_the_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = lab.home / "store" / "documents"
    documents.mkdir(exist_ok=True)
    (documents / "outbox").write_text("no folder")
    status = lab.track()
    assert status.delivered == 0 and status.warning is not None and "run the experiment again" in status.warning
    (documents / "outbox").unlink()
    assert lab.track().delivered == 13


def test_an_event_that_cannot_be_delivered_holds_up_no_other(lab: Lab) -> None:
    key = lab.record.cells[0].stages["target.clean"].key
    name = f"outbox/{lab.record.run_key}/2-{'0' * 32}"
    lab.store.put_document(name, {"schema": 99})
    status = lab.track()
    assert (status.delivered, status.pending) == (13, 1) and "schema 99" in (status.error or "")
    assert key in str(dump(lab)["tags"])


def test_a_stage_that_is_gone_is_noted(lab: Lab) -> None:
    stage = lab.record.cells[0].stages["membership.clean.loss"]
    lab.store.set_aside(stage.kind, stage.key, "a test")
    assert lab.track().warning is None
    assert "oakum.missing.membership.clean.loss" in the_run(lab, "cell/none|0")["tags"]


def test_runs_deleted_in_the_user_interface_are_made_anew(lab: Lab) -> None:
    from mlflow.tracking.client import MlflowClient

    tracker = Tracker(lab.store, lab.home)
    tracker.start()
    tracker.open_run(lab.header)
    while Outbox(lab.store).names():
        time.sleep(0.05)
    client = MlflowClient(tracking_uri(lab.home))
    client.delete_run(rows(lab.database, "SELECT run_uuid FROM runs")[0][0])
    tracker.finish(lab.record)
    assert tracker.close().warning is None
    alive = rows(lab.database, "SELECT status FROM runs WHERE lifecycle_stage = 'active'")
    assert alive == [("FINISHED",)] * 4


def test_a_deleted_experiment_is_not_brought_back(lab: Lab) -> None:
    from mlflow.tracking.client import MlflowClient

    lab.track()
    client = MlflowClient(tracking_uri(lab.home))
    client.delete_experiment(client.get_experiment_by_name("quick").experiment_id)
    status = lab.track(replace(lab.record, plan_key="2" * 64))
    assert status.pending == 2 and "mlflow experiments restore" in (status.error or "")


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real server in processes of its own."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db",
        "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    server = subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    destination = Destination.of(folder, f"http://127.0.0.1:{port}")
    try:
        for _ in range(240):
            try:
                destination.probe()
                break
            except UnreachableError:
                time.sleep(0.5)
        yield destination.uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.faults
def test_a_real_server_that_dies_and_returns(lab: Lab, tmp_path: Path) -> None:
    from mlflow.tracking.client import MlflowClient

    port = int(closed_port().rpartition(":")[2])
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", port) as uri:
        tracker = Tracker(lab.store, lab.home, uri)
        tracker.start()
        tracker.open_run(lab.header)
        deadline = time.monotonic() + 60
        while Outbox(lab.store).names() and time.monotonic() < deadline:
            time.sleep(0.1)
    tracker.finish(lab.record, [lab.report()])
    begin = time.monotonic()
    status = tracker.close()
    assert time.monotonic() - begin < 20
    assert (status.delivered, status.pending) == (1, 12)
    with mlflow_server(tmp_path / "server", port) as uri:
        assert sync(lab.store, lab.home, uri).delivered == 12
        assert lab.track(uri=uri).delivered == 0
        client = MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name("quick").experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 4
        cell = next(run for run in runs if run.data.tags.get("oakum.cell") == "none|0")
        assert cell.data.metrics["membership/loss/auc"] == 0.6
        assert len(client.get_metric_history(cell.info.run_id, "train/loss")) == EPOCHS
        assert [file.path for file in client.list_artifacts(cell.info.run_id, "membership.clean.loss")] == [
            "membership.clean.loss/evidence.parquet"
        ]
    assert not lab.database.with_name("artifacts").exists()


def test_the_drivers_load_is_logged_to_the_parent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = Tracker(lab.store, lab.home)
    tracker.start()
    tracker.open_run(lab.header)
    deadline = time.monotonic() + 30
    while not rows(lab.database, "SELECT key FROM metrics") and time.monotonic() < deadline:
        time.sleep(0.1)
    tracker.finish(lab.record)
    assert tracker.close().warning is None
    assert "system/cpu_utilization_percentage" in {key for key, *_ in the_run(lab, "run/")["latest"]}


def test_importing_the_tracker_imports_nothing_heavy() -> None:
    code = "import sys, oakum.tracking; print([m for m in ('mlflow', 'torch', 'ray', 'numpy') if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_the_first_run_is_silent(tmp_path: Path) -> None:
    lab = build_lab(tmp_path, settings=("none",))
    (tmp_path / "record.json").write_text(json.dumps(lab.record.to_json()))
    code = """
import json, os, sys
from pathlib import Path
from oakum.records import RunRecord
from oakum.store import Store
from oakum.tracking import RunHeader, Tracker
home = Path(sys.argv[1])
record = RunRecord.from_json(json.loads((home / "record.json").read_text()))
tracker = Tracker(Store.open(home / "store"), home)
tracker.start()
tracker.open_run(RunHeader.of(record))
tracker.finish(record)
print(tracker.close().warning, os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"])
"""
    done = run_python(code, tmp_path)
    assert (done.stdout, done.stderr) == ("None true true\n", "")
    assert sorted(os.listdir(tmp_path)) == ["mlflow", "record.json", "scratch", "store"]


def test_the_uri_is_the_users_or_a_file_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    command = ui_command(tmp_path)
    assert command.startswith(f"{sys.executable} -m mlflow ui --backend-store-uri sqlite:////")
    assert where_to_look(tmp_path) == command
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@tracking.example/x")
    assert tracking_uri(tmp_path) == "https://user:secret@tracking.example/x"
    assert where_to_look(tmp_path) == "https://tracking.example/x"


def test_names_and_values_fit_mlflow() -> None:
    assert flatten({"a": {"b": 0.5, "c": [1, 2]}, "d": True, "e": None}) == {"a.b": "0.5", "a.c": "[1, 2]", "d": "true"}
    assert metric_name("membership//lira (8)/tpr@1%") == "membership/lira _8_/tpr_1_"
    assert metric_name("../..") == "metric"
