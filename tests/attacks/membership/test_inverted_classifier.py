from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from oakum.attacks.access import Access, Knowledge, Points, Shadow, Target
from oakum.attacks.membership.inverted_classifier import InvertedClassifier, build_network

CLASSES = 6


def released(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log-probabilities whose members are a little less sure than others, half of the labels right."""
    generator = np.random.default_rng(seed)
    is_member = np.arange(count) < count // 2
    y = generator.integers(0, CLASSES, count)
    top = np.where(generator.random(count) < 0.5, y, (y + 1) % CLASSES)
    sure = np.where(is_member, 0.45, 0.65) + 0.05 * generator.normal(size=count)
    logs = np.log(np.full((count, CLASSES), 1.0)) + 0.1 * generator.normal(size=(count, CLASSES))
    rest = np.exp(logs)
    rest[np.arange(count), top] = 0
    rest *= ((1 - sure) / rest.sum(axis=1))[:, None]
    rest[np.arange(count), top] = sure
    return np.log(rest), y, is_member


def never_loaded() -> nn.Module:
    raise AssertionError("the attack asked for more than the recorded scores")


def ask(attack: InvertedClassifier, logs: np.ndarray, y: np.ndarray, knowledge: Knowledge) -> np.ndarray:
    target = Target(never_loaded, Access.SCORES, CLASSES, dict(enumerate(logs)))
    points = Points(torch.zeros(len(y), 1), torch.from_numpy(y), torch.arange(len(y)))
    scores = attack.score(target, points, knowledge)
    assert scores.dtype == np.float64 and scores.shape == (len(y),)
    assert ((scores >= 0) & (scores <= 1)).all() and target.queries == len(y)
    return scores


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return Knowledge(seed=3, shadow=tuple(Shadow(*released(100, seed)) for seed in (1, 2)))


def attack(**options: bool) -> InvertedClassifier:
    return InvertedClassifier(InvertedClassifier.Config(**options))


@pytest.mark.parametrize("with_label", [True, False])
def test_it_learns_that_members_look_less_sure_than_others(knowledge: Knowledge, with_label: bool) -> None:
    logs, y, is_member = released(200, 9)
    chosen = attack(with_label=with_label)
    scores = ask(chosen, logs, y, knowledge)
    assert roc_auc_score(is_member, scores) > 0.95
    assert ((scores > chosen.fixed_threshold) == is_member).mean() > 0.85
    other_labels = ask(chosen, logs, (y + 2) % CLASSES, knowledge)
    assert (other_labels == scores).all() == (not with_label)


def test_scores_follow_from_shadows_and_seed_alone(knowledge: Knowledge) -> None:
    logs, y, _ = released(20, 9)
    chosen = attack()
    first = ask(chosen, logs, y, knowledge)
    torch.rand(5)
    assert (ask(chosen, logs[::-1], y[::-1].copy(), knowledge) == first[::-1]).all()
    assert (ask(attack(), logs, y, Knowledge(seed=3, shadow=knowledge.shadow)) == first).all()
    assert not (ask(chosen, logs, y, Knowledge(seed=4, shadow=knowledge.shadow)) == first).any()


def test_the_order_of_the_other_classes_has_no_meaning(knowledge: Knowledge) -> None:
    logs, y, _ = released(30, 9)
    chosen = attack()
    turned = ask(chosen, np.roll(logs, 1, axis=1), (y + 1) % CLASSES, knowledge)
    assert turned.tolist() == pytest.approx(ask(chosen, logs, y, knowledge).tolist())


def test_released_zeros_are_taken(knowledge: Knowledge) -> None:
    logs = np.full((2, CLASSES), -np.inf)
    logs[:, 0] = 0.0
    assert np.isfinite(ask(attack(), logs, np.array([0, 1]), knowledge)).all()


def test_nan_and_missing_shadows_are_refused(knowledge: Knowledge) -> None:
    logs, y, _ = released(10, 9)
    members_only = Shadow(*released(10, 1)[:2], np.ones(10, dtype=bool))
    for shadow in ((), (members_only,)):
        with pytest.raises(ValueError, match="shadow_train and shadow_test"):
            ask(attack(), logs, y, Knowledge(shadow=shadow))
    logs[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN for 1 of 10"):
        ask(attack(), logs, y, knowledge)


def test_the_network_has_the_shape_of_memguards_detector() -> None:
    network = build_network(30, seed=0)
    shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)]
    assert shapes == [(256, 30), (128, 256), (64, 128), (1, 64)]
    for layer in network:
        if isinstance(layer, nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.abs().max() <= bound and layer.weight.std().item() == pytest.approx(
                bound / 3**0.5, rel=0.15
            )
            assert not layer.bias.any()
