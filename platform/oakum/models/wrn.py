"""Wide ResNet for small images, with dropout inside its blocks."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import nn

from oakum.models._dropout import SampleDropout
from oakum.models._residual import PreActivationBlock, residual_stages
from oakum.models._staged import StagedClassifier, convolution, norm_relu, require_depth, require_image
from oakum.models.base import InputShape
from oakum.registry import Source


class WideResNet(StagedClassifier):
    """WRN-depth-widen; by default WRN-28-2 with 1,467,610 parameters for 3 channels and 10 classes.

    For images of 8x8 pixels and more. Taps on 32x32 images: 32x32x32, 64x16x16, 128x8x8 and the 128-wide feature.
    The defense `dropout` acts between the two convolutions of every block (section 2.4), not before the head.
    The head starts with a bias of 0.
    """

    source = Source(
        title="Wide Residual Networks",
        authors="Zagoruyko, Komodakis",
        venue="BMVC",
        year=2016,
        link="arXiv:1605.07146",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "feature")

    class Config(StagedClassifier.Config):
        depth: int = Field(default=28, le=1204, description="layers with weights: 6n+4 for n blocks in each stage")
        widen: int = Field(default=2, ge=1, le=64, description="the stages have 16, 32 and 64 times as many channels")

        @field_validator("depth")
        @classmethod
        def _fills_the_stages(cls, depth: int) -> int:
            return require_depth(depth, step=6, rest=4)

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("wrn", input_shape, smallest=8)
        stem = nn.Sequential(convolution(channels, 16, 3))
        widths = (16, 16 * config.widen, 32 * config.widen, 64 * config.widen)
        stages = residual_stages(_block, stem, widths, ((config.depth - 4) // 6,) * 3)
        self.assemble(stages, nn.Sequential(*norm_relu(widths[-1])), widths[-1])
        nn.init.zeros_(self.head.bias)

    def dropout_layers(self) -> list[SampleDropout]:
        """Return the dropout layers inside the blocks, in the order of the data."""
        return [layer for layer in self.stages.modules() if isinstance(layer, SampleDropout)]


def _block(channels_in: int, channels_out: int, stride: int) -> PreActivationBlock:
    return PreActivationBlock(channels_in, channels_out, stride, SampleDropout(), projects_activation=True)
