from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from oakum.attacks.access import Access, AccessError, Knowledge, Points, Target
from oakum.attacks.membership.correctness import Correctness
from oakum.metrics.membership import balanced_accuracy


def points(x: torch.Tensor, y: list[int]) -> Points:
    return Points(x, torch.tensor(y, dtype=torch.int64), torch.arange(len(y)))


def test_scores_one_where_the_prediction_is_the_label() -> None:
    target = Target(nn.Flatten, Correctness.access, 3)
    asked = points(torch.eye(3), [0, 2, 2])
    scores = Correctness(Correctness.Config()).score(target, asked, Knowledge())
    assert scores.dtype == np.float64
    assert scores.tolist() == [1.0, 0.0, 1.0]
    assert target.queries == 3


def test_accuracy_is_the_gap_between_training_and_test() -> None:
    y = [0] * 8 + [1, 1] + [0] * 5 + [1] * 5
    target = Target(nn.Flatten, Correctness.access, 2)
    scores = Correctness(Correctness.Config()).score(target, points(torch.tensor([[1.0, 0.0]] * 20), y), Knowledge())
    assert Correctness.fixed_threshold is not None
    found = balanced_accuracy(scores, np.arange(20) < 10, Correctness.fixed_threshold)
    assert found == pytest.approx((1 + 0.8 - 0.5) / 2)


def test_asks_for_labels_alone() -> None:
    assert Correctness.access == Access.LABEL
    with pytest.raises(AccessError):
        Target(nn.Flatten, Correctness.access, 3).scores(points(torch.eye(3), [0, 1, 2]))


def test_no_points_give_no_scores() -> None:
    target = Target(nn.Flatten, Correctness.access, 3)
    assert Correctness(Correctness.Config()).score(target, points(torch.empty(0, 3), []), Knowledge()).shape == (0,)
