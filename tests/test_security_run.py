"""Secrets stay out of what a run leaves and says, its servers stay on this machine, and hostile labels do no harm."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from oakum.config import ConfigError, hide_credentials, without_credentials
from oakum.session_home import Home
from oakum.store import Store, StoreError
from oakum.tracking import RunHeader, sync, ui_command, where_to_look
from oakum.tracking_destination import Destination, UnreachableError
from oakum.tracking_outbox import Outbox, open_event

ROOT = Path(__file__).parents[1]
PLATFORM = ROOT / "platform"
SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "tracking-token-6b1f0a",
    "MLFLOW_TRACKING_USERNAME": "tracking-user-6b1f0a",
    "MLFLOW_TRACKING_PASSWORD": "tracking-password-6b1f0a",
    "RAY_AUTH_TOKEN": "ray-token-6b1f0a",
    "AWS_ACCESS_KEY_ID": "AKIA6B1F0A6B1F0A6B1F",
    "AWS_SECRET_ACCESS_KEY": "aws-secret/6b1f0a+6b1f0a",
    "AWS_SESSION_TOKEN": "aws-session-6b1f0a",
}
LABELS = ["<script>alert('label')</script>", "../../outside", "/outside", "$\\frac{", "x" * 200]
ADDRESSES = [
    ("s3://AK:hush+hush@bucket/folder?region=eu&secret_key=hush", "s3://bucket/folder"),
    ("s3://AK:hush/hush@bucket/folder", "s3://(not shown"),
    ("s3://AK:hush?hush@bucket", "s3://(not shown"),
    ("s3://AK:hush#hush@bucket", "s3://(not shown"),
    ("s3://AK:12/hush@bucket", "s3://(not shown"),
    ("s3://AK:hush@bucket?endpoint_override=http://AK:hush@host", "s3://(not shown"),
    ("http://user:hush@host:5000/path", "http://host:5000/path"),
    ("http://user:hu@sh:hush@host", "http://host"),
    ("https://hush@host", "https://host"),
    ("http://[hush", "http://(not shown"),
    ("postgresql+psycopg2://host:5432/db?user=me&password=hush", "postgresql+psycopg2://host:5432/db"),
    ("databricks://profile:hush", "databricks://(not shown"),
]


@pytest.mark.parametrize(("uri", "shown"), ADDRESSES)
def test_an_address_is_shown_without_its_credentials(uri: str, shown: str, tmp_path: Path) -> None:
    assert without_credentials(uri).startswith(shown) and "hush" not in without_credentials(uri)
    destination = Destination.of(tmp_path, uri)
    assert destination.shown == without_credentials(uri)
    assert "hush" not in where_to_look(tmp_path, uri)
    assert "hush" not in hide_credentials(f"request to {uri} failed: {uri!r}", uri)


def test_what_has_no_credentials_is_shown_as_it_is() -> None:
    plain = (
        "/home/me/store",
        "s3://bucket/a folder",
        "http://mlflow:5000",
        "http://[::1]:5000/x",
        "file:///a/b",
        "mock:///",
    )
    for uri in plain:
        assert without_credentials(uri) == uri == hide_credentials(uri, uri)


def test_a_library_that_repeats_a_password_is_not_quoted() -> None:
    uri = "postgresql://me:p%40ss%2Fword@db/mlflow?sslpassword=other-secret"
    said = "FATAL: p@ss/word (p%40ss%2Fword) of postgresql://me:p%40ss%2Fword@db; other-secret; http://a:b@db"
    assert hide_credentials(said, uri) == "FATAL: *** (***) of postgresql://db; ***; http://db"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AK:hush/hush@bucket/x",
        "s3://AK:hush@bucket/x?bogus=1",
        "s3://AK:hush@bucket/x?region=a b",
        "s3://AK:hush@bucket/\n",
        "s3://[hush",
        "file://me:hush@host/x",
        "file://[hush/x",
        "nothing://AK:hu/sh:hush@x",
        "file:///tmp/%00",
    ],
)
def test_a_store_that_cannot_be_opened_keeps_its_secret(uri: str) -> None:
    with pytest.raises((ConfigError, StoreError)) as caught:
        Store.open(uri)
    assert "hush" not in str(caught.value) and str(caught.value).isprintable()
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)


def test_the_doctor_does_not_tell_the_credentials_of_the_store(tmp_path: Path) -> None:
    from oakum import doctor

    good, text = doctor._store(Home(tmp_path, "mock://AK:hush@host/store"))
    assert good and "hush" not in text


def test_a_node_without_the_store_does_not_tell_its_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from oakum.distributed import cluster

    nodes = [{"NodeID": name, "NodeManagerHostname": name, "Alive": True} for name in ("one", "two")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "_ask_nodes", lambda *_: {"two": (False, True)})
    with pytest.raises(ConfigError, match="node two does not see the store") as caught:
        cluster.require_shared_store("mock://AK:hush@host/store", tmp_path / "data")
    assert "hush" not in str(caught.value)


class Dropping(BaseHTTPRequestHandler):
    """A tracking server that is well, and ends the connection at every question."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send_response(200)
            self.end_headers()
        self.close_connection = True

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def dropping() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dropping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_a_failing_tracking_server_is_named_without_its_password(
    dropping: int, finished_short: Any, tmp_path: Path, own_environment: pytest.MonkeyPatch
) -> None:
    for name, value in {"REQUEST_MAX_RETRIES": "0", "REQUEST_TIMEOUT": "5"}.items():
        own_environment.setenv(f"MLFLOW_HTTP_{name}", value)
    uri = f"http://me:hush-hush@127.0.0.1:{dropping}"
    store = Store.open(tmp_path / "store")
    Outbox(store).put(open_event(RunHeader.of(finished_short.record)))
    status = sync(store, tmp_path, uri)
    assert status.pending == 1 and status.error is not None and status.warning is not None
    assert f"127.0.0.1:{dropping}/api/" in status.error, "the error is not about the request"
    assert "hush" not in status.error + status.warning
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9 does not answer") as caught:
        Destination.of(tmp_path, "http://me:hush-hush@127.0.0.1:9").probe()
    assert "hush" not in str(caught.value)


def test_a_run_leaves_no_secret_and_survives_hostile_labels(
    home: Home, short: dict[str, Any], write: Callable[..., Path], start: Callable[..., Any], tmp_path: Path
) -> None:
    file = write({**short, "settings": dict.fromkeys(LABELS, "none"), "description": LABELS[0]})
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(home.folder)}
    # Loud libraries would tell most.
    loud = {"MLFLOW_LOGGING_LEVEL": "DEBUG", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true"}
    answer = start("run", file, "--executor", "serial", home=home, **SECRETS, **loud).answer()
    assert answer.code == 0, answer.err[-2000:]
    assert "report:  " in answer.out and "stages" in answer.err
    said = (answer.out + answer.err).encode()
    left = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert {"mlflow", "reports", "store"} <= {path.relative_to(home.folder).parts[0] for path in left}
    for name, secret in SECRETS.items():
        assert secret.encode() not in said, name
        assert not [path for path, data in left.items() if secret.encode() in data], name
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(home.folder)}
    assert {path.suffix for path in after - before} <= {".out", ".err"}
    assert {path.name for path in (home.folder / "reports").iterdir()} == {"short"}
    page = (home.folder / "reports" / "short" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(&#x27;label&#x27;)" in page
    with closing(sqlite3.connect(home.folder / "mlflow" / "mlflow.db")) as connection:
        named = {name for (name,) in connection.execute("SELECT name FROM runs")}
        artifacts = [uri for (uri,) in connection.execute("SELECT artifact_uri FROM runs")]
    assert {f"{label}, seed 0" for label in LABELS} <= named
    root = str(home.folder / "mlflow" / "artifacts")
    assert all(os.path.normpath(uri.removeprefix("file://")).startswith(f"{root}/") for uri in artifacts)


def test_ray_starts_without_a_dashboard_and_with_a_token_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from oakum.distributed import cluster

    calls: list[tuple[dict[str, Any], str | None]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append((options, os.environ.get("RAY_AUTH_TOKEN"))))
    monkeypatch.setattr(cluster, "AgentGuard", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        monkeypatch.setenv("RAY_AUTH_TOKEN", "")
        cluster.start_ray(cpus=1)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's own")
    cluster.start_ray(cpus=1)
    (first, token), (_, other), (_, own) = calls
    assert first["address"] == "local" and first["include_dashboard"] is False
    assert token is not None and re.fullmatch("[0-9a-f]{64}", token) and token != other
    assert own == "the user's own" and not list(tmp_path.iterdir())


@pytest.mark.ray
def test_the_ray_of_a_run_asks_for_a_token_and_has_no_dashboard(tmp_path: Path) -> None:
    code = """
import os
import psutil
from oakum.distributed.cluster import start_ray, stop_ray
start_ray(cpus=1)
from ray._raylet import AuthenticationMode, get_authentication_mode
print(get_authentication_mode() == AuthenticationMode.TOKEN, len(os.environ["RAY_AUTH_TOKEN"]))
family = psutil.Process().children(recursive=True)
ports = {each.laddr.port for member in family for each in member.net_connections("inet") if each.status == "LISTEN"}
print(bool(ports), 8265 in ports)
stop_ray()
"""
    done = run_without_ray(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "True 64\nTrue False\n"), done.stderr
    assert not (tmp_path / ".ray").exists()


def test_the_pinned_ray_keeps_its_dashboard_on_this_machine(tmp_path: Path) -> None:
    """docs/security.md relies on it."""
    code = """
from ray.scripts.scripts import start
print([option.default for option in start.params if option.name == "dashboard_host"])
"""
    assert run_without_ray(code, tmp_path).stdout == "['127.0.0.1']\n"


def run_without_ray(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without any of the user's settings of Ray."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {**bare, "PYTHONPATH": str(PLATFORM), "HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)


def test_the_user_interface_of_mlflow_stays_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.cli import server

    command = shlex.split(ui_command(tmp_path))
    assert command[:4] == [sys.executable, "-m", "mlflow", "ui"]
    for host in (None, "0.0.0.0"):
        if host is not None:
            monkeypatch.setenv("MLFLOW_HOST", host)
        assert server.make_context("ui", command[4:], resilient_parsing=True).params["host"] == "127.0.0.1"
    monkeypatch.delenv("MLFLOW_HOST")
    assert server.make_context("server", [], resilient_parsing=True).params["host"] == "127.0.0.1"


def test_the_password_of_a_database_is_no_part_of_the_command_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "postgresql://me:hush@db/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    command = where_to_look(tmp_path)
    assert "hush" not in command and "--host 127.0.0.1" in command
    shown = command.replace(shlex.quote(sys.executable), "env #")
    done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True)
    assert f"MLFLOW_BACKEND_STORE_URI={uri}" in done.stdout.splitlines()


def test_commands_in_the_documents_open_no_server_to_the_network() -> None:
    texts = [path.read_text() for path in (*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("cluster*.yaml"))]
    lines = [line for text in texts for line in re.sub(r"\\\n *", "", text).splitlines()]
    servers = [line for line in lines if re.match(r"\s*mlflow server ", line)]
    assert servers
    for line in servers:
        assert "--allowed-hosts" in line or "--host 127.0.0.1" in line or "--host" not in line, line
    dashboards = [word for line in lines for word in re.findall(r"--dashboard-host[= ](\S+)", line)]
    assert dashboards and {word.strip("`") for word in dashboards} == {"127.0.0.1"}


def test_the_page_on_security_names_every_port_and_the_rules() -> None:
    """The ports were seen listening; see the table in docs/security.md."""
    page = (ROOT / "docs" / "security.md").read_text()
    ports = "port node-manager-port object-manager-port min-worker-port max-worker-port ray-client-server-port"
    ports += " dashboard-agent-grpc-port metrics-export-port dashboard-agent-listen-port runtime-env-agent-port"
    for option in f"{ports} dashboard-port".split():
        assert f"`--{option}`" in page, option
    assert "RAY_AUTH_MODE=token" in page and "nft" in page and "--allowed-hosts" in page
    assert "security.md" in (ROOT / "docs" / "jobs.md").read_text()


def ask(app: Any, host: str, path: str = "/api/2.0/mlflow/experiments/search") -> int:
    """Return the status of one request to an ASGI application."""
    answers: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"host", host.encode())], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 5000)}
    asyncio.run(app(scope, receive, send))
    (status,) = answers
    return status


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [
        (None, ["127.0.0.1:5000", "localhost:5000", "10.0.0.1:5000"], ["mlflow:5000", "evil.example", ""]),
        ("mlflow:5000", ["mlflow:5000"], ["mlflow", "evil.example", "localhost:5000"]),
        ("mlflow:5000,localhost:*", ["mlflow:5000", "localhost:5000"], ["10.0.0.1:5000"]),
    ],
)
def test_mlflow_behind_a_name_needs_the_name_among_its_allowed_hosts(
    setting: str | None, allowed: list[str], refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The security layer of the pinned server, without the server; the next test starts it."""
    from fastapi import FastAPI
    from mlflow.server.fastapi_security import init_fastapi_security

    monkeypatch.delenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", raising=False)
    monkeypatch.delenv("MLFLOW_SERVER_ALLOWED_HOSTS", raising=False)
    if setting is not None:
        monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", setting)
    app = FastAPI()
    app.add_api_route("/{path:path}", lambda: {})
    init_fastapi_security(app)
    assert [ask(app, host) for host in allowed] == [200] * len(allowed)
    assert [ask(app, host) for host in refused] == [403] * len(refused)
    assert ask(app, "evil.example", "/version") == 200, "docs/security.md says that this page proves nothing"


@pytest.mark.slow
def test_a_started_mlflow_refuses_hosts_that_it_was_not_told(tmp_path: Path, empty_mlflow: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_mlflow.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--allowed-hosts", f"mlflow.test:{port}"]
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while status_of(port, "any", "/health") != 200:
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        path = "/api/2.0/mlflow/experiments/search?max_results=1"
        assert status_of(port, f"mlflow.test:{port}", path) == 200
        for host in ("evil.example", "mlflow.test", f"localhost:{port}"):
            assert status_of(port, host, path) == 403, host
        assert listening_addresses(server.pid, port) == {"127.0.0.1"}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def status_of(port: int, host: str, path: str) -> int | None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return None


def listening_addresses(process: int, port: int) -> set[str]:
    """Return the addresses on which a process and its children listen at a port."""
    import psutil

    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    sockets = [each for member in family for each in member.net_connections("inet") if each.status == "LISTEN"]
    return {each.laddr.ip for each in sockets if each.laddr.port == port}
