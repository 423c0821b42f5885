from __future__ import annotations

import numpy as np
import torch
from torch import nn

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership.grad_w_l1 import GradWL1

POINTS = Points(torch.rand(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4, torch.arange(9))


def test_equals_the_closed_form_of_a_linear_model() -> None:
    """The gradient with respect to weights and biases is (p - onehot) times (x, 1)."""
    model = nn.Linear(6, 4)
    target = Target(lambda: model, GradWL1.access, 4)
    error = model(POINTS.x).softmax(1) - torch.eye(4)[POINTS.y]
    expected = -(error.abs().sum(1) * (POINTS.x.abs().sum(1) + 1)).detach().numpy()
    np.testing.assert_allclose(GradWL1(GradWL1.Config()).score(target, POINTS, Knowledge()), expected, rtol=1e-4)


def test_reads_what_an_earlier_pass_recorded() -> None:
    recorded = {name: {row: row + 0.5 for row in range(9)} for name in ("x/l2", "w/l1", "w/l2")}

    def never_loaded() -> nn.Module:
        raise AssertionError("the gradients are recorded")

    target = Target(never_loaded, GradWL1.access, 4, recorded_gradients=recorded)
    backwards = Points(POINTS.x.flip(0), POINTS.y.flip(0), POINTS.rows.flip(0))
    scores = GradWL1(GradWL1.Config()).score(target, backwards, Knowledge())
    assert scores.tolist() == [-(row + 0.5) for row in reversed(range(9))]
