"""Judge reconstructions by the evaluation model; payload: `judgements.parquet`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from oakum.config import ConfigError
from oakum.metrics.inversion import MIN_TOP5_CLASSES, attack_accuracy, knn_distance
from oakum.models.base import same_architecture
from oakum.pipeline.context import StageContext, build_model

CHUNK = 512


def run(context: StageContext) -> dict[str, Any]:
    """Judge reconstructions by the evaluation model; payload: `judgements.parquet`."""
    tensors = load_file(context.store.fetch(context.input("inversion"), "reconstructions.safetensors"))
    images = tensors["images"]
    evaluator = context.released("evaluator")
    _refuse_same_architecture(context, evaluator)
    original = torch.tensor(context.task.config["original_classes"])[tensors["classes"]]
    wanted = original.repeat_interleave(images.shape[1])
    flat = images.flatten(0, 1).float() / 255
    log_probabilities, features = _logits_and_features(evaluator, flat, context.device)
    real = context.folds.points("train", labels="all")
    _, real_features = _logits_and_features(evaluator, real.x, context.device)
    predicted = log_probabilities.argmax(dim=1)
    restart = torch.arange(images.shape[1]).repeat(images.shape[0])
    table = {
        "class": wanted.numpy(),
        "restart": restart.numpy(),
        "predicted": predicted.numpy(),
        "correct": (predicted == wanted).numpy(),
        "confidence": log_probabilities.exp().gather(1, wanted.view(-1, 1)).squeeze(1).numpy(),
    }
    pq.write_table(pa.table(table), context.output / "judgements.parquet")
    scores, classes = log_probabilities.numpy(), wanted.numpy()
    metrics = {"top1": attack_accuracy(scores, classes)}
    if scores.shape[1] >= MIN_TOP5_CLASSES:
        metrics["top5"] = attack_accuracy(scores, classes, k=5)
    metrics["knn2.evaluator"] = knn_distance(
        features.double().numpy(), classes, real_features.double().numpy(), real.y.numpy()
    )
    return {"metrics": {name: value.to_json() for name, value in metrics.items()}}


def _refuse_same_architecture(context: StageContext, evaluator: torch.nn.Module) -> None:
    inversion = context.input("inversion").key_document
    key = inversion["inputs"]["target"]
    target = context.store.manifest("train", key) or context.store.manifest("snapshot", key)
    if target is not None and same_architecture(build_model(target.key_document["config"]), evaluator):
        raise ConfigError("the evaluation model has the architecture of the target; choose another")


@torch.no_grad()
def _logits_and_features(evaluator: torch.nn.Module, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return float64 log-probabilities (N, K) and the last tap (N, F) of images in [0, 1]."""
    logits, features = [], []
    for part in images.split(CHUNK):
        output, taps = evaluator(part.to(device), with_taps=True)
        logits.append(output.double().log_softmax(dim=1).cpu())
        features.append((taps[-1] if taps else output).flatten(1).cpu())
    return torch.cat(logits), torch.cat(features)
