"""Base class of model-inversion attacks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from oakum.attacks.access import Access, Knowledge, Target
from oakum.config import FrozenConfig
from oakum.registry import Source


class InversionAttack:
    """Rebuilds what classes of the target look like.

    Attributes:
        access: what the attack needs from the target.
        needs_prior: whether it searches a prior's images; `Knowledge.networks` then holds the prior's networks.
        prior_networks: the networks that the prior must have. An experiment's first prior that has them is taken.
        prior_of: which target a prior with `needs_target` was trained against: `target` is the attacked one,
            `undefended` the undefended model of the same seed.
        draws_of: the attack whose seed this one takes, so that a variant of it starts and draws alike; "": its own.
        source: the paper.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    access: ClassVar[Access] = Access.WEIGHTS
    needs_prior: ClassVar[bool] = True
    prior_networks: ClassVar[tuple[str, ...]] = ("generator",)
    prior_of: ClassVar[Literal["target", "undefended"]] = "target"
    draws_of: ClassVar[str] = ""
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        """Settings that every inversion attack has.

        Attributes:
            prior: the name of the prior under the experiment's `priors`; None: the first that has what is needed.
            restarts: reconstructions of each class.
            max_rows: latents searched at a time; bounds memory and changes results by rounding only.
            precision: of the networks' forward passes.
        """

        prior: str | None = None
        restarts: int = Field(default=5, ge=1)
        max_rows: int = Field(default=256, ge=1)
        precision: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, config: Config) -> None:
        self.config = config

    def check(self, latent_size: int) -> None:
        """Refuse a prior with latents of this size; called when the plan is made, before any work.

        Raises:
            ConfigError: the attack cannot search such latents.
        """

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, M, C, H, W) float32 in [0, 1] on the CPU: M for each of T target classes.

        A class's reconstructions depend on `knowledge.seed`, the class and the restart's number, not on which other
        classes are asked for in the same call (rounding aside), so that the classes of one attack may be split over
        tasks.
        """
        raise TypeError(f"{type(self).__name__} must implement reconstruct")
