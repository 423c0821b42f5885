"""DenseNet-BC for small images, with dropout inside its blocks."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from oakum.models._dropout import SampleDropout
from oakum.models._staged import StagedClassifier, convolution, norm_relu, require_depth, require_image
from oakum.models.base import InputShape
from oakum.registry import Source


class DenseLayer(nn.Module):
    """Adds `growth` channels to its input: a 1x1 convolution to 4 * growth channels, then a 3x3 one."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *norm_relu(channels_in),
            convolution(channels_in, 4 * growth, 1),
            *norm_relu(4 * growth),
            convolution(4 * growth, growth, 3),
            SampleDropout(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels_in + growth, H, W) for x (B, channels_in, H, W), x first."""
        return torch.cat([x, self.branch(x)], dim=1)


class DenseNet(StagedClassifier):
    """Three dense blocks, two transitions that compress; 71,686 parameters with 3 channels and 10 classes.

    For images of 8x8 pixels and more. Taps on 32x32 images, the dense blocks' outputs: 60x32x32, 66x16x16, 69x8x8,
    and the 69-wide feature. The defense `dropout` acts on what each dense layer adds, not before the head.

    Differs from the paper (section 3): depth 22, and dropout after the 3x3 convolutions only, as in the RelaxLoss
    experiments.
    """

    source = Source(
        title="Densely Connected Convolutional Networks",
        authors="Huang, Liu, van der Maaten, Weinberger",
        venue="CVPR",
        year=2017,
        link="arXiv:1608.06993",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "feature")

    class Config(StagedClassifier.Config):
        depth: int = Field(default=22, le=1204, description="layers with weights: 6n+4 for n layers in each block")
        growth: int = Field(default=12, ge=1, le=256, description="channels that a dense layer adds")
        compression: int = Field(default=2, ge=1, le=16, description="a transition divides the channels by this")

        @field_validator("depth")
        @classmethod
        def _fills_the_blocks(cls, depth: int) -> int:
            return require_depth(depth, step=6, rest=4)

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("densenet", input_shape, smallest=8)
        width = 2 * config.growth
        entry: list[nn.Module] = [convolution(channels, width, 3)]
        stages = []
        for _ in range(3):
            layers = [DenseLayer(width + i * config.growth, config.growth) for i in range((config.depth - 4) // 6)]
            stages.append(nn.Sequential(*entry, *layers))
            wide = width + len(layers) * config.growth
            width = max(1, wide // config.compression)
            entry = [*norm_relu(wide), convolution(wide, width, 1), nn.AvgPool2d(2)]
        self.assemble(stages, nn.Sequential(*norm_relu(wide)), wide)

    def dropout_layers(self) -> list[SampleDropout]:
        """Return the dropout layers inside the dense blocks, in the order of the data."""
        return [layer for layer in self.stages.modules() if isinstance(layer, SampleDropout)]
