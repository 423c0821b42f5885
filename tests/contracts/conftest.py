"""Settings to try every defense with, and a gang of processes that train together."""

from __future__ import annotations

import multiprocessing
import runpy
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum import registry
from oakum.config import ConfigError, validate

SPACES = Path(__file__).parents[2] / "search_spaces"
WORKER = Path(__file__).parent / "gang_worker.py"
WORKERS = 4
PATIENCE_SECONDS = 120
# Settings that change the cost of a defense and nothing else of what is promised of it.
QUICK = {"selena": {"teachers": 4, "left_out": 2}, "memguard": {"detector_epochs": 10}}


@pytest.fixture(scope="session")
def example() -> Callable[[str], dict[str, Any]]:
    return _example


def _example(name: str) -> dict[str, Any]:
    """Return settings of a defense: its defaults, or the first point of its search space's grid."""
    try:
        validate(registry.load("defenses", name).Config, {}, name)
    except ConfigError:
        point = yaml.safe_load((SPACES / f"{name}.yaml").read_text())["grid"][0]
        return {"name": name, **{key.removeprefix("defense."): value for key, value in point.items()}}
    return {"name": name, **QUICK.get(name, {})}


class Gang:
    """Processes that stay up and train together what they are told to, the first `world_size` of them at a time."""

    def __init__(self, context: multiprocessing.context.BaseContext, folder: Path) -> None:
        self._folder = folder
        self._meetings = 0
        self._workers: list[tuple[Any, Connection]] = []
        for _ in range(WORKERS):
            own, theirs = multiprocessing.Pipe()
            arguments = (str(WORKER), {"connection": theirs}, WORKER.stem)
            process = context.Process(target=runpy.run_path, args=arguments, daemon=True)  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            self._workers.append((process, own))

    def train(self, world_size: int, job: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what every rank made of a job (see `gang_worker.train`)."""
        self._meetings += 1
        group = {"world_size": world_size, "meeting": f"file://{self._folder}/meeting-{self._meetings}"}
        connections = [connection for _, connection in self._workers[:world_size]]
        for rank, connection in enumerate(connections):
            connection.send({**job, **group, "rank": rank})
        answers = []
        for rank, connection in enumerate(connections):
            assert connection.poll(PATIENCE_SECONDS), f"rank {rank} of {world_size} does not answer"
            answers.append(connection.recv())
        failed = [answer for answer in answers if isinstance(answer, str)]
        assert not failed, f"{len(failed)} of {world_size} ranks failed:\n" + "\n".join(failed)
        return answers

    def close(self) -> None:
        for process, connection in self._workers:
            process.kill()
            process.join()
            connection.close()


@pytest.fixture(scope="session")
def gang(_forkserver: multiprocessing.context.BaseContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    started = Gang(_forkserver, tmp_path_factory.mktemp("gang"))
    yield started
    started.close()
