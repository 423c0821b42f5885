from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership.grad_w_l2 import GradWL2
from oakum.metrics.membership import auc
from oakum.models.base import InputShape
from oakum.models.small_cnn import SmallCNN

POINTS = Points(torch.rand(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4, torch.arange(9))


def test_equals_the_closed_form_of_a_linear_model() -> None:
    """The gradient with respect to weights and biases is (p - onehot) times (x, 1)."""
    model = nn.Linear(6, 4)
    target = Target(lambda: model, GradWL2.access, 4)
    error = model(POINTS.x).softmax(1) - torch.eye(4)[POINTS.y]
    expected = -(error.norm(dim=1) * (POINTS.x.square().sum(1) + 1).sqrt()).detach().numpy()
    np.testing.assert_allclose(GradWL2(GradWL2.Config()).score(target, POINTS, Knowledge()), expected, rtol=1e-4)


def test_overfitting_leaks_and_an_untrained_model_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, 8, 8, generator=generator), torch.randint(4, (60,), generator=generator)
    torch.manual_seed(0)
    model = SmallCNN(SmallCNN.Config(width=8), InputShape((1, 8, 8)), 4)

    def measured() -> float:
        target = Target(lambda: model, GradWL2.access, 4)
        scores = GradWL2(GradWL2.Config()).score(target, Points(x, y, torch.arange(60)), Knowledge())
        return auc(scores, np.arange(60) < 30)

    assert 0.3 < measured() < 0.7
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x[:30]), y[:30]).backward()
        optimizer.step()
    assert measured() > 0.8
