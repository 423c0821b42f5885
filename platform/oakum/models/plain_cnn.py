"""A wide plain CNN: a target network of BiDO's code, for 64x64 gray images."""

from __future__ import annotations

import itertools
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import BIDO, conv_block, require_shape


class PlainCNN(Classifier):
    """Four convolution blocks, each halving the image and doubling the channels, a hidden layer and a linear head.

    6,609,819 parameters with 1 channel and 5 classes. Taps: 128x32x32, 256x16x16, 512x8x8 and 1024x4x4 after pooling,
    and the 25-wide hidden layer, which is the trunk too.

    Differs from the released code: the layout follows from the number of its parameters and the 16384 features
    after its convolutions alone; LeakyReLU(0.2) and 2x2 max-pooling are those of MCNN.
    """

    source = BIDO
    tap_names: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "block4", "hidden")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)

    class Config(Classifier.Config):
        width: int = Field(default=128, ge=1, le=1024, description="channels of the first block; doubled at each")
        hidden: int = Field(default=25, ge=1, le=4096, description="width of the hidden layer")

    config: Config

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_shape("plain_cnn", input_shape, 64, 64)
        widths = (channels, *(config.width << block for block in range(4)))
        self.blocks = nn.ModuleList(
            conv_block(inner, outer, 3, padding=1, pool=True) for inner, outer in itertools.pairwise(widths)
        )
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * 4 * 4, config.hidden), nn.LeakyReLU(0.2))
        self.trunk_width = config.hidden
        self.head = nn.Linear(config.hidden, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._hidden_layers(x)[-1]

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._hidden_layers(x)
        return self.head(self.head_dropout(taps[-1])), taps

    def _hidden_layers(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in (*self.blocks, self.hidden):
            x = layer(x)
            outputs.append(x)
        return outputs
