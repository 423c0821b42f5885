"""Starting and joining Ray."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from oakum.config import ConfigError, without_credentials
from oakum.distributed.agent_guard import AgentGuard
from oakum.pipeline.admission import ClusterCapacity
from oakum.store import Store

_ANSWER_SECONDS = 60.0

_guard: AgentGuard | None = None


def configure_environment() -> None:
    """Set Ray's environment where the user did not. Ray reads some of it when it is imported: call this before.

    A token that is there is sent to the cluster that is joined, Ray Train's controller looks at its workers five times
    a second (its default of two seconds would hold up every report), and tasks without a GPU leave
    `CUDA_VISIBLE_DEVICES` as it is.
    """
    if os.environ.get("RAY_ADDRESS") and (_names_token() or (Path.home() / ".ray" / "auth_token").is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def start_ray(cpus: int | None = None) -> None:
    """Join the cluster named by `RAY_ADDRESS`, or start Ray on this machine without a dashboard.

    Does nothing when this process is connected already. The thread that calls this must outlive Ray: the kernel ends
    the processes that a thread started when the thread ends.
    """
    global _guard
    configure_environment()
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
        return
    _make_token()
    ray.init(address="local", include_dashboard=False, num_cpus=cpus or _available_cpus(), **options)
    if sys.platform == "linux":
        _guard = AgentGuard()


def stop_ray() -> None:
    """Disconnect; a cluster that this process started ends with all its workers."""
    global _guard
    import ray

    if ray.is_initialized():
        ray.shutdown()
    if _guard is not None:
        _guard.dismiss()
        _guard = None


def find_capacity() -> ClusterCapacity:
    """Return what the cluster has right now."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
    return ClusterCapacity(
        cpus=sum(cpus for cpus, _ in sizes),
        gpus=sum(gpus for _, gpus in sizes),
        largest_node_cpus=max((cpus for cpus, _ in sizes), default=0.0),
        largest_node_gpus=max((gpus for _, gpus in sizes), default=0.0),
        nodes=len(nodes),
        sizes=sizes,
    )


def require_shared_store(uri: str, data_home: Path, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Check that every node sees the store and the data of this driver, and return the ids of the nodes that do.

    Nodes in `known` are not asked again. A node that is lost before it answers is not in the result.

    Raises:
        ConfigError: names the node and the setting, when a node sees another folder or none.
    """
    import ray

    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2 or nodes.keys() <= known:
        return known
    name = f"probes/{secrets.token_hex(16)}"
    mark = data_home / f".{name.replace('/', '-')}"
    store = Store.open(uri)
    store.put_document(name, {})
    data_home.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        answers = _ask_nodes([node for node in nodes if node not in known], uri, name, mark)
    finally:
        mark.unlink()
        store.delete_document(name)
    for node, (sees_store, sees_data) in answers.items():
        if not (sees_store and sees_data):
            missing = f"the store at {without_credentials(uri)}" if not sees_store else f"the data in {data_home}"
            raise ConfigError(
                f"node {nodes[node]} does not see {missing}; set OAKUM_HOME to a folder that all nodes share, and "
                "start the run again"
            )
    return known | answers.keys()


def _ask_nodes(nodes: list[str], uri: str, name: str, mark: Path) -> dict[str, tuple[bool, bool]]:
    """Return what nodes see, by id; those that do not answer are left out."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {
        node: check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)).remote(
            uri, name, mark
        )
        for node in nodes
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    answers = {}
    for node, reference in asked.items():
        with suppress(RayError):
            answers[node] = ray.get(reference, timeout=0)
    return answers


def _look(uri: str, name: str, mark: Path) -> tuple[bool, bool]:
    """Return whether this node sees a document of the store, and a file among the data."""
    return Store.open(uri).get_document(name) is not None, mark.exists()


def _make_token() -> None:
    """Give a Ray of our own a token that only its processes know, where the user named none.

    Ray asks for a token unless `RAY_AUTH_MODE` is `disabled`, and would write a missing one to `~/.ray/auth_token`,
    readable by all; that file is for clusters that others join.
    """
    if not _names_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _names_token() -> bool:
    return any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
