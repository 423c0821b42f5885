"""The driver with its own Ray: however it ends, its processes end too, and what was stored stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oakum.session import Home, RunResult
from oakum.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.faults(row="kill -9 of the driver")]

PLATFORM = Path(__file__).parents[2] / "platform"
SECONDS_TO_DIE = 10.0


class Driver:
    """`oakum run` in a process of its own, which starts its own Ray."""

    def __init__(self, file: Path, home: Home) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"OAKUM_HOME": str(home.folder), "PYTHONPATH": str(PLATFORM), "OMP_NUM_THREADS": "1"}
        self._err = home.folder.parent / "driver.err"
        with self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oakum", "run", str(file), "--no-tracking"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        self._store = Store.open(home.store_uri)

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for_models(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self._store.published("train")) < count:
            assert self.process.poll() is None and time.monotonic() < deadline, self.err
            time.sleep(0.05)

    def end_by(self, number: signal.Signals) -> tuple[int, list[str]]:
        """Send a signal; return the exit status and what lives on ten seconds later."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in family)
        self.process.send_signal(number)
        deadline = time.monotonic() + SECONDS_TO_DIE
        status = self.process.wait(SECONDS_TO_DIE)
        _, alive = psutil.wait_procs(family, timeout=max(0.0, deadline - time.monotonic()))
        return status, [str(process) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def drive() -> Iterator[Callable[[Path, Home], Driver]]:
    started: list[Driver] = []

    def start(file: Path, home: Home) -> Driver:
        started.append(Driver(file, home))
        return started[-1]

    yield start
    for driver in started:
        if driver.process.poll() is None:
            driver.process.kill()
        driver.process.wait()


def test_a_driver_that_is_stopped_or_killed_leaves_no_process_and_loses_nothing(
    drive: Callable[[Path, Home], Driver],
    run_serially: Callable[[Path, Home], RunResult],
    finished: Any,
    home: Home,
    numbers: Any,
) -> None:
    stopped = drive(finished.file, home)
    stopped.wait_for_models(1)
    assert stopped.end_by(signal.SIGTERM) == (143, [])
    assert "the same command goes on where this run left off" in stopped.err
    before = len(Store.open(home.store_uri).published("train"))
    killed = drive(finished.file, home)
    killed.wait_for_models(before + 1)
    assert killed.end_by(signal.SIGKILL) == (-signal.SIGKILL, [])
    result = run_serially(finished.file, home)
    assert result.ran < 22 and not result.failures
    assert numbers(result.record) == numbers(finished.record)
