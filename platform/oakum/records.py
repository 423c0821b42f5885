"""Records: what a run found, as plain JSON that the report and the tracker read.

A `RunRecord` is rebuilt from the store's manifests at any time; it holds no bytes, only numbers and the keys of
the stages that they came from.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1


def canonical_json(data: Any) -> bytes:
    """Return the one JSON form of `data` that keys are hashed from: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class MetricValue:
    """One measured number.

    Attributes:
        value: the number, or None when it is unresolved.
        low, high: the interval inside this cell (over points or identities), or None.
        wants: what the defender wants of it.
        note: why it is unresolved, or what else a reader must know.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    wants: Literal["low", "high", "none"] = "none"
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")} | {"value": self.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MetricValue:
        return cls(**data)


def finite(value: float) -> float | None:
    """Return the value as a float, or None when it is NaN or infinite (JSON has neither)."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class StageRef:
    """A stage as the report and the tracker see it."""

    kind: str
    key: str


@dataclass(frozen=True)
class CellRecord:
    """One defense setting under one seed: everything that was measured of it.

    Attributes:
        setting: the label in the YAML.
        defense: the method's name.
        parameters: the defense's configuration with defaults filled, plain values.
        seed: index of the seed.
        metrics: metric key (`utility/test_accuracy`, `membership/loss/auc`, `canary/loss/auc`,
            `inversion/gmi/top1`, `cost/train_seconds`, ...) -> value.
        stages: role (`target.clean`, `target.canary`, `answers.clean`, `membership.clean.loss`,
            `inversion.clean.gmi`, `judge.clean.gmi`, ...) -> stage.
        flags: what makes a number of this cell suspicious (`inverted signal`, `constant scores`, ...).
    """

    setting: str
    defense: str
    parameters: dict[str, Any]
    seed: int
    metrics: dict[str, MetricValue]
    stages: dict[str, StageRef]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedRecord:
    """A stage that all cells share: a prior, an evaluation model."""

    role: str
    stage: StageRef
    parameters: dict[str, Any]
    metrics: dict[str, MetricValue]


@dataclass(frozen=True)
class RunRecord:
    """One executed experiment.

    Attributes:
        name, description: from the YAML.
        run_key: hash of the name and the plan without seeds: more seeds extend the same run.
        plan_key: hash of every stage key of the plan.
        config: the experiment with defaults filled.
        data: {name, digest, public (bool), license_note, class_names (of the target's classes), folds: {fold: count},
            input_shape}.
        chance: metric key -> chance level, where one exists.
        code: {oakum, commit, dirty, fingerprint, python, torch, ray, mlflow, ...}.
        seconds: wall seconds by phase of this execution ({} when nothing ran).
    """

    name: str
    description: str
    run_key: str
    plan_key: str
    config: dict[str, Any]
    data: dict[str, Any]
    chance: dict[str, float]
    cells: tuple[CellRecord, ...]
    shared: tuple[SharedRecord, ...]
    code: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` restores an equal record."""
        data = asdict(self)
        for cell, plain in zip(self.cells, data["cells"], strict=True):
            plain["metrics"] = {key: value.to_json() for key, value in cell.metrics.items()}
        for shared, plain in zip(self.shared, data["shared"], strict=True):
            plain["metrics"] = {key: value.to_json() for key, value in shared.metrics.items()}
        result: dict[str, Any] = json.loads(json.dumps(data, allow_nan=False))
        return result

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """Restore a record written by `to_json`.

        Raises:
            ValueError: the record was written by another schema.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"record schema {data.get('schema')!r} cannot be read by this oakum (schema {SCHEMA})")
        cells = tuple(
            CellRecord(
                **{
                    **cell,
                    "metrics": _metrics(cell["metrics"]),
                    "stages": {role: StageRef(**ref) for role, ref in cell["stages"].items()},
                    "flags": tuple(cell["flags"]),
                }
            )
            for cell in data["cells"]
        )
        shared = tuple(
            SharedRecord(**{**item, "stage": StageRef(**item["stage"]), "metrics": _metrics(item["metrics"])})
            for item in data["shared"]
        )
        return cls(**{**data, "cells": cells, "shared": shared, "warnings": tuple(data["warnings"])})


def _metrics(data: dict[str, Any]) -> dict[str, MetricValue]:
    return {key: MetricValue.from_json(value) for key, value in data.items()}
