"""Entropy attack: members' predictions are concentrated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership._scores import entropy_score
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class Entropy(MembershipAttack):
    """Scores a point by the negative entropy of its prediction; needs no label."""

    source = Source(
        title="ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on Machine Learning "
        "Models",
        authors="Ahmed Salem, Yang Zhang, Mathias Humbert, Pascal Berrang, Mario Fritz, Michael Backes",
        venue="NDSS",
        year=2019,
        link="https://arxiv.org/abs/1806.01246",
    )

    class Config(MembershipAttack.Config):
        pass

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64; see `entropy_score`."""
        return entropy_score(target.scores(points), points.y.cpu().numpy())
