"""The executor on Ray: ready stages become tasks, and the ledger decides what is submitted."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from oakum.config import ConfigError
from oakum.distributed.cluster import find_capacity, require_shared_store, start_ray, stop_ray
from oakum.distributed.data_parallel import LostGangError, run_gang
from oakum.pipeline.admission import ClusterCapacity, admit, find_misfit
from oakum.pipeline.executor import Ledger
from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.stage import Stage, StageTask, WorkerSettings

_POLL_SECONDS = 1.0
_FEED_SECONDS = 0.2
_CAPACITY_SECONDS = 5.0
_LOST_WORKER = (
    WorkerCrashedError,
    OutOfMemoryError,
    NodeDiedError,
    LocalRayletDiedError,
    ObjectLostError,
    RayActorError,
    LostGangError,
)


class OnRay:
    """Runs stages on the Ray cluster of this driver; starts Ray on this machine when there is none.

    Ray keeps no retry count of its own here: a stage whose worker was lost goes back to the ledger, which starts it
    again, and a method's own exception fails the stage at once.
    """

    def __init__(self, max_cpus: float | None = None, max_gpus: float | None = None) -> None:
        """Connect. `max_cpus` and `max_gpus` are what an autoscaler may reach; without them, what is there counts."""
        start_ray()
        self._max_cpus = max_cpus or 0.0
        self._max_gpus = max_gpus or 0.0
        self._task = ray.remote(max_retries=0)(_run_stage)
        self._found: ClusterCapacity | None = None
        self._found_at = 0.0
        self._checked_at = -1.0
        self._sharing: frozenset[str] = frozenset()

    def run(self, ledger: Ledger, settings: WorkerSettings) -> None:
        """Run all stages that the ledger admits, in tasks; returns when nothing is left to start.

        Raises:
            ConfigError: a stage asks for more than the cluster can have, or a node does not see the store.
        """
        _take_signals_back()
        self._require_feasible(ledger)
        running: dict[Any, Stage] = {}
        checked = len(ledger.stages)
        while True:
            self._check_new_nodes(settings)
            more_to_come = ledger.refill()
            if len(ledger.stages) > checked:
                checked = len(ledger.stages)
                self._require_feasible(ledger)
            self._submit(ledger, settings, running)
            if not running and not more_to_come:
                break
            if not running:
                time.sleep(_FEED_SECONDS)
                continue
            timeout = _POLL_SECONDS if ledger.feed is None else _FEED_SECONDS
            finished, _ = ray.wait(list(running), num_returns=1, timeout=timeout)
            for reference in finished:
                self._settle(ledger, running.pop(reference), reference)

    def concurrency(self) -> int:
        """Return how many stages of one thread may run at a time."""
        return max(1, int(self.capacity().cpus))

    def close(self) -> None:
        """Disconnect; stages that still run end, and so does Ray if this process started it."""
        stop_ray()

    def capacity(self) -> ClusterCapacity:
        """Return what the cluster has or may reach; asked anew every few seconds, since nodes come and go."""
        if self._found is None or time.monotonic() - self._found_at > _CAPACITY_SECONDS:
            found = find_capacity()
            self._found_at = time.monotonic()
            may_grow = self._max_cpus > found.cpus or self._max_gpus > found.gpus
            self._found = replace(
                found,
                sizes=() if may_grow else found.sizes,
                cpus=max(found.cpus, self._max_cpus),
                gpus=max(found.gpus, self._max_gpus),
                largest_node_cpus=max(found.largest_node_cpus, self._max_cpus),
                largest_node_gpus=max(found.largest_node_gpus, self._max_gpus),
            )
        return self._found

    def _check_new_nodes(self, settings: WorkerSettings) -> None:
        """Ask nodes that joined since the last look whether they see the store."""
        self.capacity()
        if self._checked_at != self._found_at:
            self._checked_at = self._found_at
            self._sharing = require_shared_store(settings.store_uri, settings.data_home, self._sharing)

    def _submit(self, ledger: Ledger, settings: WorkerSettings, running: dict[Any, Stage]) -> None:
        for stage in admit(ledger.ready(), list(running.values()), self.capacity()):
            own = replace(settings, use_gpu=stage.resources.gpus > 0)
            running[self._start(ledger.start(stage), own)] = stage

    def _start(self, task: StageTask, settings: WorkerSettings) -> Any:
        resources = task.resources
        if resources.workers > 1:
            return self._task.options(num_cpus=0, name=task.label).remote(task, settings)
        return self._task.options(num_cpus=resources.cpus, num_gpus=resources.gpus, name=task.label).remote(
            task, settings
        )

    def _settle(self, ledger: Ledger, stage: Stage, reference: Any) -> None:
        try:
            outcome: Outcome = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            ledger.fail(stage, cause, lost_worker=isinstance(cause, _LOST_WORKER), trace=_frames(error))
        except RayError as error:
            ledger.fail(stage, error, lost_worker=isinstance(error, _LOST_WORKER))
        else:
            ledger.complete(stage, outcome)

    def _require_feasible(self, ledger: Ledger) -> None:
        found = self.capacity()
        for stage in ledger.outstanding():
            problem = find_misfit(stage.resources, found)
            if problem is not None:
                raise ConfigError(
                    f"stage {stage.label!r} {problem}. On a cluster that adds nodes by itself, say what it may reach: "
                    "--max-cpus N --max-gpus N"
                )


def _frames(error: RayTaskError) -> str:
    """Return the worker's traceback; Ray's first line names the process, in color."""
    return str(error).partition("\n")[2]


def _take_signals_back() -> None:
    """Install this process's SIGTERM handler again: Ray's, which lies below it, prints a native stack first."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _run_stage(task: StageTask, settings: WorkerSettings) -> Outcome:
    return run_gang(task, settings) if task.resources.workers > 1 else run_stage(task, settings)
