"""Modified entropy attack: concentrated on the right label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership._scores import modified_entropy_score
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class ModifiedEntropy(MembershipAttack):
    """Scores a point by its negative modified entropy, which is low for a confident wrong prediction."""

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
        """Return (N,) float64; see `modified_entropy_score`."""
        return modified_entropy_score(target.scores(points), points.y.cpu().numpy())
