"""What each kind of stage does. Every function reads its context and fills `context.output`.

Each returns the stage's summary: small plain JSON that goes into the manifest, so that reports need no payload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from oakum.attacks.access import Knowledge, Points, Target
from oakum.config import ConfigError
from oakum.metrics import inversion as inversion_metrics
from oakum.metrics import membership as membership_metrics
from oakum.metrics import utility as utility_metrics
from oakum.models.base import InputShape, predict_log_probabilities, same_architecture
from oakum.models.priors.base import Prior
from oakum.pipeline.context import StageContext, StoreCheckpointer, build_method, build_model
from oakum.pipeline.training import train_model
from oakum.records import MetricValue
from oakum.training.checkpoint import load_module, save_module

Summary = dict[str, Any]
CHUNK = 512


def run_train(context: StageContext) -> Summary:
    """Train one model; payload: `model.safetensors`, `history.json`, `config.json`."""
    config = context.task.config
    module, history = train_model(context)
    save_module(module, context.output / "model.safetensors")
    context.write_json("history.json", {"epochs": history})
    context.write_json("config.json", config)
    last = history[-1]
    names = {"train/accuracy": "train_accuracy", "train/loss": "train_loss", "val/accuracy": "val_accuracy"}
    metrics = {name: MetricValue(last[column]).to_json() for column, name in names.items() if column in last}
    return {"metrics": metrics, "epochs": len(history), "train_seconds": sum(row["seconds"] for row in history)}


def run_answers(context: StageContext) -> Summary:
    """Query the released model once on every fold of the stage; payload: `answers.parquet`."""
    module = context.released("target")
    tables, metrics = [], {}
    for fold in sorted(context.task.folds):
        points = context.folds.points(fold)
        log_probabilities = predict_log_probabilities(module, points.x.to(context.device)).cpu().numpy()
        y = points.y.numpy()
        tables.append(_answers_table(fold, points, log_probabilities))
        metrics[f"{fold}_accuracy"] = utility_metrics.accuracy(log_probabilities.argmax(axis=1), y).to_json()
    pq.write_table(pa.concat_tables(tables), context.output / "answers.parquet")
    return {"metrics": metrics}


def run_membership(context: StageContext) -> Summary:
    """Score members and non-members, then join the bits; payload: `evidence.parquet`."""
    config = context.task.config
    cls, options = build_method("attacks.membership", config["attack"])
    attack = cls(options)
    points, is_member = _membership_points(context)
    order = np.random.default_rng(config["seed"]).permutation(len(points))
    shuffled = Points(points.x[order], points.y[order], points.rows[order])
    num_classes = context.input("target").key_document["config"]["num_classes"]
    target = Target(lambda: context.released("target"), attack.access, num_classes, _recorded(context))
    scores = attack.score(target, shuffled, Knowledge(seed=config["seed"]))
    _require_scores(scores, len(points), config["attack"]["name"])
    is_member = is_member[order]
    table = {"row": shuffled.rows.numpy(), "label": shuffled.y.numpy(), "score": scores, "is_member": is_member}
    pq.write_table(pa.table(table), context.output / "evidence.parquet")
    metrics = membership_metrics.membership_metrics(scores, is_member, seed=config["seed"])
    return {
        "metrics": {name: value.to_json() for name, value in metrics.items()},
        "flags": membership_metrics.membership_flags(scores, is_member),
        "queries": target.queries,
        "access": attack.access.name.lower(),
    }


def run_prior(context: StageContext) -> Summary:
    """Train a generator on public images; payload: one safetensors a network, `history.json`, `samples.png`."""
    config = context.task.config
    cls, options = build_method("priors", config["prior"])
    prior: Prior = cls(options, InputShape(tuple(config["input_shape"])))
    images = context.folds.points("public", labels="all").x.to(context.device)
    seconds = context.settings.checkpoint_seconds
    keeper = StoreCheckpointer(context.store, context.task.key, context.scratch, seconds)
    networks, history = prior.train(images, config["seed"], keeper.load, keeper.save)
    for name, network in networks.items():
        save_module(network, context.output / f"{name}.safetensors")
    context.write_json("history.json", {"epochs": history})
    last = {name: value for name, value in history[-1].items() if isinstance(value, float)}
    return {"metrics": {name: MetricValue(value).to_json() for name, value in last.items()}, "steps": history[-1]["step"]}


def run_inversion(context: StageContext) -> Summary:
    """Reconstruct every class of the target; payload: `reconstructions.safetensors`."""
    config = context.task.config
    cls, options = build_method("attacks.inversion", config["attack"])
    attack = cls(options)
    classes = torch.arange(config["num_classes"])
    target = Target(lambda: context.released("target"), attack.access, config["num_classes"])
    images = attack.reconstruct(target, classes, _inversion_knowledge(context, needs_prior=attack.needs_prior))
    if not bool(torch.isfinite(images).all()):
        raise ArithmeticError(f"attack {config['attack']['name']!r} made images that are not finite; lower its learning rate")
    tensors = {"images": (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous(), "classes": classes}
    save_file(tensors, context.output / "reconstructions.safetensors")
    return {"metrics": {}, "reconstructions": int(images.shape[0] * images.shape[1]), "access": attack.access.name.lower()}


def run_judge(context: StageContext) -> Summary:
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
    metrics = {"top1": inversion_metrics.attack_accuracy(scores, classes)}
    if scores.shape[1] >= inversion_metrics.MIN_TOP5_CLASSES:
        metrics["top5"] = inversion_metrics.attack_accuracy(scores, classes, k=5)
    metrics["knn2.evaluator"] = inversion_metrics.knn_distance(
        features.double().numpy(), classes, real_features.double().numpy(), real.y.numpy()
    )
    return {"metrics": {name: value.to_json() for name, value in metrics.items()}}


RUNNERS: dict[str, Callable[[StageContext], Summary]] = {
    "train": run_train,
    "answers": run_answers,
    "membership": run_membership,
    "prior": run_prior,
    "inversion": run_inversion,
    "judge": run_judge,
}


def _answers_table(fold: str, points: Points, log_probabilities: NDArray[np.float64]) -> pa.Table:
    return pa.table(
        {
            "fold": pa.array([fold] * len(points), pa.string()),
            "row": points.rows.numpy(),
            "label": points.y.numpy(),
            "log_probs": pa.array(list(log_probabilities), pa.list_(pa.float64())),
        }
    )


def _recorded(context: StageContext) -> dict[int, NDArray[np.float64]]:
    """Return the recorded log-probabilities by row id; they do not depend on labels, so a canary's row is enough."""
    if "answers" not in context.task.inputs:
        return {}
    path = context.store.fetch(context.input("answers"), "answers.parquet")
    table = pq.read_table(path, columns=["row", "log_probs"])
    values = table["log_probs"].combine_chunks()
    matrix = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
    return dict(zip(table["row"].to_pylist(), matrix, strict=True))


def _membership_points(context: StageContext) -> tuple[Points, NDArray[np.bool_]]:
    """Return the points in question and, kept from the attack, which of them are members."""
    config = context.task.config
    if config["points"] == "canary":
        fold = context.folds.selection.canary_fold
        assert fold is not None
        return context.folds.points(fold), context.folds.canaries.is_member
    members, others = context.folds.points("train"), context.folds.points("test")
    parts = [torch.cat([getattr(members, name), getattr(others, name)]) for name in ("x", "y", "rows")]
    is_member = np.zeros(len(members) + len(others), dtype=bool)
    is_member[: len(members)] = True
    return Points(*parts), is_member


def _require_scores(scores: NDArray[np.float64], count: int, attack: str) -> None:
    if scores.shape != (count,) or scores.dtype != np.float64:
        raise TypeError(f"attack {attack!r} must return float64 scores of shape ({count},), not {scores.dtype} {scores.shape}")
    if not np.isfinite(scores).all():
        raise ArithmeticError(f"attack {attack!r} returned scores that are not finite")


def _inversion_knowledge(context: StageContext, needs_prior: bool) -> Knowledge:
    seed = context.task.config["seed"]
    if not needs_prior:
        return Knowledge(seed=seed)
    manifest = context.input("prior")
    config = manifest.key_document["config"]
    cls, options = build_method("priors", config["prior"])
    networks = cls(options, InputShape(tuple(config["input_shape"]))).build()
    for name, network in networks.items():
        load_module(network, context.store.fetch(manifest, f"{name}.safetensors"))
        network.eval().requires_grad_(False).to(context.device)
    return Knowledge(
        seed=seed, generator=networks["generator"], critic=networks["critic"], latent_size=options.latent_size
    )


def _refuse_same_architecture(context: StageContext, evaluator: torch.nn.Module) -> None:
    inversion = context.input("inversion").key_document
    target = context.store.manifest("train", inversion["inputs"]["target"])
    if target is not None and same_architecture(build_model(target.key_document["config"]), evaluator):
        raise ConfigError("the evaluation model has the architecture of the target; choose another")


@torch.no_grad()
def _logits_and_features(
    evaluator: torch.nn.Module, images: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return float64 log-probabilities (N, K) and the last tap (N, F) of images in [0, 1]."""
    logits, features = [], []
    for part in images.split(CHUNK):
        output, taps = evaluator(part.to(device), with_taps=True)
        logits.append(output.double().log_softmax(dim=1).cpu())
        features.append((taps[-1] if taps else output).flatten(1).cpu())
    return torch.cat(logits), torch.cat(features)

