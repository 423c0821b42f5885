from __future__ import annotations

import numpy as np
import pytest
import torch

from oakum.attacks.access import Access, AccessError, Knowledge, Points, Target
from oakum.attacks.membership.grad_x_l1 import GradXL1
from oakum.models.base import InputShape
from oakum.models.mlp import MLP

POINTS = Points(torch.rand(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4, torch.arange(9))


def test_equals_a_naive_twin_on_the_normalized_input() -> None:
    model = MLP(MLP.Config(hidden=(5,), mean=(0.5,), std=(0.3,)), InputShape((6,)), 4).eval()
    expected = []
    for x, y in zip(POINTS.x, POINTS.y, strict=True):
        normalized = ((x[None] - 0.5) / 0.3).requires_grad_()
        logits, _ = model.logits_and_taps(normalized)
        (-logits.log_softmax(1)[0, y]).backward()
        expected.append(-float(normalized.grad.abs().sum()))
    scores = GradXL1(GradXL1.Config()).score(Target(lambda: model, Access.WEIGHTS, 4), POINTS, Knowledge())
    assert scores.dtype == np.float64
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_needs_the_weights() -> None:
    assert GradXL1.access == Access.WEIGHTS
    assert GradXL1.needs_gradients
    model = MLP(MLP.Config(hidden=(5,)), InputShape((6,)), 4)
    with pytest.raises(AccessError):
        GradXL1(GradXL1.Config()).score(Target(lambda: model, Access.SCORES, 4), POINTS, Knowledge())
