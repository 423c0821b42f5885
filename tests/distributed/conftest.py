"""One Ray of this machine for all tests of this folder, and ways to lose its processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from oakum import session
from oakum.pipeline.executor import Ledger
from oakum.pipeline.stage import WorkerSettings
from oakum.session import Home, RunOptions, RunResult

RAY_VARIABLES = {name for name in os.environ if name.startswith("RAY_")}


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """Ray with two CPUs, whatever the machine has and whatever cluster the user's shell names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in RAY_VARIABLES:
            patch.delenv(name)
        patch.setenv("OMP_NUM_THREADS", "1")
        from oakum.distributed.cluster import start_ray, stop_ray

        start_ray(cpus=2)
        yield
        stop_ray()
        for name in {name for name in os.environ if name.startswith("RAY_")} - RAY_VARIABLES:
            del os.environ[name]


class Kept:
    """An executor on the tests' Ray, which outlives a run."""

    def __init__(self) -> None:
        from oakum.distributed.on_ray import OnRay

        self._executor = OnRay()

    def run(self, ledger: Ledger, settings: WorkerSettings) -> None:
        self._executor.run(ledger, settings)

    def close(self) -> None:
        pass


@pytest.fixture
def run_on_ray(own_ray: None, own_environment: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    """Run an experiment on the tests' Ray, without tracking."""
    own_environment.setattr(session, "_start_executor", lambda options: Kept())

    def run(file: Path, home: Home, checkpoint_seconds: float = 20.0) -> RunResult:
        options = RunOptions(file, track=False, quiet=True, checkpoint_seconds=checkpoint_seconds)
        return session.run(options, home)

    return run


@pytest.fixture
def run_serially(own_environment: pytest.MonkeyPatch) -> Callable[[Path, Home], RunResult]:
    """Run an experiment in this process, without tracking."""
    return lambda file, home: session.run(RunOptions(file, executor="serial", track=False, quiet=True), home)


class Killer(threading.Thread):
    """Kills one worker of the tests' Ray, once the store holds a checkpoint of an unfinished training.

    Attributes:
        killed_at: unix time, or None if no worker was met.
    """

    def __init__(self, title: str, home: Home) -> None:
        super().__init__(daemon=True)
        self.killed_at: float | None = None
        self._title = title
        self._work = Path(home.store_uri) / "work"

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if any(self._work.rglob("*.json")):
                for process in psutil.Process().children(recursive=True):
                    if title_of(process).startswith(self._title):
                        self.killed_at = time.time()
                        process.kill()
                        return
            time.sleep(0.02)


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@pytest.fixture
def kill_worker() -> Callable[[str, Home], Killer]:
    """Start to wait for a worker whose process title begins so; it is killed at its first checkpoint."""

    def start(title: str, home: Home) -> Killer:
        killer = Killer(title, home)
        killer.start()
        return killer

    return start
