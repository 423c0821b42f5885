"""A synthetic run: every number of the record is computed from evidence that lies in a real store.

Images are drawn, scores are normal variables; nothing here was measured on a model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from oakum.records import CellRecord, MetricValue, RunRecord, SharedRecord, StageRef, sha256_hex
from oakum.store import Store

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"defense": "none", "parameters": {}, "accuracy": 0.941, "shift": 0.42, "canary": 1.9, "top1": 0.72},
    "bido 0.05/0.5": {
        "defense": "bido",
        "parameters": {"lambda_x": 0.05, "lambda_y": 0.5, "measure": "hsic"},
        "accuracy": 0.925, "shift": 0.30, "canary": 1.6, "top1": 0.38,
    },
    "relaxloss": {
        "defense": "relaxloss",
        "parameters": {"alpha": 0.5, "soft_label": True},
        "accuracy": 0.938, "shift": 0.12, "canary": 1.2, "top1": 0.70,
    },
    "dpsgd eps=8": {
        "defense": "dpsgd",
        "parameters": {"noise_multiplier": 1.1, "max_grad_norm": 1.0},
        "accuracy": 0.872, "shift": 0.02, "canary": 0.1, "top1": 0.55,
    },
}  # fmt: skip
CHANCE = {
    "membership/loss/auc": 0.5,
    "membership/entropy/auc": 0.5,
    "membership/loss/tpr_at_fpr_0.01": 0.01,
    "membership/entropy/tpr_at_fpr_0.01": 0.01,
    "membership/loss/tpr_at_fpr_0.001": 0.001,
    "membership/entropy/tpr_at_fpr_0.001": 0.001,
    "canary/loss/auc": 0.5,
    "canary/loss/tpr_at_fpr_0.1": 0.1,
    "inversion/gmi/top1": 0.2,
}
CLASSES = 5
EPOCHS = 12


@dataclass
class Run:
    """A record, the store that holds its evidence, and real images of its classes."""

    record: RunRecord
    store: Store
    real_images: dict[int, NDArray[np.float64]]

    def with_cells(self, change: Callable[[CellRecord], CellRecord | None]) -> RunRecord:
        """Return the record with every cell changed, or dropped where `change` returns None."""
        cells = tuple(changed for cell in self.record.cells if (changed := change(cell)) is not None)
        return replace(self.record, cells=cells)


class Builder:
    """Publishes evidence under keys derived from its place in the run."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self.store = store
        self.scratch = scratch

    def publish(self, kind: str, place: str, files: dict[str, bytes]) -> StageRef:
        key = sha256_hex(f"{kind}|{place}".encode())
        folder = self.scratch / key
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        self.store.publish(
            kind, key, folder, key_document={"place": place}, label=place, summary={}, provenance={"commit": "0" * 40}
        )
        return StageRef(kind, key)


def parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def glyph(label: int, rng: np.random.Generator, blur: float) -> NDArray[np.uint8]:
    """Draw one (1, 16, 16) picture of a class: bars whose place tells the class."""
    grid = np.mgrid[0:16, 0:16] / 15.0
    angle = np.pi * label / CLASSES
    distance = np.abs((grid[1] - 0.5) * np.sin(angle) - (grid[0] - 0.5) * np.cos(angle))
    picture = np.exp(-((distance / (0.08 + 0.25 * blur)) ** 2)) + blur * rng.normal(0, 0.35, (16, 16))
    return np.asarray(np.clip(picture, 0, 1)[None] * 255, dtype=np.uint8)


def rates(score: NDArray[np.float64], member: NDArray[np.bool_]) -> dict[str, MetricValue]:
    """Return AUC with a normal-theory interval, and TPR at 1 % and 0.1 % FPR, the latter unresolved."""
    inside, outside = score[member], score[~member]
    auc = float((inside[:, None] > outside[None, :]).mean())
    half = 1.96 * float(np.sqrt(auc * (1 - auc) / min(len(inside), len(outside))))
    threshold = float(np.quantile(outside, 0.99))
    note = f"needs 10 expected false positives, {len(outside)} non-members give {len(outside) * 0.001:g}"
    return {
        "auc": MetricValue(auc, auc - half, auc + half, "low"),
        "tpr_at_fpr_0.01": MetricValue(float((inside > threshold).mean()), wants="low"),
        "tpr_at_fpr_0.001": MetricValue(None, wants="low", note=note),
    }


def membership(builder: Builder, place: str, shift: float, points: int, rng: np.random.Generator) -> Any:
    member = np.arange(2 * points) < points
    score = rng.normal(0, 1, 2 * points) + shift * member
    evidence = parquet(row=np.arange(2 * points), label=np.arange(2 * points) % CLASSES, score=score, is_member=member)
    return builder.publish("membership", place, {"evidence.parquet": evidence}), rates(score, member)


def inversion(builder: Builder, place: str, top1: float, rng: np.random.Generator) -> Any:
    restarts = 4
    correct = rng.random((CLASSES, restarts)) < top1
    images = np.stack([[glyph(label, rng, 0.25 if hit else 0.9) for hit in correct[label]] for label in range(CLASSES)])
    tensors: dict[str, NDArray[Any]] = {"images": images, "classes": np.arange(CLASSES, dtype=np.int64)}
    made = builder.publish("inversion", place, {"reconstructions.safetensors": save(tensors)})
    judged = parquet(
        **{"class": np.repeat(np.arange(CLASSES), restarts)},
        restart=np.tile(np.arange(restarts), CLASSES),
        predicted=np.where(correct, np.arange(CLASSES)[:, None], (np.arange(CLASSES)[:, None] + 1) % CLASSES).ravel(),
        confidence=rng.random(CLASSES * restarts),
        correct=correct.ravel(),
    )
    return made, builder.publish("judge", place, {"judgements.parquet": judged}), float(correct.mean())


def history(accuracy: float, rng: np.random.Generator) -> bytes:
    epochs = []
    for epoch in range(EPOCHS):
        progress = 1 - float(np.exp(-0.45 * (epoch + 1)))
        epochs.append({
            "epoch": epoch,
            "train/loss": 2.3 * (1 - progress) + 3 * max(0.0, 0.95 - accuracy) + 0.02 * float(rng.random()),
            "train/accuracy": min(1.0, accuracy + 0.055) * progress,
            "val/accuracy": accuracy * progress + 0.01 * float(rng.random()),
            "learning_rate": 0.1,
            "seconds": 1.9,
            "finished": 1_760_000_000.0 + epoch,
        })  # fmt: skip
    return json.dumps({"epochs": epochs}).encode()


def build_cell(builder: Builder, label: str, seed: int) -> CellRecord:
    facts = SETTINGS[label]
    rng = np.random.default_rng([seed, list(SETTINGS).index(label)])
    place = f"{label}|{seed}"
    accuracy = facts["accuracy"] + 0.004 * float(rng.normal())
    stages = {
        "target.clean": builder.publish("train", f"{place}|clean", {"history.json": history(accuracy, rng)}),
        "target.canary": builder.publish("train", f"{place}|canary", {"history.json": history(accuracy, rng)}),
    }
    metrics = {
        "utility/train_accuracy": MetricValue(min(1.0, accuracy + 0.055), wants="none"),
        "utility/val_accuracy": MetricValue(accuracy - 0.003, wants="high"),
        "utility/test_accuracy": MetricValue(accuracy, accuracy - 0.01, accuracy + 0.01, "high"),
    }
    for attack, factor in (("loss", 1.0), ("entropy", 0.8)):
        stage, found = membership(builder, f"{place}|clean|{attack}", factor * facts["shift"], 1000, rng)
        stages[f"membership.clean.{attack}"] = stage
        metrics |= {f"membership/{attack}/{name}": value for name, value in found.items()}
    stage, found = membership(builder, f"{place}|canary|loss", facts["canary"], 100, rng)
    stages["membership.canary.loss"] = stage
    metrics["canary/loss/auc"] = found["auc"]
    metrics["canary/accuracy_cost"] = MetricValue(0.002 + 0.001 * float(rng.random()), wants="low")
    made, judged, top1 = inversion(builder, f"{place}|gmi", facts["top1"], rng)
    stages |= {"inversion.clean.gmi": made, "judge.clean.gmi": judged}
    metrics["inversion/gmi/top1"] = MetricValue(top1, max(0.0, top1 - 0.2), min(1.0, top1 + 0.2), "low")
    metrics["cost/train_seconds"] = MetricValue(23.0 + 40 * (facts["defense"] == "dpsgd") + float(rng.random()))
    metrics["cost/attack_seconds"] = MetricValue(31.0 + float(rng.random()))
    flags = ("inverted signal: membership/entropy AUC 0.44",) if (label, seed) == ("relaxloss", 1) else ()
    return CellRecord(label, facts["defense"], facts["parameters"], seed, metrics, stages, flags)


def build_run(home: Path, seeds: int = 3, labels: tuple[str, ...] = tuple(SETTINGS)) -> Run:
    """Build a run of the first `seeds` seeds and the given settings in a store under `home`."""
    store = Store.open(home / "store")
    builder = Builder(store, home / "scratch")
    cells = tuple(build_cell(builder, label, seed) for label in labels for seed in range(seeds))
    evaluator = builder.publish("train", "evaluator", {"history.json": history(0.98, np.random.default_rng(9))})
    record = RunRecord(
        name="quickstart",
        description="Four defenses on a small public image set, attacked for membership and by inversion.",
        run_key=sha256_hex(b"run"),
        plan_key=sha256_hex(b"plan"),
        config={"name": "quickstart", "seeds": seeds, "data": {"name": "drawn"}, "settings": list(labels)},
        data={
            "name": "drawn", "digest": sha256_hex(b"data"), "public": True, "license_note": "drawn by the tests",
            "class_names": ["zero", "one", "two", "three", "four"], "input_shape": [1, 16, 16],
            "folds": {"train": 1000, "val": 200, "test": 1000, "public": 1800, "evaluation": 800},
        },
        chance=CHANCE,
        cells=cells,
        shared=(SharedRecord("evaluator", evaluator, {"model": "small_cnn"}, {"accuracy": MetricValue(0.98)}),),
        code={"oakum": "0.1.0", "commit": "3f9c2d1" + "0" * 33, "dirty": False, "python": "3.11.7", "torch": "2.9.0"},
        warnings=("the shared evaluation model was trained on 800 images",),
        seconds={"plan": 0.4, "train": 301.2, "attack": 366.0, "report": 2.1},
    )  # fmt: skip
    rng = np.random.default_rng(5)
    real = {
        label: np.stack([glyph(label, rng, 0.08) for _ in range(3)]).astype(np.float64) / 255
        for label in range(CLASSES)
    }
    return Run(record, store, real)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three seeds of all settings, on public data."""
    return build_run(tmp_path_factory.mktemp("run"))
