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

    Taps: the three blocks' outputs after pooling, as MCNN has them; the trunk is the last one, flat.
    """

    source = Source(title="Quickstart network", authors="oakum", venue="this project", year=2026)
    tap_names: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)

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
        self.trunk_width = 4 * config.width * (height // 8) * (width // 8)
        self.head = nn.Linear(self.trunk_width, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._block_outputs(x)[-1].flatten(1)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._block_outputs(x)
        return self.head(self.head_dropout(taps[-1].flatten(1))), taps

    def _block_outputs(self, x: Tensor) -> list[Tensor]:
        first = self.block1(x)
        second = self.block2(first)
        return [first, second, self.block3(second)]
