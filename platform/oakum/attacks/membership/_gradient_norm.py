"""What the attacks by the size of a sample's gradient share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class GradientNorm(MembershipAttack):
    """Scores a point by the negative norm of its loss's gradient: training has made members' gradients small.

    Of a defense that masks its output, the weights show the gradient of the unmasked classifier.

    Attributes:
        statistic: which norm, a name of `oakum.attacks.membership._gradients.gradient_statistics`.
    """

    source = Source(
        title="RelaxLoss: Defending Membership Inference Attacks without Losing Utility",
        authors="Dingfan Chen, Ning Yu, Mario Fritz",
        venue="ICLR",
        year=2022,
        link="https://arxiv.org/abs/2207.05801",
    )
    access: ClassVar[Access] = Access.WEIGHTS
    needs_gradients: ClassVar[bool] = True
    statistic: ClassVar[str]

    class Config(MembershipAttack.Config):
        pass

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64, at most 0."""
        return -target.gradient_statistics(points)[self.statistic]
