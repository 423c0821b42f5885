"""Base class of model-inversion attacks."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from oakum.attacks.access import Access, Knowledge, Target
from oakum.config import FrozenConfig
from oakum.registry import Source


class InversionAttack:
    """Rebuilds what classes of the target look like.

    Attributes:
        access: what the attack needs from the target.
        needs_prior: whether `Knowledge.generator` (and `critic`) must be given.
        source: the paper.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    access: ClassVar[Access] = Access.WEIGHTS
    needs_prior: ClassVar[bool] = True
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, M, C, H, W) in [0, 1] for T target classes, M for each."""
        raise TypeError(f"{type(self).__name__} must implement reconstruct")
