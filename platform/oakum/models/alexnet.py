"""AlexNet for small images: its five convolutions and one linear layer."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from oakum.models._staged import StagedClassifier, require_image
from oakum.models.base import InputShape
from oakum.registry import Source


class AlexNet(StagedClassifier):
    """Five convolutions with ReLU, 2x2 max-pooling after the first, second and last.

    2,472,266 parameters with 3 channels and 10 classes. For images of 29x29 pixels and more. Taps on 32x32 images:
    64x4x4 and 192x2x2 after pooling, 384x2x2, 256x2x2 and the 256-wide feature. No batch normalization;
    weights start as PyTorch draws them.

    Differs from the paper: one linear layer instead of three and 2x2 pooling, as in the RelaxLoss experiments.
    """

    source = Source(
        title="One weird trick for parallelizing convolutional neural networks",
        authors="Krizhevsky",
        venue="arXiv",
        year=2014,
        link="arXiv:1404.5997",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4", "feature")

    class Config(StagedClassifier.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("alexnet", input_shape, smallest=29)
        stages = [
            nn.Sequential(nn.Conv2d(channels, 64, 11, stride=4, padding=5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        ]
        last = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.assemble(stages, last, 256)
