from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from oakum.attacks.membership.entropy import Entropy


def test_equals_a_naive_twin_and_needs_no_label(ask, logits, labels) -> None:
    expected = [sum(p * math.log(p) for p in row) for row in softmax(logits, axis=1).tolist()]
    scores = ask(Entropy, log_softmax(logits, axis=1), labels)
    assert scores.tolist() == pytest.approx(expected)
    assert (scores == ask(Entropy, log_softmax(logits, axis=1), 5 - labels)).all()


def test_certain_predictions_score_highest_and_uniform_ones_lowest(ask) -> None:
    logs = np.array([[0.0, -np.inf, -np.inf], [math.log(1 / 3)] * 3, [-np.inf, math.log(0.5), math.log(0.5)]])
    scores = ask(Entropy, logs, np.array([0, 0, 0]))
    assert scores.tolist() == pytest.approx([0.0, -math.log(3), -math.log(2)])
