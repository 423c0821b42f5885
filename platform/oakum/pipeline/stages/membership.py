"""Run a membership attack, then join the membership bits; payload: `evidence.parquet`.

Thresholds are fitted on shadow models alone: the `matched` one, trained with the target's defense, and the `vanilla`
one, trained without any, whose figures stand beside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from oakum.attacks.access import Access, Knowledge, Points, Shadow, Target
from oakum.attacks.membership.base import MembershipAttack
from oakum.metrics.membership import (
    membership_flags,
    membership_metrics,
    select_class_thresholds,
    select_threshold,
)
from oakum.pipeline.context import StageContext, build_defense, build_method
from oakum.records import MetricValue

SHADOW_FOLDS = ("shadow_train", "shadow_test")
# What is added to the names of metrics that come from this shadow model.
_SUFFIX = {"matched": "", "vanilla": ".vanilla_shadow"}
Floats = NDArray[np.float64]


def run(context: StageContext) -> dict[str, Any]:
    """Score members and non-members, join the bits, and judge the scores; payload: `evidence.parquet`."""
    config = context.task.config
    points, is_member = _asked(context)
    attack = _attack(context)
    target = _target(context, "", attack.access)
    table = {"row": points.rows.numpy(), "label": points.y.numpy(), "is_member": is_member}
    metrics: dict[str, MetricValue] = {}
    flags = set(_notes(context))
    scores: Floats | None = None
    for shadow in [name for name in _SUFFIX if name in context.task.inputs] or [""]:
        suffix = _SUFFIX.get(shadow, "")
        result = _Judged.of(context, target, points, shadow, scores)
        scores = None if attack.needs_shadow else result.scores
        own = result.metrics(is_member, config["seed"])
        own_flags = set(result.flags(is_member))
        if suffix and not attack.needs_shadow:
            # The scores are the same: only what a threshold decides differs.
            own = {name: value for name, value in own.items() if name.startswith("balanced_accuracy")}
            own_flags &= {"one class predicted"}
        else:
            table[f"score{suffix.replace('.', '_')}"] = result.scores
        metrics |= {f"{name}{suffix}": value for name, value in own.items()}
        flags |= {f"{flag} (vanilla shadow)" if suffix else flag for flag in own_flags}
    pq.write_table(pa.table(table), context.output / "evidence.parquet")
    return {
        "metrics": {name: metrics[name].to_json() for name in sorted(metrics)},
        "flags": sorted(flags | target.flags),
        "queries": target.queries,
        "access": attack.access.name.lower(),
    }


class _Judged:
    """The scores of one attacker, who owns one shadow model or none, and its thresholds."""

    def __init__(self, scores: Floats, y: NDArray[np.int64], threshold: float | None, by_class: Floats | None) -> None:
        self.scores = scores
        self._y = y
        self._threshold = threshold
        self._by_class = by_class

    @classmethod
    def of(cls, context: StageContext, target: Target, points: Points, shadow: str, scores: Floats | None) -> _Judged:
        """Attack the target (unless its `scores` are known), and fit thresholds to the shadow model ("": none)."""
        attack = _attack(context)
        seed = context.task.config["seed"]
        knowledge = Knowledge(seed=seed, shadow=(_shadow(context, shadow),) if shadow else ())
        if scores is None:
            scores = _scores(context, attack, target, points, knowledge)
        y = points.y.numpy()
        if not shadow or attack.fixed_threshold is not None or context.task.config["points"] != "clean":
            return cls(scores, y, attack.fixed_threshold, None)
        known, known_bits = _joined(context, *SHADOW_FOLDS)
        own = _scores(context, attack, _target(context, shadow, attack.access), known, knowledge)
        threshold = select_threshold(own[known_bits], own[~known_bits])
        by_class = select_class_thresholds(own, known_bits, known.y.numpy(), target.num_classes)
        return cls(scores, y, threshold, by_class)

    def metrics(self, is_member: NDArray[np.bool_], seed: int) -> dict[str, MetricValue]:
        found = membership_metrics(self.scores, is_member, seed=seed, threshold=self._threshold)
        if self._by_class is not None:
            by_class = membership_metrics(self.scores, is_member, seed=seed, threshold=self._by_class[self._y])
            found["balanced_accuracy_per_class"] = by_class["balanced_accuracy"]
        return found

    def flags(self, is_member: NDArray[np.bool_]) -> list[str]:
        return membership_flags(self.scores, is_member, self._threshold)


def _attack(context: StageContext) -> MembershipAttack:
    """Return a fresh attack: one that was fitted to a shadow model is never used with another."""
    cls, options = build_method("attacks.membership", context.task.config["attack"])
    attack: MembershipAttack = cls(options)
    return attack


def _notes(context: StageContext) -> set[str]:
    defense = build_defense(context.input("target").key_document["config"]["defense"])
    if defense.masks_output and _attack(context).access == Access.WEIGHTS:
        return {"acts on the weights, which the mask does not cover"}
    return set()


def _target(context: StageContext, shadow: str, access: Access) -> Target:
    """Return the target, or a shadow model as the target of a rehearsal, with what is recorded of it."""
    prefix, model = (f"{shadow}_", shadow) if shadow else ("", "target")
    num_classes = context.input(model).key_document["config"]["num_classes"]
    return Target(
        lambda: context.released(model),
        access,
        num_classes,
        _recorded(context, f"{prefix}answers"),
        lambda: context.unmasked(model),
        _recorded_gradients(context, f"{prefix}gradients"),
    )


def _scores(
    context: StageContext, attack: MembershipAttack, target: Target, points: Points, known: Knowledge
) -> Floats:
    scores = attack.score(target, points, known)
    name = context.task.config["attack"]["name"]
    if scores.shape != (len(points),) or scores.dtype != np.float64:
        raise TypeError(
            f"attack {name!r} must return float64 scores of shape ({len(points)},), not {scores.dtype} {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ArithmeticError(f"attack {name!r} returned scores that are not finite")
    return scores


def _recorded(context: StageContext, name: str) -> dict[int, Floats]:
    """Return the recorded log-probabilities by row id; they do not depend on labels, so a canary's row is enough."""
    if name not in context.task.inputs:
        return {}
    table = pq.read_table(context.store.fetch(context.input(name), "answers.parquet"), columns=["row", "log_probs"])
    return dict(zip(table["row"].to_pylist(), _matrix(table), strict=True))


def _matrix(table: pa.Table) -> Floats:
    values = table["log_probs"].combine_chunks()
    flat: Floats = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), -1)


def _recorded_gradients(context: StageContext, name: str) -> dict[str, dict[int, float]]:
    if name not in context.task.inputs:
        return {}
    columns = pq.read_table(context.store.fetch(context.input(name), "gradients.parquet")).to_pydict()
    rows = columns.pop("row")
    del columns["fold"]
    return {statistic: dict(zip(rows, values, strict=True)) for statistic, values in columns.items()}


def _shadow(context: StageContext, name: str) -> Shadow:
    """Return what the adversary knows of its own model: the answers, and who trained it."""
    path = context.store.fetch(context.input(f"{name}_answers"), "answers.parquet")
    table = pq.read_table(path, columns=["fold", "label", "log_probs"])
    is_member = np.array([fold == "shadow_train" for fold in table["fold"].to_pylist()])
    return Shadow(_matrix(table), np.array(table["label"].to_pylist(), dtype=np.int64), is_member)


def _asked(context: StageContext) -> tuple[Points, NDArray[np.bool_]]:
    """Return the points in question in random order and, kept from the attack, which of them are members."""
    config = context.task.config
    if config["points"] == "canary":
        fold = context.folds.selection.canary_fold
        assert fold is not None
        points, is_member = context.folds.points(fold), context.folds.canaries.is_member
        if config["points_per_fold"] is not None:
            points, is_member = _first(points, config["points_per_fold"]), is_member[: config["points_per_fold"]]
    else:
        points, is_member = _joined(context, "train", config["nonmembers"])
    order = np.random.default_rng(config["seed"]).permutation(len(points))
    return Points(points.x[order], points.y[order], points.rows[order]), is_member[order]


def _joined(context: StageContext, members: str, others: str) -> tuple[Points, NDArray[np.bool_]]:
    """Return the points of two folds, members first, at most `points_per_fold` of each."""
    most = context.task.config["points_per_fold"]
    parts = [_first(context.folds.points(fold), most) for fold in (members, others)]
    is_member = np.arange(len(parts[0]) + len(parts[1])) < len(parts[0])
    return Points(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y", "rows"))), is_member


def _first(points: Points, most: int | None) -> Points:
    return Points(points.x[:most], points.y[:most], points.rows[:most])
