"""ResNet-50 for small images, in the layout of the RelaxLoss experiments."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from oakum.models._residual import ResidualBlock, bottleneck_block, residual_stages
from oakum.models._staged import StagedClassifier, convolution, norm_relu, require_image
from oakum.models.base import InputShape
from oakum.models.resnet20 import RESNET


class ResNet50(StagedClassifier):
    """Three stages of 4, 8 and 4 bottleneck blocks; 477,018 parameters with 3 channels and 10 classes.

    For images of 8x8 pixels and more. Taps on 32x32 images: 64x32x32, 128x16x16, 256x8x8 and the 256-wide feature.

    Differs from the paper: the ImageNet network of this name has four stages (3, 4, 6, 3 blocks) after a 7x7
    convolution, and 64 channels where this one has 16.
    """

    source = RESNET
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "feature")

    class Config(StagedClassifier.Config):
        width: int = Field(
            default=16, ge=1, le=1024, description="inner channels of the first stage's blocks; doubled at each"
        )

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("resnet50", input_shape, smallest=8)
        width = config.width
        stem = nn.Sequential(convolution(channels, width, 3), *norm_relu(width))
        widths = (width, 4 * width, 8 * width, 16 * width)
        self.assemble(residual_stages(_block, stem, widths, (4, 8, 4)), nn.Identity(), widths[-1])


def _block(channels_in: int, channels_out: int, stride: int) -> ResidualBlock:
    return bottleneck_block(channels_in, channels_out // 4, channels_out, stride)
