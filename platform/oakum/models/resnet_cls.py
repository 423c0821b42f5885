"""ResNet-10 or ResNet-34 with a small embedding: the undefended target network of the VMI experiments."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from oakum.models._resnet_cls import VMI, EmbeddingResNet
from oakum.models._staged import require_image
from oakum.models.base import InputShape


class ResNetCls(EmbeddingResNet):
    """The network of `resnet_cls_h` with one tap: the embedding z, which is the trunk too.

    21,362,446 parameters with depth 34, embedding 50, 64x64 color images and 1000 classes. For images of 16x16 pixels
    and more.

    Differs from the released code: returns logits, not log-softmax, and takes inputs in [0, 1], where that code has
    [-1, 1] (`mean: [0.5], std: [0.5]` does the same, with three values each for color).
    """

    source = VMI
    tap_names: ClassVar[tuple[str, ...]] = ("embedding",)

    class Config(EmbeddingResNet.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        width = self.assemble_backbone(require_image("resnet_cls", input_shape, smallest=16))
        self.feature_norm = nn.BatchNorm1d(width)
        self.embed = nn.Linear(width, config.embedding)
        self.embedding_norm = nn.BatchNorm1d(config.embedding)
        self.head = nn.Linear(config.embedding, num_classes)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, hidden = self.logits_and_hidden(x)
        embedding = hidden[-2]
        return logits, [embedding]
