"""ResNet-18 for faces with an embedding before its head, from BiDO's code."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from oakum.models._residual import basic_block, residual_stage
from oakum.models._staged import convolution, norm_relu, require_image
from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import BIDO

EMBEDDING = 512


class ResNet18BiDO(Classifier):
    """Eight basic blocks with 64 to 512 channels, a 512-wide embedding and a linear head.

    12,732,968 parameters with 64x64 color images and 1000 classes. For images of 32x32 pixels and more. The embedding
    is 4x4 average pooling, BatchNorm2d, a linear layer and BatchNorm1d. Taps on 64x64 images: the stem 64x64x64, the
    blocks' outputs 64x64x64, 128x32x32, 256x16x16 and 512x8x8, each twice, and the embedding, which is the trunk too.
    """

    source = BIDO
    tap_names: ClassVar[tuple[str, ...]] = ("stem", *(f"block{number}" for number in range(1, 9)), "embedding")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("embed.", "head.")
    trunk_width = EMBEDDING

    class Config(Classifier.Config):
        width: int = Field(default=64, ge=1, le=1024, description="channels of the first blocks; doubled three times")

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_image("resnet18_bido", input_shape, smallest=32)
        _, height, width = input_shape.dims
        first, second, third, last = (config.width << stage for stage in range(4))
        self.stem = nn.Sequential(convolution(channels, first, 3), *norm_relu(first))
        stages = (
            residual_stage(basic_block, inner, outer, blocks=2, stride=stride)
            for inner, outer, stride in ((first, first, 1), (first, second, 2), (second, third, 2), (third, last, 2))
        )
        self.blocks = nn.ModuleList(block for stage in stages for block in stage)
        # Three stages halve the image, rounding up.
        rows, columns = ((size + 7) // 8 // 4 for size in (height, width))
        self.embed = nn.Sequential(
            nn.AvgPool2d(4),
            nn.BatchNorm2d(last),
            nn.Flatten(),
            nn.Linear(last * rows * columns, EMBEDDING),
            nn.BatchNorm1d(EMBEDDING),
        )
        self.head = nn.Linear(EMBEDDING, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._hidden_layers(x)[-1]

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._hidden_layers(x)
        return self.head(self.head_dropout(taps[-1])), taps

    def _hidden_layers(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in (self.stem, *self.blocks, self.embed):
            x = layer(x)
            outputs.append(x)
        return outputs
