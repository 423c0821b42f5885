"""Utility: how well the released model does its work."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from oakum.records import MetricValue


def accuracy(predicted: ArrayLike, y: ArrayLike, level: float = 0.95) -> MetricValue:
    """Return the share of right predictions with its Wilson interval; unresolved without samples.

    Args:
        predicted: (N,) classes.
        y: (N,) labels.
        level: of the interval, which is over samples and not over seeds.
    """
    guesses, labels = np.asarray(predicted), np.asarray(y)
    if guesses.ndim != 1 or guesses.shape != labels.shape:
        raise ValueError(f"need predictions (N,) and labels (N,), got {guesses.shape} and {labels.shape}")
    if not len(labels):
        return MetricValue(None, wants="high", note="unresolved: there are no samples")
    right = int((guesses == labels).sum())
    low, high = wilson_interval(right, len(labels), level)
    return MetricValue(right / len(labels), low, high, wants="high")


def balanced_accuracy(predicted: ArrayLike, y: ArrayLike) -> MetricValue:
    """Return the mean over the classes of `y` of the share of right predictions; unresolved without samples.

    Equal to `accuracy` where all classes have as many samples; people with many photographs do not outweigh others.
    It has no interval inside one seed.

    Args:
        predicted: (N,) classes.
        y: (N,) labels.
    """
    guesses, labels = np.asarray(predicted), np.asarray(y)
    if guesses.ndim != 1 or guesses.shape != labels.shape:
        raise ValueError(f"need predictions (N,) and labels (N,), got {guesses.shape} and {labels.shape}")
    if not len(labels):
        return MetricValue(None, wants="high", note="unresolved: there are no samples")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    right = np.bincount(index, weights=guesses == labels)
    return MetricValue(float((right / counts).mean()), wants="high")


def top_accuracy(log_probabilities: ArrayLike, y: ArrayLike, k: int, level: float = 0.95) -> MetricValue:
    """Return the share of samples whose label is among the k largest scores (N, K); ties count against the model."""
    scores, labels = np.asarray(log_probabilities), np.asarray(y)
    own = scores[np.arange(len(labels)), labels][:, None]
    better = (scores >= own).sum(axis=1) - 1
    return accuracy((better < k).astype(int), np.ones(len(labels), dtype=int), level)


def loss_spread(log_probabilities: ArrayLike, y: ArrayLike) -> dict[str, MetricValue]:
    """Return `loss_mean` and `loss_variance` (over samples, ddof 0) of the cross-entropy in nats.

    A small variance over members is what separates them (Chen et al. 2022, figure 1). Unresolved without samples
    or where a released probability is zero.
    """
    scores, labels = np.asarray(log_probabilities, dtype=np.float64), np.asarray(y)
    losses = -scores[np.arange(len(labels)), labels]
    if not len(losses) or not np.isfinite(losses).all():
        note = "unresolved: a loss is infinite" if len(losses) else "unresolved: there are no samples"
        return {name: MetricValue(None, note=note) for name in ("loss_mean", "loss_variance")}
    return {"loss_mean": MetricValue(float(losses.mean())), "loss_variance": MetricValue(float(losses.var()))}


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, inside [0, 1]; `trials` must be positive.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 <= successes <= trials and at least one trial, got {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == trials else center + half
    return low, high
