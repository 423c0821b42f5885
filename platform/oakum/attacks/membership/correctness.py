"""Correctness attack: members are classified correctly."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class Correctness(MembershipAttack):
    """Takes a point for a member when the released prediction is its label (the gap attack).

    Its balanced accuracy is (1 + training accuracy - test accuracy) / 2: what overfitting alone tells, to everyone who
    may ask for labels. A mask that keeps the predicted class cannot lower it.
    """

    source = Source(
        title="Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting",
        authors="Samuel Yeom, Irene Giacomelli, Matt Fredrikson, Somesh Jha",
        venue="CSF",
        year=2018,
        link="https://arxiv.org/abs/1709.01604",
    )
    access: ClassVar[Access] = Access.LABEL
    fixed_threshold: ClassVar[float | None] = 0.5

    class Config(MembershipAttack.Config):
        pass

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64: 1 where the prediction is the label, else 0."""
        is_correct: NDArray[np.bool_] = target.labels(points) == points.y.cpu().numpy()
        return is_correct.astype(np.float64)
