"""VGG-16 with a normalized feature: the target network of BiDO's face experiments."""

from __future__ import annotations

from typing import ClassVar

from oakum.models._staged import require_image
from oakum.models._vgg_bn1d import NormalizedVGG
from oakum.models.base import InputShape
from oakum.models.mcnn import BIDO


class VGG16BN1d(NormalizedVGG):
    """The convolutions of VGG-16, BatchNorm1d with its bias frozen at 0, and one linear layer.

    16,776,232 parameters (16,774,184 trained) with 64x64 color images and 1000 classes; 14,726,725 (14,726,213) with
    32x32 color images and 5 classes. For images of 32x32 pixels and more. Taps on 64x64 images: 64x32x32, 128x16x16,
    256x8x8, 512x4x4 after pooling, and the 2048-wide feature after its normalization; on 32x32 images 64x16x16,
    128x8x8, 256x4x4, 512x2x2 and 512. The trunk is the feature before its normalization.

    The experiments start the convolutions from ImageNet weights: `load_initial` takes them, and leaves `feature_norm`
    and `head` as drawn when the weights lack them or have them in another size.
    """

    source = BIDO
    published_start: ClassVar[str | None] = "ImageNet"

    class Config(NormalizedVGG.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        require_image("vgg16_bn1d", input_shape, smallest=32)
        self.assemble(depth=16)
