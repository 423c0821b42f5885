"""ResNet-20 for small images."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from oakum.models._residual import basic_block, residual_stages
from oakum.models._staged import StagedClassifier, convolution, norm_relu, require_image
from oakum.models.base import InputShape
from oakum.registry import Source

RESNET = Source(
    title="Deep Residual Learning for Image Recognition",
    authors="He, Zhang, Ren, Sun",
    venue="CVPR",
    year=2016,
    link="arXiv:1512.03385",
)


class ResNet20(StagedClassifier):
    """Three stages of three basic blocks; 272,474 parameters with 3 channels and 10 classes.

    For images of 8x8 pixels and more. Taps on 32x32 images: 16x32x32, 32x16x16, 64x8x8 and the 64-wide feature.

    Differs from the paper (section 4.2): as in the RelaxLoss experiments, a shortcut that changes the shape is a 1x1
    convolution with batch normalization (option B), not zero padding.
    """

    source = RESNET
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "feature")

    class Config(StagedClassifier.Config):
        width: int = Field(default=16, ge=1, le=1024, description="channels of the first stage; doubled at each")

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("resnet20", input_shape, smallest=8)
        width = config.width
        stem = nn.Sequential(convolution(channels, width, 3), *norm_relu(width))
        widths = (width, width, 2 * width, 4 * width)
        self.assemble(residual_stages(basic_block, stem, widths, (3, 3, 3)), nn.Identity(), widths[-1])
