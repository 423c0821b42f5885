from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.attacks.membership.grad_x_l2 import GradXL2

POINTS = Points(torch.rand(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4, torch.arange(9))


def test_equals_the_closed_form_of_a_linear_model() -> None:
    """The gradient with respect to x is W^T (p - onehot)."""
    model = nn.Linear(6, 4)
    target = Target(lambda: model, GradXL2.access, 4)
    error = model(POINTS.x).softmax(1) - torch.eye(4)[POINTS.y]
    expected = -(error @ model.weight).double().norm(dim=1).detach().numpy()
    np.testing.assert_allclose(GradXL2(GradXL2.Config()).score(target, POINTS, Knowledge()), expected, rtol=1e-4)
    assert target.queries == 9


def test_acts_on_what_the_weights_show_and_not_on_the_mask() -> None:
    model = nn.Linear(6, 4)
    plain = Target(lambda: model, GradXL2.access, 4)
    masked = Target(
        lambda: nn.Sequential(model, nn.Threshold(9.0, 0.0)), Access.WEIGHTS, 4, load_unmasked=lambda: model
    )
    attack = GradXL2(GradXL2.Config())
    assert attack.score(masked, POINTS, Knowledge()).tolist() == attack.score(plain, POINTS, Knowledge()).tolist()


def test_flags_gradients_that_are_exactly_zero() -> None:
    model = nn.Linear(6, 4)
    nn.init.zeros_(model.weight)
    target = Target(lambda: model, GradXL2.access, 4)
    assert GradXL2(GradXL2.Config()).score(target, POINTS, Knowledge()) == pytest.approx(0)
    assert target.flags == {"zero gradients"}
