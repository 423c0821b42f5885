"""A CNN of four blocks for face images, of our own: small enough to train on a CPU."""

from __future__ import annotations

import itertools
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from oakum.models._staged import convolution, norm_relu, require_image
from oakum.models.base import Classifier, InputShape
from oakum.registry import Source


class FaceCNN(Classifier):
    """Four blocks of a 3x3 convolution, batch normalization, ReLU and 2x2 max-pooling, and a linear head.

    642,910 parameters with 64x64 color images and 62 classes. For images of 16x16 pixels and more. The head reads the
    flat output of the last block, not its mean over the image: faces are aligned, and where a feature lies tells
    people apart. Taps on 64x64 images: 32x32x32, 64x16x16, 128x8x8 and 256x4x4; the trunk is the last one, flat.
    """

    source = Source(title="Network for aligned faces", authors="oakum", venue="this project", year=2026)
    tap_names: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "block4")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)

    class Config(Classifier.Config):
        width: int = Field(default=32, ge=1, le=1024, description="channels of the first block; doubled at each")

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("face_cnn", input_shape, smallest=16)
        _, height, width = input_shape.dims
        widths = (channels, *(config.width << block for block in range(4)))
        self.blocks = nn.ModuleList(_block(inner, outer) for inner, outer in itertools.pairwise(widths))
        self.trunk_width = widths[-1] * (height // 16) * (width // 16)
        self.head = nn.Linear(self.trunk_width, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._block_outputs(x)[-1].flatten(1)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._block_outputs(x)
        return self.head(self.head_dropout(taps[-1].flatten(1))), taps

    def _block_outputs(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels_in, channels_out, 3), *norm_relu(channels_out), nn.MaxPool2d(2))
