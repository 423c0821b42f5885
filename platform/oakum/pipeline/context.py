"""What a stage's function is given: its inputs, its folds, and a folder for its payload."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum import registry
from oakum.config import validate
from oakum.models.base import Classifier, InputShape
from oakum.pipeline.folds import LoadedFolds, Selection
from oakum.pipeline.stage import StageTask, WorkerSettings
from oakum.records import canonical_json
from oakum.seeding import derive_seed
from oakum.store import Manifest, Store
from oakum.training.checkpoint import load_module, load_parts, save_parts

if TYPE_CHECKING:
    import torch
    from torch import nn


class MissingInputError(LookupError):
    """A stage was started before what it reads was published."""


@dataclass
class StageContext:
    """The world of one running stage.

    Attributes:
        output: local scratch folder; every file in it becomes payload.
        notes: plain JSON for the manifest's provenance.
    """

    task: StageTask
    store: Store
    settings: WorkerSettings
    output: Path
    scratch: Path
    notes: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def folds(self) -> LoadedFolds:
        """The stage's folds, checked against the digests in its key."""
        folds = _loaded_folds(canonical_json(self.task.selection).decode(), self.settings.data_home)
        folds.check(self.task.folds)
        return folds

    @property
    def device(self) -> torch.device:
        """The GPU that the executor gave to this stage, or the CPU."""
        import torch

        return torch.device("cuda") if self.settings.use_gpu and torch.cuda.is_available() else torch.device("cpu")

    def input(self, name: str) -> Manifest:
        """Return the manifest of an input.

        Raises:
            MissingInputError: it is not in the store.
        """
        ref = self.task.inputs[name]
        manifest = self.store.manifest(ref.kind, ref.key)
        if manifest is None:
            raise MissingInputError(f"input {name!r} ({ref.kind} {ref.key[:12]}) is not in the store")
        return manifest

    def released(self, name: str) -> nn.Module:
        """Return what the adversary may query of a trained input, in eval mode on the stage's device."""
        config = self.input(name).key_document["config"]
        module = build_defense(config["defense"]).release(self._trained(name), derive_seed(config["seed"], "release"))
        released: nn.Module = module.eval().to(self.device)
        return released

    def unmasked(self, name: str) -> nn.Module:
        """Return the classifier that the weights of a trained input show, in eval mode on the stage's device."""
        config = self.input(name).key_document["config"]
        unmasked: nn.Module = build_defense(config["defense"]).unmasked(self._trained(name)).eval().to(self.device)
        return unmasked

    def _trained(self, name: str) -> nn.Module:
        manifest = self.input(name)
        module = build_network(manifest.key_document["config"])
        return load_module(module, self.store.fetch(manifest, "model.safetensors"))

    def write_json(self, name: str, data: Any) -> None:
        (self.output / name).write_text(json.dumps(data, allow_nan=False))


class StoreCheckpointer:
    """Keeps unfinished training in the store's work area, at most every `seconds` of wall time."""

    def __init__(self, store: Store, key: str, scratch: Path, seconds: float) -> None:
        self._work = store.work(key)
        self._scratch = scratch
        self._seconds = seconds
        self._last = time.monotonic()

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        if time.monotonic() - self._last < self._seconds:
            return
        folder = self._scratch / f"checkpoint-{epoch}"
        folder.mkdir(parents=True, exist_ok=True)
        save_parts(folder, parts, record)
        self._work.save(epoch, folder)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        self._last = time.monotonic()

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        found = self._work.latest()
        return None if found is None else load_parts(found[1], parts)


def build_method(kind: str, document: dict[str, Any]) -> Any:
    """Return the class and validated configuration of a method's plain document."""
    options = dict(document)
    name = options.pop("name")
    cls = registry.load(kind, name)
    return cls, validate(cls.Config, options, f"{kind}.{name}")


def build_model(config: dict[str, Any]) -> Classifier:
    """Return the untrained classifier of a training's configuration."""
    cls, options = build_method("models", config["model"])
    model: Classifier = cls(options, InputShape(tuple(config["input_shape"])), config["num_classes"])
    return model


def build_network(config: dict[str, Any]) -> nn.Module:
    """Return the untrained network whose weights a training stores: the classifier as its defense builds it."""
    network: nn.Module = build_defense(config["defense"]).build(build_model(config))
    return network


def build_defense(document: dict[str, Any]) -> Any:
    """Return the defense of a plain document."""
    cls, options = build_method("defenses", document)
    return cls(options)


@lru_cache(maxsize=16)
def _loaded_folds(selection: str, data_home: Path) -> LoadedFolds:
    return LoadedFolds(Selection(**json.loads(selection)), data_home)
