"""Confidence attack: the model is sure of its members' labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership._scores import confidence_score
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class Confidence(MembershipAttack):
    """Scores a point by the released probability of its label."""

    source = Source(
        title="Systematic Evaluation of Privacy Risks of Machine Learning Models",
        authors="Liwei Song, Prateek Mittal",
        venue="USENIX Security",
        year=2021,
        link="https://arxiv.org/abs/2003.10595",
    )

    class Config(MembershipAttack.Config):
        pass

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64; see `confidence_score`."""
        return confidence_score(target.scores(points), points.y.cpu().numpy())
