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
# How often a gang with fewer workers than it asked for looks for room; growing costs the epochs since the checkpoint.
_RESIZE_SECONDS = 60.0


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

    is_fixed = resources.least_workers == resources.workers
    per_worker = {"CPU": float(resources.cpus)}
    if resources.gpus > 0:
        per_worker["GPU"] = resources.gpus
    return ScalingConfig(
        num_workers=resources.workers if is_fixed else (resources.least_workers, resources.workers),
        use_gpu=resources.gpus > 0,
        resources_per_worker=per_worker,
        elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
    )


def _run_config(name: str, folder: str) -> RunConfig:
    from ray.train import FailureConfig, RunConfig

    failures = FailureConfig(
        max_failures=0, max_preemption_failures=_PREEMPTIONS, controller_failure_limit=_START_ATTEMPTS
    )
    return RunConfig(name=name, storage_path=folder, failure_config=failures)


def _cause(error: WorkerGroupError) -> BaseException:
    """Return what ended the group: a method's own exception, or else that a worker was lost."""
    from ray.train.v2._internal.exceptions import RayTrainError

    failures = [error.worker_failures[rank] for rank in sorted(error.worker_failures)]
    lost = [failure for failure in failures if isinstance(failure, RayTrainError)]
    own = [failure for failure in failures if not _is_of_a_collective(failure)]
    if lost or not own:
        return LostGangError(f"a worker was lost: {(lost or failures or [error])[0]}")
    cause: BaseException = own[0]
    return cause


def _is_of_a_collective(failure: BaseException) -> bool:
    """Tell whether a rank failed because it could not reach a peer.

    With a node that is lost, this is all there is: Ray finds out seconds after the peers. Where a method's own
    exception ended a rank, its peers wait, and are ended before they fail.
    """
    import torch.distributed as dist

    return isinstance(failure, dist.DistError) or (isinstance(failure, RuntimeError) and "/gloo/" in str(failure))


def _train_worker(config: dict[str, object]) -> None:
    task, settings = config["task"], config["settings"]
    assert isinstance(task, StageTask) and isinstance(settings, WorkerSettings)
    if settings.use_gpu:
        import ray.train.torch
        import torch

        torch.cuda.set_device(ray.train.torch.get_device())
    run_stage(task, settings, reuse=False)
