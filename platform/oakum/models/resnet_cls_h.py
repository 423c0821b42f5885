"""ResNet-10 or ResNet-34 with a small embedding and seven taps: BiDO's target network in the VMI experiments."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from oakum.models._resnet_cls import VMI, EmbeddingResNet
from oakum.models._staged import require_image
from oakum.models.base import InputShape


class ResNetClsH(EmbeddingResNet):
    """A strided stem, four stages of basic blocks, a z-wide embedding and a linear head.

    21,362,446 parameters with depth 34, embedding 50, 64x64 color images and 1000 classes; 4,907,861 with depth 10,
    embedding 2, color images and 5 classes. For images of 16x16 pixels and more. Taps with depth 34 on 64x64 images:
    the stem after pooling 64x16x16, the stages 64x16x16, 128x8x8, 256x4x4 and 512x2x2, the embedding z (50), and the
    normalization of relu(z) that the head reads (50). The trunk is z.

    Differs from the released code: returns logits, not log-softmax, and takes inputs in [0, 1], where that code has
    [-1, 1] (`mean: [0.5], std: [0.5]` does the same, with three values each for color).
    """

    source = VMI
    tap_names: ClassVar[tuple[str, ...]] = (
        "stem",
        "stage1",
        "stage2",
        "stage3",
        "stage4",
        "embedding",
        "normalized_embedding",
    )

    class Config(EmbeddingResNet.Config):
        pass

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        width = self.assemble_backbone(require_image("resnet_cls_h", input_shape, smallest=16))
        self.embed = nn.Linear(width, config.embedding)
        self.feature_norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(config.embedding, num_classes)
        self.embedding_norm = nn.BatchNorm1d(config.embedding)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.logits_and_hidden(x)
