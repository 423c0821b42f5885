from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from oakum.metrics import membership as m


def naive_threshold(inside: list[float], outside: list[float]) -> float:
    best, threshold = 0, 0.0
    for candidate in [*inside, *outside]:
        right = sum(v >= candidate for v in inside) * len(outside) + sum(v < candidate for v in outside) * len(inside)
        if right > best:
            best, threshold = right, candidate
    return threshold


def sample(inside: int = 80, outside: int = 120, seed: int = 0, digits: int | None = 1, shift: float = 0.7):
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(shift, 1, inside), rng.normal(0, 1, outside)])
    member = np.arange(inside + outside) < inside
    order = rng.permutation(len(scores))
    scores = scores if digits is None else scores.round(digits)
    return scores[order], member[order]


integers = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)


@given(integers, integers)
def test_threshold_is_the_first_strictly_better_candidate(inside: list[float], outside: list[float]) -> None:
    assert m.select_threshold(inside, outside) == naive_threshold(inside, outside)


@given(integers, integers)
def test_curve_auc_and_precision_equal_their_definitions(inside: list[float], outside: list[float]) -> None:
    scores = np.array(inside + outside)
    member = np.arange(len(scores)) < len(inside)
    wins = np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside])
    assert m.auc(scores, member) == pytest.approx(wins)
    assert m.auc(scores, member) == pytest.approx(sk.roc_auc_score(member, scores))
    assert m.average_precision(scores, member) == pytest.approx(sk.average_precision_score(member, scores))
    fpr, tpr, _ = sk.roc_curve(member, scores, drop_intermediate=False)
    curve = m.roc_curve(scores, member)
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(wins)
    for level in (0.0, 0.05, 0.3, 1.0):
        allowed = [t for f, t in zip(curve.fpr, curve.tpr, strict=True) if f <= level + 1e-12]
        assert m.tpr_at_fpr(scores, member, level) == pytest.approx(max(allowed))


def test_separated_and_reversed_and_constant_scores() -> None:
    member = np.array([True, True, False, False])
    assert m.auc([4, 3, 2, 1], member) == 1
    assert m.auc([1, 2, 3, 4], member) == 0
    assert m.auc([5, 5, 5, 5], member) == 0.5
    assert m.tpr_at_fpr([4, 3, 2, 1], member, 0.0) == 1
    assert m.tpr_at_fpr([5, 5, 5, 5], member, 0.5) == 0
    assert m.balanced_accuracy([4, 3, 2, 1], member, 3) == 1
    assert m.balanced_accuracy([4, 3, 2, 1], member, np.array([9, 9, 0, 0])) == 0


def test_only_members_only_nonmembers_and_nobody_are_unresolved() -> None:
    for member, missing in (([True] * 3, "non-members"), ([False] * 3, "no members"), ([], "no points")):
        scores = np.arange(len(member), dtype=float)
        result = m.membership_metrics(scores, member, seed=0, threshold=0.5)
        assert {"auc", "average_precision", "balanced_accuracy", "tpr_at_fpr_0.001", "tpr_at_fpr_0.1"} <= set(result)
        assert all(value.value is None and missing in value.note for value in result.values())
        assert np.isnan(m.auc(scores, member))
        assert np.isnan(m.balanced_accuracy(scores, member, 0.0))
        m.membership_flags(scores, member, 0.5)
    assert np.isnan(m.tpr_at_fpr([1.0], [True], 0.1))
    assert np.isnan(m.average_precision([1.0], [False]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 membership scores are not finite"):
        m.auc([1.0, bad, 2.0], [True, False, True])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="scores"):
        m.auc([1.0, 2.0], [True])


@pytest.mark.parametrize(
    ("count", "levels"),
    [
        (0, ()),
        (99, ()),
        (100, (0.1,)),
        (199, (0.1,)),
        (200, (0.05, 0.1)),
        (999, (0.05, 0.1)),
        (1000, (0.01, 0.05, 0.1)),
    ],
)
def test_a_level_is_resolved_from_ten_expected_false_positives(count: int, levels: tuple[float, ...]) -> None:
    assert m.resolved_fprs(count) == levels
    assert m.resolved_fprs(10_000) == m.FPR_LEVELS


def test_unresolved_levels_say_what_they_need() -> None:
    scores, member = sample(100, 250)
    result = m.membership_metrics(scores, member, seed=0)
    assert result["tpr_at_fpr_0.1"].value == pytest.approx(m.tpr_at_fpr(scores, member, 0.1))
    assert result["tpr_at_fpr_0.01"].value is None
    assert result["tpr_at_fpr_0.01"].note == "unresolved: needs 1,000 non-members, has 250"
    assert result["tpr_at_fpr_0.001"].low is None
    assert all(value.wants == "low" for value in result.values())


def test_bootstrap_equals_a_naive_twin() -> None:
    scores, member = sample(60, 90)
    result = m.membership_metrics(scores, member, seed=3, resamples=400, threshold=0.4)
    rng = np.random.default_rng(99)
    inside, outside = scores[member], scores[~member]
    drawn = {"auc": [], "average_precision": [], "balanced_accuracy": []}
    for _ in range(400):
        again = np.concatenate([rng.choice(inside, len(inside)), rng.choice(outside, len(outside))])
        bits = np.arange(len(again)) < len(inside)
        drawn["auc"].append(m.auc(again, bits))
        drawn["average_precision"].append(m.average_precision(again, bits))
        drawn["balanced_accuracy"].append(m.balanced_accuracy(again, bits, 0.4))
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert result[name].low == pytest.approx(low, abs=0.025), name
        assert result[name].high == pytest.approx(high, abs=0.025), name
        assert result[name].low < result[name].value < result[name].high


def test_bootstrap_follows_its_seed_alone_and_is_chunked_without_effect_on_size(monkeypatch) -> None:
    scores, member = sample()
    first, again, other = (m.membership_metrics(scores, member, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["auc"] != other["auc"]
    monkeypatch.setattr(m, "_CELLS_PER_CHUNK", 5_000)
    chunked = m.membership_metrics(scores, member, seed=1)["auc"]
    assert chunked.value == first["auc"].value
    assert chunked.low == pytest.approx(first["auc"].low, abs=0.02)


def test_no_interval_below_twenty_points_a_side() -> None:
    scores, member = sample(19, 200)
    value = m.membership_metrics(scores, member, seed=0, threshold=0.0)
    assert value["auc"].low is None and "needs 20 members" in value["auc"].note
    assert value["balanced_accuracy"].low is None


def test_the_interval_of_an_uninformed_attack_covers_one_half() -> None:
    covered = 0
    for seed in range(40):
        scores, member = sample(60, 60, seed, None, shift=0.0)
        value = m.membership_metrics(scores, member, seed=seed, resamples=300)["auc"]
        covered += value.low <= 0.5 <= value.high
    assert covered >= 34


def test_a_thousand_resamples_of_fifteen_hundred_points_are_quick() -> None:
    scores, member = sample(500, 1000, digits=None)
    m.membership_metrics(scores, member, seed=0, resamples=2)
    started = time.perf_counter()
    m.membership_metrics(scores, member, seed=0)
    # 0.3 s is the aim on an idle core; the bound leaves room for a busy machine.
    assert time.perf_counter() - started < 1.5


def test_class_thresholds_fall_back_to_the_global_one() -> None:
    scores = np.array([3.0, 1.0, 5.0, 2.0, 0.0])
    member = np.array([True, False, True, True, False])
    y = np.array([0, 0, 1, 2, 2])
    thresholds = m.select_class_thresholds(scores, member, y, 4)
    overall = m.select_threshold(scores[member], scores[~member])
    assert thresholds.tolist() == [3.0, overall, 2.0, overall]


def test_threshold_of_an_empty_side_is_zero() -> None:
    assert m.select_threshold([], [1.0]) == 0.0
    assert m.select_threshold([2.0], []) == 0.0


def test_flags() -> None:
    scores, member = sample(200, 200)
    assert m.membership_flags(scores, member, 0.3) == []
    assert m.membership_flags(-scores, member) == ["inverted signal"]
    assert m.membership_flags(np.zeros(400), member) == ["constant scores"]
    assert m.membership_flags(scores, member, 99.0) == ["one class predicted"]
    assert m.membership_flags(scores, member, -99.0) == ["one class predicted"]
    assert m.membership_flags([], [], 0.0) == []


def test_threshold_search_is_not_quadratic() -> None:
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    m.select_threshold(rng.normal(1, 1, 80_000), rng.normal(0, 1, 80_000))
    assert time.perf_counter() - started < 2
