"""Membership metrics: what an attacker's scores reveal, with intervals and a resolution guard.

Scores are larger for points that the attack takes for members; a point is called a member when its score is at least
the threshold. All functions take scores (N,) and membership bits (N,) and raise ValueError for scores that are not
finite or shapes that differ. Equal scores are one step of the ROC curve: they are called together or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oakum.records import MetricValue
from oakum.seeding import numpy_generator

FPR_LEVELS = (0.001, 0.01, 0.05, 0.1)
MIN_FALSE_POSITIVES = 10
MIN_BOOTSTRAP_POINTS = 20
INVERTED_AUC = 0.45
_CELLS_PER_CHUNK = 2_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RocCurve:
    """Corners of the empirical ROC curve, from (0, 0) to (1, 1).

    Attributes:
        fpr, tpr: (T,) in [0, 1], both nondecreasing; NaN throughout when there are no non-members or no members.
        thresholds: (T,) decreasing; the first is infinity (nobody is called a member).
    """

    fpr: Floats
    tpr: Floats
    thresholds: Floats


@dataclass(frozen=True)
class _Steps:
    """Counts by distinct score, largest score first; U distinct scores.

    Attributes:
        values: (U,) decreasing.
        members, nonmembers: (..., U) counts of points with that score.
    """

    values: Floats
    members: NDArray[np.int64]
    nonmembers: NDArray[np.int64]


def roc_curve(scores: ArrayLike, is_member: ArrayLike) -> RocCurve:
    """Return the ROC curve with one corner for each distinct score."""
    steps = _steps(*_checked(scores, is_member))
    true, false = (np.concatenate([[0], part.cumsum()]) for part in (steps.members, steps.nonmembers))
    with np.errstate(invalid="ignore"):
        return RocCurve(false / false[-1], true / true[-1], np.concatenate([[np.inf], steps.values]))


def auc(scores: ArrayLike, is_member: ArrayLike) -> float:
    """Return P(member's score > non-member's) + P(equal) / 2; NaN when there are no members or no non-members."""
    return float(_auc(_steps(*_checked(scores, is_member))))


def average_precision(scores: ArrayLike, is_member: ArrayLike) -> float:
    """Return the sum over corners of (recall step) * precision; NaN without members."""
    return float(_average_precision(_steps(*_checked(scores, is_member))))


def tpr_at_fpr(scores: ArrayLike, is_member: ArrayLike, fpr: float) -> float:
    """Return the largest TPR of a threshold whose FPR is at most `fpr`, without interpolation; NaN as for `auc`."""
    return float(_tpr_at_fpr(_steps(*_checked(scores, is_member)), fpr))


def balanced_accuracy(scores: ArrayLike, is_member: ArrayLike, threshold: float | Floats) -> float:
    """Return (TPR + TNR) / 2 of `score >= threshold`; NaN when there are no members or no non-members.

    Args:
        threshold: one number, or (N,) with each point's own, such as the threshold of its class.
    """
    values, member = _checked(scores, is_member)
    called = values >= threshold
    with np.errstate(invalid="ignore"):
        return float((_share(called[member]) + _share(~called[~member])) / 2)


def resolved_fprs(n_nonmembers: int) -> tuple[float, ...]:
    """Return the levels of 0.1, 1, 5 and 10 % at which `n_nonmembers` give at least 10 expected false positives."""
    return tuple(level for level in FPR_LEVELS if _is_resolved(level, n_nonmembers))


def select_threshold(members: ArrayLike, nonmembers: ArrayLike) -> float:
    """Return the threshold with the best balanced accuracy on these scores; O(n log n).

    Candidates are all scores, members in their order and then non-members; the first with strictly greater accuracy
    wins. Counts are compared as integers. 0 when either side is empty.

    Source: the released code of RelaxLoss (after Song and Mittal 2021).
    """
    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(nonmembers, dtype=np.float64)
    if not len(inside) or not len(outside):
        return 0.0
    candidates = np.concatenate([inside, outside])
    true_positives = len(inside) - np.searchsorted(np.sort(inside), candidates, side="left")
    true_negatives = np.searchsorted(np.sort(outside), candidates, side="left")
    quality = true_positives * len(outside) + true_negatives * len(inside)
    return float(candidates[quality.argmax()])


def select_class_thresholds(scores: ArrayLike, is_member: ArrayLike, y: ArrayLike, num_classes: int) -> Floats:
    """Return `select_threshold` of each class, (K,); a class without members or non-members gets the global one."""
    values, member = _checked(scores, is_member)
    labels = np.asarray(y)
    thresholds = np.full(num_classes, select_threshold(values[member], values[~member]))
    for label in range(num_classes):
        mine = labels == label
        if (mine & member).any() and (mine & ~member).any():
            thresholds[label] = select_threshold(values[mine & member], values[mine & ~member])
    return thresholds


def membership_metrics(
    scores: ArrayLike,
    is_member: ArrayLike,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    threshold: float | Floats | None = None,
) -> dict[str, MetricValue]:
    """Return `auc`, `average_precision`, `tpr_at_fpr_<level>` for each level, and `balanced_accuracy`.

    Intervals are percentiles of a bootstrap over points, members and non-members resampled separately; they are left
    out below 20 points on either side. A TPR with fewer than 10 expected false positives, and everything
    without members or non-members, is unresolved: its value is None and its note says why.

    Args:
        seed: of the bootstrap.
        resamples: of the bootstrap.
        level: of the intervals.
        threshold: adds `balanced_accuracy`. It must come from other data, such as shadow models.
    """
    values, member = _checked(scores, is_member)
    inside, outside = int(member.sum()), int((~member).sum())
    note = _missing(inside, outside)
    names = ["auc", "average_precision", *(f"tpr_at_fpr_{fpr:g}" for fpr in FPR_LEVELS)]
    if note:
        extra = [] if threshold is None else ["balanced_accuracy"]
        return {name: MetricValue(None, wants="low", note=note) for name in names + extra}
    steps = _steps(values, member)
    bounds = _bootstrap(steps, seed, resamples, level) if min(inside, outside) >= MIN_BOOTSTRAP_POINTS else {}
    few = "" if bounds else f"no interval: needs {MIN_BOOTSTRAP_POINTS} members and {MIN_BOOTSTRAP_POINTS} non-members"
    result = {}
    for name, value in zip(names, _all_statistics(steps), strict=True):
        low, high = bounds.get(name, (None, None))
        result[name] = MetricValue(float(value), low, high, wants="low", note=few)
    for fpr in FPR_LEVELS:
        if not _is_resolved(fpr, outside):
            result[f"tpr_at_fpr_{fpr:g}"] = _unresolved(fpr, outside)
    if threshold is not None:
        result["balanced_accuracy"] = _balanced_accuracy(values, member, threshold, seed, resamples, level, few)
    return result


def membership_flags(scores: ArrayLike, is_member: ArrayLike, threshold: float | Floats | None = None) -> list[str]:
    """Return what makes the numbers suspicious: `constant scores`, `inverted signal`, `one class predicted`.

    A signal is inverted when its AUC is below 0.45. `one class predicted` needs a threshold: all points are called
    members or none is, so that a balanced accuracy of exactly one half is no evidence of protection.
    """
    values, member = _checked(scores, is_member)
    flags = []
    if len(values) > 1 and values.min() == values.max():
        flags.append("constant scores")
    if auc(values, member) < INVERTED_AUC:
        flags.append("inverted signal")
    if threshold is not None and len(values) > 1:
        called = values >= threshold
        if called.all() or not called.any():
            flags.append("one class predicted")
    return flags


def _checked(scores: ArrayLike, is_member: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values, member = np.asarray(scores, dtype=np.float64), np.asarray(is_member, dtype=bool)
    if values.ndim != 1 or values.shape != member.shape:
        raise ValueError(f"need scores (N,) and membership (N,), got {values.shape} and {member.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} membership scores are not finite")
    return values, member


def _missing(inside: int, outside: int) -> str:
    if inside and outside:
        return ""
    return "unresolved: there are no " + ("members" if outside else "non-members" if inside else "points")


def _is_resolved(fpr: float, n_nonmembers: int) -> bool:
    return fpr * n_nonmembers >= MIN_FALSE_POSITIVES - 1e-9


def _unresolved(fpr: float, n_nonmembers: int) -> MetricValue:
    needed = round(MIN_FALSE_POSITIVES / fpr)
    return MetricValue(None, wants="low", note=f"unresolved: needs {needed:,} non-members, has {n_nonmembers:,}")


def _share(called: NDArray[np.bool_]) -> float:
    return float(called.mean()) if len(called) else float("nan")


def _steps(values: Floats, member: NDArray[np.bool_]) -> _Steps:
    distinct, group = np.unique(-values, return_inverse=True)
    inside = np.bincount(group[member], minlength=len(distinct))
    return _Steps(-distinct, inside, np.bincount(group[~member], minlength=len(distinct)))


def _auc(steps: _Steps) -> Floats:
    """Return the AUC of each (..., U) set of counts."""
    above = steps.members.cumsum(axis=-1)
    wins = ((2 * above - steps.members) * steps.nonmembers).sum(axis=-1)
    pairs = steps.members.sum(axis=-1) * steps.nonmembers.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(wins / (2 * pairs), dtype=np.float64)


def _average_precision(steps: _Steps) -> Floats:
    true = steps.members.cumsum(axis=-1)
    called = true + steps.nonmembers.cumsum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (steps.members * (true / np.maximum(called, 1))).sum(axis=-1)
        return np.asarray(area / steps.members.sum(axis=-1), dtype=np.float64)


def _tpr_at_fpr(steps: _Steps, fpr: float) -> Floats:
    true, false = steps.members.cumsum(axis=-1), steps.nonmembers.cumsum(axis=-1)
    outside = steps.nonmembers.sum(axis=-1, keepdims=True)
    allowed = np.floor(fpr * outside + 1e-9)
    best = np.where(false <= allowed, true, 0).max(axis=-1, initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = best / steps.members.sum(axis=-1)
    return np.where(outside[..., 0] > 0, share, np.nan)


def _all_statistics(steps: _Steps) -> list[Floats]:
    return [_auc(steps), _average_precision(steps), *(_tpr_at_fpr(steps, fpr) for fpr in FPR_LEVELS)]


def _bootstrap(steps: _Steps, seed: int, resamples: int, level: float) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of every statistic, over resampled counts by distinct score."""
    rng = numpy_generator(seed)
    names = ["auc", "average_precision", *(f"tpr_at_fpr_{fpr:g}" for fpr in FPR_LEVELS)]
    drawn: list[list[Floats]] = []
    chunk = max(1, _CELLS_PER_CHUNK // max(1, len(steps.values)))
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        members, nonmembers = (_resample(part, count, rng) for part in (steps.members, steps.nonmembers))
        drawn.append(_all_statistics(_Steps(steps.values, members, nonmembers)))
    tail = (1 - level) / 2
    intervals = {}
    for name, parts in zip(names, zip(*drawn, strict=True), strict=True):
        low, high = np.quantile(np.concatenate(parts), [tail, 1 - tail])
        intervals[name] = (float(low), float(high))
    return intervals


def _resample(counts: NDArray[np.int64], resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw points with replacement; return the drawn counts by distinct score (resamples, U)."""
    groups = np.repeat(np.arange(len(counts)), counts)
    drawn = groups[rng.integers(0, len(groups), size=(resamples, len(groups)))]
    drawn += np.arange(resamples)[:, None] * len(counts)
    return np.bincount(drawn.ravel(), minlength=resamples * len(counts)).reshape(resamples, len(counts))


def _balanced_accuracy(
    values: Floats,
    member: NDArray[np.bool_],
    threshold: float | Floats,
    seed: int,
    resamples: int,
    level: float,
    note: str,
) -> MetricValue:
    """A resampled share of called points is binomial, so the bootstrap needs no resampled points."""
    value = balanced_accuracy(values, member, threshold)
    if note:
        return MetricValue(value, wants="low", note=note)
    called = values >= threshold
    rng = numpy_generator(seed)
    sides = (called[member], ~called[~member])
    rates = [rng.binomial(len(side), side.mean(), size=resamples) / len(side) for side in sides]
    tail = (1 - level) / 2
    low, high = np.quantile((rates[0] + rates[1]) / 2, [tail, 1 - tail])
    return MetricValue(value, float(low), float(high), wants="low")
