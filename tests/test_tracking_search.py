"""Searches in real SQLite databases: what MLflow shows is made from the store's records, once each and completely."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from oakum import faults
from oakum.records import CellRecord, MetricValue, RunRecord, StageRef, sha256_hex
from oakum.search.card import leakage_card, parameter_names, progress, recommended
from oakum.search.objectives import parse_objective
from oakum.search.records import Confirmation, SearchHeader, SearchLog, SearchRecord, TrialRecord
from oakum.store import Store
from oakum.tracking_destination import Destination
from oakum.tracking_runs import Runs
from oakum.tracking_search import SearchTrackingStatus, deliver_search, ledger_name
from oakum.tracking_search_runs import SearchRuns

LEAK, USE = "membership/loss/auc", "utility/val_accuracy"
SEEDS = (1000, 1001)
EPOCHS = 2
# A network that can be built: the registered model is loaded as its README says.
NETWORK = {
    "model": {"name": "mlp", "hidden": [3]},
    "defense": {"name": "label_smoothing", "epsilon": 0.1},
    "input_shape": [1, 2, 2],
    "num_classes": 2,
    "seed": 7,
}
HEADER = SearchHeader(
    name="quick-bido",
    key=sha256_hex(b"search"),
    defense="bido",
    space={
        "defense": "bido",
        "defense.lambda_x": {"sampler": "loguniform", "low": 0.01, "high": 0.1},
        "grid": [{"defense.lambda_x": 0.05, "recipe.weight_decay": 0.1}],
    },
    experiment={"name": "quick", "recipe": {"epochs": EPOCHS}, "settings": {"none": "none"}, "data": {"name": "drawn"}},
    trial={"name": "quick"},
    objectives=(f"min {LEAK}",),
    floors=(f"{USE} >= none - 0.05",),
    seeds=SEEDS,
    notes=("A note.",),
)


def publish(
    store: Store, scratch: Path, kind: str, place: str, config: dict[str, Any], weights: bytes = b""
) -> StageRef:
    key = sha256_hex(f"{kind}|{place}".encode())
    folder = scratch / key
    folder.mkdir(parents=True, exist_ok=True)
    history = [
        {"epoch": epoch, "train/loss": len(place) + epoch, "finished": 1.76e9 + epoch} for epoch in range(EPOCHS)
    ]
    (folder / "history.json").write_text(json.dumps({"epochs": history}))
    (folder / "model.safetensors").write_bytes(weights or place.encode())
    (folder / "config.json").write_text(json.dumps(config))
    store.publish(
        kind, key, folder, key_document={"config": config}, label=place, summary={}, provenance={"seconds": 2.0}
    )  # fmt: skip
    return StageRef(kind, key)


def measured(leak: float, use: float) -> dict[str, MetricValue]:
    return {
        LEAK: MetricValue(leak, leak - 0.1, leak + 0.1, "low"),
        USE: MetricValue(use, wants="high"),
        "membership/loss/tpr_at_fpr_0.01": MetricValue(None, note="1,000 non-members needed"),
    }


@dataclass
class Lab:
    """A home with MLflow's database and a store, in which a search is kept."""

    home: Path
    store: Store
    header: SearchHeader = HEADER

    @classmethod
    def create(cls, home: Path, database: Path, header: SearchHeader = HEADER) -> Lab:
        (home / "mlflow").mkdir(parents=True)
        shutil.copy(database, home / "mlflow" / "mlflow.db")
        lab = cls(home, Store.open(home / "store"), header)
        SearchLog.open(lab.store, header)
        return lab

    @property
    def log(self) -> SearchLog:
        return SearchLog(self.store, self.header.key)

    @property
    def database(self) -> Path:
        return self.home / "mlflow" / "mlflow.db"

    @property
    def ledger(self) -> str:
        return ledger_name(Destination.of(self.home), self.header.key)

    def client(self) -> Any:
        from mlflow.tracking.client import MlflowClient

        return MlflowClient(tracking_uri=f"sqlite:///{self.database}")

    def deliver(self, *artifacts: Path, uri: str | None = None) -> SearchTrackingStatus:
        return deliver_search(self.store, self.home, self.header.key, artifacts=artifacts, uri=uri)

    def trial(self, number: int, leak: float, use: float = 0.9, **changes: Any) -> TrialRecord:
        """Put a complete trial: its second seed leaks 0.1 more than the first."""
        stages = [
            publish(
                self.store, self.home / "scratch", "train", f"{number}|{seed}|{defense}|{fold}",
                {"defense": {"name": defense}, "folds": {"train": fold}, "seed": seed},
            )
            for seed in SEEDS
            for defense, fold in (("none", "train"), ("bido", "shadow_train"), ("bido", "train"))
        ]  # fmt: skip
        trial = TrialRecord(
            number=number,
            point={"defense.lambda_x": 0.01 * (number + 1), "recipe.weight_decay": 0.1},
            origin="tpe",
            state="complete",
            metrics={seed: measured(leak + 0.1 * place, use) for place, seed in enumerate(SEEDS)},
            values=(leak + 0.05,),
            violations=(max(0.0, 0.9 - use),),
            stages=tuple(stages),
            latency=5.0,
            stage_seconds=4.0,
            package="p" * 64,
        )
        return self.put(replace(trial, **changes))

    def running(self, number: int) -> TrialRecord:
        """Put a trial that has no result yet."""
        return self.put(TrialRecord(number, {"defense.lambda_x": 0.1}, "tpe", "running"))

    def put(self, trial: TrialRecord) -> TrialRecord:
        self.log.put_trial(trial)
        return trial

    def confirm(self, plan: str, leaks: dict[int, float], *, use: float = 0.9, weights: bytes = b"") -> Confirmation:
        """Confirm trials under two seeds, whose values are 0 and 0.1 above those given."""
        cells = [self._cell(plan, "none", "none", seed, 0.8, 0.9, weights) for seed in (0, 1)]
        cells += [
            self._cell(plan, f"trial-{number}", "bido", seed, leak + 0.1 * seed, use, weights)
            for number, leak in leaks.items()
            for seed in (0, 1)
        ]
        record = RunRecord(
            name="quick-bido-confirmed", description="", run_key=sha256_hex(b"run"), plan_key=sha256_hex(plan.encode()),
            config={}, data={"name": "drawn", "digest": "d" * 64, "public": False, "class_names": ["ann", "bob"]},
            chance={LEAK: 0.5}, cells=tuple(cells), shared=(), code={"oakum": "0.1.0", "commit": "c" * 40},
        )  # fmt: skip
        membership = {number: 0.5 + 0.1 * number for number in leaks}
        confirmation = Confirmation(
            record.plan_key, {f"trial-{number}": number for number in leaks}, membership, record
        )
        self.log.put_confirmation(confirmation)
        return confirmation

    def _cell(
        self, plan: str, setting: str, defense: str, seed: int, leak: float, use: float, weights: bytes
    ) -> CellRecord:
        place = f"{plan}|{setting}|{seed}"
        stage = publish(self.store, self.home / "scratch", "train", place, NETWORK, weights)
        metrics = {LEAK: MetricValue(leak), "utility/test_accuracy": MetricValue(use)}
        return CellRecord(setting, defense, {"lambda_x": 0.01}, seed, metrics, {"target.clean": stage})


@dataclass(frozen=True)
class Delivered:
    """A search that was confirmed and delivered, with a report; nobody may change its home.

    Attributes:
        writes: how often MLflow was written to.
    """

    lab: Lab
    status: SearchTrackingStatus
    writes: int

    @property
    def report(self) -> Path:
        return self.lab.home / "search.html"


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Nothing of the user's settings reaches oakum."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv(faults.VARIABLE, raising=False)
        yield patch


@pytest.fixture
def make_lab(tmp_path: Path, empty_mlflow: Path) -> Callable[..., Lab]:
    """Return homes with a search that has no trials."""

    def make(name: str = "home", header: SearchHeader = HEADER) -> Lab:
        return Lab.create(tmp_path / name, empty_mlflow, header)

    return make


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A search with one complete trial, never delivered."""
    lab = make_lab()
    lab.trial(0, 0.5)
    return lab


@pytest.fixture(scope="module")
def delivered(
    tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path, environment: pytest.MonkeyPatch
) -> Iterator[Delivered]:
    """Three trials that ended, one of which failed, and two confirmed settings; trial 2 is the best."""
    lab = Lab.create(tmp_path_factory.mktemp("delivered") / "home", empty_mlflow)
    lab.trial(0, 0.5)
    lab.trial(1, 0.6, state="failed", error="train trial/1000 clean: out of memory", metrics={}, values=None)
    lab.trial(2, 0.4)
    lab.confirm("first", {0: 0.3, 2: 0.2})
    report = lab.home / "search.html"
    report.write_text("<p>report</p>")
    many = 10**6
    with environment.context() as patch:
        patch.setenv(faults.VARIABLE, f"tracking.after_write:{many}")
        status = lab.deliver(report)
        left = int(os.environ[faults.VARIABLE].partition(":")[2])
    before = dump(lab)
    yield Delivered(lab, status, many - left)
    assert dump(lab) == before, "a test changed what the others share"


@pytest.fixture
def copied(delivered: Delivered, tmp_path: Path) -> Iterator[Lab]:
    """A copy of the delivered home, to be changed."""
    old, new = delivered.lab.home, tmp_path / "copied"
    shutil.copytree(old, new)
    lab = Lab(new, Store.open(new / "store"))
    places = {"experiments": "artifact_location", "runs": "artifact_uri", "model_versions": "source"}
    with closing(sqlite3.connect(lab.database)) as connection:
        for table, column in places.items():
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(old), str(new)))
        connection.commit()
    arrived = lab.store.get_document(delivered.lab.ledger)
    assert arrived is not None
    lab.store.put_document(lab.ledger, arrived)
    with pytest.MonkeyPatch.context() as patch:
        # MLflow remembers where a run's artifacts lie by the run's id, which the copies share.
        patch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())
        yield lab


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return sorted(connection.execute(query).fetchall())


def dump(lab: Lab) -> dict[str, Any]:
    """Everything in the database that MLflow shows, and every artifact."""
    tables = {
        "experiments": "SELECT experiment_id, name FROM experiments",
        "runs": "SELECT run_uuid, name, status, start_time, end_time, lifecycle_stage FROM runs",
        "params": "SELECT run_uuid, key, value FROM params",
        "metrics": "SELECT run_uuid, key, value, timestamp, step FROM metrics",
        "latest": "SELECT run_uuid, key, value, step FROM latest_metrics",
        "tags": "SELECT run_uuid, key, value FROM tags",
        "versions": "SELECT name, version, run_id, source FROM model_versions",
        "aliases": "SELECT name, alias, version FROM registered_model_aliases",
    }
    found: dict[str, Any] = {name: rows(lab.database, query) for name, query in tables.items()}
    root = lab.home / "mlflow" / "artifacts"
    found["artifacts"] = {
        str(path.relative_to(root)): sha256_hex(path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".artifact.uploading.")
    }
    return found


def tree(lab: Lab) -> dict[str, Any]:
    """The same by what runs stand for instead of by their random ids."""
    found = dump(lab)
    tags: dict[str, dict[str, str]] = {}
    for run, key, value in found["tags"]:
        tags.setdefault(run, {})[key] = value
    place = {run: f"{own['oakum.level']} {own['oakum.owner']}".strip() for run, own in tags.items()}
    assert len(set(place.values())) == len(place)
    result: dict[str, Any] = {}
    for run, title, status, start, end, _ in found["runs"]:
        result[place[run]] = {
            "title": title,
            "status": status,
            "times": (start, end),
            "parent": place.get(tags[run].get("mlflow.parentRunId", "")),
            "tags": {key: value for key, value in tags[run].items() if key != "mlflow.parentRunId"},
            "params": {key: value for owner, key, value in found["params"] if owner == run},
            "points": sorted(row[1:] for row in found["metrics"] if row[0] == run),
            "latest": {key: value for owner, key, value, _ in found["latest"] if owner == run},
            "artifacts": {path.split(run)[1]: digest for path, digest in found["artifacts"].items() if run in path},
        }
    versions = [(name, version, place[run]) for name, version, run, _ in found["versions"]]
    return {**result, "models": (versions, found["aliases"])}


def in_child(work: Callable[[], object], fault: str) -> int:
    """Run `work` in a forked process and return its exit code (negative: the signal that ended it)."""

    def start() -> None:
        os.environ[faults.VARIABLE] = fault
        work()

    process = multiprocessing.get_context("fork").Process(target=start)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_search_becomes_a_tree_of_runs(delivered: Delivered) -> None:
    status = delivered.status
    # The search, its trials, `none` and two confirmed settings, the model, and the report.
    assert (status.delivered, status.pending, status.error, status.warning) == (9, 0, None, None)
    assert [name for _, name in dump(delivered.lab)["experiments"]] == ["Default", "search: quick-bido"]
    found = tree(delivered.lab)
    search, trial = found["search"], found["trial 0"]
    assert search["params"] == {"recipe.epochs": "2", "data.name": "drawn"}
    assert search["tags"]["oakum.search.objectives"] == f"min {LEAK}"
    assert search["tags"]["oakum.search.floors"] == HEADER.floors[0] and search["tags"]["oakum.defense"] == "bido"
    assert search["latest"] == {
        "trials/complete": 2.0, "trials/failed": 1.0, "trials/running": 0.0, "trials/stopped": 0.0,
        "search/best": 0.45,
    }  # fmt: skip
    assert (trial["title"], trial["parent"]) == ("trial 0", "search")
    assert trial["params"] == {"lambda_x": "0.01", "weight_decay": "0.1"}
    assert trial["latest"][LEAK] == pytest.approx(0.55) and trial["latest"][USE] == 0.9
    assert trial["tags"]["oakum.trial.feasible"] == "true" and trial["tags"]["oakum.trial.on_front"] == "false"
    assert found["trial 2"]["tags"]["oakum.trial.on_front"] == "true"
    assert len(trial["tags"]["oakum.stages.train"].split(", ")) == 6
    assert {name: found[name]["status"] for name in ("search", "trial 0", "trial 1", "trial 2")} == {
        "search": "FINISHED", "trial 0": "FINISHED", "trial 1": "FAILED", "trial 2": "FINISHED",
    }  # fmt: skip
    assert found["trial 1"]["tags"]["oakum.trial.error"].endswith("out of memory")


def test_every_seed_and_the_first_ones_curve_are_kept(delivered: Delivered) -> None:
    trial = tree(delivered.lab)["trial 0"]
    seeds = [(step, value) for key, value, _, step in trial["points"] if key == f"seeds/{LEAK}"]
    assert seeds == [(1000, 0.5), (1001, 0.6)]
    first = len("0|1000|bido|train")
    curve = [(step, value, stamp) for key, value, stamp, step in trial["points"] if key == "train/loss"]
    assert curve == [(epoch, first + epoch, int((1.76e9 + epoch) * 1000)) for epoch in range(EPOCHS)]
    assert trial["tags"]["oakum.unresolved"] == "membership/loss/tpr_at_fpr_0.01"


def test_a_second_call_asks_nobody_and_a_lost_ledger_doubles_nothing(
    copied: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dump(copied)
    with monkeypatch.context() as patch:
        patch.setattr(Destination, "probe", lambda self: pytest.fail("asked"))
        assert copied.deliver().delivered == 0
    copied.store.delete_document(copied.ledger)
    assert copied.deliver().delivered == 8
    assert dump(copied) == before


def test_trials_that_change_are_shown_anew_and_the_front_moves(copied: Lab) -> None:
    copied.running(3)
    # The search and trial 3.
    assert copied.deliver().delivered == 2
    found = tree(copied)
    assert found["trial 3"]["status"] == found["search"]["status"] == "RUNNING"
    assert found["search"]["latest"]["trials/running"] == 1.0
    copied.trial(1, 0.6)
    copied.trial(3, 0.3)
    # The search, trial 1, which had failed, trial 3, and trial 2, which it beats.
    assert copied.deliver().delivered == 4
    found = tree(copied)
    assert {found[name]["status"] for name in ("trial 1", "trial 3", "search")} == {"FINISHED"}
    assert "oakum.trial.error" not in found["trial 1"]["tags"]
    on_front = [found[f"trial {number}"]["tags"]["oakum.trial.on_front"] for number in range(4)]
    assert on_front == ["false", "false", "false", "true"]
    best = [(step, value) for key, value, _, step in found["search"]["points"] if key == "search/best"]
    assert sorted(best) == [(0, 0.55), (1, 0.55), (2, 0.45), (3, 0.35)]
    assert found["search"]["latest"]["trials/running"] == 0.0


def test_values_of_a_lower_rung_have_names_of_their_own(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(header=replace(HEADER, rungs=({"recipe.epochs": 1},)))
    lab.trial(0, 0.5, state="stopped")
    lab.trial(1, 0.4, rung=1)
    lab.deliver()
    found = tree(lab)
    assert found["trial 0"]["status"] == "FINISHED" and found["trial 0"]["latest"][f"rung_0/{USE}"] == 0.9
    assert LEAK not in found["trial 0"]["latest"] and LEAK in found["trial 1"]["latest"]


def test_a_member_of_a_population_shows_its_last_phase_and_its_schedule(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(header=replace(HEADER, population=2, generations=(2, 4)))
    changed = {"defense.lambda_x": 0.05, "recipe.weight_decay": 0.1}
    lab.trial(0, 0.5, state="stopped")
    lab.trial(1, 0.4, state="stopped")
    lab.trial(2, 0.4, parent=1, point=changed)
    lab.trial(3, 0.3, parent=1, point=lab.log.trials()[1].point)
    lab.deliver()
    found = tree(lab)
    assert found["trial 0"]["latest"][f"generation_0/{USE}"] == 0.9 and LEAK not in found["trial 0"]["latest"]
    assert LEAK in found["trial 2"]["latest"] and found["trial 2"]["params"]["lambda_x"] == "0.05"
    begun = {"lambda_x": 0.02, "weight_decay": 0.1}
    assert json.loads(found["trial 2"]["params"]["schedule"]) == {"0": begun, "2": {"lambda_x": 0.05}}
    assert "schedule" not in found["trial 3"]["params"] | found["trial 1"]["params"]


def test_a_weighted_objective_is_a_metric_of_its_own(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(header=replace(HEADER, objectives=(f"min 0.5*{LEAK} + 2*membership/lira/auc", f"max {USE}")))
    lab.trial(0, 0.5, values=(0.7, 0.9))
    lab.deliver()
    latest = tree(lab)["trial 0"]["latest"]
    assert latest["objective/1"] == 0.7 and "objective/2" not in latest
    assert tree(lab)["search"]["latest"]["search/hypervolume"] == pytest.approx(0.3 * 0.9)


def test_sweeps_leave_a_searchs_runs_alone(copied: Lab) -> None:
    copied.running(3)
    copied.deliver()
    before = dump(copied)
    destination = Destination.of(copied.home)
    for own in (None, "KILLED"):
        Runs(copied.client(), destination).sweep(["search: quick-bido"], own=own)
    assert dump(copied) == before


def test_two_deliveries_at_once_make_one_tree(lab: Lab) -> None:
    lab.confirm("first", {0: 0.3})
    both = [threading.Thread(target=lab.deliver) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    # `tree` refuses two runs that stand for the same.
    assert len(tree(lab)["models"][0]) == 1 and lab.deliver().delivered == 0


def test_a_call_that_waited_for_another_shows_the_newest_records(copied: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(_: Destination) -> None:
        monkeypatch.undo()
        copied.trial(3, 0.3)
        assert copied.deliver().delivered == 3

    copied.running(3)
    monkeypatch.setattr(Destination, "probe", overtaken)
    assert copied.deliver().delivered == 0
    assert tree(copied)["trial 3"]["status"] == "FINISHED"


@pytest.mark.faults
# The second write makes the search's run. The last ones are the registered model, its version, its alias, the report.
@pytest.mark.parametrize("place", [2, -2])
def test_killed_anywhere_in_a_delivery_loses_and_doubles_nothing(
    delivered: Delivered, make_lab: Callable[..., Lab], place: int
) -> None:
    assert delivered.writes > 40
    home = make_lab().home
    shutil.rmtree(home / "store")
    shutil.copytree(delivered.lab.home / "store", home / "store")
    lab = Lab(home, Store.open(home / "store"))
    write = place % delivered.writes
    assert in_child(partial(lab.deliver, delivered.report), f"tracking.after_write:{write}") == -signal.SIGKILL
    assert lab.deliver(delivered.report).warning is None
    assert tree(lab) == tree(delivered.lab)


def test_a_server_that_is_away_is_told_and_made_up_for(lab: Lab) -> None:
    status = lab.deliver(uri=closed_port())
    assert (status.delivered, status.pending) == (0, 2)
    assert status.warning is not None and "does not answer" in status.warning and "oakum sync" in status.warning
    assert lab.deliver().delivered == 2


def test_a_server_that_goes_away_in_between_is_not_asked_again(copied: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: Destination) -> None:
        raise ConnectionError("gone")

    def lose(*_: object) -> None:
        monkeypatch.setattr(Destination, "probe", away)
        raise OSError("connection reset")

    copied.running(3)
    copied.running(4)
    monkeypatch.setattr(SearchRuns, "below", lose)
    status = copied.deliver()
    # The search arrived before.
    assert (status.delivered, status.pending) == (1, 2) and status.error == "ConnectionError: gone"
    monkeypatch.undo()
    assert copied.deliver().delivered == 2


def test_what_is_wrong_with_one_trial_holds_up_no_other(copied: Lab) -> None:
    copied.store.put_document(f"searches/{HEADER.key}/trials/000003", {"number": 3})
    damaged = copied.trial(4, 0.3)
    copied.running(5)
    manifest = copied.store.manifest("train", damaged.stages[2].key)
    assert manifest is not None
    history = copied.home / "store" / manifest.object_path("history.json")
    history.chmod(0o600)
    history.write_text("{}")
    status = copied.deliver()
    # The search, trial 5, and trial 2, which trial 4 beats; trials 3 and 4 wait.
    assert (status.delivered, status.pending) == (3, 2)
    assert status.error is not None and "trials/000003" in status.error
    assert tree(copied)["trial 5"]["status"] == "RUNNING"
    assert copied.deliver().pending == 2


@pytest.mark.parametrize("document", ["header", "confirmation"])
def test_an_unreadable_document_is_told(copied: Lab, document: str) -> None:
    copied.running(3)
    copied.store.put_document(f"searches/{HEADER.key}/{document}", {"schema": 99})
    status = copied.deliver()
    assert status.pending == 1 and status.error is not None
    assert status.delivered == (0 if document == "header" else 2)


def test_files_are_uploaded_when_they_change(copied: Lab) -> None:
    page, missing = copied.home / "search.html", copied.home / "gone.png"
    assert copied.deliver(page).delivered == 0
    page.write_text("<p>repaid</p>")
    status = copied.deliver(page, missing)
    assert (status.delivered, status.pending) == (1, 1) and "gone.png" in (status.error or "")
    artifacts = tree(copied)["search"]["artifacts"]
    assert artifacts["/artifacts/report/search.html"] == sha256_hex(b"<p>repaid</p>")


def test_a_confirmed_setting_is_registered_with_its_card(delivered: Delivered) -> None:
    from mlflow.artifacts import download_artifacts

    lab = delivered.lab
    found, plan = tree(lab), sha256_hex(b"first")
    owner = f"confirmed {plan}|trial-2"
    run = found[owner]
    assert run["title"] == "confirmed trial-2" and run["params"]["lambda_x"] == "0.03"
    assert run["latest"][LEAK] == pytest.approx(0.25) and run["latest"][f"seeds/{LEAK}"] == pytest.approx(0.3)
    assert found[f"confirmed {plan}|none"]["latest"]["utility/test_accuracy"] == 0.9
    assert found["search"]["tags"]["oakum.search.recommended"] == "trial-2"
    assert found["models"] == ([("quick-bido", 1, owner)], [("quick-bido", "recommended", 1)])
    version = lab.client().get_model_version_by_alias("quick-bido", "recommended")
    folder = Path(download_artifacts(version.source))
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "leakage_card.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"first|trial-2|0"
    card = json.loads((folder / "leakage_card.json").read_text())
    assert card["objectives"] == {f"min {LEAK}": {"mean": 0.25, "seeds": {"0": 0.2, "1": pytest.approx(0.3)}}}
    assert card["floors"] == {"utility/test_accuracy >= none - 0.05": {"missed_by": {"0": 0.0, "1": 0.0}}}
    assert (card["setting"], card["trial"], card["front_probability"]) == ("trial-2", 2, 0.7)
    assert card["metrics"][LEAK]["1"]["value"] == pytest.approx(0.3) and card["none"][LEAK]["0"]["value"] == 0.8
    assert card["data"]["digest"] == "d" * 64 and card["code"]["commit"] == "c" * 40
    assert card["weights"]["sha256"] == sha256_hex(b"first|trial-2|0") and card["weights"]["seed"] == 0
    assert "bob" not in json.dumps(card)


def test_another_confirmation_adds_a_version_and_moves_the_alias(copied: Lab) -> None:
    first = copied.log.confirmation()
    assert first is not None
    second = copied.confirm("second", {0: 0.3})
    copied.deliver()
    versions, aliases = tree(copied)["models"]
    assert [version for _, version, _ in versions] == [1, 2] and aliases == [("quick-bido", "recommended", 2)]
    assert versions[1][2] == f"confirmed {second.plan_key}|trial-0"
    copied.log.put_confirmation(first)
    copied.deliver()
    assert tree(copied)["models"] == (versions, [("quick-bido", "recommended", 1)])
    copied.confirm("third", {0: 0.3}, use=0.5)
    copied.deliver()
    assert tree(copied)["models"] == (versions, [])
    assert "oakum.search.recommended" not in tree(copied)["search"]["tags"]


def test_weights_that_are_gone_are_told(lab: Lab) -> None:
    confirmation = lab.confirm("first", {0: 0.3})
    stage = confirmation.record.cells[2].stages["target.clean"]
    lab.store.set_aside(stage.kind, stage.key, "a test")
    status = lab.deliver()
    assert status.pending == 1 and "run the search again" in (status.error or "")
    assert tree(lab)["models"] == ([], [])


def test_the_readme_says_how_to_load_the_model(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import save

    from oakum.pipeline.context import build_network

    torch.manual_seed(0)
    network = build_network(NETWORK).eval()
    lab.confirm("first", {0: 0.3}, weights=save(dict(network.state_dict())))
    assert lab.deliver().warning is None
    folder = next((lab.home / "mlflow" / "artifacts").rglob("leakage_card.json")).parent
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(names["model"](x), network(x))


def record_of(lab: Lab) -> SearchRecord:
    return lab.log.record()


def test_the_recommended_setting_keeps_the_floors_under_every_seed(lab: Lab) -> None:
    assert recommended(record_of(lab)) is None
    confirmation = lab.confirm("first", {0: 0.3, 1: 0.1, 2: 0.3})
    cells = list(confirmation.record.cells)
    # Trial 1 is the best, but one seed of it misses the floor; of equals, trial 2 is the likelier on the front.
    place = next(place for place, cell in enumerate(cells) if cell.setting == "trial-1" and cell.seed == 1)
    cells[place] = replace(cells[place], metrics={**cells[place].metrics, "utility/test_accuracy": MetricValue(0.84)})
    lab.log.put_confirmation(replace(confirmation, record=replace(confirmation.record, cells=tuple(cells))))
    assert recommended(record_of(lab)) == "trial-2"
    missed = leakage_card(record_of(lab), "trial-1")["floors"]["utility/test_accuracy >= none - 0.05"]["missed_by"]
    assert missed == {0: 0.0, 1: pytest.approx(0.01)}
    cells = [replace(cell, metrics={LEAK: MetricValue(None)}) for cell in cells]
    lab.log.put_confirmation(replace(confirmation, record=replace(confirmation.record, cells=tuple(cells))))
    assert recommended(record_of(lab)) is None


def test_a_card_needs_a_confirmation(lab: Lab) -> None:
    with pytest.raises(ValueError, match="was not confirmed"):
        leakage_card(record_of(lab), "trial-0")


def test_parameters_have_short_names_unless_two_end_alike() -> None:
    space = {"defense.a": {}, "grid": [{"defense.b": 1, "recipe.b": 2}], "fixed": {"recipe.c": 1}, "defense": "x"}
    trial = TrialRecord(0, {"model.dropout.rate": 0.1}, "tpe", "complete")
    assert parameter_names(SearchRecord(replace(HEADER, space=space), (trial,))) == {
        "defense.a": "a", "defense.b": "defense.b", "recipe.b": "recipe.b", "recipe.c": "c",
        "model.dropout.rate": "rate",
    }  # fmt: skip


def test_the_curve_of_a_search_ends_before_what_still_runs() -> None:
    def trial(number: int, *values: float, missed: float = 0.0, state: Any = "complete") -> TrialRecord:
        return TrialRecord(number, {}, "tpe", state, values=values or None, violations=(missed,))

    leak, knn = parse_objective("min inversion/gmi/top1"), parse_objective("max inversion/gmi/knn")
    single = [
        trial(0, 0.1, missed=0.2),
        trial(1, 0.5),
        trial(2, state="failed"),
        trial(3, 0.4),
        trial(4, state="running"),
    ]
    assert progress([leak], [*single, trial(5, 0.2)]) == [
        {"step": 1, "search/best": 0.5}, {"step": 2, "search/best": 0.5}, {"step": 3, "search/best": 0.4},
    ]  # fmt: skip
    trials = [trial(0, 0.5, 10.0), trial(1, 0.8, 20.0), trial(2, 0.9, 5.0)]
    several = progress([leak, knn], trials)
    assert [row["search/hypervolume"] for row in several] == pytest.approx([5.0, 7.0, 7.0])
    # What was logged stays true, whatever follows.
    assert progress([leak, knn], trials[:2]) == several[:2]
    assert progress([leak], [trial(1, 0.5)]) == progress([leak], []) == []
