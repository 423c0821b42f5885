"""Run a membership attack, then join the membership bits; payload: `evidence.parquet`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from oakum.attacks.access import Knowledge, Points, Target
from oakum.metrics.membership import membership_flags, membership_metrics
from oakum.pipeline.context import StageContext, build_method


def run(context: StageContext) -> dict[str, Any]:
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
    metrics = membership_metrics(scores, is_member, seed=config["seed"])
    return {
        "metrics": {name: value.to_json() for name, value in metrics.items()},
        "flags": membership_flags(scores, is_member),
        "queries": target.queries,
        "access": attack.access.name.lower(),
    }


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
        raise TypeError(
            f"attack {attack!r} must return float64 scores of shape ({count},), not {scores.dtype} {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ArithmeticError(f"attack {attack!r} returned scores that are not finite")
