"""Residual blocks: activated after the addition (ResNet, ResNeXt) or before the convolutions (pre-activation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from oakum.models._staged import convolution, norm_relu


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)); He et al. 2016, arXiv:1512.03385, section 3.

    The branch is the given convolutions, each with batch normalization, and ReLU between them. The shortcut is the
    identity, or a 1x1 convolution with batch normalization where the branch changes the shape.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d], stride: int) -> None:
        super().__init__()
        layers = [layer for conv in convolutions for layer in (conv, *norm_relu(conv.out_channels))]
        self.branch = nn.Sequential(*layers[:-1])
        channels_in, channels_out = convolutions[0].in_channels, convolutions[-1].out_channels
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(convolution(channels_in, channels_out, 1, stride))
            self.shortcut.append(nn.BatchNorm2d(channels_out))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels_out, H', W') for x (B, channels_in, H, W); H' and W' are divided by the stride."""
        activated: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return activated


class PreActivationBlock(nn.Module):
    """conv2(between(relu(bn2(conv1(relu(bn1(x))))))) + shortcut; He et al. 2016, arXiv:1603.05027, section 4.

    The shortcut is x, or a 1x1 convolution without normalization where the branch changes the shape.

    Args:
        between: a layer without weights before the second convolution.
        projects_activation: whether the shortcut's convolution reads relu(bn1(x)) or x itself.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, between: nn.Module, projects_activation: bool
    ) -> None:
        super().__init__()
        self.before = nn.Sequential(*norm_relu(channels_in))
        self.branch = nn.Sequential(
            convolution(channels_in, channels_out, 3, stride),
            *norm_relu(channels_out),
            between,
            convolution(channels_out, channels_out, 3),
        )
        self.projects_activation = projects_activation
        self.projection: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.projection = convolution(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels_out, H', W') for x (B, channels_in, H, W); H' and W' are divided by the stride."""
        activated = self.before(x)
        shortcut = x
        if self.projection is not None:
            shortcut = self.projection(activated if self.projects_activation else x)
        total: Tensor = self.branch(activated) + shortcut
        return total


def basic_block(channels_in: int, channels_out: int, stride: int) -> ResidualBlock:
    """Return the residual block of two 3x3 convolutions, the first with the stride."""
    first = convolution(channels_in, channels_out, 3, stride)
    return ResidualBlock([first, convolution(channels_out, channels_out, 3)], stride)


def bottleneck_block(channels_in: int, inner: int, channels_out: int, stride: int, groups: int = 1) -> ResidualBlock:
    """Return the residual block of 1x1, 3x3 and 1x1 convolutions with `inner` channels; the 3x3 one has the stride."""
    reduce = convolution(channels_in, inner, 1)
    middle = convolution(inner, inner, 3, stride, groups)
    return ResidualBlock([reduce, middle, convolution(inner, channels_out, 1)], stride)


def residual_stage(
    block: Callable[[int, int, int], nn.Module], channels_in: int, channels_out: int, blocks: int, stride: int
) -> nn.Sequential:
    """Return `blocks` blocks made by block(channels_in, channels_out, stride); the first changes width and size."""
    first = block(channels_in, channels_out, stride)
    return nn.Sequential(first, *(block(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def residual_stages(
    block: Callable[[int, int, int], nn.Module], stem: nn.Sequential, widths: Sequence[int], blocks: Sequence[int]
) -> list[nn.Sequential]:
    """Return three stages with strides 1, 2 and 2, the stem in front of the first.

    Args:
        block: see `residual_stage`.
        stem: maps the image to widths[0] channels.
        widths: channels of the stem's output and of each stage's.
        blocks: number of blocks of each stage.
    """
    first, second, third = (
        residual_stage(block, widths[i], widths[i + 1], count, stride)
        for i, (count, stride) in enumerate(zip(blocks, (1, 2, 2), strict=True))
    )
    return [nn.Sequential(*stem, *first), second, third]
