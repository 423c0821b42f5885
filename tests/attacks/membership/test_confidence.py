from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from oakum.attacks.membership.confidence import Confidence
from oakum.attacks.membership.loss import Loss


def test_equals_the_probability_of_the_label(ask, logits, labels) -> None:
    scores = ask(Confidence, log_softmax(logits, axis=1), labels)
    assert scores == pytest.approx(softmax(logits, axis=1)[np.arange(200), labels])


def test_ranks_like_the_loss(ask, logits, labels) -> None:
    logs = log_softmax(logits, axis=1)
    assert (ask(Confidence, logs, labels).argsort() == ask(Loss, logs, labels).argsort()).all()


def test_probabilities_zero_and_one(ask) -> None:
    logs = np.array([[-np.inf, 0.0], [-np.inf, 0.0]])
    assert ask(Confidence, logs, np.array([0, 1])).tolist() == [0.0, 1.0]
