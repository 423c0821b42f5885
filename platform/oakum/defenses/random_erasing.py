"""Random erasing (MIDRE): no training image is ever seen whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.seeding import derive_seed, keyed_uniform, sample_keys
from oakum.training.augmentation import windows
from oakum.training.state import Batch, TrainState

Variant = Literal["paper", "released_code"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)


def erase(x: Tensor, keys: Tensor, *, probability: float, scale: tuple[float, float], fill: Sequence[float]) -> Tensor:
    """Return images (B, C, H, W) with a random square of each erased.

    Args:
        x: in [0, 1].
        keys: (B,) int64, see `oakum.seeding.sample_keys`; an image's draws depend on its key alone.
        probability: that an image is erased at all.
        scale: the square's area is uniform between these shares of the image's. Its side is rounded to whole pixels,
            and at most the image's smaller side; its place is uniform among those inside the image.
        fill: C values in [0, 1] or one for all channels.
    """
    height, width = x.shape[2:]
    is_erased, area, down, right = keyed_uniform(keys, 4).unbind(dim=1)
    share = scale[0] + (scale[1] - scale[0]) * area
    side = (share * (height * width)).sqrt().round().long().clamp(max=min(height, width))
    top = (down * (height - side + 1)).long()
    left = (right * (width - side + 1)).long()
    inside = windows(x, top, left, side, side) & (is_erased < probability).view(-1, 1, 1, 1)
    return torch.where(inside, torch.tensor(fill, dtype=x.dtype, device=x.device).view(1, -1, 1, 1), x)


class RandomErasing(Defense):
    """Trains on images with a random square erased, drawn anew in every epoch; the released model erases nothing.

    A square belongs to (seed, epoch, sample): it does not depend on how the batch is cut into shards. Erasing comes
    after the recipe's augmentation. Training accuracies in the history are those of erased images.

    Differs from the released code: the fill is an intensity of the image, also where the model normalizes its input.
    The authors' code writes the ImageNet mean into images that are normalized to [-1, 1] already, where it means a
    lighter gray, (fill + 1) / 2: `variant: released_code`. Normalization, augmentation and the number of epochs belong
    to the experiment.
    """

    source = Source(
        title="Random Erasing vs. Model Inversion: A Promising Defense or a False Hope?",
        authors="Viet-Hung Tran, Ngoc-Bao Nguyen, Son T. Mai, Hans Vandierendonck, Ira Assent, Alex Kot, "
        "Ngai-Man Cheung",
        venue="TMLR",
        year=2025,
        link="https://arxiv.org/abs/2409.01062",
    )
    searchable: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("scale", "probability")

    class Config(Defense.Config):
        """Settings of random erasing.

        Attributes:
            scale: smallest and largest erased share of an image's area. The authors ship (0.1, 0.4) and (0.1, 0.8).
            probability: that an image is erased in an epoch; 0 is ordinary training.
            fill: one intensity in [0, 1] per channel, or one for all. None takes the ImageNet mean (0.485, 0.456,
                0.406) for three channels, and its mean otherwise.
            variant: `released_code` fills with (fill + 1) / 2, see above.
        """

        scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(le=1)]] = (0.1, 0.4)
        probability: float = Field(default=1.0, ge=0, le=1)
        fill: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(default=None, min_length=1)
        variant: Variant = "paper"

        @field_validator("scale")
        @classmethod
        def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
            if value[0] > value[1]:
                raise ValueError(f"scale must be two shares in ascending order, not {list(value)}")
            return value

    config: Config

    def build(self, model: Classifier) -> nn.Module:
        """Return the model.

        Raises:
            ConfigError: it takes no images, or images of another number of channels than `fill` has.
        """
        shape = model.input_shape
        if not shape.is_image:
            raise ConfigError(f"defense 'random_erasing' needs images, but the data has shape {shape.dims}")
        given = self.config.fill
        if given is not None and len(given) not in (1, shape.dims[0]):
            raise ConfigError(
                f"random_erasing: fill has {len(given)} values, but images have {shape.dims[0]} channels; give one "
                "value, or one per channel"
            )
        return super().build(model)

    def fill(self, channels: int) -> tuple[float, ...]:
        """Return the intensities that erased pixels get, one per channel or one for all, in [0, 1]."""
        chosen = self.config.fill
        if chosen is None:
            chosen = IMAGENET_MEAN if channels == len(IMAGENET_MEAN) else (sum(IMAGENET_MEAN) / len(IMAGENET_MEAN),)
        return chosen if self.config.variant == "paper" else tuple((value + 1) / 2 for value in chosen)

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the erased images."""
        keys = sample_keys(derive_seed(state.seed, "erasing", state.epoch), batch.index.to(state.device))
        erased = erase(
            batch.x,
            keys,
            probability=self.config.probability,
            scale=self.config.scale,
            fill=self.fill(batch.x.shape[1]),
        )
        return super().loss(state, replace(batch, x=erased))
