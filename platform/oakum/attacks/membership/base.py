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
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    access: ClassVar[Access] = Access.SCORES
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64 scores, finite, larger = member. Membership is joined after this returns."""
        raise TypeError(f"{type(self).__name__} must implement score")
