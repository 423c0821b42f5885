"""VGG with batch normalization whose flat feature is normalized once more before a single linear layer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from oakum.models._staged import convolution, norm_relu
from oakum.models.base import Classifier
from oakum.models.vgg import CONVOLUTIONS

# Channels of the stages in units of the first one's.
WIDENINGS = (1, 2, 4, 8, 8)


class NormalizedVGG(Classifier):
    """Five stages of 3x3 convolutions, each ending in 2x2 max-pooling, flatten, BatchNorm1d and a linear layer.

    The bias of the BatchNorm1d stays 0: it is a parameter without gradient. Taps: the first four stages' outputs and
    the flat feature after the BatchNorm1d. The trunk ends before it.
    """

    tap_names: ClassVar[tuple[str, ...]] = ("stage1", "stage2", "stage3", "stage4", "feature")
    head_modules: ClassVar[tuple[str, ...]] = ("feature_norm", "head")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("feature_norm.", "head.")

    class Config(Classifier.Config):
        width: int = Field(default=64, ge=1, le=1024, description="channels of the first stage; the last two have 8x")

    config: Config

    def assemble(self, depth: int) -> None:
        """Register the layers of VGG-`depth` in the order of the data; images have 32x32 pixels and more."""
        channels, height, width = self.input_shape.dims
        stages = []
        for widening, count in zip(WIDENINGS, CONVOLUTIONS[depth], strict=True):
            channels_out = widening * self.config.width
            stages.append(_stage(channels, channels_out, count))
            channels = channels_out
        self.stages = nn.ModuleList(stages)
        self.trunk_width = channels * (height // 32) * (width // 32)
        self.feature_norm = nn.BatchNorm1d(self.trunk_width)
        self.feature_norm.bias.requires_grad_(False)
        self.head = nn.Linear(self.trunk_width, self.num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._stage_outputs(x)[-1].flatten(1)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        *outputs, last = self._stage_outputs(x)
        feature = self.feature_norm(last.flatten(1))
        return self.head(self.head_dropout(feature)), [*outputs, feature]

    def _stage_outputs(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


def _stage(channels_in: int, channels_out: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [convolution(channels_in, channels_out, 3, bias=True), *norm_relu(channels_out)]
        channels_in = channels_out
    return nn.Sequential(*layers, nn.MaxPool2d(2))
