"""One Ray of this machine for all tests of this folder, a cluster of nodes, and ways to lose their processes."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from oakum import session
from oakum.pipeline.executor import Ledger
from oakum.pipeline.stage import WorkerSettings
from oakum.session import Home, RunOptions, RunResult

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
STARTING_SECONDS = 120.0
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

    def concurrency(self) -> int:
        return self._executor.concurrency()

    def close(self) -> None:
        pass


@pytest.fixture
def on_kept_ray(own_ray: None, own_environment: pytest.MonkeyPatch) -> None:
    """Whatever asks for Ray gets the tests' own."""
    start = session._start_executor
    own_environment.setattr(
        session, "_start_executor", lambda options: Kept() if options.executor == "ray" else start(options)
    )


@pytest.fixture
def run_on_ray(on_kept_ray: None) -> Callable[..., RunResult]:
    """Run an experiment on the tests' Ray, without tracking."""

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


class Job:
    """`ray job submit`, which ends when the job does."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def printed(self) -> str:
        return self._log.read_text()


class Cluster:
    """Nodes on this machine, with ports, a folder and a token of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._port, self._dashboard = free_ports(2)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self._dashboard}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        for name in ("PYTHONPATH", "OAKUM_HOME", "OAKUM_STORE"):
            self.environment.pop(name, None)

    def start_head(self) -> None:
        (client,) = free_ports(1)
        self._start(
            "--head",
            f"--port={self._port}",
            f"--dashboard-port={self._dashboard}",
            f"--ray-client-server-port={client}",
        )
        self._wait(lambda: self.answer("/api/jobs/", self.environment["RAY_AUTH_TOKEN"]) == 200)

    def add_node(self) -> None:
        self._start(f"--address=127.0.0.1:{self._port}")
        self._wait(lambda: self._log().count("Ray runtime started") == len(self._nodes))

    def unpacked_packages(self, node: int) -> int:
        """Return how many jobs' working directories a node has."""
        folders = (self._folder / str(node) / "session_latest" / "runtime_resources" / "working_dir_files").iterdir()
        return sum(folder.is_dir() for folder in folders)

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STARTING_SECONDS
        while not is_ready():
            assert self._nodes[-1].poll() is None and time.monotonic() < deadline, self._log()
            time.sleep(0.2)

    def _start(self, *options: str) -> None:
        (agent,) = free_ports(1)
        common = ["--num-cpus=1", "--object-store-memory=100000000", f"--dashboard-agent-listen-port={agent}"]
        # Nodes that shared a folder would unpack a job into the same place, each removing what the other did.
        common.append(f"--temp-dir={self._folder / str(len(self._nodes))}")
        with (self._folder / "start.log").open("ab") as log:
            node = subprocess.Popen(
                [str(RAY), "start", "--block", "--min-worker-port=0", "--max-worker-port=0", *common, *options],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._nodes.append(node)

    def _log(self) -> str:
        return (self._folder / "start.log").read_text()

    def answer(self, path: str, token: str = "") -> int:
        """Return the dashboard's HTTP status, or 0 when nobody listens."""
        request = urllib.request.Request(self.environment["RAY_API_SERVER_ADDRESS"] + path)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def have_nodes(self, count: int) -> None:
        """Add nodes until there are so many."""
        while sum(node.poll() is None for node in self._nodes) < count:
            self.add_node()

    def lose_node(self) -> None:
        """Kill every process of the newest node, as a power cut would."""
        node = next(node for node in reversed(self._nodes[1:]) if node.poll() is None)
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            process.kill()
        node.wait()

    def start_job(self, checkout: Path, home: Home, script: str, *arguments: str) -> Job:
        """Submit a job as the documentation says, without waiting for its end."""
        command = [str(RAY), "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--"]
        command += ["env", f"OAKUM_HOME={home.folder}", "python", f"jobs/{script}", *arguments, "--no-tracking"]
        return Job(command, checkout, self.environment, self._folder / "job.log")

    def submit(self, checkout: Path, home: Home, script: str, *arguments: str) -> str:
        """Submit a job, wait for its end, and return what was printed."""
        job = self.start_job(checkout, home, script, *arguments)
        assert job.wait(300) == 0, job.printed()
        return job.printed()

    def stop(self) -> None:
        family = [psutil.Process(node.pid) for node in self._nodes if node.poll() is None]
        family += [child for node in family for child in node.children(recursive=True)]
        for node in self._nodes:
            node.terminate()
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        for node in self._nodes:
            node.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: the paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="oakum-ray-"))
    cluster = Cluster(folder)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A copy of what a job needs, with a tiny experiment that git knows."""
    folder = tmp_path / "checkout"
    for name in ("platform", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (folder / "jobs" / "experiments" / "tiny.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    return folder
