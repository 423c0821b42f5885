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


def test_frechet_of_few_samples_equals_scipy_and_takes_no_root_of_rounding_errors() -> None:
    for counts in ((8, 9), (8, 40), (40, 8)):
        a, b = features(counts[0], 20), features(counts[1], 20, seed=3) + 0.5
        ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
        assert m.frechet_distance(a, b).value == pytest.approx(expected, rel=1e-5)
    # Sets that lie in subspaces without a common direction: the trace of the root is exactly 0.
    a, b = np.zeros((5, 40)), np.zeros((6, 40))
    a[:, :20], b[:, 20:] = features(5, 20), features(6, 20, seed=1)
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    assert m.frechet_distance(a, b).value == pytest.approx(apart, rel=1e-14)


def naive_prdc(fake: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    def distance(p: np.ndarray, q: np.ndarray) -> float:
        return float(((p - q) ** 2).sum())

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    balls = [radius(real, i) for i in range(len(real))]
    own = [radius(fake, i) for i in range(len(fake))]
    held = [[distance(f, r) < ball for r, ball in zip(real, balls, strict=True)] for f in fake]
    return {
        "precision": np.mean([any(distance(f, r) <= b for r, b in zip(real, balls, strict=True)) for f in fake]),
        "recall": np.mean([any(distance(r, f) <= b for f, b in zip(fake, own, strict=True)) for r in real]),
        "density": np.sum(held) / (k * len(fake)),
        "coverage": np.mean(np.any(held, axis=0)),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_prdc_equals_a_naive_twin_however_it_is_cut(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = 0.8 * features(13, 3) + 0.3, features(17, 3, seed=1)
    expected = naive_prdc(fake, real, k)
    for cells in (20_000_000, 40, 1):
        monkeypatch.setattr(m, "_CELLS_PER_CHUNK", cells)
        found = m.prdc(fake, real, k)
        assert {name: value.value for name, value in found.items()} == pytest.approx(expected)
    assert all(value.wants == "low" for value in found.values())


def test_prdc_limits() -> None:
    real = features(30)
    same = m.prdc(real, real, 2)
    assert [same[name].value for name in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]
    # Without its border a ball holds its own sample and k - 1 others.
    assert same["density"].value == pytest.approx(1.0)
    away = m.prdc(real + 100, real, 2)
    assert [away[name].value for name in m.PRDC_NAMES] == [0.0, 0.0, 0.0, 0.0]
    # Collapsed onto one real image: all in, nothing covered but the balls that hold it.
    collapsed = m.prdc(np.repeat(real[:1], 8, axis=0), real, 2)
    assert collapsed["precision"].value == 1.0 and collapsed["coverage"].value < 0.5
    assert collapsed["recall"].value == pytest.approx(1 / 30)


def test_the_released_prdc_asks_the_nearest_ball_alone() -> None:
    # 9.0 lies in the wide ball around 5, but its nearest real point is 9.5 with a ball of 0.1.
    fake, real = np.array([[9.0], [6.0]]), np.array([[0.0], [5.0], [9.5], [9.6]])
    assert m.prdc(fake, real, 1)["precision"].value == 1.0
    assert m.prdc(fake, real, 1, variant="released_code")["precision"].value == 0.5


def test_prdc_says_what_is_too_few_and_keeps_what_is_not() -> None:
    few = m.prdc(features(3), features(10), 3)
    assert few["recall"].value is None and few["recall"].note == "unresolved: has 3 reconstructions, needs 4"
    assert all(few[name].value is not None for name in ("precision", "density", "coverage"))
    none = m.prdc(features(10), features(3), 3)
    assert {value.note for value in none.values()} == {"unresolved: has 3 real images, needs 4"}
    assert all(value.value is None for value in [*none.values(), *m.prdc(np.empty((0, 4)), features(9), 3).values()])
    with pytest.raises(ValueError, match="at least 1"):
        m.prdc(features(5), features(5), 0)


def test_prdc_per_class_treats_class_zero_like_every_other() -> None:
    real, owners = features(24), np.repeat([0, 1, 2], 8)
    real += 50.0 * owners[:, None]
    fake, wanted = real + 0.1, owners
    alone = [m.prdc(fake[owners == label], real[owners == label], 3) for label in range(3)]
    together = m.prdc_per_class(fake, wanted, real, owners, 3)
    for name in m.PRDC_NAMES:
        assert together[name].value == pytest.approx(np.mean([each[name].value for each in alone]))
        assert "3 identities" in together[name].note
    # Reconstructions of class 0 that show class 1: among all images they would pass, among their own they do not.
    astray = np.concatenate([real[owners == 1], fake[owners != 0]])
    assert m.prdc(astray, real, 3)["precision"].value == 1.0
    assert m.prdc_per_class(astray, wanted, real, owners, 3)["precision"].value == pytest.approx(2 / 3)
    renamed = m.prdc_per_class(astray, wanted + 7, real, owners + 7, 3)
    assert renamed["precision"].value == pytest.approx(2 / 3)


def test_prdc_per_class_is_unresolved_when_a_class_is_too_small() -> None:
    real, owners = features(12), np.repeat([0, 1], [9, 3])
    found = m.prdc_per_class(features(10), np.repeat([0, 1], 5), real, owners, 3)
    assert {value.note for value in found.values()} == {"unresolved: class 1 has 3 real images, needs 4"}
    absent = m.prdc_per_class(features(4), [0, 0, 5, 5], real, owners, 3)
    assert absent["recall"].note == "unresolved: no real images of class 5"
    many = m.prdc_per_class(features(100), np.repeat(np.arange(20), 5), features(200), np.repeat(np.arange(20), 10), 3)
    assert many["precision"].low <= many["precision"].value <= many["precision"].high


def test_recognition_is_a_search_for_the_nearest_class_mean() -> None:
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(6, 8))
    owners = np.repeat(np.arange(6), 4)
    real = centers[owners] * rng.uniform(0.5, 3, (24, 1)) + 0.3 * rng.normal(size=(24, 8))
    wanted = np.repeat(np.arange(5), 3)
    fake = centers[wanted] + 1.5 * rng.normal(size=(15, 8))
    unit = [row / np.linalg.norm(row) for row in real]
    means = [np.mean([unit[i] for i in np.flatnonzero(owners == c)], axis=0) for c in range(6)]
    cosines = [[f @ mean / np.linalg.norm(f) / np.linalg.norm(mean) for mean in means] for f in fake]
    expected = np.argmax(cosines, axis=1) == wanted
    assert 0 < expected.sum() < 15
    assert m.recognized(fake, wanted, real, owners).tolist() == expected.tolist()
    assert m.recognition(fake, wanted, real, owners).value == pytest.approx(expected.mean())
    # Lengths do not matter, names of classes do not either.
    scaled = fake * rng.uniform(0.1, 9, (15, 1))
    assert m.recognized(scaled, wanted * 3 + 2, real, owners * 3 + 2).tolist() == expected.tolist()
    assert m.recognition(real, owners, real, owners).wants == "low"


def test_recognition_without_an_answer() -> None:
    real, owners = features(6), [0, 0, 1, 1, 2, 2]
    assert not m.recognized(np.zeros((1, 4)), [0], real, owners)[0]
    assert m.recognized(np.empty((0, 4)), [], real, owners).shape == (0,)
    assert m.recognition(np.empty((0, 4)), [], real, owners).value is None
    assert m.recognition(features(2), [0, 9], real, owners).note == "unresolved: no real images of class 9"
    with pytest.raises(ValueError, match="no real images of class 9"):
        m.recognized(features(2), [0, 9], real, owners)


def test_disagreement_is_the_share_of_accepted_ones_that_the_second_rejects() -> None:
    first = np.array([True, True, True, True, False, False])
    second = np.array([True, False, False, True, True, False])
    assert m.disagreement(first, second).value == 0.5
    assert m.disagreement(first, first).value == 0.0
    assert m.disagreement(~first & False, second).value is None
    assert "accepts no reconstruction" in m.disagreement([False], [True]).note
    with pytest.raises(ValueError, match="shape"):
        m.disagreement(first, second[:2])


def test_faint_is_the_share_of_hits_with_less_contrast_than_every_real_image_of_the_class() -> None:
    pattern = np.array([[0.0, 1.0], [1.0, 0.0]])[None, None]
    real = np.concatenate([0.4 * pattern, 0.8 * pattern, 0.1 * pattern])
    made = np.concatenate([0.39 * pattern, 0.41 * pattern, 0.5 + 0.0 * pattern, 0.11 * pattern, 0.0 * pattern])
    wanted, owners = [0, 0, 0, 1, 1], [0, 0, 1]
    everything = np.ones(5, dtype=bool)
    assert m.faint_share(made, wanted, everything, real, owners).value == pytest.approx(3 / 5)
    assert m.faint_share(made, wanted, [True, True, False, True, False], real, owners).value == pytest.approx(1 / 3)
    assert m.faint_share(real, owners, [True] * 3, real, owners).value == 0.0
    assert "accepts no reconstruction" in m.faint_share(made, wanted, ~everything, real, owners).note
    assert m.faint_share(made, wanted, everything, real[:2], owners[:2]).note == "unresolved: no real images of class 1"


def test_bad_features_are_refused() -> None:
    broken = features(5)
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        m.frechet_distance(broken, features(5))
    with pytest.raises(ValueError, match="NaN or infinity"):
        m.prdc(broken, features(5), 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        m.knn_distance(broken, [0] * 5, features(5), [0] * 5)
    with pytest.raises(ValueError, match="length"):
        m.knn_distance(features(5), [0] * 4, features(5), [0] * 5)
