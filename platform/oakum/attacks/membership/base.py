"""Base class of membership attacks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.config import FrozenConfig
from oakum.registry import Source


class MembershipAttack:
    """Gives every point a score: the larger, the more likely it was in the training set.

    Attributes:
        access: what the attack needs from the target.
        source: the paper.
        needs_shadow: whether `score` reads `knowledge.shadow`; refused in an experiment without shadow folds.
        needs_gradients: whether `score` reads `target.gradient_statistics`.
        fixed_threshold: the threshold that belongs to the attack; None: thresholds are fitted on shadow models, one for
            all points and one for each class.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    access: ClassVar[Access] = Access.SCORES
    needs_shadow: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    fixed_threshold: ClassVar[float | None] = None
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64 scores, finite, larger = member. Membership is joined after this returns."""
        raise TypeError(f"{type(self).__name__} must implement score")
