"""SCNN: the evaluation network of BiDO's MNIST experiments, for 32x32 grey images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import BIDO, conv_block, require_shape


class SCNN(Classifier):
    """Five convolution blocks and a linear head; 1,740,234 parameters with 10 classes.

    Tap: the 512-wide feature before the head, in which distances and Frechet statistics are measured.
    """

    source = BIDO
    tap_names: ClassVar[tuple[str, ...]] = ("feature",)

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
        self.head = nn.Linear(512, num_classes)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        feature = self.features(x).flatten(1)
        return self.head(self.head_dropout(feature)), [feature]
