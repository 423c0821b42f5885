"""Inversion metrics: do reconstructions show the class, as judged by an independent evaluation model?

Features and scores are arrays of the evaluation model's outputs, one row for each reconstruction; sums are in
float64. Values are comparable only between equal evaluation models. Nothing is returned in place of a failure: a
number that the sample cannot support is None, with a note that says why.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oakum.records import MetricValue
from oakum.seeding import numpy_generator

MIN_BOOTSTRAP_IDENTITIES = 20
MIN_TOP5_CLASSES = 20
_CELLS_PER_CHUNK = 20_000_000

Floats = NDArray[np.float64]
Wants = Literal["low", "high"]


def is_hit(scores: ArrayLike, classes: ArrayLike, k: int = 1) -> NDArray[np.bool_]:
    """Return whether each row's class is among its k largest scores, (N,) bool.

    Ties go to the lower class index, as argmax does, so constant scores count as a hit for the first k classes only.

    Args:
        scores: (N, K) logits or log-probabilities without NaN.
        classes: (N,) target classes.
    """
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(classes)
    if np.isnan(values).any():
        raise ValueError("the evaluation model returned NaN; its training probably diverged")
    mine = values[np.arange(len(values)), wanted][:, None]
    columns = np.arange(values.shape[1])[None, :]
    ahead = (values > mine) | ((values == mine) & (columns < wanted[:, None]))
    return np.asarray(ahead.sum(axis=1) < k)


def attack_accuracy(
    scores: ArrayLike, classes: ArrayLike, *, k: int = 1, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> MetricValue:
    """Return the share of reconstructions that the evaluation model puts into their class (top-1 or top-5).

    The interval is a percentile bootstrap over identities, given from 20 identities up. Top-5 needs an evaluation
    model with at least 20 classes: below, chance alone comes near it.

    Args:
        scores: (N, K) of the evaluation model.
        classes: (N,) target class of each reconstruction.
        k: 1 or 5.
    """
    num_classes = np.asarray(scores).shape[1]
    if k > 1 and num_classes < MIN_TOP5_CLASSES:
        return MetricValue(None, wants="low", note=f"unresolved: top-{k} needs {MIN_TOP5_CLASSES} classes or more")
    if not len(np.asarray(classes)):
        return MetricValue(None, wants="low", note="unresolved: there are no reconstructions")
    return _mean_over_identities(is_hit(scores, classes, k).astype(np.float64), classes, "low", seed, resamples, level)


def knn_distance(
    features: ArrayLike,
    classes: ArrayLike,
    real_features: ArrayLike,
    real_classes: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> MetricValue:
    """Return the mean squared L2 distance to the nearest real feature of the same class.

    Args:
        features, real_features: (N, D) and (R, D) of the evaluation model.
        classes, real_classes: (N,) and (R,).
    """
    fake, wanted, real, owners, note = _by_class(features, classes, real_features, real_classes)
    if note:
        return MetricValue(None, wants="high", note=note)
    nearest = np.empty(len(fake))
    for label in np.unique(wanted):
        mine = wanted == label
        nearest[mine] = _nearest_squared(fake[mine], real[owners == label])
    return _mean_over_identities(nearest, wanted, "high", seed, resamples, level)


def feature_distance(
    features: ArrayLike,
    classes: ArrayLike,
    real_features: ArrayLike,
    real_classes: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> MetricValue:
    """Return the mean squared L2 distance to the mean real feature of the same class; arguments of `knn_distance`."""
    fake, wanted, real, owners, note = _by_class(features, classes, real_features, real_classes)
    if note:
        return MetricValue(None, wants="high", note=note)
    labels, position = np.unique(wanted, return_inverse=True)
    centers = np.stack([real[owners == label].mean(axis=0) for label in labels])
    return _mean_over_identities(
        np.square(fake - centers[position]).sum(axis=1), wanted, "high", seed, resamples, level
    )


def frechet_distance(features: ArrayLike, real_features: ArrayLike) -> MetricValue:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two feature sets (N, D) and (R, D).

    Covariances are divided by n - 1. The trace of the root is the sum of the roots of the eigenvalues of
    S1^(1/2) S2 S1^(1/2), so equal sets give 0 and nothing imaginary is dropped. With no more rows than
    features a covariance is singular; the note then gives the counts.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NIPS 2017, equation 6.
    """
    first, second = np.asarray(features, dtype=np.float64), np.asarray(real_features, dtype=np.float64)
    if min(len(first), len(second)) < 2:
        counts = f"{len(first)} and {len(second)}"
        return MetricValue(None, wants="high", note=f"unresolved: needs 2 samples on each side, has {counts}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features hold NaN or infinity")
    cov_first, cov_second = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (first, second))
    root = _symmetric_root(cov_first)
    eigenvalues = np.linalg.eigvalsh(root @ cov_second @ root)
    gap = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    value = gap + np.trace(cov_first) + np.trace(cov_second) - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    note = ""
    if min(len(first), len(second)) <= first.shape[1]:
        note = f"singular covariance: {len(first)} and {len(second)} samples for {first.shape[1]} features"
    return MetricValue(float(max(value, 0.0)), wants="high", note=note)


def _symmetric_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _by_class(
    features: ArrayLike, classes: ArrayLike, real_features: ArrayLike, real_classes: ArrayLike
) -> tuple[Floats, NDArray[np.int64], Floats, NDArray[np.int64], str]:
    fake, real = np.asarray(features, dtype=np.float64), np.asarray(real_features, dtype=np.float64)
    wanted, owners = np.asarray(classes, dtype=np.int64), np.asarray(real_classes, dtype=np.int64)
    if len(fake) != len(wanted) or len(real) != len(owners):
        raise ValueError("features and classes differ in length")
    if not (np.isfinite(fake).all() and np.isfinite(real).all()):
        raise ValueError("features hold NaN or infinity")
    note = "" if len(fake) else "unresolved: there are no reconstructions"
    absent = np.setdiff1d(wanted, owners)
    if len(absent):
        note = f"unresolved: no real images of class {', '.join(map(str, absent[:5]))}"
    return fake, wanted, real, owners, note


def _nearest_squared(fake: Floats, real: Floats) -> Floats:
    """Return the smallest squared distance of each row, by differences: no cancellation for near-equal rows."""
    step = max(1, _CELLS_PER_CHUNK // max(1, real.size))
    parts = [
        np.square(fake[first : first + step, None, :] - real[None]).sum(axis=2).min(axis=1)
        for first in range(0, len(fake), step)
    ]
    return np.concatenate(parts)


def _mean_over_identities(
    values: Floats, classes: ArrayLike, wants: Wants, seed: int, resamples: int, level: float
) -> MetricValue:
    """Return the mean over rows with a percentile bootstrap that resamples whole identities."""
    mean = float(values.mean())
    labels, position = np.unique(np.asarray(classes), return_inverse=True)
    if len(labels) < MIN_BOOTSTRAP_IDENTITIES:
        note = f"no interval: {len(labels)} identities, needs {MIN_BOOTSTRAP_IDENTITIES}"
        return MetricValue(mean, wants=wants, note=note)
    sums, counts = np.bincount(position, weights=values), np.bincount(position)
    drawn = numpy_generator(seed).integers(0, len(labels), size=(resamples, len(labels)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return MetricValue(mean, float(low), float(high), wants=wants)
