"""Inversion metrics: do reconstructions show the class, as judged by an independent evaluation model?

Features and scores are arrays of the evaluation model's outputs, one row for each reconstruction; sums are in
float64. Values are comparable only between equal evaluation models. Nothing is returned in place of a failure: a
number that the sample cannot support is None, with a note that says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from oakum.records import MetricValue
from oakum.seeding import numpy_generator

MIN_BOOTSTRAP_IDENTITIES = 20
MIN_TOP5_CLASSES = 20
_CELLS_PER_CHUNK = 20_000_000

Floats = NDArray[np.float64]
Wants = Literal["low", "high"]
PRDCVariant = Literal["standard", "released_code"]
PRDC_NAMES = ("precision", "recall", "density", "coverage")


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


def recognized(
    features: ArrayLike, classes: ArrayLike, real_features: ArrayLike, real_classes: ArrayLike
) -> NDArray[np.bool_]:
    """Return whether each reconstruction is nearest to its own class, (N,) bool: a gallery search with face embeddings.

    All features are scaled to length 1; a class is the mean of its real features, scaled to length 1 again; the
    nearest has the largest cosine. Every class of `real_classes` is in the gallery, attacked or not. Ties go to
    the lower class; a feature vector of zeros is nobody's.

    Args:
        features, real_features: (N, D) and (R, D) of a face embedder that was not trained on the attacked people.
        classes, real_classes: (N,) and (R,).

    Raises:
        ValueError: a wanted class has no real images, or features are not finite.
    """
    fake, wanted, real, owners, note = _by_class(features, classes, real_features, real_classes)
    if not len(fake):
        return np.zeros(0, dtype=np.bool_)
    if note:
        raise ValueError(note)
    fake, real = _unit_rows(fake), _unit_rows(real)
    labels = np.unique(owners)
    gallery = _unit_rows(np.stack([real[owners == label].mean(axis=0) for label in labels]))
    return is_hit(fake @ gallery.T, np.searchsorted(labels, wanted)) & fake.any(axis=1)


def recognition(
    features: ArrayLike,
    classes: ArrayLike,
    real_features: ArrayLike,
    real_classes: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> MetricValue:
    """Return the share of reconstructions that `recognized` finds; its arguments."""
    *_, note = _by_class(features, classes, real_features, real_classes)
    if note:
        return MetricValue(None, wants="low", note=note)
    found = recognized(features, classes, real_features, real_classes)
    return _mean_over_identities(found.astype(np.float64), classes, "low", seed, resamples, level)


def disagreement(first: ArrayLike, second: ArrayLike) -> MetricValue:
    """Return the share of the reconstructions accepted by the first model that the second one rejects.

    A high share says that the first model is fooled rather than shown the class. None when it accepts nothing.

    Args:
        first, second: (N,) bool, the hits of two evaluation models on the same reconstructions.
    """
    accepted, confirmed = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if accepted.shape != confirmed.shape:
        raise ValueError(f"hits differ in shape: {accepted.shape} and {confirmed.shape}")
    if not accepted.any():
        return MetricValue(None, note="unresolved: the first model accepts no reconstruction")
    return MetricValue(float((~confirmed[accepted]).mean()))


def faint_share(
    images: ArrayLike, classes: ArrayLike, accepted: ArrayLike, real_images: ArrayLike, real_classes: ArrayLike
) -> MetricValue:
    """Return the share of the accepted reconstructions with less contrast than every real image of their class.

    Contrast is the standard deviation over an image's pixels. A judge that must choose some class calls even an empty
    picture one of them; attacks find such pictures, and judges that were trained alike agree on them. A real image
    counts by chance once in R + 1, with R real images of its class. None when nothing is accepted.

    Args:
        images, real_images: (N, C, H, W) and (R, C, H, W).
        classes, real_classes: (N,) and (R,).
        accepted: (N,) bool, the hits of the evaluation model.
    """
    hits, wanted, owners = np.asarray(accepted, dtype=np.bool_), np.asarray(classes), np.asarray(real_classes)
    made, real = (np.asarray(each, dtype=np.float64) for each in (images, real_images))
    if missing := sorted(set(wanted.tolist()) - set(owners.tolist())):
        return MetricValue(None, note=f"unresolved: no real images of class {missing[0]}")
    if not hits.any():
        return MetricValue(None, note="unresolved: the first model accepts no reconstruction")
    contrast, of_real = (each.reshape(len(each), -1).std(axis=1) for each in (made, real))
    faintest = {label: of_real[owners == label].min() for label in np.unique(wanted)}
    is_faint = contrast < np.array([faintest[label] for label in wanted])
    return MetricValue(float(is_faint[hits].mean()))


def frechet_distance(features: ArrayLike, real_features: ArrayLike) -> MetricValue:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two feature sets (N, D) and (R, D).

    Covariances are divided by n - 1. With S1 = A^T A and S2 = B^T B the trace of the root is the sum of the singular
    values of A B^T, or of the roots of the eigenvalues of A S2 A^T where samples are many: nothing imaginary is
    dropped, and few samples of many features cost a matrix of samples, not of features. With no more rows than
    features a covariance is singular; the note then gives the counts.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NIPS 2017, equation 6.
    """
    first, second = np.asarray(features, dtype=np.float64), np.asarray(real_features, dtype=np.float64)
    if min(len(first), len(second)) < 2:
        counts = f"{len(first)} and {len(second)}"
        return MetricValue(None, wants="high", note=f"unresolved: needs 2 samples on each side, has {counts}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features hold NaN or infinity")
    gap = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    few, many = sorted((_centered(first), _centered(second)), key=len)
    value = gap + np.square(few).sum() + np.square(many).sum() - 2 * _root_trace(few, many)
    note = ""
    if min(len(first), len(second)) <= first.shape[1]:
        note = f"singular covariance: {len(first)} and {len(second)} samples for {first.shape[1]} features"
    return MetricValue(float(max(value, 0.0)), wants="high", note=note)


def _centered(samples: Floats) -> Floats:
    """Return A, (n, D), with A^T A the covariance of samples (n, D)."""
    factor: Floats = (samples - samples.mean(axis=0)) / np.sqrt(len(samples) - 1)
    return factor


def _root_trace(few: Floats, many: Floats) -> float:
    """Return tr((A^T A B^T B)^(1/2)) of factors A (n, D) and B (m, D) with n <= m."""
    width = few.shape[1]
    if len(many) <= width:
        return float(np.linalg.svd(few @ many.T, compute_uv=False).sum())
    if len(few) > width:
        values, vectors = np.linalg.eigh(few.T @ few)
        few = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    eigenvalues = np.linalg.eigvalsh(few @ (many.T @ many) @ few.T)
    return float(np.sqrt(np.maximum(eigenvalues, 0)).sum())


def prdc(
    features: ArrayLike, real_features: ArrayLike, k: int, *, variant: PRDCVariant = "standard"
) -> dict[str, MetricValue]:
    """Return precision, recall, density and coverage of reconstructions among real images, by name.

    A sample's ball reaches to its k-th nearest neighbor in its own set, itself not counted.

    * precision: share of reconstructions inside any real ball; recall: share of real images inside any
      reconstruction's ball (borders belong to the ball).
    * density: real balls that hold a reconstruction, counted over all of them, divided by k N; it may exceed 1.
      coverage: share of real balls that hold a reconstruction (borders left out).

    Sources: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019;
    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020.

    Differs from the released code (BiDO's evaluation): precision and recall there ask the ball of the nearest
    sample only; `variant="released_code"` does so too.

    Args:
        features, real_features: (N, D) and (R, D).
        k: neighbors; all four need k + 1 real images, recall needs k + 1 reconstructions too.
    """
    fake, real = np.asarray(features, dtype=np.float64), np.asarray(real_features, dtype=np.float64)
    if not (np.isfinite(fake).all() and np.isfinite(real).all()):
        raise ValueError("features hold NaN or infinity")
    scores = _prdc_scores(fake, real, k, variant)
    notes = {name: _prdc_shortage(name, len(fake), len(real), k) for name in PRDC_NAMES}
    return {
        name: MetricValue(scores.get(name), wants="low", note=f"unresolved: {notes[name]}" if notes[name] else "")
        for name in PRDC_NAMES
    }


def prdc_per_class(
    features: ArrayLike,
    classes: ArrayLike,
    real_features: ArrayLike,
    real_classes: ArrayLike,
    k: int,
    *,
    variant: PRDCVariant = "standard",
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, MetricValue]:
    """Return the means over classes of `prdc`, each class among the real images of its own.

    A value that one class cannot support is None for all, and the note names that class.

    Differs from the released code: several evaluations compare class 0 with the images of all classes.
    """
    fake, wanted, real, owners, note = _by_class(features, classes, real_features, real_classes)
    if note:
        return {name: MetricValue(None, wants="low", note=note) for name in PRDC_NAMES}
    labels = np.unique(wanted)
    sizes = [(int((wanted == label).sum()), int((owners == label).sum())) for label in labels]
    scores = [_prdc_scores(fake[wanted == label], real[owners == label], k, variant) for label in labels]
    found = {}
    for name in PRDC_NAMES:
        notes = [_prdc_shortage(name, *size, k) for size in sizes]
        short = next((i for i, reason in enumerate(notes) if reason), None)
        if short is not None:
            reason = f"unresolved: class {labels[short]} {notes[short]}"
            found[name] = MetricValue(None, wants="low", note=reason)
            continue
        values = np.array([score[name] for score in scores])
        found[name] = _mean_over_identities(values, labels, "low", seed, resamples, level)
    return found


def _prdc_shortage(name: str, fakes: int, reals: int, k: int) -> str:
    """Return why a score cannot be computed, or ""."""
    if not fakes:
        return "has no reconstructions"
    if reals <= k:
        return f"has {reals} real images, needs {k + 1}"
    if name == "recall" and fakes <= k:
        return f"has {fakes} reconstructions, needs {k + 1}"
    return ""


def _prdc_scores(fake: Floats, real: Floats, k: int, variant: PRDCVariant) -> dict[str, float]:
    """Return the scores that `_prdc_shortage` does not rule out."""
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if not len(fake) or len(real) <= k:
        return {}
    radii = _squared_radii(real, k)
    inside, filled = 0, 0
    for _, squared in _squared_distances(fake, real):
        inside += _count_inside(squared, radii, variant)
        filled += int((squared < radii).sum())
    own_radii = _squared_radii(fake, k) if len(fake) > k else None
    reached, covered = 0, 0
    for rows, squared in _squared_distances(real, fake):
        covered += int((squared.min(axis=1) < radii[rows]).sum())
        if own_radii is not None:
            reached += _count_inside(squared, own_radii, variant)
    scores = {
        "precision": inside / len(fake),
        "density": filled / (k * len(fake)),
        "coverage": covered / len(real),
    }
    return scores if own_radii is None else scores | {"recall": reached / len(real)}


def _count_inside(squared: Floats, radii: Floats, variant: PRDCVariant) -> int:
    """Return how many rows of distances (P, B) lie in any of the B balls, or in that of the nearest center."""
    if variant == "standard":
        return int((squared <= radii).any(axis=1).sum())
    nearest = squared.argmin(axis=1)
    return int((squared[np.arange(len(squared)), nearest] <= radii[nearest]).sum())


def _squared_radii(points: Floats, k: int) -> Floats:
    """Return the squared distance of each point to its k-th nearest other point."""
    # The point itself is among the k + 1 smallest with distance 0, so the k-th other one stands at index k.
    return np.concatenate([np.partition(part, k, axis=1)[:, k] for _, part in _squared_distances(points, points)])


def _squared_distances(rows: Floats, columns: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of rows of the matrix of squared distances, none larger than memory allows."""
    step = max(1, _CELLS_PER_CHUNK // len(columns))
    for first in range(0, len(rows), step):
        block = slice(first, first + step)
        yield block, cdist(rows[block], columns, "sqeuclidean")


def _unit_rows(rows: Floats) -> Floats:
    """Return rows scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


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
