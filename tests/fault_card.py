"""A pytest plugin that writes a card of the fault tests: what was done to a run, and whether it survived.

    python -m pytest -m faults -p tests.fault_card --fault-card benchmarks/results/faults.json

`python -m` puts the checkout on the path, where the folder `tests` is importable without being a package.

A test is part of the card when its marker names a row, `@pytest.mark.faults(row="a full disk")`. A row counts as passed
when each of its tests ran and passed: one that was skipped did not. Seconds are those of the tests themselves, without
their fixtures.
"""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROWS = (
    "kill -9 of a training worker",
    "kill -9 of an attack task",
    "kill -9 of the driver",
    "an exception in the tracking thread",
    "a node lost and another added",
    "a store that fails at random",
    "a tracking server away for a while",
    "a driver whose clock is off by an hour",
    "two drivers of one experiment at the same time",
    "out of memory",
    "SIGTERM and Ctrl-C",
    "a full disk",
    "a damaged entry",
)


class FaultCard:
    """Listens to a session and writes its card at the end."""

    def __init__(self, file: Path) -> None:
        """Nothing is written before the tests have run."""
        self._file = file
        self._tests: dict[str, list[str]] = defaultdict(list)
        self._passed: set[str] = set()
        self._failed: set[str] = set()
        self._seconds: dict[str, float] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Sort the chosen tests into rows.

        Raises:
            pytest.UsageError: a row has no test, or a test names a row that the card does not have.
        """
        for item in session.items:
            for row in rows_of(item):
                self._tests[row].append(item.nodeid)
        problems = [f"no test for {row!r}" for row in ROWS if row not in self._tests]
        problems += [f"{self._tests[row][0]} is of no known row: {row!r}" for row in self._tests if row not in ROWS]
        if problems:
            raise pytest.UsageError("the fault card cannot be written: " + "; ".join(problems))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._failed.add(report.nodeid)
        elif report.when == "call":
            self._passed.add(report.nodeid)
        if report.when == "call":
            self._seconds[report.nodeid] = report.duration

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._seconds and exitstatus != pytest.ExitCode.USAGE_ERROR:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._card(), indent=1) + "\n")

    def _card(self) -> dict[str, Any]:
        return {
            "benchmark": "faults",
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "ray": version("ray"),
            "rows": [self._row(row) for row in ROWS],
        }

    def _row(self, fault: str) -> dict[str, Any]:
        tests = self._tests[fault]
        seconds = sum(self._seconds.get(test, 0.0) for test in tests)
        passed = self._passed.issuperset(tests) and self._failed.isdisjoint(tests)
        return {"fault": fault, "tests": tests, "passed": passed, "seconds": round(seconds, 1)}


def rows_of(item: pytest.Item) -> list[str]:
    """Return the rows that a test's markers name; the marker of a whole file names none."""
    return [marker.kwargs["row"] for marker in item.iter_markers("faults") if "row" in marker.kwargs]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-card", type=Path, metavar="FILE", help="write a card of the fault tests as JSON")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--fault-card")
    if file is not None:
        config.pluginmanager.register(FaultCard(file))
