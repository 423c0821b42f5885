"""IR-152: a deep face network of improved residual units, a target of the inversion experiments."""

from __future__ import annotations

from oakum.models._improved_residual import ARCFACE, ImprovedResidualNet
from oakum.models._staged import require_image
from oakum.models.base import InputShape


class IR152(ImprovedResidualNet):
    """50 improved residual units in groups of 3, 8, 36 and 3.

    62,599,848 parameters with 64x64 color images and 1000 classes. For images of 16x16 pixels and more. Taps on 64x64
    images: 64x32x32, 128x16x16, 256x8x8, 512x4x4 and the 512-wide embedding.

    Differs from the released code: returns logits, not softmax probabilities with their largest index.
    """

    source = ARCFACE

    class Config(ImprovedResidualNet.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        require_image("ir152", input_shape, smallest=16)
        self.assemble(input_shape.dims, (3, 8, 36, 3))
