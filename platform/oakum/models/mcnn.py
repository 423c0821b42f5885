"""MCNN: the target network of BiDO's MNIST experiments, for 32x32 gray images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import Classifier, InputShape
from oakum.registry import Source

BIDO = Source(
    title="Bilateral Dependency Optimization: Defending Against Model-inversion Attacks",
    authors="Peng et al.",
    venue="KDD",
    year=2022,
    link="arXiv:2206.05483",
)


def conv_block(channels_in: int, channels_out: int, kernel: int, padding: int = 0, pool: bool = False) -> nn.Sequential:
    """Return convolution, batch normalization, LeakyReLU(0.2) and, if asked for, 2x2 max-pooling."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, padding=padding),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(0.2),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def require_shape(model: str, input_shape: InputShape, height: int, width: int) -> int:
    """Return the number of channels of an image shape (C, height, width).

    Raises:
        ConfigError: the samples are not images of this size.
    """
    if not input_shape.is_image or input_shape.dims[1:] != (height, width):
        raise ConfigError(
            f"model {model!r} takes {height}x{width} images, but the data has shape {input_shape.dims}; "
            f"set data.image_size to {height} or choose another model"
        )
    return input_shape.dims[0]


class MCNN(Classifier):
    """Three convolution blocks and a linear head; 1,029,765 parameters with 5 classes.

    Taps: 64x14x14 and 128x5x5 after pooling, and 256x1x1; the trunk is the last one, flat.
    """

    source = BIDO
    tap_names: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    trunk_width = 256

    class Config(Classifier.Config):
        pass

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        channels = require_shape("mcnn", input_shape, 32, 32)
        self.block1 = conv_block(channels, 64, 7, padding=1, pool=True)
        self.block2 = conv_block(64, 128, 5, pool=True)
        self.block3 = conv_block(128, 256, 5)
        self.head = nn.Linear(self.trunk_width, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._block_outputs(x)[-1].flatten(1)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._block_outputs(x)
        return self.head(self.head_dropout(taps[-1].flatten(1))), taps

    def _block_outputs(self, x: Tensor) -> list[Tensor]:
        first = self.block1(x)
        second = self.block2(first)
        return [first, second, self.block3(second)]
