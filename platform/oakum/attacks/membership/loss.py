"""Loss attack: members have a small loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership._scores import loss_score
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class Loss(MembershipAttack):
    """Scores a point by its negative cross-entropy."""

    source = Source(
        title="Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting",
        authors="Samuel Yeom, Irene Giacomelli, Matt Fredrikson, Somesh Jha",
        venue="CSF",
        year=2018,
        link="https://arxiv.org/abs/1709.01604",
    )

    class Config(MembershipAttack.Config):
        pass

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64; see `loss_score`."""
        return loss_score(target.scores(points), points.y.cpu().numpy())
