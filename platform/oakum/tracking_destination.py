"""Where tracking goes: a server, or an SQLite file that is created once, whole, under a lock."""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import re
import secrets
import shlex
import socket
import sqlite3
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from oakum.config import hide_credentials, without_credentials

_SQLITE = "sqlite:///"
_PROBE_SECONDS = 3.0
_AWAY = {502, 503, 504}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Offset and length of SQLite's `user_version` in the file's header; MLflow leaves it 0.
_VERSION_OFFSET = 60
_DEFAULT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own values keep retrying a server that is away for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class UnreachableError(ConnectionError):
    """The tracking server does not answer."""


@dataclass(frozen=True)
class Destination:
    """A tracking URI, and what this machine knows of it.

    Attributes:
        uri: as MLflow takes it.
        home: oakum's home on this machine; locks lie in `<home>/mlflow`.
    """

    uri: str
    home: Path

    @classmethod
    def of(cls, home: Path, uri: str | None = None) -> Destination:
        return cls(uri or tracking_uri(home), Path(home).absolute())

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for servers and databases in memory."""
        path = self.uri.removeprefix(_SQLITE).partition("?")[0]
        return Path(path).absolute() if self.uri.startswith(_SQLITE) and path not in {"", ":memory:"} else None

    @property
    def artifacts(self) -> Path | None:
        """Where artifacts go when there is no server that decides it."""
        return None if self.database is None else self.database.parent / "artifacts"

    @property
    def shown(self) -> str:
        """The URI without user, password and query."""
        return without_credentials(self.uri)

    def hide(self, message: str) -> str:
        """Return a message without this destination's credentials: libraries repeat what they could not reach."""
        return hide_credentials(message, self.uri)

    def identity(self) -> str | None:
        """Return a text that changes when the destination loses its memory, or None while it does not exist."""
        if self.database is None:
            return self.uri
        try:
            with self.database.open("rb") as stream:
                header = stream.read(_VERSION_OFFSET + 4)
        except OSError:
            return None
        return f"{self.database}#{header[_VERSION_OFFSET:].hex()}"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock among the processes that use this home; the kernel frees it when its holder dies."""
        folder = self.home / "mlflow"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """Import MLflow, and create the database file when it is missing.

        Raises:
            OSError: the database's folder cannot be written.
            MlflowException: MLflow cannot make its tables.
        """
        quiet_mlflow()
        if self.database is not None:
            self._create_database(self.database)

    def probe(self) -> None:
        """Ask a server for a sign of life, for at most a few seconds; raises UnreachableError."""
        try:
            parts = urlsplit(self.uri)
            scheme = parts.scheme.partition("+")[0]
            if scheme in {"http", "https"}:
                _ask(parts)
            elif scheme in _DATABASE_PORTS and parts.hostname:
                address = (parts.hostname, parts.port or _DATABASE_PORTS[scheme])
                socket.create_connection(address, timeout=_PROBE_SECONDS).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            is_wrong = isinstance(error, ValueError | http.client.InvalidURL)
            # What cannot be read of an address may be a part of its password.
            reason = "the address cannot be read" if is_wrong else getattr(error, "reason", None) or error
            raise UnreachableError(self.hide(f"{self.shown} does not answer: {reason}")) from None

    def _create_database(self, database: Path) -> None:
        if database.exists():
            return
        with self.lock("create"):
            if database.exists():
                return
            database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in database.parent.glob(f".{database.name}.*.tmp*"):
                leftover.unlink(missing_ok=True)
            # MLflow's migrations are no transaction: whoever is killed in them must not leave a half-made database.
            unfinished = database.parent / f".{database.name}.{os.getpid()}.tmp"
            _migrate(unfinished, database.parent / "artifacts")
            unfinished.chmod(0o600)
            unfinished.replace(database)


def tracking_uri(home: Path) -> str:
    """Return `$MLFLOW_TRACKING_URI`, or that of the SQLite file `<home>/mlflow/mlflow.db` (not created here)."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return chosen or f"{_SQLITE}{Path(home).absolute() / 'mlflow' / 'mlflow.db'}"


def ui_command(home: Path, uri: str | None = None) -> str:
    """Return the shell command that opens the user interface with this Python's MLflow, for this machine alone.

    The password of a database is in neither the command nor the list of processes: MLflow reads the variable.
    """
    destination = Destination.of(home, uri)
    command = [sys.executable, "-m", "mlflow", "ui"]
    host = ["--host", "127.0.0.1"]
    if destination.database is None and destination.shown != destination.uri:
        return f'MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI" {shlex.join([*command, *host])}'
    command += ["--backend-store-uri", destination.uri, *host]
    if destination.artifacts is not None:
        command += ["--default-artifact-root", str(destination.artifacts)]
    return shlex.join(command)


def where_to_look(home: Path, uri: str | None = None) -> str:
    """Return the server's address, or the command that opens the user interface on a database."""
    destination = Destination.of(home, uri)
    is_server = destination.uri.lower().startswith(("http://", "https://"))
    return destination.shown if is_server else ui_command(home, uri)


def quiet_mlflow() -> None:
    """Set MLflow's environment where the user did not: no telemetry, short waits, no chatter on standard error."""
    for name, value in _DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking.client  # noqa: F401

    logging.getLogger("alembic").setLevel(logging.WARNING)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # What fails is told in `TrackingStatus`. The level is set after the import, which resets it.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def _migrate(file: Path, artifacts: Path) -> None:
    """Create MLflow's tables in a new SQLite file, and mark the file with a random number of its own."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    untyped: Any = SqlAlchemyStore
    untyped(f"{_SQLITE}{file}", str(artifacts)).engine.dispose()
    connection = sqlite3.connect(file)
    try:
        connection.execute(f"PRAGMA user_version = {secrets.randbelow(2**31 - 1) + 1}")
        connection.commit()
    finally:
        connection.close()


def _ask(parts: SplitResult) -> None:
    """Request the server's health page; any answer but a gateway's "away" will do."""
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, host, re.sub(r"/*$", "/health", parts.path), "", ""))
    try:
        urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in _AWAY:
            raise
    except urllib.error.URLError as error:
        # Somebody is there; whether his certificate will do is MLflow's decision.
        if not isinstance(error.reason, ssl.SSLError):
            raise
