"""FaceNet64: IR-50 for 64x64 faces, a target of the inversion experiments."""

from __future__ import annotations

from oakum.models._improved_residual import ARCFACE, IR50_UNITS, ImprovedResidualNet
from oakum.models.base import InputShape
from oakum.models.mcnn import require_shape


class FaceNet64(ImprovedResidualNet):
    """The network of `ir50` for 64x64 images; 35,437,224 parameters with 3 channels and 1000 classes.

    Taps: 64x32x32, 128x16x16, 256x8x8, 512x4x4 and the 512-wide embedding.

    Differs from the released code: returns logits, not softmax probabilities with their largest index.
    """

    source = ARCFACE

    class Config(ImprovedResidualNet.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        require_shape("facenet64", input_shape, 64, 64)
        self.assemble(input_shape.dims, IR50_UNITS)
