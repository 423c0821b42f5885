"""A tiny experiment on 8x8 digits, a home with its finished run, and ways to give commands to oakum."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum import cli, faults, session
from oakum.datasets.base import prepare
from oakum.pipeline.collect import collect
from oakum.records import RunRecord
from oakum.session import Home, RunOptions
from oakum.store import Store
from oakum.tracking_destination import Destination

PLATFORM = Path(__file__).parent.parent / "platform"
_OWN_ENVIRONMENT = {"OAKUM_STORE", "MLFLOW_TRACKING_URI", faults.VARIABLE}
_QUIET_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}
_TINY = """
name: tiny
data: {name: digits}
folds:
  private_classes: [0, 1, 2, 3, 4]
  rules:
    - from: {classes: [0, 1, 2, 3, 4]}
      take: {evaluation: 100, canary: 60, train: 100, test: 120, val: 40}
    - from: {classes: [5, 6, 7, 8, 9]}
      take: {evaluation: 100, public: 200}
model: {name: small_cnn, width: 4}
recipe: {learning_rate: 1.0e-2, epochs: 3, batch_size: 16}
settings: {none: none, relaxloss: {name: relaxloss, alpha: 1.2}}
seeds: [0]
canaries: {fold: canary}
evaluation: {model: {name: strided_cnn, width: 2, hidden: 8}, recipe: {epochs: 1}}
priors:
  wgan_gp:
    method: {width: 2, latent_size: 4, critic_updates: 4, critic_per_generator: 2, batch_size: 8}
attacks:
  membership: [loss, entropy]
  inversion: [{name: gmi, iterations: 2, restarts: 2}]
"""
# Runs in a process that was forked from one which holds these modules already: importing them takes seconds.
_PRELOADED = [
    "oakum.attacks.inversion.gmi",
    "oakum.defenses.relaxloss",
    "oakum.models.strided_cnn",
    "oakum.pipeline.stages.judge",
    "oakum.pipeline.stages.membership",
    "oakum.pipeline.stages.prior",
    "oakum.pipeline.stages.train",
    "oakum.report.html",
    "oakum.session",
    "matplotlib.backends.backend_agg",
    "matplotlib.mathtext",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking.client",
    "torch._dynamo",
]
# A shell gives its background jobs an ignored SIGINT, which the tests' own processes would inherit.
_COMMAND = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in removed:
    os.environ.pop(name, None)
os.environ.update(environment)
for number, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
exec(before)
from oakum.cli import main
sys.exit(main(arguments))
"""


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Finished:
    """A finished and tracked run; nobody may change its home."""

    home: Home
    file: Path
    record: RunRecord


@dataclass(frozen=True)
class FinishedAgain:
    """A finished run and what came of the second one in the same home."""

    first: Finished
    second: session.RunResult


class Command:
    """A command in a process of its own."""

    def __init__(self, process: ForkServerProcess, out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def err(self) -> str:
        """What it wrote to standard error so far."""
        return self._err.read_text() if self._err.exists() else ""

    def answer(self) -> Answer:
        """Wait for its end; the code of a killed process is the negative signal."""
        self.process.join(180)
        assert self.process.exitcode is not None, f"still running: {self.err}"
        return Answer(self.process.exitcode, self._out.read_text(), self.err)


def _home(folder: Path) -> Home:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Home(folder, str(folder / "store"))


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The tiny experiment as plain data, to be changed at will."""
    return _tiny()


def _tiny() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(_TINY)
    return data


@pytest.fixture
def short() -> dict[str, Any]:
    """Three stages: one training, its answers, one membership attack."""
    return _short()


def _short() -> dict[str, Any]:
    data = _tiny()
    for name in ("evaluation", "priors", "canaries"):
        del data[name]
    return {**data, "name": "short", "settings": {"none": "none"}, "attacks": {"membership": ["loss"]}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write an experiment's YAML and return its path."""

    def write_experiment(data: dict[str, Any]) -> Path:
        file = tmp_path / f"{data.get('name', 'experiment')}.yaml"
        file.write_text(yaml.safe_dump(data, sort_keys=False))
        return file

    return write_experiment


@pytest.fixture(scope="session")
def prepared_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data home with the prepared digits."""
    data_home = tmp_path_factory.mktemp("prepared") / "data"
    prepare("digits", data_home)
    return data_home


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without any run: copying it saves the migrations."""
    home = tmp_path_factory.mktemp("empty")
    destination = Destination.of(home, f"sqlite:///{home}/mlflow/mlflow.db")
    destination.prepare()
    assert destination.database is not None
    return destination.database


@pytest.fixture
def make_home(tmp_path: Path, prepared_digits: Path, empty_mlflow: Path) -> Callable[..., Home]:
    """Return homes with prepared digits and nothing stored."""

    def make(name: str = "home") -> Home:
        return _new_home(tmp_path / name, prepared_digits, empty_mlflow)

    return make


def _new_home(folder: Path, data: Path, database: Path) -> Home:
    home = _home(folder)
    shutil.copytree(data, home.data)
    (folder / "mlflow").mkdir()
    shutil.copy(database, folder / "mlflow" / "mlflow.db")
    return home


@pytest.fixture
def home(make_home: Callable[..., Home]) -> Home:
    return make_home()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, prepared_digits: Path, empty_mlflow: Path) -> Finished:
    """The tiny experiment after an undisturbed run."""
    return _finish(tmp_path_factory.mktemp("finished"), _tiny(), prepared_digits, empty_mlflow)


@pytest.fixture(scope="session")
def finished_short(tmp_path_factory: pytest.TempPathFactory, prepared_digits: Path, empty_mlflow: Path) -> Finished:
    """The short experiment after an undisturbed run."""
    return _finish(tmp_path_factory.mktemp("short"), _short(), prepared_digits, empty_mlflow)


def _finish(folder: Path, data: dict[str, Any], prepared: Path, database: Path) -> Finished:
    home = _new_home(folder / "home", prepared, database)
    file = folder / f"{data['name']}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        for name in _OWN_ENVIRONMENT:
            patch.delenv(name, raising=False)
        for name, value in _QUIET_ENVIRONMENT.items():
            patch.setenv(name, value)
        result = session.run(RunOptions(file, executor="serial", quiet=True), home)
    assert not result.failures and not result.skipped
    return Finished(home, file, result.record)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """A copy of the finished run to be damaged; it was never tracked."""
    return _copy(finished, tmp_path / "copied")


@pytest.fixture(scope="session")
def finished_again(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> FinishedAgain:
    """A copy of the finished run after a second one with another number of restarts; nobody may change its home."""
    first = _copy(finished, tmp_path_factory.mktemp("again") / "home")
    options = RunOptions(first.file, ["attacks.inversion.0.restarts=1"], executor="serial", track=False, quiet=True)
    return FinishedAgain(first, session.run(options, first.home))


def _copy(run: Finished, folder: Path) -> Finished:
    shutil.copytree(run.home.folder, folder, ignore=shutil.ignore_patterns("mlflow", "delivered", "outbox"))
    return replace(run, home=_home(folder))


@pytest.fixture(scope="session", autouse=True)
def _own_cache_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies of payloads from buckets stay in the tests' own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OAKUM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of the user's settings reaches oakum."""
    for name in _OWN_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in _QUIET_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def oakum(own_environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Answer]]:
    """Give a command in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def command(*arguments: object, home: Home) -> Answer:
        own_environment.setenv("OAKUM_HOME", str(home.folder))
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    yield command
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def _forkserver() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


@pytest.fixture
def start(
    _forkserver: multiprocessing.context.ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Command]]:
    """Give a command in a process of its own, after the statements `before`, and do not wait for it."""
    started: list[Command] = []
    for name, value in {**_QUIET_ENVIRONMENT, "PYTHONPATH": str(PLATFORM), "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: object, home: Home, before: str = "", **environment: str) -> Command:
        number = len(started)
        out, err = tmp_path / f"{number}.out", tmp_path / f"{number}.err"
        names = {
            "arguments": [str(argument) for argument in arguments],
            "removed": sorted(_OWN_ENVIRONMENT),
            "environment": {**_QUIET_ENVIRONMENT, "OAKUM_HOME": str(home.folder), **environment},
            "before": before,
            "out": str(out),
            "err": str(err),
        }
        process = _forkserver.Process(target=exec, args=(_COMMAND, names))
        process.start()
        started.append(Command(process, out, err))
        return started[-1]

    yield command
    for each in started:
        if each.process.is_alive():
            each.process.kill()
        each.process.join()


@pytest.fixture(scope="session")
def record_of() -> Callable[[Home, str], RunRecord]:
    return _record_of


def _record_of(home: Home, name: str) -> RunRecord:
    """Return what the store holds of the only plan of an experiment."""
    store = Store.open(home.store_uri)
    plans = [store.get_document(document) for document in store.list_documents("plans")]
    (plan,) = [plan for plan in plans if plan is not None and plan["name"] == name]
    return collect(plan["skeleton"], store)


@pytest.fixture(scope="session")
def numbers() -> Callable[[RunRecord], dict[tuple[str, ...], Any]]:
    return _numbers


def _numbers(record: RunRecord) -> dict[tuple[str, ...], Any]:
    """Return every number of a record but those that measure time."""
    cells = {
        (cell.setting, str(cell.seed), name): value.to_json()
        for cell in record.cells
        for name, value in cell.metrics.items()
        if not name.startswith("cost/")
    }
    shared = {
        ("shared", item.role, name): value.to_json() for item in record.shared for name, value in item.metrics.items()
    }
    return {**cells, **shared}


@pytest.fixture(scope="session")
def model_bytes() -> Callable[[Home, RunRecord], dict[tuple[str, int, str], bytes]]:
    return _model_bytes


def _model_bytes(home: Home, record: RunRecord) -> dict[tuple[str, int, str], bytes]:
    """Return the bytes of every target model, by (setting, seed, role)."""
    store = Store.open(home.store_uri)
    found = {}
    for cell in record.cells:
        for role, ref in cell.stages.items():
            if ref.kind == "train":
                manifest = store.manifest(ref.kind, ref.key)
                assert manifest is not None
                found[cell.setting, cell.seed, role] = store.read(manifest, "model.safetensors")
    return found


@pytest.fixture(scope="session")
def tracked() -> Callable[[Home], dict[tuple[str, str], list[tuple[str, float, int]]]]:
    return _tracked


def _tracked(home: Home) -> dict[tuple[str, str], list[tuple[str, float, int]]]:
    """Return MLflow's points (metric, value, step) by the (level, owner) of their run; times are left out."""
    query = """
        SELECT level.value, coalesce(owner.value, ''), metrics.key, metrics.value, metrics.step FROM runs
        JOIN tags level ON level.run_uuid = runs.run_uuid AND level.key = 'oakum.level'
        LEFT JOIN tags owner ON owner.run_uuid = runs.run_uuid AND owner.key = 'oakum.owner'
        LEFT JOIN metrics ON metrics.run_uuid = runs.run_uuid
        WHERE runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
    """
    found: dict[tuple[str, str], list[tuple[str, float, int]]] = {}
    with closing(sqlite3.connect(home.folder / "mlflow" / "mlflow.db")) as connection:
        for level, owner, key, value, step in connection.execute(query):
            points = found.setdefault((level, owner), [])
            if key is not None and not key.startswith("cost/") and not key.endswith("seconds"):
                points.append((key, value, step))
    return {place: sorted(points) for place, points in found.items()}
