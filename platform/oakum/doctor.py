"""`oakum doctor`: is this machine ready? Every line says what was found and, if it is bad, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from oakum.config import ConfigError, without_credentials
from oakum.session_home import Home
from oakum.store import Store, StoreError
from oakum.tracking_destination import Destination, UnreachableError

_LOW_DISK_BYTES = 2 * 1024**3

Finding = tuple[bool, str]


def examine() -> int:
    """Print one line for each check; return 0 when all are well, 2 otherwise."""
    home = Home.of_environment()
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "home": lambda: _home(home),
        "store": lambda: _store(home),
        "disk": lambda: _disk(home.folder),
        "ray": _ray,
        "tracking": lambda: _tracking(home),
        "threads": _threads,
        "gpu": _gpu,
    }
    is_well = True
    for name, check in checks.items():
        good, text = check()
        is_well &= good
        sys.stdout.write(f"{'ok ' if good else 'BAD'}  {name:<9} {text}\n")
    return 0 if is_well else 2


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    return good, f"{platform.python_version()} at {sys.executable}" + ("" if good else "; use Python 3.11 or 3.12")


def _packages() -> Finding:
    found, missing = [], []
    for name in ("ray", "mlflow", "torch", "torchvision", "numpy", "pyarrow"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return False, f"missing: {', '.join(missing)}; run `make setup`"
    return True, ", ".join(found)


def _home(home: Home) -> Finding:
    mode = home.folder.stat().st_mode & 0o777
    if mode & 0o077:
        return False, f"{home.folder} is open to others (mode {mode:o}); run `chmod 700 {home.folder}`"
    return True, str(home.folder)


def _store(home: Home) -> Finding:
    try:
        store = Store.open(home.store_uri)
        store.put_document("doctor/probe", {"pid": os.getpid()})
        seen = store.get_document("doctor/probe")
        store.delete_document("doctor/probe")
    except (StoreError, ConfigError) as error:
        return False, str(error)
    good = seen == {"pid": os.getpid()}
    shown = without_credentials(home.store_uri)
    return good, f"{shown} can be written and read" if good else f"{shown} did not return what was written"


def _disk(folder: Path) -> Finding:
    free, scratch = shutil.disk_usage(folder).free, shutil.disk_usage(tempfile.gettempdir()).free
    text = f"{free / 1e9:.1f} GB free in the home, {scratch / 1e9:.1f} GB in {tempfile.gettempdir()}"
    good = min(free, scratch) >= _LOW_DISK_BYTES
    return good, text if good else f"{text}; free some space (2 GB each), or set OAKUM_HOME and TMPDIR"


def _ray() -> Finding:
    token = Path.home() / ".ray" / "auth_token"
    address = os.environ.get("RAY_ADDRESS") or "none: a local Ray is started for each run"
    if os.environ.get("RAY_ADDRESS") and os.environ.get("RAY_AUTH_MODE") is None:
        return False, f"cluster {address}; set RAY_AUTH_MODE=token (or disabled) here as on every node"
    if token.is_file() and token.stat().st_mode & 0o077:
        return False, f"{token} can be read by others; run `chmod 600 {token}`"
    return True, f"cluster: {address}; token {'present' if token.is_file() else 'made anew for each local run'}"


def _tracking(home: Home) -> Finding:
    destination = Destination.of(home.folder)
    try:
        destination.probe()
    except UnreachableError as error:
        return False, f"{error}; start the server or unset MLFLOW_TRACKING_URI"
    return True, destination.shown


def _threads() -> Finding:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    return True, f"{cpus} CPUs" + (f", OMP_NUM_THREADS={limit}" if limit else "")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return True, "none: everything runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return True, ", ".join(names)
