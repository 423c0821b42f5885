"""Data-parallel training with Ray Train: every worker runs the ordinary stage, rank 0 publishes it."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING

from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.stage import Resources, StageTask, WorkerSettings
from oakum.store import Store

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig, WorkerGroupError

# How often Ray Train waits for the whole group to be placed, a minute each time: new nodes take some minutes to come.
_START_ATTEMPTS = 10
_PREEMPTIONS = 2


class LostGangError(RuntimeError):
    """A worker of the gang was lost, or the gang could not be placed; the stage may be started again."""


def run_gang(task: StageTask, settings: WorkerSettings) -> Outcome:
    """Train one stage with `task.resources.workers` processes (gloo on CPUs, nccl on GPUs).

    The stage's own checkpoints are in the store, where the next attempt finds them; Ray's run folder is scratch. Ray
    Train would start the group again after a method's own exception too, so the ledger counts retries instead.

    Raises:
        LostGangError: the stage may be started again, and resumes.
        Exception: what the method raised on the first rank that failed.
    """
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.torch import TorchTrainer

    started = time.time()
    store = Store.open(settings.store_uri)
    if store.manifest(task.kind, task.key) is not None:
        return Outcome(task.kind, task.key, 0.0, reused=True)
    scratch = settings.data_home.parent / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ray-train-", dir=scratch) as folder:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"task": task, "settings": settings},
            scaling_config=_scaling(task.resources),
            run_config=_run_config(task.key[:32], folder),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            raise _cause(error) from error
        except ControllerError as error:
            raise LostGangError(f"the workers could not be started: {error.controller_failure}") from error
    if store.manifest(task.kind, task.key) is None:
        raise RuntimeError(f"the workers of {task.label!r} ended without publishing the model")
    return Outcome(task.kind, task.key, time.time() - started)


def _scaling(resources: Resources) -> ScalingConfig:
    from ray.train import ScalingConfig

    per_worker = {"CPU": float(resources.cpus)}
    if resources.gpus > 0:
        per_worker["GPU"] = resources.gpus
    return ScalingConfig(num_workers=resources.workers, use_gpu=resources.gpus > 0, resources_per_worker=per_worker)


def _run_config(name: str, folder: str) -> RunConfig:
    from ray.train import FailureConfig, RunConfig

    failures = FailureConfig(
        max_failures=0, max_preemption_failures=_PREEMPTIONS, controller_failure_limit=_START_ATTEMPTS
    )
    return RunConfig(name=name, storage_path=folder, failure_config=failures)


def _cause(error: WorkerGroupError) -> BaseException:
    """Return what ended the group: a lost worker, if there is one, since its peers then fail in their collectives."""
    from ray.train.v2._internal.exceptions import RayTrainError

    failures = [error.worker_failures[rank] for rank in sorted(error.worker_failures)]
    lost = [failure for failure in failures if isinstance(failure, RayTrainError)]
    if lost or not failures:
        return LostGangError(f"a worker was lost: {lost[0] if lost else error}")
    cause: BaseException = failures[0]
    return cause


def _train_worker(config: dict[str, object]) -> None:
    task, settings = config["task"], config["settings"]
    assert isinstance(task, StageTask) and isinstance(settings, WorkerSettings)
    if settings.use_gpu:
        import ray.train.torch
        import torch

        torch.cuda.set_device(ray.train.torch.get_device())
    run_stage(task, settings, reuse=False)
