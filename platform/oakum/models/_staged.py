"""What convolutional classifiers share that lead from the image, stage by stage, to one linear head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import Classifier, InputShape


class StagedClassifier(Classifier):
    """Stages in a row, global average pooling and one linear layer.

    Global average pooling takes images of any size; on 32x32 images it equals the fixed pooling (8x8, or none where
    one pixel is left) of the networks in the RelaxLoss experiments. Taps: the output (B, C, H, W) of every stage, and
    the pooled feature (B, width) as the last one.
    """

    def assemble(self, stages: Sequence[nn.Module], last: nn.Module, width: int) -> None:
        """Register the layers in the order of the data, the linear head last.

        Args:
            stages: each maps (B, C, H, W) to the next tap.
            last: maps the last stage's output to (B, width, H, W), which is averaged over H and W.
            width: number of features that the linear head reads.
        """
        self.stages = nn.ModuleList(stages)
        self.last = last
        self.head = nn.Linear(width, self.num_classes)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden, taps = x, []
        for stage in self.stages:
            hidden = stage(hidden)
            taps.append(hidden)
        feature = self.last(hidden).mean(dim=(2, 3))
        return self.head(self.head_dropout(feature)), [*taps, feature]


def convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """Return a convolution that keeps the image size at stride 1; `kernel` is odd.

    Its weights start from N(0, 2 / (kernel * kernel * channels_out)), the fan-out form of He et al. 2015
    (arXiv:1502.01852, section 2.2), and its bias, if any, from 0.
    """
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def norm_relu(channels: int) -> list[nn.Module]:
    """Return batch normalization and ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def require_image(model: str, input_shape: InputShape, smallest: int) -> int:
    """Return the number of channels of an image shape (C, H, W) with H and W of `smallest` and more.

    Raises:
        ConfigError: the samples are not images, or too small ones.
    """
    if not input_shape.is_image or min(input_shape.dims[1:]) < smallest:
        raise ConfigError(
            f"model {model!r} takes images of {smallest}x{smallest} pixels and more, but the data has shape "
            f"{input_shape.dims}; set data.image_size to {max(smallest, 32)} or choose another model"
        )
    return input_shape.dims[0]


def require_depth(depth: int, step: int, rest: int) -> int:
    """Return `depth` when it is step * n + rest with n of 1 and more.

    Raises:
        ValueError: it is not; the message names the smallest depths that are.
    """
    if depth < step + rest or (depth - rest) % step:
        examples = ", ".join(str(step * n + rest) for n in range(1, 6))
        raise ValueError(f"depth must be {step}n+{rest} ({examples}, ...), got {depth}")
    return depth
