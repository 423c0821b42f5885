from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from oakum.metrics import inversion as m


def features(count: int, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def test_hits_equal_a_naive_twin_and_ties_go_to_the_lower_class() -> None:
    rng = np.random.default_rng(0)
    scores, classes = rng.integers(0, 3, (200, 6)).astype(float), rng.integers(0, 6, 200)
    for k in (1, 2, 5):
        ranked = [sorted(range(6), key=lambda c, row=row: (-row[c], c))[:k] for row in scores]
        assert m.is_hit(scores, classes, k).tolist() == [c in top for c, top in zip(classes, ranked, strict=True)]
    assert (m.is_hit(scores, classes) == (scores.argmax(1) == classes)).all()
    assert m.is_hit(np.zeros((6, 6)), np.arange(6), 1).tolist() == [True] + [False] * 5


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        m.is_hit(np.array([[np.nan, 1.0]]), np.array([0]))


def test_top5_needs_twenty_classes() -> None:
    assert m.attack_accuracy(np.zeros((4, 19)), np.arange(4), k=5).value is None
    assert "20 classes" in m.attack_accuracy(np.zeros((4, 19)), np.arange(4), k=5).note
    assert m.attack_accuracy(np.zeros((4, 20)), np.arange(4), k=5).value == 1.0


def test_interval_over_identities_from_twenty_up() -> None:
    few = m.attack_accuracy(np.eye(30)[:19], np.arange(19))
    assert (few.value, few.low, few.high) == (1.0, None, None)
    assert "19 identities" in few.note
    rng = np.random.default_rng(1)
    classes = np.repeat(np.arange(30), 5)
    success = np.repeat(rng.random(30) < 0.5, 5)
    scores = np.where(success[:, None], np.eye(30)[classes], np.eye(30)[(classes + 1) % 30])
    value = m.attack_accuracy(scores, classes, seed=4)
    assert value.value == success.mean()
    # Restarts of one identity agree, so the interval is that of 30 identities, not of 150 reconstructions.
    spread = 1.96 * np.sqrt(success.mean() * (1 - success.mean()) / 30)
    assert value.high - value.low == pytest.approx(2 * spread, rel=0.2)
    assert value == m.attack_accuracy(scores, classes, seed=4)
    assert value.wants == "low"


def test_nothing_reconstructed_is_unresolved() -> None:
    empty = np.empty((0, 25))
    assert m.attack_accuracy(empty, np.array([], dtype=int)).value is None
    assert m.knn_distance(empty, [], features(5, 25), [0] * 5).value is None


def test_distances_equal_naive_twins(monkeypatch) -> None:
    fake, real = features(12), features(20, seed=1)
    classes, owners = np.arange(12) % 3, np.arange(20) % 3
    nearest = [min(((f - r) ** 2).sum() for r in real[owners == c]) for f, c in zip(fake, classes, strict=True)]
    centers = [((f - real[owners == c].mean(0)) ** 2).sum() for f, c in zip(fake, classes, strict=True)]
    assert m.knn_distance(fake, classes, real, owners).value == pytest.approx(np.mean(nearest))
    assert m.feature_distance(fake, classes, real, owners).value == pytest.approx(np.mean(centers))
    monkeypatch.setattr(m, "_CELLS_PER_CHUNK", 30)
    assert m.knn_distance(fake, classes, real, owners).value == pytest.approx(np.mean(nearest))


def test_identical_sets_have_distance_zero() -> None:
    real = features(40).astype(np.float32)
    owners = np.arange(40) % 2
    assert m.knn_distance(real, owners, real, owners).value == 0.0
    assert m.frechet_distance(real, real).value == pytest.approx(0.0, abs=1e-10)


def test_a_class_without_real_images_is_unresolved_and_named() -> None:
    value = m.knn_distance(features(2), [0, 7], features(3), [0, 0, 1])
    assert value.value is None
    assert value.note == "unresolved: no real images of class 7"
    assert m.feature_distance(features(2), [0, 7], features(3), [0, 0, 1]).value is None


def test_frechet_equals_scipy_and_the_closed_form() -> None:
    a, b = features(60), 2 * features(70, seed=2) + 1
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert m.frechet_distance(a, b).value == pytest.approx(expected, rel=1e-8)
    assert m.frechet_distance(a, b).wants == "high"
    # Shifting a set leaves covariances equal: the distance is the squared shift.
    assert m.frechet_distance(a, a + 3).value == pytest.approx(9 * 4, rel=1e-9)
    # In one dimension it is (m1 - m2)^2 + (s1 - s2)^2.
    x, y = features(50, 1), 3 * features(50, 1, 5)
    closed = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert m.frechet_distance(x, y).value == pytest.approx(closed)


def test_frechet_says_when_covariances_are_singular_and_needs_two_samples() -> None:
    assert m.frechet_distance(features(3), features(3, seed=1)).note.startswith("singular covariance: 3 and 3")
    assert m.frechet_distance(features(3), features(3, seed=1)).value > 0
    assert m.frechet_distance(features(1), features(9)).value is None
    assert m.frechet_distance(features(9), features(9)).note == ""


def test_bad_features_are_refused() -> None:
    broken = features(5)
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        m.frechet_distance(broken, features(5))
    with pytest.raises(ValueError, match="NaN or infinity"):
        m.knn_distance(broken, [0] * 5, features(5), [0] * 5)
    with pytest.raises(ValueError, match="length"):
        m.knn_distance(features(5), [0] * 4, features(5), [0] * 5)
