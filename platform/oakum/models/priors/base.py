"""Base class of priors: how a generator and its critic learn from public data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from oakum.config import FrozenConfig
from oakum.models.base import InputShape
from oakum.registry import Source


@dataclass
class PriorProgress:
    """What a prior's training reports: history rows `{"step": int, name: float, ...}`."""

    history: list[dict[str, Any]] = field(default_factory=list)


class Prior:
    """A generator trained on public images.

    Attributes:
        source: the paper.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        latent_size: int

    def __init__(self, config: Config, input_shape: InputShape) -> None:
        self.config = config
        self.input_shape = input_shape

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """Return the networks by name: at least `generator` (latents -> images in [0, 1]) and `critic`."""

    @abstractmethod
    def train(
        self,
        images: Tensor,
        seed: int,
        resume: Callable[[dict[str, Any]], dict[str, Any] | None],
        checkpoint: Callable[[int, dict[str, Any], dict[str, Any]], None],
    ) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
        """Train on public images (N, C, H, W) in [0, 1]; return the networks and the history.

        Args:
            seed: the only source of randomness.
            resume: called once with the parts (modules and optimizers by name) before the first step; loads the
                last checkpoint into them and returns its record, or None to start afresh.
            checkpoint: called with (step, parts, record) where training may be continued from.
        """
