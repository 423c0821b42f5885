"""VGG-19 with a normalized feature: the evaluation network of BiDO's CIFAR-10 experiments."""

from __future__ import annotations

from oakum.models._staged import require_image
from oakum.models._vgg_bn1d import NormalizedVGG
from oakum.models.base import InputShape
from oakum.models.mcnn import BIDO


class VGG19Evaluator(NormalizedVGG):
    """The convolutions of VGG-19, BatchNorm1d with its bias frozen at 0, and one linear layer.

    20,041,546 parameters (20,041,034 trained) with 32x32 color images and 10 classes. For images of 32x32 pixels and
    more. Taps on 32x32 images: 64x16x16, 128x8x8, 256x4x4, 512x2x2 after pooling, and the 512-wide feature after its
    normalization, in which distances and Frechet statistics are measured. The trunk is the feature before it.
    """

    source = BIDO

    class Config(NormalizedVGG.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        require_image("vgg19_evaluator", input_shape, smallest=32)
        self.assemble(depth=19)
