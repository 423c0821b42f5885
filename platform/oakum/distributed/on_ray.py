"""The executor on Ray: ready stages become tasks, and the ledger decides what is submitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from oakum.config import ConfigError
from oakum.distributed.cluster import capacity, require_shared_store, start_ray, stop_ray
from oakum.distributed.data_parallel import run_gang
from oakum.pipeline.executor import Ledger
from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.stage import Stage, StageTask, WorkerSettings

_POLL_SECONDS = 1.0
_LOOKAHEAD = 2


class OnRay:
    """Runs stages on the Ray cluster of this driver; starts Ray on this machine when there is none."""

    def __init__(self, max_cpus: float | None = None) -> None:
        """`max_cpus`: CPUs that an autoscaler may reach; feasibility is judged against it, else against what is there."""
        start_ray()
        self._max_cpus = max_cpus
        self._task = ray.remote(max_retries=0)(_run_stage)

    def run(self, ledger: Ledger, settings: WorkerSettings) -> None:
        """Run all stages that the ledger admits, in tasks; returns when nothing is left to start."""
        require_shared_store(settings.store_uri, settings.data_home)
        self._require_feasible(ledger)
        running: dict[Any, Stage] = {}
        while True:
            self._submit(ledger, settings, running)
            if not running:
                break
            finished, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            for reference in finished:
                self._settle(ledger, running.pop(reference), reference)

    def close(self) -> None:
        stop_ray()

    def _submit(self, ledger: Ledger, settings: WorkerSettings, running: dict[Any, Stage]) -> None:
        cpus = max(capacity().cpus, self._max_cpus or 0.0)
        used = sum(_cpus(stage) for stage in running.values())
        for stage in ledger.ready():
            gang = stage.resources.workers > 1
            limit = cpus if gang or any(each.resources.workers > 1 for each in running.values()) else _LOOKAHEAD * cpus
            if used + _cpus(stage) > limit and running:
                if gang:
                    break
                continue
            own = replace(settings, use_gpu=stage.resources.gpus > 0)
            running[self._start(ledger.start(stage), own)] = stage
            used += _cpus(stage)

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
            ledger.fail(stage, cause)
        except RayError as error:
            ledger.fail(stage, error, lost_worker=True)
        else:
            ledger.complete(stage, outcome)

    def _require_feasible(self, ledger: Ledger) -> None:
        found = capacity()
        largest = max(found.largest_node_cpus, self._max_cpus or 0.0)
        for stage in ledger.ready():
            resources = stage.resources
            if resources.cpus > largest:
                raise ConfigError(
                    f"stage {stage.label!r} asks for {resources.cpus} CPUs, but the largest node has {largest:g}; "
                    "lower execution.threads"
                )
            if resources.gpus > 0 and found.gpus == 0 and self._max_cpus is None:
                raise ConfigError(
                    f"stage {stage.label!r} asks for a GPU, but the cluster has none; set execution.gpus: 0"
                )
            if _cpus(stage) > max(found.cpus, self._max_cpus or 0.0):
                raise ConfigError(
                    f"stage {stage.label!r} asks for {resources.workers} workers of {resources.cpus} CPUs, but the cluster "
                    f"has {found.cpus:g} CPUs; lower execution.workers"
                )


def _cpus(stage: Stage) -> float:
    return float(stage.resources.cpus * stage.resources.workers)


def _run_stage(task: StageTask, settings: WorkerSettings) -> Outcome:
    return run_gang(task, settings) if task.resources.workers > 1 else run_stage(task, settings)
