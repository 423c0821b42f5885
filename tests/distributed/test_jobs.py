"""`ray job submit` as docs/jobs.md has it: the uploaded code runs, on one node and on two."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from oakum.pipeline import fingerprint
from oakum.records import RunRecord
from oakum.session import Home
from oakum.store import Store

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
STARTING_SECONDS = 120.0


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

    def submit(self, checkout: Path, home: Home, *arguments: str) -> str:
        """Submit a run as the documentation says, wait for its end, and return what was printed."""
        command = [str(RAY), "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--"]
        command += ["env", f"OAKUM_HOME={home.folder}", "python", "jobs/run.py", *arguments, "--no-tracking"]
        job = subprocess.run(
            command, cwd=checkout, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert job.returncode == 0, job.stdout + job.stderr
        return job.stdout

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


def test_a_job_runs_the_uploaded_code_on_one_node_and_on_two(
    cluster: Cluster,
    checkout: Path,
    make_home: Callable[[str], Home],
    finished: Any,
    numbers: Callable[[RunRecord], Any],
    record_of: Callable[[Home, str], RunRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = []
    for nodes in (1, 2):
        if nodes == 2:
            cluster.add_node()
            with (checkout / "platform" / "oakum" / "__init__.py").open("a") as file:
                file.write("# changed in this copy alone\n")
        home = make_home(f"on-{nodes}")
        printed = cluster.submit(checkout, home, "jobs/experiments/tiny.yaml")
        assert "succeeded" in printed
        assert numbers(record_of(home, "tiny")) == numbers(finished.record)
        entries = Store.open(home.store_uri).entries()
        assert len(entries) == 22
        monkeypatch.setattr(fingerprint, "PACKAGE_FOLDER", checkout / "platform" / "oakum")
        digests.append(fingerprint.package_digest())
        assert {entry.provenance["package"] for entry in entries} == {digests[-1]}
    assert digests[0] != digests[1]
    assert cluster.unpacked_packages(1), "the second node never got the code"


def test_nobody_submits_without_the_token(cluster: Cluster) -> None:
    assert cluster.answer("/api/jobs/") == 401
    assert cluster.answer("/api/jobs/", "0" * 64) in (401, 403)
    assert cluster.answer("/api/jobs/", cluster.environment["RAY_AUTH_TOKEN"]) == 200
