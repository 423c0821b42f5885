"""A synthetic run: every number of the record is computed from evidence that lies in a real store.

Images are drawn, scores are normal variables; nothing here was measured on a model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
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


def glyph(label: int, rng: np.random.Generator, blur: float) -> NDArray[np.float32]:
    """Draw one (1, 16, 16) picture of a class: bars whose place tells the class."""
    grid = np.mgrid[0:16, 0:16] / 15.0
    angle = np.pi * label / CLASSES
    distance = np.abs((grid[1] - 0.5) * np.sin(angle) - (grid[0] - 0.5) * np.cos(angle))
    picture = np.exp(-((distance / (0.08 + 0.25 * blur)) ** 2)) + blur * rng.normal(0, 0.35, (16, 16))
    return np.asarray(np.clip(picture, 0, 1)[None], dtype=np.float32)


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
    return made, builder.publish("judge", place, {"judgments.parquet": judged}), float(correct.mean())


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
    real = {label: np.stack([glyph(label, rng, 0.08) for _ in range(3)]).astype(np.float64) for label in range(CLASSES)}
    return Run(record, store, real)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three seeds of all settings, on public data."""
    return build_run(tmp_path_factory.mktemp("run"))


# Inversion attack -> how much of a setting's recognition it reaches, its tasks, and the settings that meet it.
SEARCHES: dict[str, tuple[float, int, tuple[str, ...]]] = {
    "gmi": (0.9, 1, ("none", "bido 0.05/0.5", "relaxloss")),
    "kedmi": (1.3, 2, ("none", "bido 0.05/0.5", "relaxloss")),
    "vmi": (1.35, 1, ("none",)),
}
# The evaluation model knows more classes than the target; it calls the target's classes 10, 12, ....
PRIVATE = tuple(range(10, 10 + 2 * CLASSES, 2))
RECOGNIZED = {"none": 0.7, "bido 0.05/0.5": 0.45, "relaxloss": 0.1}
RESTARTS = 8


def judged_inversion(builder: Builder, label: str, seed: int, attack: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the stages and metrics of one attack: reconstructions of several tasks, three judges, floors."""
    factor, tasks, _ = SEARCHES[attack]
    place = f"searched|{label}|{seed}|{attack}"
    rng = np.random.default_rng([11, seed, list(RECOGNIZED).index(label), list(SEARCHES).index(attack)])
    share = min(0.97, factor * RECOGNIZED[label])
    correct = rng.random((CLASSES, RESTARTS)) < share
    second = correct & (rng.random(correct.shape) < 0.8) | (rng.random(correct.shape) < 0.03)
    face = correct & (rng.random(correct.shape) < 0.7)
    images = np.stack([[glyph(label, rng, 0.25 if hit else 0.9) for hit in correct[label]] for label in range(CLASSES)])
    stages = {}
    for number, classes in enumerate(np.array_split(np.arange(CLASSES), tasks)):
        role = f"inversion.clean.{attack}" + (f".{number}" if tasks > 1 else "")
        content = save({"images": images[classes], "classes": classes})
        stages[role] = builder.publish("inversion", f"{place}|{number}", {"reconstructions.safetensors": content})
    judgments = parquet(
        **{"class": np.repeat(PRIVATE, RESTARTS)},
        restart=np.tile(np.arange(RESTARTS), CLASSES),
        correct=correct.ravel(),
        correct_second=second.ravel(),
        correct_faceres=face.ravel(),
    )
    stages[f"judge.clean.{attack}"] = builder.publish("judge", place, {"judgments.parquet": judgments})
    distance = 300 - 200 * share + 5 * float(rng.normal())
    counts = f"singular covariance: {correct.size} and 500 samples for"
    few = f"no interval: {CLASSES} identities, needs 20"
    # The control and the prior of gmi are the same for every setting, the prior of kedmi belongs to its target.
    floor = np.random.default_rng([seed, 0 if attack != "kedmi" else list(RECOGNIZED).index(label)])
    found = {
        "top1": MetricValue(float(correct.mean()), wants="low", note=few),
        "top5": MetricValue(float(min(1.0, correct.mean() + 0.2)), wants="low", note=few),
        "top1.second": MetricValue(float(second.mean()), wants="low", note=few),
        "top1.faceres": MetricValue(float(face.mean()), wants="low", note=few),
        "disagreement": MetricValue(float((~second[correct]).mean())) if correct.any() else MetricValue(None, note="0"),
        "top1.control": MetricValue(0.08 + 0.04 * float(np.random.default_rng(seed).random())),
        "top1.unoptimized": MetricValue(0.05 + 0.02 * float(floor.random())),
        "knn2.evaluator": MetricValue(distance, wants="high", note=few),
        "knn2.evaluator.control": MetricValue(310.0 + seed, wants="high"),
        "feature2.evaluator": MetricValue(distance + 40, wants="high", note=few),
        "fd.evaluator": MetricValue(2 * distance, wants="high", note=f"{counts} 512 features"),
        "fd.efflite0": MetricValue(distance / 7, wants="high", note=f"{counts} 1280 features"),
        "fid.inception": MetricValue(distance / 2, wants="high", note=f"{counts} 2048 features"),
    }
    for neighbors in (3, 5):
        found |= {
            f"precision.k{neighbors}": MetricValue(share * 0.1 * neighbors, wants="low", note=few),
            f"recall.k{neighbors}": MetricValue(None, wants="low", note="unresolved: class 10 has 5, needs 6")
            if neighbors == 5
            else MetricValue(0.2 * share, wants="low", note=few),
            f"density.k{neighbors}": MetricValue(share * 0.25 * neighbors, wants="low", note=few),
            f"coverage.k{neighbors}": MetricValue(share * 0.15 * neighbors, wants="low", note=few),
        }
    return stages, {f"inversion/{attack}/{name}": value for name, value in found.items()}


def with_searches(cell: CellRecord, builder: Builder) -> CellRecord:
    """Return the cell with the attacks of `SEARCHES` in the place of its inversion."""
    own = ("inversion", "judge")
    stages = {role: stage for role, stage in cell.stages.items() if not role.startswith(own)}
    metrics = {key: value for key, value in cell.metrics.items() if not key.startswith(own)}
    for attack, (_, _, met) in SEARCHES.items():
        if cell.setting in met:
            made, found = judged_inversion(builder, cell.setting, cell.seed, attack)
            stages |= made
            metrics |= found
    return replace(cell, stages=stages, metrics=metrics)


def build_searched(home: Path, seeds: int = 3) -> Run:
    """Build a run of three settings that several inversion attacks met, judged by three networks."""
    built = build_run(home, seeds, tuple(RECOGNIZED))
    builder = Builder(built.store, home / "scratch")
    chance = {f"inversion/{attack}/{name}": 0.05 for attack in SEARCHES for name in ("top1", "top1.second")}
    evaluation = {
        "model": {"name": "scnn"},
        "fold": "train",
        "second": {"model": {"name": "lenet3"}},
        "extractors": [{"name": "efficientnet_lite0"}, {"name": "faceres"}, {"name": "inception_v3_2015"}],
        "real_per_class": 5,
    }
    attacks = {"membership": [], "inversion": [{"name": name} for name in SEARCHES]}
    judge = StageRef("train", "e" * 64)
    record = replace(
        built.record,
        cells=tuple(with_searches(cell, builder) for cell in built.record.cells),
        config={**built.record.config, "evaluation": evaluation, "attacks": attacks},
        data={**built.record.data, "private_classes": list(PRIVATE), "evaluation_classes": 20},
        chance={key: level for key, level in CHANCE.items() if not key.startswith("inversion/")} | chance,
        shared=(SharedRecord("evaluation", judge, {}, {"val_accuracy": MetricValue(0.9874)}),),
    )
    return Run(record, built.store, built.real_images)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three seeds of three settings, met by several inversion attacks."""
    return build_searched(tmp_path_factory.mktemp("searched"))


# Attack -> access, and whether its scores and its thresholds are fitted to a shadow model.
ATTACKS: dict[str, tuple[str, bool, bool]] = {
    "nn": ("scores", True, False),
    "confidence": ("scores", False, True),
    "loss": ("scores", False, True),
    "entropy": ("scores", False, True),
    "modified_entropy": ("scores", False, True),
    "correctness": ("label", False, False),
    "grad_x_l1": ("weights", False, True),
    "grad_x_l2": ("weights", False, True),
    "grad_w_l1": ("weights", False, True),
    "grad_w_l2": ("weights", False, True),
    "label_only": ("label", False, True),
    "label_rank": ("scores", False, True),
    "inverted_classifier": ("weights", True, True),
}
# Label -> defense, accuracies on train and test, leak (AUC above one half), and how much of it the vanilla shadow sees.
WIDE_SETTINGS: dict[str, tuple[str, float, float, float, float]] = {
    "none": ("none", 1.0, 0.705, 0.345, 1.0),
    "relaxloss alpha=0.5": ("relaxloss", 0.97, 0.731, 0.17, 0.1),
    "relaxloss alpha=1.0": ("relaxloss", 0.87, 0.738, 0.07, 0.0),
    "advreg": ("advreg", 0.95, 0.69, 0.24, 0.5),
    "advreg (Nasr et al.)": ("advreg", 0.93, 0.68, 0.22, 0.5),
    "advreg log": ("advreg", 0.94, 0.685, 0.23, 0.45),
    "dpsgd epsilon=8": ("dpsgd", 0.46, 0.45, 0.008, 0.3),
    "dpsgd epsilon=100": ("dpsgd", 0.55, 0.52, 0.02, 0.3),
    "dpsgd high utility": ("dpsgd", 0.72, 0.63, 0.09, 0.6),
    "confidence penalty": ("confidence_penalty", 1.0, 0.712, 0.29, 0.2),
    "distillation": ("distillation", 0.99, 0.719, 0.27, 0.7),
    "dropout": ("dropout", 1.0, 0.721, 0.33, 0.9),
    "early stopping, epoch 25": ("early_stopping", 0.74, 0.66, 0.05, 0.4),
    "early stopping, epoch 50": ("early_stopping", 0.83, 0.69, 0.12, 0.6),
    "label smoothing": ("label_smoothing", 1.0, 0.72, 0.31, 0.0),
    "memguard": ("memguard", 1.0, 0.705, 0.345, 0.0),
    "hamp": ("hamp", 0.92, 0.70, 0.20, 0.05),
    "selena": ("selena", 0.75, 0.68, 0.06, 0.4),
}
MASKED = ("memguard", "hamp")


@dataclass(frozen=True)
class Filed:
    """What a manifest says; `name` is the attack, and seed and shift make its scores."""

    summary: dict[str, Any]
    shift: float
    seed: int
    created: float = 1_760_000_000.0


@dataclass(frozen=True)
class MemoryStore:
    """Manifests by key; evidence is drawn when it is read."""

    filed: dict[str, Filed]

    def manifest(self, kind: str, key: str) -> Filed | None:
        return self.filed.get(key)

    def manifests(self, refs: Iterable[StageRef]) -> dict[StageRef, Filed]:
        return {ref: self.filed[ref.key] for ref in refs if ref.key in self.filed}

    def read(self, manifest: Filed, name: str) -> bytes:
        if name == "history.json":
            return history(0.7 + 0.3 * manifest.shift, np.random.default_rng(manifest.seed))
        member = np.arange(2000) < 1000
        return parquet(
            score=np.random.default_rng(manifest.seed).normal(0, 1, 2000) + 3 * manifest.shift * member,
            is_member=member,
        )


@dataclass(frozen=True)
class Wide:
    """A run of many attacks against many defenses."""

    record: RunRecord
    store: MemoryStore

    def with_cells(self, change: Callable[[CellRecord], CellRecord]) -> RunRecord:
        return replace(self.record, cells=tuple(change(cell) for cell in self.record.cells))


def wide_metrics(attack: str, leak: float, seen: float, rng: np.random.Generator) -> dict[str, MetricValue]:
    """Return the metrics of one attack; `seen` is the share of the leak that the vanilla shadow finds."""
    access, fits_scores, fits_thresholds = ATTACKS[attack]
    strength = leak * {"label": 0.55, "weights": 1.02, "scores": 0.95}[access]

    def value(center: float, noise: float = 0.004) -> MetricValue:
        drawn = float(np.clip(center + noise * rng.normal(), 0, 1))
        return MetricValue(drawn, drawn - 0.01, drawn + 0.01, "low")

    found = {"auc": value(0.5 + strength), "average_precision": value(0.5 + strength)}
    found |= {
        "tpr_at_fpr_0.001": MetricValue(None, wants="low", note="unresolved: needs 10,000 non-members, has 1,000"),
        "tpr_at_fpr_0.01": value(0.01 + 0.2 * strength, 0.002),
        "tpr_at_fpr_0.05": value(0.05 + 0.5 * strength, 0.002),
        "tpr_at_fpr_0.1": value(0.1 + 0.8 * strength, 0.002),
    }
    if fits_scores:
        found |= {f"{name}.vanilla_shadow": value(0.5 + strength * seen) for name in ("auc", "average_precision")}
        found["tpr_at_fpr_0.01.vanilla_shadow"] = value(0.01 + 0.2 * strength * seen, 0.002)
    balanced = found["balanced_accuracy"] = value(0.5 + 0.8 * strength)
    is_fitted = fits_scores or fits_thresholds
    found["balanced_accuracy.vanilla_shadow"] = value(0.5 + 0.8 * strength * seen, 0.001) if is_fitted else balanced
    if fits_thresholds:
        found["balanced_accuracy_per_class"] = value(0.5 + 0.82 * strength)
        found["balanced_accuracy_per_class.vanilla_shadow"] = value(0.5 + 0.82 * strength * seen, 0.001)
    return found


def wide_cell(label: str, seed: int, manifests: dict[str, Filed]) -> CellRecord:
    defense, train, test, leak, seen = WIDE_SETTINGS[label]
    place = list(WIDE_SETTINGS).index(label)
    rng = np.random.default_rng([7, place, seed])
    stages: dict[str, StageRef] = {"target.clean": StageRef("train", sha256_hex(f"{label}|{seed}".encode()))}
    manifests[stages["target.clean"].key] = Filed({}, leak, 100 * place + seed)
    metrics = {
        "utility/train_accuracy": MetricValue(min(1.0, train + 0.002 * float(rng.normal()))),
        "utility/test_accuracy": MetricValue(test + 0.004 * float(rng.normal()), wants="high"),
        "utility/test_top5_accuracy": MetricValue(min(1.0, test + 0.25), wants="high"),
        "utility/train_loss_mean": MetricValue(1.7e-4 + 3 * (0.345 - leak)),
        "utility/train_loss_variance": MetricValue(1.5e-8 + (0.345 - leak)),
        "utility/test_loss_mean": MetricValue(1.13 + 0.02 * float(rng.normal())),
        "utility/test_loss_variance": MetricValue(0.4 + 10 * leak),
        "cost/train_seconds": MetricValue(900.0 + 30 * place),
        "cost/shadow_seconds": MetricValue(880.0 + 30 * place),
    }
    if defense == "dpsgd":
        epsilon = {"dpsgd epsilon=8": 7.99, "dpsgd epsilon=100": 99.8}.get(label)
        note = "add/remove neighbors, Poisson sampling, prv accountant"
        note = note if epsilon else "add/remove neighbors, Poisson sampling, no finite bound: there is too little noise"
        metrics |= {
            "privacy/delta": MetricValue(1e-5),
            "privacy/epsilon": MetricValue(epsilon, wants="low", note=note),
            "privacy/noise_multiplier": MetricValue(0.71 if epsilon else 0.01),
        }
    flags = []
    for attack, (access, _, _) in ATTACKS.items():
        own = -0.09 if (label, attack) == ("hamp", "entropy") else leak
        if label == "memguard" and access == "scores":
            own = 0.02
        metrics |= {f"membership/{attack}/{name}": each for name, each in wide_metrics(attack, own, seen, rng).items()}
        ref = StageRef("membership", sha256_hex(f"{label}|{seed}|{attack}".encode()))
        stages[f"membership.clean.{attack}"] = ref
        manifests[ref.key] = Filed({"access": access}, own, 10_000 * place + 100 * seed + len(attack))
        role = f"membership.clean.{attack}"
        if label in MASKED and access == "weights":
            flags.append(f"{role}: acts on the weights, which the mask does not cover")
        if own < 0:
            flags.append(f"{role}: inverted signal")
        if seen == 0.0 and ATTACKS[attack][2]:
            flags.append(f"{role}: one class predicted (vanilla shadow)")
        if seen < 0.45 and access == "weights":
            flags.append(f"{role}: zero gradients")
    return CellRecord(label, defense, {"strength": leak}, seed, metrics, stages, tuple(flags))


def build_wide(seeds: int = 3) -> Wide:
    """Build a run of all attacks against all settings of `WIDE_SETTINGS`."""
    manifests: dict[str, Filed] = {}
    cells = tuple(wide_cell(label, seed, manifests) for label in WIDE_SETTINGS for seed in range(seeds))
    names = [f"balanced_accuracy{part}{shadow}" for part in ("", "_per_class") for shadow in ("", ".vanilla_shadow")]
    chance = {
        f"membership/{attack}/{name}": 0.5 for attack in ATTACKS for name in ("auc", "auc.vanilla_shadow", *names)
    }
    record = RunRecord(
        name="cifar10-membership",
        description="Defenses against membership inference, every attack on every defense; numbers are drawn.",
        run_key=sha256_hex(b"wide"),
        plan_key=sha256_hex(b"wide plan"),
        config={"attacks": {"membership": [{"name": name} for name in ATTACKS], "nonmembers": "test"}},
        data={"name": "drawn", "public": True, "input_shape": [3, 32, 32]},
        chance={**chance, "utility/test_accuracy": 0.1},
        cells=cells,
        shared=(),
        code={"oakum": "0.1.0", "commit": "3f9c2d1" + "0" * 33, "dirty": False},
    )
    return Wide(record, MemoryStore(manifests))


@pytest.fixture(scope="session")
def wide() -> Wide:
    """Three seeds of 18 settings against 13 attacks."""
    return build_wide()


@dataclass
class TableCell:
    """A cell as a reader sees it."""

    attributes: dict[str, str | None]
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\N{NO-BREAK SPACE}", " ")

    @property
    def classes(self) -> set[str]:
        return set((self.attributes.get("class") or "").split())

    @property
    def title(self) -> str:
        return (self.attributes.get("title") or "").replace("\N{NO-BREAK SPACE}", " ")


class TableReader(HTMLParser):
    """Collects tables as rows of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[TableCell]]] = []
        self._is_in_cell = False

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        if name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("td", "th"):
            self.tables[-1][-1].append(TableCell(dict(attrs)))
            self._is_in_cell = True

    def handle_endtag(self, name: str) -> None:
        if name in ("td", "th"):
            self._is_in_cell = False

    def handle_data(self, data: str) -> None:
        if self._is_in_cell:
            self.tables[-1][-1][-1].words.append(data)


@pytest.fixture(scope="session")
def tables() -> Callable[[str], list[list[list[TableCell]]]]:
    """Return a function from markup to its tables."""

    def read(markup: str) -> list[list[list[TableCell]]]:
        reader = TableReader()
        reader.feed(markup)
        reader.close()
        return reader.tables

    return read


VOID_ELEMENTS = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Structure(HTMLParser):
    """Checks that elements nest, and collects what a test asks about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if name not in VOID_ELEMENTS:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        if not self.open or self.open.pop() != name:
            self.faults.append(name)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def read() -> Callable[[str], Structure]:
    """Return a function from a page to its structure, which fails where elements do not nest."""

    def read(page: str) -> Structure:
        structure = Structure()
        structure.feed(page)
        structure.close()
        assert not structure.open
        assert not structure.faults
        return structure

    return read
