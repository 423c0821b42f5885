"""What a run would do: `oakum check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oakum.session import RunOptions, make_plan, read_request, request_digest
from oakum.session_home import Home
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.pipeline.plan import Plan

_GANG_START_SECONDS = 25.0


def check(options: RunOptions, home: Home) -> dict[str, Any]:
    """Return what a run would do: the resolved experiment, its stages by kind, and what is stored.

    Raises:
        ConfigError: as `run` does.
    """
    from oakum.pipeline.executor import find_present

    store = Store.open(home.store_uri)
    data = read_request(options)
    request_digest(data, options.file.name, home)
    plan = make_plan(data, options.file.name, home, None)
    stages = {stage.key: stage for stage in plan.stages()}
    present = find_present(stages, store)
    known = _mean_seconds(store, {stage.kind for stage in stages.values()})
    kinds: dict[str, dict[str, Any]] = {}
    for key, stage in stages.items():
        row = kinds.setdefault(stage.kind, {"stages": 0, "stored": 0, "seconds": 0.0})
        row["stages"] += 1
        row["stored"] += key in present
        if key not in present:
            row["seconds"] = (
                None if stage.kind not in known or row["seconds"] is None else row["seconds"] + known[stage.kind]
            )
    return {
        "name": plan.experiment.file.name,
        "experiment": plan.experiment.document(),
        "cells": len(plan.cells),
        "kinds": kinds,
        "warnings": list(plan.warnings) + _gang_warnings(plan, known),
        "plan_key": plan.plan_key,
        "run_key": plan.run_key,
    }


def _mean_seconds(store: Store, kinds: set[str]) -> dict[str, float]:
    """Return the mean seconds of stored stages by kind: the only basis that an estimate has."""
    seconds: dict[str, list[float]] = {}
    for entry in store.entries():
        if entry.kind in kinds and "seconds" in entry.provenance:
            seconds.setdefault(entry.kind, []).append(float(entry.provenance["seconds"]))
    return {kind: sum(values) / len(values) for kind, values in seconds.items()}


def _gang_warnings(plan: Plan, known: dict[str, float]) -> list[str]:
    workers = plan.experiment.file.execution.workers
    if workers > 1 and known.get("train", _GANG_START_SECONDS) < 10 * _GANG_START_SECONDS:
        return [
            f"execution.workers is {workers}: starting Ray Train takes about {_GANG_START_SECONDS:.0f} s for each "
            "training, which pays only for trainings of several minutes"
        ]
    return []


def describe_check(summary: dict[str, Any]) -> str:
    """Return the text form of `check`'s result."""
    import yaml

    lines = [
        f"{summary['name']}: {summary['cells']} cells",
        "",
        yaml.safe_dump(summary["experiment"], sort_keys=False).rstrip(),
        "",
    ]
    lines.append(f"{'kind':<12}{'stages':>8}{'stored':>8}   estimate (CPU seconds to run)")
    for kind, row in summary["kinds"].items():
        estimate = "unknown: none stored yet" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(f"{kind:<12}{row['stages']:>8}{row['stored']:>8}   {estimate}")
    lines += [f"warning: {text}" for text in summary["warnings"]]
    return "\n".join(lines) + "\n"
