"""Pre-activation ResNet for small images."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import nn

from oakum.models._residual import PreActivationBlock, residual_stages
from oakum.models._staged import StagedClassifier, convolution, norm_relu, require_depth, require_image
from oakum.models.base import InputShape
from oakum.registry import Source


class PreResNet(StagedClassifier):
    """Three stages of basic blocks with the activation first; 272,282 parameters with 3 channels and 10 classes.

    For images of 8x8 pixels and more. Taps on 32x32 images: 16x32x32, 32x16x16, 64x8x8 and the 64-wide feature.

    Differs from the paper (section 3, appendix): as in the RelaxLoss experiments, every shortcut reads the block's
    input before normalization and activation, the first block's too.
    """

    source = Source(
        title="Identity Mappings in Deep Residual Networks",
        authors="He, Zhang, Ren, Sun",
        venue="ECCV",
        year=2016,
        link="arXiv:1603.05027",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "feature")

    class Config(StagedClassifier.Config):
        depth: int = Field(default=20, le=1202, description="layers with weights: 6n+2 for n blocks in each stage")
        width: int = Field(default=16, ge=1, le=1024, description="channels of the first stage; doubled at each")

        @field_validator("depth")
        @classmethod
        def _fills_the_stages(cls, depth: int) -> int:
            return require_depth(depth, step=6, rest=2)

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("preresnet", input_shape, smallest=8)
        width = config.width
        stem = nn.Sequential(convolution(channels, width, 3))
        widths = (width, width, 2 * width, 4 * width)
        stages = residual_stages(_block, stem, widths, (config.depth // 6,) * 3)
        self.assemble(stages, nn.Sequential(*norm_relu(widths[-1])), widths[-1])


def _block(channels_in: int, channels_out: int, stride: int) -> PreActivationBlock:
    return PreActivationBlock(channels_in, channels_out, stride, nn.Identity(), projects_activation=False)
