from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.attacks.membership import _scores
from oakum.attacks.membership.loss import Loss
from oakum.metrics.membership import auc
from oakum.models.base import InputShape
from oakum.models.mlp import MLP


def test_equals_a_naive_twin(ask, logits, labels) -> None:
    expected = [row[y] - math.log(sum(math.exp(v) for v in row)) for row, y in zip(logits, labels, strict=True)]
    assert ask(Loss, log_softmax(logits, axis=1), labels).tolist() == pytest.approx(expected)


def test_confident_losses_stay_apart(ask) -> None:
    """Probabilities near 1 are equal in float64 long before their losses are."""
    logs = log_softmax(np.array([[40.0, 0.0], [50.0, 0.0], [900.0, 0.0]]), axis=1)
    wrong = ask(Loss, logs, np.array([1, 1, 1]))
    assert (np.diff(wrong) < 0).all()


def test_probability_zero_gives_the_lowest_score_and_not_infinity(ask) -> None:
    logs = np.array([[-np.inf, 0.0], [-1e5, 0.0]])
    scores = ask(Loss, logs, np.array([0, 0]))
    assert scores[0] < scores[1]


def test_no_points_give_no_scores() -> None:
    for score in (_scores.loss_score, _scores.confidence_score, _scores.entropy_score, _scores.modified_entropy_score):
        assert score(np.empty((0, 3)), np.empty(0, dtype=np.int64)).shape == (0,)


def test_nan_and_foreign_labels_are_refused(ask) -> None:
    with pytest.raises(ValueError, match="NaN for 1 of 2"):
        ask(Loss, np.array([[np.nan, 0.0], [0.0, -1.0]]), np.array([0, 0]))
    with pytest.raises(ValueError, match="labels must lie in"):
        ask(Loss, np.zeros((2, 3)), np.array([0, 3]))


def test_overfitting_leaks_and_an_untrained_model_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 20, generator=generator), torch.randint(4, (80,), generator=generator)
    torch.manual_seed(0)
    model = MLP(MLP.Config(hidden=(32,)), InputShape((20,)), 4)

    def measured() -> float:
        target = Target(lambda: model, Access.SCORES, 4)
        return auc(Loss(Loss.Config()).score(target, Points(x, y, torch.arange(80)), Knowledge()), np.arange(80) < 40)

    assert 0.35 < measured() < 0.65
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        model.requires_grad_(True)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[:40]), y[:40]).backward()
        optimizer.step()
    assert measured() > 0.8
