"""IR-50: a face network of improved residual units, a target of the inversion experiments."""

from __future__ import annotations

from oakum.models._improved_residual import ARCFACE, IR50_UNITS, ImprovedResidualNet
from oakum.models._staged import require_image
from oakum.models.base import InputShape


class IR50(ImprovedResidualNet):
    """24 improved residual units in groups of 3, 4, 14 and 3.

    35,437,224 parameters with 64x64 color images and 1000 classes. For images of 16x16 pixels and more. Taps on 64x64
    images: 64x32x32, 128x16x16, 256x8x8, 512x4x4 and the 512-wide embedding.
    """

    source = ARCFACE

    class Config(ImprovedResidualNet.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        require_image("ir50", input_shape, smallest=16)
        self.assemble(input_shape.dims, IR50_UNITS)
