"""Searches through Ray Tune: the trials of one process, whatever happens to the clients that wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from oakum.search.records import SearchRecord
from oakum.session import Home
from oakum.session_search import SearchOptions, search

pytestmark = pytest.mark.ray

TRIALS = 4


@pytest.fixture
def run(
    on_kept_ray: None,
    make_home: Callable[..., Home],
    short: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
) -> Callable[[str], SearchRecord]:
    """Search the short experiment in a home of its own, on the tests' Ray or in this process."""

    space = tmp_path / "relaxloss.yaml"
    space.write_text(yaml.safe_dump({"defense.alpha": {"sampler": "uniform", "low": 0.2, "high": 1.4}}))
    file = write(short)

    def run_search(executor: str) -> SearchRecord:
        options = SearchOptions(
            file, space, ("min membership/loss/auc",), trials=TRIALS, sampler="random", executor=executor,
            confirm=0, repeats=0, track=False,
        )  # fmt: skip
        return search(options, make_home(executor)).record

    return run_search


def trials(record: SearchRecord) -> list[Any]:
    return [(each.number, each.point, each.state, each.values, set(each.stages)) for each in record.trials]


def test_a_search_through_tune_has_the_trials_of_one_process(run: Callable[[str], SearchRecord]) -> None:
    found = run("ray")
    assert [trial.state for trial in found.trials] == ["complete"] * TRIALS
    assert trials(found) == trials(run("serial"))


@pytest.mark.faults
def test_a_client_that_is_killed_hands_its_number_in_again(run: Callable[[str], SearchRecord]) -> None:
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                if "Trainable.train" in title_of(process):
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = run("ray")
    killer.join()
    assert killed, "no client was met"
    assert [trial.state for trial in found.trials] == ["complete"] * TRIALS
    assert trials(found) == trials(run("serial"))


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
