"""FaceNet at 112x112 pixels: the evaluation network of the face experiments."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from oakum.models._improved_residual import (
    ARCFACE,
    FACE_SIZE,
    IR50_UNITS,
    ImprovedResidualNet,
    enlarge,
    require_face,
)
from oakum.models.base import InputShape


class FaceNet112(ImprovedResidualNet):
    """The network of `ir50` at 112x112 pixels; 44,087,976 parameters with 3 channels and 1000 classes.

    Takes square images of 16 to 112 pixels; smaller ones are enlarged to 112. Taps: 64x56x56, 128x28x28, 256x14x14,
    512x7x7 and the 512-wide embedding, in which distances and Frechet statistics are measured.

    Differs from the released code: images are enlarged as one batch of floats, with a gradient, not one by one through
    8-bit pictures on the CPU.
    """

    source = ARCFACE
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)

    class Config(ImprovedResidualNet.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_face("facenet112", input_shape)
        self.assemble((channels, FACE_SIZE, FACE_SIZE), IR50_UNITS)

    def hidden_layers(self, x: Tensor) -> list[Tensor]:
        return super().hidden_layers(enlarge(x))
