"""A small convolutional network of our own for images of 8x8 pixels and more: quickstart's target."""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import conv_block
from oakum.registry import Source


class SmallCNN(Classifier):
    """Three convolution blocks, each halving the image, and a linear head.

    Taps: the three blocks' outputs after pooling, as MCNN has them.
    """

    source = Source(title="Quickstart network", authors="oakum", venue="this project", year=2026)
    tap_names: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3")

    class Config(Classifier.Config):
        width: int = Field(default=16, ge=1, le=1024, description="channels of the first block; doubled at each")
        kernel: Literal[3, 5] = Field(default=3, description="size of every convolution")

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        if not input_shape.is_image or min(input_shape.dims[1:]) < 8:
            raise ConfigError(f"model 'small_cnn' takes images of 8x8 pixels and more, not shape {input_shape.dims}")
        channels, height, width = input_shape.dims
        widths = (channels, config.width, 2 * config.width, 4 * config.width)
        self.block1, self.block2, self.block3 = (
            conv_block(inner, outer, config.kernel, padding=config.kernel // 2, pool=True)
            for inner, outer in itertools.pairwise(widths)
        )
        self.head = nn.Linear(4 * config.width * (height // 8) * (width // 8), num_classes)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.block1(x)
        second = self.block2(first)
        third = self.block3(second)
        return self.head(self.head_dropout(third.flatten(1))), [first, second, third]
