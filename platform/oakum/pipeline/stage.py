"""Stages: functions of (configuration, inputs) that are known by the hash of everything they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from oakum.records import StageRef, canonical_json, sha256_hex

STORE_SCHEMA = 1


@dataclass(frozen=True)
class Resources:
    """What a stage asks the executor for; never part of its key.

    Attributes:
        workers: processes that train together, each with these CPUs and GPUs.
        min_workers: with how few of them it may begin and go on; None: with all of them.
    """

    cpus: int = 1
    gpus: float = 0.0
    workers: int = 1
    min_workers: int | None = None

    @property
    def least_workers(self) -> int:
        """With how few workers the stage may run."""
        return self.workers if self.min_workers is None else self.min_workers


@dataclass(frozen=True)
class Stage:
    """One piece of work.

    Attributes:
        kind: the name of the module in `pipeline/stages` that runs it.
        config: plain JSON with defaults filled: everything that its result depends on beside inputs and folds.
        inputs: name -> the stage whose payload is read.
        folds: fold name -> content digest.
        fingerprint: of the code, or `version:<n>` of a method declared stable.
        selection: which rows the folds are: what `oakum.datasets` needs to draw them again; not in the key, since
            the digests are.
        resources: what it needs to run; not in the key.
        label: for people.
        weight: expected relative cost; longer stages are started first.
        part: what it belongs to, for `--only` and `--skip`: `target`, `shadow`, `attack`, `evaluation` or `prior`; not
            in the key.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Stage]
    folds: Mapping[str, str]
    fingerprint: str
    selection: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()
    label: str = ""
    weight: float = 1.0
    part: str = "target"

    def key_document(self) -> dict[str, Any]:
        """Return the plain data whose canonical JSON is hashed into the key."""
        return {
            "schema": STORE_SCHEMA,
            "kind": self.kind,
            "config": dict(self.config),
            "inputs": {name: stage.key for name, stage in self.inputs.items()},
            "folds": dict(self.folds),
            "code": self.fingerprint,
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of `key_document`, 64 hex digits."""
        return sha256_hex(canonical_json(self.key_document()))

    @property
    def ref(self) -> StageRef:
        return StageRef(self.kind, self.key)

    def task(self) -> StageTask:
        """Return what a worker needs to run this stage, as plain picklable data."""
        return StageTask(
            kind=self.kind,
            key=self.key,
            key_document=self.key_document(),
            inputs={name: stage.ref for name, stage in self.inputs.items()},
            selection=dict(self.selection),
            resources=self.resources,
            label=self.label,
        )


@dataclass(frozen=True)
class StageTask:
    """A stage without its ancestors: plain data that travels to a worker."""

    kind: str
    key: str
    key_document: dict[str, Any]
    inputs: dict[str, StageRef]
    selection: dict[str, Any]
    resources: Resources
    label: str

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.key_document["config"]
        return config

    @property
    def folds(self) -> dict[str, str]:
        folds: dict[str, str] = self.key_document["folds"]
        return folds


@dataclass(frozen=True)
class WorkerSettings:
    """Where a worker finds the store and the data, and how often it keeps unfinished training."""

    store_uri: str
    data_home: Path
    checkpoint_seconds: float = 20.0
    use_gpu: bool = False
    commit: str = ""
