"""From manifests to a `RunRecord`. Reads small JSON only: no torch, no payload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oakum.records import CellRecord, MetricValue, RunRecord, SharedRecord, StageRef
from oakum.store import Manifest, Store

if TYPE_CHECKING:
    from oakum.pipeline.plan import Plan


_BALANCED = tuple(f"balanced_accuracy{of}{shadow}" for of in ("", "_per_class") for shadow in ("", ".vanilla_shadow"))


def skeleton(plan: Plan, code: dict[str, Any]) -> dict[str, Any]:
    """Return the plan as plain JSON: everything of its record but the numbers."""
    record = RunRecord(
        name=plan.experiment.file.name,
        description=plan.experiment.file.description,
        run_key=plan.run_key,
        plan_key=plan.plan_key,
        config=plan.experiment.document(),
        data=plan.data,
        chance=_chance(plan),
        cells=tuple(
            CellRecord(
                setting=cell.setting,
                defense=cell.method.name,
                parameters=cell.method.parameters(),
                seed=cell.seed,
                metrics={},
                stages={role: stage.ref for role, stage in cell.stages.items()},
                flags=("masked output",) if cell.method.cls.masks_output else (),
            )
            for cell in plan.cells
        ),
        shared=tuple(
            SharedRecord(role=role, stage=stage.ref, parameters=dict(stage.config), metrics={})
            for role, stage in plan.shared.items()
        ),
        code=code,
        warnings=plan.warnings,
    )
    return record.to_json()


def collect(document: dict[str, Any], store: Store) -> RunRecord:
    """Fill a skeleton with the numbers of the stages that the store holds; stages not there yet leave gaps."""
    return fill(document, store.manifests(stage_refs(document)))


def fill(document: dict[str, Any], stored: Mapping[StageRef, Manifest]) -> RunRecord:
    """Fill a skeleton with the numbers of some of its stages; the others leave gaps."""
    record = RunRecord.from_json(document)
    manifests = {ref.key: manifest for ref, manifest in stored.items()}
    cells = tuple(_cell(cell, manifests) for cell in record.cells)
    shared = tuple(
        SharedRecord(item.role, item.stage, item.parameters, _metrics(manifests.get(item.stage.key)))
        for item in record.shared
    )
    return RunRecord(**{**vars(record), "cells": cells, "shared": shared})


def _cell(cell: CellRecord, manifests: dict[str, Manifest]) -> CellRecord:
    metrics: dict[str, MetricValue] = {}
    flags: list[str] = list(cell.flags)
    cost = {"train": 0.0, "shadow": 0.0, "attack": 0.0, "none": 0.0}
    for role, ref in cell.stages.items():
        manifest = manifests.get(ref.key)
        if manifest is None:
            continue
        part, target, *rest = role.split(".")
        prefix = _prefix(part, target, rest)
        for name, value in _metrics(manifest).items():
            if prefix is not None:
                metrics[f"{prefix}/{name}"] = value
            elif role == "target.clean" and "/" in name:
                metrics[name] = value
        flags += [f"{role}: {flag}" for flag in manifest.summary.get("flags", ())]
        cost[_cost_of(part, target)] += _seconds(manifest)
    _add_utility(metrics, cell, manifests)
    metrics["cost/train_seconds"] = MetricValue(cost["train"], wants="low")
    metrics["cost/attack_seconds"] = MetricValue(cost["attack"], wants="low")
    if "shadow.matched" in cell.stages:
        metrics["cost/shadow_seconds"] = MetricValue(cost["shadow"], wants="low")
    in_order = {name: metrics[name] for name in sorted(metrics)}
    return CellRecord(**{**vars(cell), "metrics": in_order, "flags": tuple(sorted(flags))})


def _cost_of(part: str, target: str) -> str:
    """Return whom a role's seconds are charged to.

    A snapshot's training is charged by its snapshots alone; the vanilla shadow and the control, which all settings
    share, to none.
    """
    if part in ("target", "phase", "teacher"):
        return "train"
    if part in ("training", "shadow_training", "control", "control_target") or target in ("vanilla", "control"):
        return "none"
    return "shadow" if part.startswith("shadow") else "attack"


def _seconds(manifest: Manifest) -> float:
    """Return the seconds that a stage took; a snapshot takes those of its training up to its epoch."""
    if manifest.kind == "snapshot":
        return float(manifest.summary["train_seconds"])
    return float(manifest.provenance.get("seconds", 0.0))


def _prefix(part: str, target: str, rest: list[str]) -> str | None:
    if part == "membership":
        return f"{'membership' if target == 'clean' else target}/{rest[0]}"
    if part == "judge":
        return f"inversion/{rest[0]}"
    return None


def _add_utility(metrics: dict[str, MetricValue], cell: CellRecord, manifests: dict[str, Manifest]) -> None:
    """Add the released model's accuracies, and what the canaries cost."""
    answers = {target: manifests.get(cell.stages[f"answers.{target}"].key) for target in _targets(cell)}
    clean = _metrics(answers.get("clean"))
    metrics.update({f"utility/{name}": value for name, value in clean.items()})
    canary = _metrics(answers.get("canary")).get("test_accuracy")
    plain = clean.get("test_accuracy")
    if canary is not None and canary.value is not None and plain is not None and plain.value is not None:
        metrics["canary/test_accuracy"] = canary
        metrics["canary/accuracy_cost"] = MetricValue(plain.value - canary.value, wants="low")


def _targets(cell: CellRecord) -> list[str]:
    return [role.split(".")[1] for role in cell.stages if role.startswith("answers.")]


def _metrics(manifest: Manifest | None) -> dict[str, MetricValue]:
    if manifest is None:
        return {}
    return {name: MetricValue.from_json(value) for name, value in manifest.summary.get("metrics", {}).items()}


def _chance(plan: Plan) -> dict[str, float]:
    chance = {"utility/test_accuracy": 1.0 / len(plan.data["private_classes"])}
    for attack in plan.experiment.membership:
        for name in ("auc", "auc.vanilla_shadow", *_BALANCED):
            chance[f"membership/{attack.name}/{name}"] = 0.5
        if plan.experiment.file.canaries:
            chance[f"canary/{attack.name}/auc"] = 0.5
    classes = plan.data["evaluation_classes"]
    attacked = plan.experiment.file.attacks.identities or len(plan.data["private_classes"])
    for attack in plan.experiment.inversion:
        prefix = f"inversion/{attack.label}"
        for name in ("top1", "top1.second"):
            chance[f"{prefix}/{name}"] = 1.0 / classes
        chance[f"{prefix}/top5"] = min(1.0, 5.0 / classes)
        for extractor in plan.experiment.extractors:
            if extractor.cls.recognizes:
                chance[f"{prefix}/top1.{extractor.name}"] = 1.0 / attacked
    return chance


def stage_refs(document: dict[str, Any]) -> list[StageRef]:
    """Return every stage that a skeleton names, each once."""
    record = RunRecord.from_json(document)
    refs = {ref for cell in record.cells for ref in cell.stages.values()} | {item.stage for item in record.shared}
    return sorted(refs, key=lambda ref: (ref.kind, ref.key))
