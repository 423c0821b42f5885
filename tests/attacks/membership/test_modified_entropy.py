from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from oakum.attacks.membership.entropy import Entropy
from oakum.attacks.membership.modified_entropy import ModifiedEntropy


def naive(p: list[float], y: int) -> float:
    def log(value: float) -> float:
        return math.log(max(value, 1e-30))

    return (1 - p[y]) * log(p[y]) + sum(v * log(1 - v) for c, v in enumerate(p) if c != y)


def test_equals_a_naive_twin(ask, logits, labels) -> None:
    expected = [naive(p, y) for p, y in zip(softmax(logits, axis=1).tolist(), labels, strict=True)]
    assert ask(ModifiedEntropy, log_softmax(logits, axis=1), labels).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_confident_wrong_prediction_scores_lowest(ask) -> None:
    """Plain entropy cannot tell a confident right prediction from a confident wrong one."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    y = np.array([0, 1, 1])
    scores = ask(ModifiedEntropy, logs, y)
    assert scores[1] < scores[2] < scores[0] == 0.0
    assert scores[1] == pytest.approx(2 * math.log(1e-30))
    assert ask(Entropy, logs, y)[0] == ask(Entropy, logs, y)[1]
