"""VGG for small images: the convolutions of VGG-11, 13, 16 or 19 and one linear layer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from oakum.models._staged import StagedClassifier, convolution, require_image
from oakum.models.base import InputShape
from oakum.registry import Source

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(StagedClassifier):
    """Five stages of 3x3 convolutions with ReLU, each ending in 2x2 max-pooling.

    VGG-11 with batch normalization has 9,231,114 parameters with 3 channels and 10 classes. For images of 32x32 pixels
    and more. Taps on 32x32 images: the first four stages' outputs, 64x16x16, 128x8x8, 256x4x4 and 512x2x2, and the
    512-wide feature. The head starts from N(0, 0.01^2) with a bias of 0.

    Differs from the paper: one linear layer instead of three, as in the RelaxLoss experiments; batch normalization
    is optional (the paper has none).
    """

    source = Source(
        title="Very Deep Convolutional Networks for Large-Scale Image Recognition",
        authors="Simonyan, Zisserman",
        venue="ICLR",
        year=2015,
        link="arXiv:1409.1556",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4", "feature")

    class Config(StagedClassifier.Config):
        depth: Literal[11, 13, 16, 19] = Field(
            default=11, description="layers with weights in the paper's network (configurations A, B, D, E)"
        )
        batch_norm: bool = Field(default=True, description="batch normalization after every convolution")

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("vgg", input_shape, smallest=32)
        stages = []
        for width, count in zip(WIDTHS, CONVOLUTIONS[config.depth], strict=True):
            stages.append(_stage(channels, width, count, config.batch_norm))
            channels = width
        self.assemble(stages[:-1], stages[-1], channels)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)


def _stage(channels_in: int, channels_out: int, count: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers.append(convolution(channels_in, channels_out, 3, bias=True))
        if batch_norm:
            layers.append(nn.BatchNorm2d(channels_out))
        layers.append(nn.ReLU())
        channels_in = channels_out
    return nn.Sequential(*layers, nn.MaxPool2d(2))
