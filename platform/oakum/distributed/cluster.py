"""Starting and joining Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oakum.config import ConfigError


@dataclass(frozen=True)
class ClusterCapacity:
    """What the cluster has, in all and on its largest node."""

    cpus: float
    gpus: float
    largest_node_cpus: float
    nodes: int


def configure_environment() -> None:
    """Set Ray's environment where the user did not. Ray reads it when it is imported: call this before.

    Token authentication is on, Ray Train's controller looks at its workers five times a second (its default of two
    seconds would hold up every report), and tasks without a GPU leave `CUDA_VISIBLE_DEVICES` as it is.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def start_ray(cpus: int | None = None) -> None:
    """Join the cluster named by `RAY_ADDRESS`, or start Ray on this machine without a dashboard.

    Does nothing when this process is connected already.
    """
    configure_environment()
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if not os.environ.get("RAY_ADDRESS"):
        options.update(address="local", include_dashboard=False, num_cpus=cpus or os.cpu_count())
    ray.init(**options)
    _protect_token()


def stop_ray() -> None:
    """Disconnect; a cluster that this process started ends with all its workers."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def capacity() -> ClusterCapacity:
    """Return what the cluster has right now."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return ClusterCapacity(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        largest_node_cpus=max((node.get("CPU", 0.0) for node in nodes), default=0.0),
        nodes=len(nodes),
    )


def require_shared_store(uri: str, data_home: Path) -> None:
    """Check that every node sees the store and the data.

    Raises:
        ConfigError: names the node and the setting, when a node sees another folder or none.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = data_home.parent / "documents" if "://" not in uri else data_home
    ours = _inode(str(probe))
    check = ray.remote(num_cpus=0)(_inode)
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        seen = ray.get(check.options(scheduling_strategy=strategy).remote(str(probe)), timeout=60)
        if seen != ours:
            raise ConfigError(
                f"node {node['NodeManagerHostname']} does not see the store at {uri}; set OAKUM_HOME to a folder that all "
                "nodes share (or to an s3:// or gs:// address), and start the run again"
            )


def _inode(path: str) -> int:
    return os.stat(path).st_ino if os.path.exists(path) else -1


def _protect_token() -> None:
    """Make Ray's token readable by its owner alone; Ray itself writes it readable by all."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)
