"""Base class of priors: how a generator and its critic learn from public data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from oakum.config import FrozenConfig
from oakum.models.base import InputShape
from oakum.models.priors._updates import Checkpoint, Resume
from oakum.registry import Source


class Prior:
    """A generator trained on public images.

    Attributes:
        source: the paper.
        network_names: what `build` returns, by name; attacks ask for networks by these names.
        needs_target: whether it is trained against one target model; there is then one prior for each defense setting
            and seed instead of one for all cells.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    network_names: ClassVar[tuple[str, ...]] = ("generator",)
    needs_target: ClassVar[bool] = False
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        latent_size: int

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int = 0) -> None:
        """Keep the settings.

        Args:
            num_classes: of the target; only priors that need a target use it.
        """
        self.config = config
        self.input_shape = input_shape
        self.num_classes = num_classes

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """Return the untrained networks by name.

        `generator` maps latents (B, latent_size) to images (B, C, H, W) in [0, 1]. `critic`, where there is one, maps
        images to scores (B,), larger = more like the public data. `discriminator`, where there is one, maps images to
        one logit for each class of the target.
        """

    @abstractmethod
    def train(
        self,
        images: Tensor,
        seed: int,
        resume: Resume,
        checkpoint: Checkpoint,
        target: nn.Module | None = None,
    ) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
        """Train on public images (N, C, H, W) in [0, 1]; return the networks and the history.

        Args:
            seed: the only source of randomness.
            resume: called once with the parts (modules and optimizers by name) before the first step; loads the
                last checkpoint into them and returns its record, or None to start afresh.
            checkpoint: called with (step, parts, record) where training may be continued from.
            target: the released target in eval mode without gradients for its weights, images (B, C, H, W) -> logits
                (B, K); given if and only if `needs_target`.
        """


@torch.no_grad()
def images_of(generator: Callable[[Tensor], Tensor], latents: Tensor, rows: int = 256) -> Tensor:
    """Return the generator's images (B, C, H, W) of latents (B, Z), float32 in [0, 1] on the CPU."""
    return torch.cat([generator(part).float().clamp(0, 1).cpu() for part in latents.split(rows)])
