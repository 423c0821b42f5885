"""Runs one stage in this process: the same function in a thread of `Serial` and in a Ray worker."""

from __future__ import annotations

import importlib
import platform
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from oakum.faults import fault_point
from oakum.pipeline.fingerprint import package_digest
from oakum.pipeline.stage import StageTask, WorkerSettings
from oakum.store import Store


@dataclass(frozen=True)
class Outcome:
    """What came of a stage.

    Attributes:
        seconds: wall seconds of the stage's function and of publishing.
        reused: another driver had published it meanwhile.
    """

    kind: str
    key: str
    seconds: float
    reused: bool = False


def run_stage(task: StageTask, settings: WorkerSettings, *, reuse: bool = True) -> Outcome:
    """Run one stage and publish its payload; returns at once when the store holds it already.

    The workers of a gang pass `reuse=False`: one that found the stage published meanwhile would leave the others
    waiting for it.

    Raises whatever the method raises; nothing is published then, and unfinished training stays in the work area.
    """
    started = time.time()
    store = Store.open(settings.store_uri)
    if reuse and store.manifest(task.kind, task.key) is not None:
        return Outcome(task.kind, task.key, 0.0, reused=True)
    _use_threads(task.config["threads"])
    scratch = Path(tempfile.mkdtemp(prefix="oakum-"))
    with closing(_Scratch(scratch)):
        output = scratch / "output"
        output.mkdir()
        summary, provenance = _run(task, settings, store, scratch, output, started)
        fault_point("stage.before_publish")
        if provenance:
            store.publish(
                task.kind,
                task.key,
                output,
                key_document=task.key_document,
                label=task.label,
                summary=summary,
                provenance=provenance,
            )
            store.work(task.key).clear()
    return Outcome(task.kind, task.key, time.time() - started)


def _run(
    task: StageTask, settings: WorkerSettings, store: Store, scratch: Path, output: Path, started: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the stage's function; provenance is empty on workers that do not publish."""
    from oakum.pipeline.context import StageContext
    from oakum.training.collective import Collective

    context = StageContext(task=task, store=store, settings=settings, output=output, scratch=scratch)
    module = importlib.import_module(f"oakum.pipeline.stages.{task.kind}")
    summary: dict[str, Any] = module.run(context)
    if Collective.current().rank != 0:
        return summary, {}
    inputs = {name: context.input(name) for name in task.inputs}
    provenance = {
        "code": task.key_document["code"],
        "seconds": time.time() - started,
        "started": started,
        "device": str(context.device),
        "workers": Collective.current().world_size,
        "commit": settings.commit,
        "package": _package(),
        "versions": library_versions(),
        "inputs": {
            name: {"kind": manifest.kind, "key": manifest.key, "content": manifest.content}
            for name, manifest in inputs.items()
        },
        **context.notes,
    }
    return summary, provenance


@cache
def _package() -> str:
    """Return the package's digest, taken once in each process: reading 300 files is most of a short stage."""
    return package_digest()


def library_versions() -> dict[str, str]:
    """Return the versions that can change numbers."""
    import numpy
    import torch

    import oakum

    return {
        "oakum": oakum.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _use_threads(threads: int) -> None:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _Scratch:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
