"""Data-parallel training with Ray Train: every worker runs the ordinary stage, rank 0 publishes it."""

from __future__ import annotations

import tempfile
import time

from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.stage import StageTask, WorkerSettings
from oakum.store import Store

MAX_WORKER_FAILURES = 2


def run_gang(task: StageTask, settings: WorkerSettings) -> Outcome:
    """Train one stage with `task.resources.workers` processes (gloo on CPUs, nccl on GPUs).

    After a worker is lost the group starts again and resumes from the stage's own checkpoint in the store; Ray's
    run folder is scratch, named by the stage's key.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    started = time.time()
    resources = task.resources
    per_worker = {"CPU": float(resources.cpus)}
    if resources.gpus > 0:
        per_worker["GPU"] = resources.gpus
    scratch = settings.data_home.parent / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ray-train-", dir=scratch) as folder:
        TorchTrainer(
            _train_worker,
            train_loop_config={"task": task, "settings": settings},
            scaling_config=ScalingConfig(
                num_workers=resources.workers, use_gpu=resources.gpus > 0, resources_per_worker=per_worker
            ),
            run_config=RunConfig(
                name=task.key[:32],
                storage_path=folder,
                failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES, controller_failure_limit=3),
            ),
        ).fit()
    if Store.open(settings.store_uri).manifest(task.kind, task.key) is None:
        raise RuntimeError(f"the workers of {task.label!r} ended without publishing the model")
    return Outcome(task.kind, task.key, time.time() - started)


def _train_worker(config: dict[str, object]) -> None:
    import ray.train
    import torch.distributed

    task, settings = config["task"], config["settings"]
    assert isinstance(task, StageTask) and isinstance(settings, WorkerSettings)
    outcome = run_stage(task, settings)
    torch.distributed.barrier()
    ray.train.report({"seconds": outcome.seconds})
