"""How much a run asks of the store and of MLflow, estimated from its plan.

The constants are counts of one tracked run of 22 stages on a store with an object store's manners (docs/scale.md). The
formulas give its 115 writes to MLflow exactly, and its requests to the store within two for each stage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oakum.pipeline.plan import Plan
    from oakum.pipeline.stage import Stage

# One process that writes to SQLite one call at a time, as the driver's thread does: 17.4 ms a call.
MLFLOW_CALLS_PER_SECOND = 57.0

# A worker looks whether the stage is there, lists what it uploaded, commits, and clears the stage's work.
_REQUESTS_OF_STAGE = 4
# Manifests, and a file of the payload.
_REQUESTS_OF_INPUT = 4
_KEEP_CHECKPOINTS = frozenset({"train", "prior"})
_REQUESTS_OF_WORK = 2
_REQUESTS_OF_CHECKPOINT = 6
# The driver reads a manifest when its stage ends, and again for the record and the report.
_DRIVER_REQUESTS_OF_STAGE = 5
# Written by the driver; read, noted and removed by its tracking thread, which reads the manifest and the files.
_REQUESTS_OF_EVENT = 8

_FILES_SENT = {"train": 3, "snapshot": 3, "prior": 3, "membership": 1, "inversion": 1, "judge": 1}
_PRIVATE_FILES_SENT = {"train": 3, "snapshot": 3, "prior": 1}
_HAVE_HISTORY = frozenset({"train", "snapshot", "prior"})
_LOG_FOLDS = frozenset({"train", "prior"})
_WRITES_OF_OWNER, _WRITES_OF_RUN = 7, 18
_READS_OF_EVENT, _READS_OF_OWNER, _READS_OF_RUN = 3, 8, 10


def store_traffic(
    stages: Mapping[str, Stage],
    seconds: Mapping[str, float],
    sizes: Mapping[str, tuple[int | None, int | None]],
    checkpoint_seconds: float,
    events: int,
) -> dict[str, Any]:
    """Return entries, bytes and requests of the stages that have `seconds`.

    Args:
        stages: the plan, by key.
        seconds: of the stages that run, by key.
        sizes: their payloads' (files, bytes) where they are known, by key.
        checkpoint_seconds: between two checkpoints of a training.
        events: that are told to the tracker.
    """
    workers = sum(
        requests_of(stages[key], sizes[key][0] or 1, taken, checkpoint_seconds) for key, taken in seconds.items()
    )
    return {
        "entries": len(seconds),
        "bytes": sum(sizes[key][1] or 0 for key in seconds),
        "entries_of_unknown_size": sum(sizes[key][1] is None for key in seconds),
        "requests": {
            "workers": workers,
            "driver": _DRIVER_REQUESTS_OF_STAGE * len(stages) if seconds else 0,
            "tracking": _REQUESTS_OF_EVENT * events,
        },
    }


def requests_of(stage: Stage, files: int, seconds: float, checkpoint_seconds: float) -> int:
    """Return about how many requests a worker makes to the store for a stage with so many files of payload."""
    requests = _REQUESTS_OF_STAGE + files + _REQUESTS_OF_INPUT * len(stage.inputs)
    if stage.kind in _KEEP_CHECKPOINTS:
        requests += _REQUESTS_OF_WORK + _REQUESTS_OF_CHECKPOINT * int(seconds / checkpoint_seconds)
    return requests


def tracking_traffic(plan: Plan, running: Collection[str], calls_per_second: float) -> dict[str, Any]:
    """Return what is delivered to MLflow when the stages with the keys `running` have run, and the seconds it takes."""
    owned = [(("cell", cell.setting, cell.seed), stage) for cell in plan.cells for stage in cell.stages.values()]
    owned += [(("shared", role, 0), stage) for role, stage in plan.shared.items()]
    told = [(owner, stage) for owner, stage in owned if stage.key in running]
    owners = len({owner for owner, _ in told})
    is_public = plan.data["public"] is True
    writes = sum(_writes_of_event(stage, is_public) for _, stage in told) + _WRITES_OF_OWNER * owners
    reads = _READS_OF_EVENT * len(told) + _READS_OF_OWNER * owners
    if told:
        writes, reads = writes + _WRITES_OF_RUN, reads + _READS_OF_RUN
    return {
        "events": len(told),
        "runs": owners,
        "writes": writes,
        "reads": reads,
        "calls_per_second": calls_per_second,
        "seconds": (writes + reads) / calls_per_second,
    }


def _writes_of_event(stage: Stage, is_public: bool) -> int:
    """Return the writes for a published stage: tags, its files, its history, and the folds that it learned from."""
    sent = _FILES_SENT if is_public else _PRIVATE_FILES_SENT
    folds = len(stage.folds) if stage.kind in _LOG_FOLDS else 0
    return 1 + sent.get(stage.kind, 0) + (stage.kind in _HAVE_HISTORY) + folds
