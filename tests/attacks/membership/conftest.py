"""A released model that answers from a table, and points that ask for its rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from oakum.attacks.access import Access, Knowledge, Points, Target

Asked = Callable[[type, np.ndarray, np.ndarray], np.ndarray]


def never_loaded() -> nn.Module:
    raise AssertionError("the attack asked for more than the recorded scores")


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 6)) * 3


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 6, 200)


@pytest.fixture
def ask() -> Asked:
    """Return a function (attack class, log-probabilities, labels) -> scores, asked through `Target`."""

    def run(attack: type, log_probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
        recorded = dict(enumerate(np.asarray(log_probabilities, dtype=np.float64)))
        target = Target(never_loaded, Access.SCORES, log_probabilities.shape[1], recorded)
        points = Points(torch.zeros(len(y), 1), torch.from_numpy(y), torch.arange(len(y)))
        scores = attack(attack.Config()).score(target, points, Knowledge())
        assert scores.dtype == np.float64
        assert scores.shape == (len(y),)
        assert np.isfinite(scores).all()
        assert target.queries == len(y)
        return scores

    return run
