"""SCNN: the evaluation network of BiDO's MNIST experiments, for 32x32 gray images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import BIDO, conv_block, require_shape


class SCNN(Classifier):
    """Five convolution blocks and a linear head; 1,740,234 parameters with 10 classes.

    Tap: the 512-wide feature before the head, in which distances and Frechet statistics are measured. It is the trunk
    too.
    """

    source = BIDO
    tap_names: ClassVar[tuple[str, ...]] = ("feature",)
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    trunk_width = 512

    class Config(Classifier.Config):
        pass

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_shape("scnn", input_shape, 32, 32)
        self.features = nn.Sequential(
            conv_block(channels, 32, 7, padding=1, pool=True),
            conv_block(32, 64, 5, pool=True),
            conv_block(64, 128, 5),
            conv_block(128, 256, 3, padding=1),
            conv_block(256, 512, 3, padding=1),
        )
        self.head = nn.Linear(self.trunk_width, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        feature: Tensor = self.features(x).flatten(1)
        return feature

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        feature = self.trunk(x)
        return self.head(self.head_dropout(feature)), [feature]
