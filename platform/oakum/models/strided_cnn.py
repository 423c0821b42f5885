"""A strided network without batch normalization, of our own: quickstart's evaluation model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import Classifier, InputShape
from oakum.registry import Source


class StridedCNN(Classifier):
    """Two strided 5x5 convolutions with ReLU, a hidden linear layer with dropout, and a linear head.

    Shares no building block with `small_cnn`, so that it can judge reconstructions made against it.
    Tap: the hidden layer, in which distances are measured.
    """

    source = Source(title="Quickstart evaluation network", authors="oakum", venue="this project", year=2026)
    tap_names: ClassVar[tuple[str, ...]] = ("hidden",)

    class Config(Classifier.Config):
        width: int = Field(default=32, ge=1, le=1024, description="channels of the first convolution")
        hidden: int = Field(default=128, ge=1, le=4096, description="width of the hidden layer")
        dropout: float = Field(default=0.3, ge=0, lt=1)

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        if not input_shape.is_image or min(input_shape.dims[1:]) < 8:
            raise ConfigError(f"model 'strided_cnn' takes images of 8x8 pixels and more, not shape {input_shape.dims}")
        channels, height, width = input_shape.dims
        self.features = nn.Sequential(
            nn.Conv2d(channels, config.width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(config.width, 2 * config.width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * config.width * ((height + 3) // 4) * ((width + 3) // 4), config.hidden),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, num_classes)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.features(x)
        return self.head(self.head_dropout(self.dropout(hidden))), [hidden]
