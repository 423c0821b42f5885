"""Judge reconstructions; payload: `judgments.parquet`, one row for each reconstruction.

Beside the reconstructions of the target, those of the control (a model of other people, attacked alike) and the prior's
unoptimized samples are judged: what they reach, an attack reaches without any leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.metrics import inversion as metrics
from oakum.metrics.utility import accuracy
from oakum.models.base import same_architecture
from oakum.models.extractors.base import extract_features, open_extractor
from oakum.pipeline.context import StageContext, build_model
from oakum.records import MetricValue
from oakum.store import Manifest
from oakum.weights import weights_folder

CHUNK = 512
PRDC_NEIGHBORS = (3, 5)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Made:
    """Reconstructions of one model.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        wanted: (N,) int64 the class that each should show, as the evaluation model numbers it.
        restart: (N,) int64.
    """

    images: Tensor
    wanted: NDArray[np.int64]
    restart: NDArray[np.int64]


@dataclass(frozen=True)
class Leakless:
    """What is made without attacking the target.

    Attributes:
        control: the same attack's reconstructions of a model of other people; None without a control.
        unoptimized: (U, C, H, W) the prior's samples before any search; None without a prior. A prior that is trained
            against the target has learned from it.
    """

    control: Made | None
    unoptimized: Tensor | None


@dataclass(frozen=True)
class Opinion:
    """What an evaluation model says about images: log-probabilities (N, K) and features (N, F), float64."""

    scores: Floats
    features: Floats


def run(context: StageContext) -> dict[str, Any]:
    """Judge reconstructions by the evaluation models and feature networks; payload: `judgments.parquet`."""
    made, unoptimized = _made(context, "inversion")
    assert made is not None
    leakless = Leakless(_made(context, "control")[0], unoptimized)
    real_images, real_classes = _real(context, made.wanted)
    evaluator = _judge_model(context, "evaluator")
    mine, real = _opinion(evaluator, made.images, context), _opinion(evaluator, real_images, context)
    found = _against_real(mine, made.wanted, real.features, real_classes, "evaluator")
    hits = {"correct": metrics.is_hit(mine.scores, made.wanted)}
    found["top1"] = metrics.attack_accuracy(mine.scores, made.wanted)
    found["faint"] = metrics.faint_share(made.images, made.wanted, hits["correct"], real_images, real_classes)
    found["accuracy_on_real.evaluator"] = accuracy(real.scores.argmax(axis=1), real_classes)
    if mine.scores.shape[1] >= metrics.MIN_TOP5_CLASSES:
        found["top5"] = metrics.attack_accuracy(mine.scores, made.wanted, k=5)
    if "second" in context.task.inputs:
        second = _judge_model(context, "second")
        other = _opinion(second, made.images, context)
        found["top1.second"] = metrics.attack_accuracy(other.scores, made.wanted)
        found |= _floors(second, "top1.second", leakless, made.wanted, context)[0]
        hits["correct_second"] = metrics.is_hit(other.scores, made.wanted)
        found["disagreement"] = metrics.disagreement(hits["correct"], hits["correct_second"])
        of_real = _opinion(second, real_images, context)
        found["accuracy_on_real.second"] = accuracy(of_real.scores.argmax(axis=1), real_classes)
    floors, of_control = _floors(evaluator, "top1", leakless, made.wanted, context)
    found |= floors
    if leakless.control is not None and of_control is not None:
        found["knn2.evaluator.control"] = metrics.knn_distance(
            of_control.features, leakless.control.wanted, real.features, real_classes
        )
    for name, extra, accepted in _by_extractors(context, made, leakless.control, real_images, real_classes):
        found |= extra
        if accepted is not None:
            hits[f"correct_{name}"] = accepted
            found[f"disagreement.{name}"] = metrics.disagreement(hits["correct"], accepted)
    _write(context, made, mine, hits)
    return {
        "metrics": {name: value.to_json() for name, value in found.items()},
        "profile": _profile(context, made, len(real_images)),
    }


def _made(context: StageContext, kind: str) -> tuple[Made | None, Tensor | None]:
    """Return the reconstructions of all tasks of one model, and the prior's unoptimized samples."""
    names = [name for name in context.task.inputs if name.startswith(f"{kind}.")]
    if not names:
        return None, None
    parts = [load_file(context.store.fetch(context.input(name), "reconstructions.safetensors")) for name in names]
    images = torch.cat([part["images"] for part in parts])
    classes = torch.cat([part["classes"] for part in parts])
    wanted = torch.tensor(context.task.config["evaluator_classes"])[classes]
    count = images.shape[1]
    unoptimized = parts[0].get("unoptimized")
    return (
        Made(
            images.flatten(0, 1),
            wanted.repeat_interleave(count).numpy(),
            np.tile(np.arange(count), len(classes)),
        ),
        unoptimized,
    )


def _real(context: StageContext, wanted: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the training images of the attacked classes, the first `real_per_class` of each."""
    config, folds = context.task.config, context.folds
    rows = folds.require("train")
    y = folds.labels.y[rows] if config["labels"] == "all" else folds.class_index(rows, config["labels"])
    most = config["real_per_class"]
    kept = np.sort(np.concatenate([np.flatnonzero(y == label)[:most] for label in np.unique(wanted)]))
    return folds.samples.tensor(rows[kept]), y[kept]


def _judge_model(context: StageContext, name: str) -> nn.Module:
    model = context.released(name)
    inversion = context.input("inversion.0").key_document
    key = inversion["inputs"]["target"]
    target = context.store.manifest("train", key) or context.store.manifest("snapshot", key)
    if target is not None and same_architecture(build_model(target.key_document["config"]), model):
        raise ConfigError("the evaluation model has the architecture of the target; choose another")
    return model


@torch.no_grad()
def _opinion(evaluator: nn.Module, images: Tensor, context: StageContext) -> Opinion:
    """Return log-probabilities and the last tap (the logits of a model without taps) of images in [0, 1]."""
    scores, features = [], []
    for part in images.split(CHUNK):
        output, taps = evaluator(part.to(context.device), with_taps=True)
        scores.append(output.double().log_softmax(dim=1).cpu())
        features.append((taps[-1] if taps else output).flatten(1).double().cpu())
    return Opinion(torch.cat(scores).numpy(), torch.cat(features).numpy())


def _against_real(
    mine: Opinion, wanted: NDArray[np.int64], real: Floats, real_classes: NDArray[np.int64], profile: str
) -> dict[str, MetricValue]:
    """Return the distances to the real images in one feature space."""
    found = {
        f"knn2.{profile}": metrics.knn_distance(mine.features, wanted, real, real_classes),
        f"feature2.{profile}": metrics.feature_distance(mine.features, wanted, real, real_classes),
        f"fd.{profile}": metrics.frechet_distance(mine.features, real),
    }
    for neighbors in PRDC_NEIGHBORS:
        scores = metrics.prdc_per_class(mine.features, wanted, real, real_classes, neighbors)
        found |= {f"{name}.k{neighbors}": value for name, value in scores.items()}
    return found


def _floors(
    evaluator: nn.Module, column: str, leakless: Leakless, wanted: NDArray[np.int64], context: StageContext
) -> tuple[dict[str, MetricValue], Opinion | None]:
    """Return the floors of a model's top-1, by name, and what it says of the control."""
    found: dict[str, MetricValue] = {}
    of_control = None
    if leakless.control is not None:
        of_control = _opinion(evaluator, leakless.control.images, context)
        found[f"{column}.control"] = metrics.attack_accuracy(of_control.scores, leakless.control.wanted)
    if leakless.unoptimized is not None:
        opinion = _opinion(evaluator, leakless.unoptimized, context)
        found[f"{column}.unoptimized"] = _unsearched(opinion, np.unique(wanted))
    return found, of_control


def _unsearched(opinion: Opinion, wanted: NDArray[np.int64]) -> MetricValue:
    """Return how often a sample that was never optimized shows an attacked class, on average over these classes."""
    said = opinion.scores.argmax(axis=1)
    return MetricValue(float(np.mean([(said == label).mean() for label in wanted])), wants="none")


def _by_extractors(
    context: StageContext, made: Made, control: Made | None, real: Tensor, real_classes: NDArray[np.int64]
) -> list[tuple[str, dict[str, MetricValue], NDArray[np.bool_] | None]]:
    results = []
    for entry in context.task.config["extractors"]:
        extractor, network, file = open_extractor(entry["method"]["name"], weights_folder(context.settings.data_home))
        if file.sha256 != entry["weights"]:
            raise ConfigError(
                f"the weights of {entry['method']['name']!r} on this machine are not the ones that were planned; run "
                f"`oakum weights prepare {entry['method']['name']}` on every node"
            )
        network = network.to(context.device)
        judged = _by_extractor(extractor, network, made, control, real, real_classes)
        results.append((entry["method"]["name"], *judged))
    return results


def _by_extractor(
    extractor: Any,
    network: nn.Module,
    made: Made,
    control: Made | None,
    real: Tensor,
    real_classes: NDArray[np.int64],
) -> tuple[dict[str, MetricValue], NDArray[np.bool_] | None]:
    mine, theirs = (extract_features(network, images).double().numpy() for images in (made.images, real))
    found = {extractor.profile: metrics.frechet_distance(mine, theirs)}
    if not extractor.recognizes:
        return found, None
    name = extractor.profile.split(".")[-1]
    hits = metrics.recognized(mine, made.wanted, theirs, real_classes)
    found[f"top1.{name}"] = metrics.recognition(mine, made.wanted, theirs, real_classes)
    found[f"knn2.{name}"] = metrics.knn_distance(mine, made.wanted, theirs, real_classes)
    if control is not None:
        other = extract_features(network, control.images).double().numpy()
        found[f"top1.{name}.control"] = metrics.recognition(other, control.wanted, theirs, real_classes)
        found[f"knn2.{name}.control"] = metrics.knn_distance(other, control.wanted, theirs, real_classes)
    return found, hits


def _write(context: StageContext, made: Made, mine: Opinion, hits: dict[str, NDArray[np.bool_]]) -> None:
    confidence = np.exp(mine.scores[np.arange(len(made.wanted)), made.wanted])
    table = {
        "class": made.wanted,
        "restart": made.restart,
        "predicted": mine.scores.argmax(axis=1),
        "confidence": confidence,
        **hits,
    }
    pq.write_table(pa.table(table), context.output / "judgments.parquet")


def _profile(context: StageContext, made: Made, real: int) -> dict[str, Any]:
    """Return what must be equal for two judgments to be comparable; `real` counts the real images."""
    task = context.task
    judges = {role: context.input(role) for role in ("evaluator", "second") if role in task.inputs}
    classes = len(np.unique(made.wanted))
    return {
        "evaluator": judges["evaluator"].key,
        "second": judges["second"].key if "second" in judges else None,
        "shares_private_images": {role: _shares_images(judge) for role, judge in judges.items()},
        "real": {
            "fold": "train",
            "digest": task.folds["train"],
            "per_class": task.config["real_per_class"],
            "images": real,
        },
        "made": {"classes": classes, "per_class": len(made.wanted) // classes},
        "extractors": {entry["method"]["name"]: entry["weights"] for entry in task.config["extractors"]},
    }


def _shares_images(judge: Manifest) -> bool | None:
    """Return whether a judge learned from the target's own images; None of one that was imported: it is not known."""
    if judge.key_document["config"]["recipe"]["epochs"] == 0:
        return None
    return "train" in judge.key_document["folds"]
