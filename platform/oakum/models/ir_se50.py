"""IR-SE-50 at 112x112 pixels with a head of three layers: the evaluation network of the VMI experiments."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.models._improved_residual import (
    EMBEDDING,
    FACE_SIZE,
    IR50_UNITS,
    ImprovedResidualNet,
    enlarge,
    require_face,
)
from oakum.models._resnet_cls import VMI
from oakum.models.base import InputShape


class IRSE50(ImprovedResidualNet):
    """IR-50 with squeeze-and-excitation gates, an embedding of length 1, and three linear layers.

    43,797,696 parameters up to the embedding and 1,041,384 after it, 44,839,080 in all, with 3 channels and 1000
    classes. Takes square images of 16 to 112 pixels in red, green, blue order; smaller ones are enlarged to 112, and
    the network sees blue first. Each linear layer after the embedding comes after batch normalization and ReLU. Taps:
    64x56x56, 128x28x28, 256x14x14, 512x7x7 and the 512-wide embedding, which is the trunk too.

    Differs from the released code: returns logits, not log-softmax; images are enlarged as one batch of floats, with a
    gradient, not one by one through 8-bit pictures on the CPU.
    """

    source = VMI
    head_modules: ClassVar[tuple[str, ...]] = ("judge", "head")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("judge.", "head.")

    class Config(ImprovedResidualNet.Config):
        """Settings of IR-SE-50.

        Attributes:
            mean, std: 0.5 turns inputs in [0, 1] into the [-1, 1] that the face weights were trained on.
        """

        mean: tuple[float, ...] | None = (0.5,)
        std: tuple[Annotated[float, Field(gt=0)], ...] | None = (0.5,)

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_face("ir_se50", input_shape)
        self.assemble((channels, FACE_SIZE, FACE_SIZE), IR50_UNITS, gated=True)
        self.judge = nn.Sequential(*_norm_relu_linear(), *_norm_relu_linear(), nn.BatchNorm1d(EMBEDDING), nn.ReLU())

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self.hidden_layers(x)
        return self.head(self.head_dropout(self.judge(taps[-1]))), taps

    def hidden_layers(self, x: Tensor) -> list[Tensor]:
        blue_first = x.flip(1)
        *groups, embedding = super().hidden_layers(enlarge(blue_first))
        return [*groups, F.normalize(embedding)]


def _norm_relu_linear() -> list[nn.Module]:
    return [nn.BatchNorm1d(EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING)]
