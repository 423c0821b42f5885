"""ResNeXt-29 for small images."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field, field_validator
from torch import nn

from oakum.models._residual import ResidualBlock, bottleneck_block, residual_stages
from oakum.models._staged import StagedClassifier, convolution, norm_relu, require_depth, require_image
from oakum.models.base import InputShape
from oakum.registry import Source


class ResNeXt(StagedClassifier):
    """Bottleneck blocks with grouped 3x3 convolutions; by default ResNeXt-29, 16x64d.

    68,155,210 parameters with 3 channels and 10 classes. For images of 8x8 pixels and more. Taps on 32x32 images:
    256x32x32, 512x16x16, 1024x8x8 and the 1024-wide feature. A block with C output channels has
    cardinality * C / widen inner ones. The head's weights start from N(0, 2 / features) and its bias from 0.
    """

    source = Source(
        title="Aggregated Residual Transformations for Deep Neural Networks",
        authors="Xie, Girshick, Dollár, Tu, He",
        venue="CVPR",
        year=2017,
        link="arXiv:1611.05431",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "feature")

    class Config(StagedClassifier.Config):
        depth: int = Field(default=29, le=1199, description="layers with weights: 9n+2 for n blocks in each stage")
        cardinality: int = Field(default=16, ge=1, le=256, description="groups of every 3x3 convolution")
        widen: int = Field(default=4, ge=1, le=64, description="the first stage has `widen` * `width` channels")
        width: int = Field(default=64, ge=1, le=1024, description="channels of the stem, and of a group in stage 1")

        @field_validator("depth")
        @classmethod
        def _fills_the_stages(cls, depth: int) -> int:
            return require_depth(depth, step=9, rest=2)

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("resnext", input_shape, smallest=8)
        width, widest = config.width, 4 * config.widen * config.width
        stem = nn.Sequential(convolution(channels, width, 3), *norm_relu(width))
        block = partial(_block, cardinality=config.cardinality, widen=config.widen)
        stages = residual_stages(block, stem, (width, widest // 4, widest // 2, widest), (config.depth // 9,) * 3)
        self.assemble(stages, nn.Identity(), widest)
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def _block(channels_in: int, channels_out: int, stride: int, cardinality: int, widen: int) -> ResidualBlock:
    return bottleneck_block(channels_in, cardinality * channels_out // widen, channels_out, stride, cardinality)
