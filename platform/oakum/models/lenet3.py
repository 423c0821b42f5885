"""LeNet3: a small target network of the MNIST inversion experiments, for 28x28 gray images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from oakum.models.base import Classifier, InputShape
from oakum.models.mcnn import BIDO, require_shape


class LeNet3(Classifier):
    """Two 5x5 convolutions with ReLU and 2x2 max-pooling, a hidden linear layer with ReLU, and a linear head.

    3,269,509 parameters with 1 channel and 5 classes. Taps: 32x14x14 and 64x7x7 after pooling, and the 1024-wide
    hidden layer, which is the trunk too.

    Differs from the released code: there the feature that is handed on is the flat 3136-wide output of the second
    convolution, before the hidden layer; here a head that a defense puts in place of the linear one reads 1024 values.
    """

    source = BIDO
    tap_names: ClassVar[tuple[str, ...]] = ("block1", "block2", "hidden")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    trunk_width = 1024

    class Config(Classifier.Config):
        pass

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_shape("lenet3", input_shape, 28, 28)
        self.block1 = nn.Sequential(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, self.trunk_width), nn.ReLU())
        self.head = nn.Linear(self.trunk_width, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._hidden_layers(x)[-1]

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._hidden_layers(x)
        return self.head(self.head_dropout(taps[-1])), taps

    def _hidden_layers(self, x: Tensor) -> list[Tensor]:
        first = self.block1(x)
        second = self.block2(first)
        return [first, second, self.hidden(second)]
