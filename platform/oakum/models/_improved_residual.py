"""Improved residual networks (IR): what the face networks of the inversion experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import Classifier, InputShape
from oakum.registry import Source

ARCFACE = Source(
    title="ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
    authors="Deng, Guo, Xue, Zafeiriou",
    venue="CVPR",
    year=2019,
    link="arXiv:1801.07698",
)
IR50_UNITS = (3, 4, 14, 3)
EMBEDDING = 512
FACE_SIZE = 112


class Gate(nn.Module):
    """Squeeze and excitation: scales each channel by sigmoid(W2 relu(W1 mean)); Hu et al. 2018, arXiv:1709.01507.

    The channels are squeezed to a sixteenth; no biases.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.weigh = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for x of this shape."""
        scale: Tensor = self.weigh(x.mean(dim=(2, 3)))
        return x * scale[:, :, None, None]


class ImprovedResidualUnit(nn.Module):
    """norm(conv(prelu(conv(norm(x))))) + shortcut(x), the second convolution with the stride; no ReLU afterwards.

    The shortcut is x at every stride-th pixel where input and output have equal widths (also in units that halve the
    image), and else a strided 1x1 convolution with batch normalization.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, gated: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module
        if channels_in == channels_out:
            self.shortcut = nn.MaxPool2d(1, stride)
        else:
            self.shortcut = nn.Sequential(
                _convolution(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out)
            )
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            _convolution(channels_in, channels_out, 3),
            nn.PReLU(channels_out),
            _convolution(channels_out, channels_out, 3, stride),
            nn.BatchNorm2d(channels_out),
        )
        if gated:
            self.branch.append(Gate(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels_out, H', W') for x (B, channels_in, H, W); H' = H / stride, rounded up."""
        total: Tensor = self.branch(x) + self.shortcut(x)
        return total


class ImprovedResidualNet(Classifier):
    """A stem, four groups of units that each halve the image, a 512-wide embedding and a linear head.

    Taps: the groups' outputs and the embedding, which is the trunk too. Weights start as PyTorch draws them.
    """

    tap_names: ClassVar[tuple[str, ...]] = ("group1", "group2", "group3", "group4", "embedding")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("embed.", "head.")
    trunk_width = EMBEDDING

    class Config(Classifier.Config):
        width: int = Field(default=64, ge=1, le=1024, description="channels of the first group; doubled at each")
        dropout: float = Field(default=0.5, ge=0, lt=1, description="rate before the embedding's linear layer")

    config: Config

    def assemble(self, shape: Sequence[int], units: Sequence[int], gated: bool = False) -> None:
        """Register the layers in the order of the data.

        Args:
            shape: (C, H, W) of the images that the stem gets.
            units: number of units in each group.
            gated: whether a squeeze-and-excitation gate ends the branch of each unit.
        """
        channels, height, width = shape
        inner = self.config.width
        self.stem = nn.Sequential(_convolution(channels, inner, 3), nn.BatchNorm2d(inner), nn.PReLU(inner))
        self.groups = nn.ModuleList()
        for number, count in enumerate(units):
            outer = self.config.width << number
            first = ImprovedResidualUnit(inner, outer, 2, gated)
            rest = (ImprovedResidualUnit(outer, outer, 1, gated) for _ in range(count - 1))
            self.groups.append(nn.Sequential(first, *rest))
            inner = outer
        # Four groups halve the image, rounding up.
        rows, columns = ((size + 15) // 16 for size in (height, width))
        self.embed = nn.Sequential(
            nn.BatchNorm2d(inner),
            nn.Dropout(self.config.dropout),
            nn.Flatten(),
            nn.Linear(inner * rows * columns, EMBEDDING),
            nn.BatchNorm1d(EMBEDDING),
        )
        self.head = nn.Linear(EMBEDDING, self.num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self.hidden_layers(x)[-1]

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self.hidden_layers(x)
        return self.head(self.head_dropout(taps[-1])), taps

    def hidden_layers(self, x: Tensor) -> list[Tensor]:
        """Return the groups' outputs and the embedding (B, 512)."""
        x = self.stem(x)
        outputs = []
        for layer in (*self.groups, self.embed):
            x = layer(x)
            outputs.append(x)
        return outputs


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


def require_face(model: str, input_shape: InputShape) -> int:
    """Return the number of channels of square images (C, S, S) with S of 16 to 112 pixels.

    Raises:
        ConfigError: other samples.
    """
    dims = input_shape.dims
    if not input_shape.is_image or dims[1] != dims[2] or not 16 <= dims[1] <= FACE_SIZE:
        raise ConfigError(
            f"model {model!r} takes square images of 16 to {FACE_SIZE} pixels and enlarges them to {FACE_SIZE}, but "
            f"the data has shape {dims}; set data.image_size to one of these sizes or choose another model"
        )
    return dims[0]


def enlarge(x: Tensor) -> Tensor:
    """Return images (B, C, S, S) with S up to 112 as (B, C, 112, 112): bilinear, antialiased, differentiable."""
    if x.shape[-1] == FACE_SIZE:
        return x
    return F.interpolate(x, size=(FACE_SIZE, FACE_SIZE), mode="bilinear", antialias=True)
