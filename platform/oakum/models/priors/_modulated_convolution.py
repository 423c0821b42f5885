"""Layers of StyleGAN2: equalized learning rates, filtered resampling, convolutions modulated by a style."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TAPS = (1.0, 3.0, 3.0, 1.0)
_EPSILON = 1e-8


def activated(x: Tensor) -> Tensor:
    """Return the leaky ReLU of x, times sqrt(2) so that the mean square of standard normal entries stays about 1."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def modulated_convolution(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True, upsample: bool = False
) -> Tensor:
    """Convolve each image with weights of its own: w'[o, i, k] = style[i] * weight[o, i, k].

    All images are convolved at once, as groups of one convolution.

    Args:
        x: (B, I, H, W).
        weight: (O, I, k, k), k odd.
        style: (B, I).
        demodulate: divide w' by sqrt(sum over i, k of w'^2 + 1e-8), so that independent inputs of unit variance give
            outputs of unit variance whatever the style.
        upsample: put a zero behind every row and column of x but the last and let every input add its k x k weights
            to the output (a transposed convolution with stride 2), which still has to be filtered.

    Returns:
        (B, O, H, W), or with `upsample` (B, O, 2H + k - 2, 2W + k - 2).
    """
    batch, channels_in, height, width = x.shape
    channels_out, _, size, _ = weight.shape
    factors = style[:, None, :]
    if demodulate:
        squared_norms = style.square() @ weight.square().sum(dim=(2, 3)).T
        factors = factors * (squared_norms + _EPSILON).rsqrt()[:, :, None]
    own = weight * factors[:, :, :, None, None]
    grouped = x.reshape(1, batch * channels_in, height, width)
    if upsample:
        kernels = own.transpose(1, 2).reshape(batch * channels_in, channels_out, size, size)
        convolved = F.conv_transpose2d(grouped, kernels, stride=2, groups=batch)
    else:
        kernels = own.reshape(batch * channels_out, channels_in, size, size)
        convolved = F.conv2d(grouped, kernels, padding=size // 2, groups=batch)
    return convolved.view(batch, channels_out, *convolved.shape[2:])


class Filter(nn.Module):
    """The low-pass filter (1, 3, 3, 1) / 8 along rows and columns, zeros beyond the border."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor(_TAPS) / sum(_TAPS)
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        """Return x (B, C, H, W) filtered; H' = (H + 2 padding - 4) // stride + 1."""
        kernels = self.kernel.expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, kernels, padding=padding, stride=stride, groups=x.shape[1])

    def after_zero_insertion(self, x: Tensor) -> Tensor:
        """Filter x (B, C, 2H + 1, 2W + 1), of which three quarters were zeros, to (B, C, 2H, 2W) of the same mean."""
        filtered: Tensor = self(x, padding=1)
        return 4 * filtered

    def halved(self, x: Tensor) -> Tensor:
        """Return x (B, C, 2H, 2W) at half the size, (B, C, H, W)."""
        filtered: Tensor = self(x, padding=1, stride=2)
        return filtered

    def doubled(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) at twice the size, (B, C, 2H, 2W): bilinear interpolation, but for the border."""
        kernels = self.kernel.expand(x.shape[1], 1, -1, -1) * 4
        return F.conv_transpose2d(x, kernels, stride=2, padding=1, groups=x.shape[1])


class EqualizedLinear(nn.Module):
    """A linear layer whose weights are stored with one variance and scaled by the fan-in when used.

    Adam's steps then change the weights of wide and of narrow layers at the same relative rate.

    Args:
        bias: initial value of the bias.
        rate: multiplies the learning rate of weights and biases; the initial function is the same.
    """

    def __init__(self, size_in: int, size_out: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size_out, size_in) / rate)
        self.bias = nn.Parameter(torch.full((size_out,), bias / rate))
        self.scale = rate / math.sqrt(size_in)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., size_out) for x (..., size_in)."""
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualizedConvolution(nn.Module):
    """A convolution with the scaling of `EqualizedLinear`; `halve` filters the input and moves in steps of 2."""

    def __init__(self, channels_in: int, channels_out: int, size: int, halve: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, size, size))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.scale = 1 / math.sqrt(channels_in * size**2)
        self.filter = Filter() if halve else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels_out, H, W), or (B, channels_out, H / 2, W / 2), for x (B, channels_in, H, W)."""
        kernels = self.weight * self.scale
        border = kernels.shape[-1] // 2
        if self.filter is None:
            return F.conv2d(x, kernels, self.bias, padding=border)
        return F.conv2d(self.filter(x, padding=border + 1), kernels, self.bias, stride=2)


class ModulatedConvolution(nn.Module):
    """A convolution modulated by an affine function of a style, which starts at modulation 1."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        style_size: int,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, size, size))
        self.modulation = EqualizedLinear(style_size, channels_in, bias=1.0)
        self.scale = 1 / math.sqrt(channels_in * size**2)
        self.demodulate = demodulate
        self.filter = Filter() if upsample else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, channels_out, H, W), or twice as high and wide, for x (B, channels_in, H, W), style (B, W)."""
        kernels, modulation = self.weight * self.scale, self.modulation(style)
        if self.filter is None:
            return modulated_convolution(x, kernels, modulation, self.demodulate)
        return self.filter.after_zero_insertion(
            modulated_convolution(x, kernels, modulation, self.demodulate, upsample=True)
        )


class MinibatchDeviation(nn.Module):
    """Appends a channel that tells how much the images of a group differ, so that a critic sees missing variety.

    In training the images are cut into groups of `group` (or the largest common divisor of that and B); the channel is
    the standard deviation over a group, averaged over channels and pixels. In eval mode it is the running average of
    training, as in batch normalization, so that images are scored independently of each other.
    """

    average: Tensor

    def __init__(self, group: int = 4, momentum: float = 0.01) -> None:
        super().__init__()
        self.group, self.momentum = group, momentum
        self.register_buffer("average", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C + 1, H, W) for x (B, C, H, W)."""
        if self.training:
            deviation = self._deviation(x)
            self.average.lerp_(deviation.detach().mean().to(self.average.dtype), self.momentum)
        else:
            deviation = self.average.expand(len(x))
        return torch.cat([x, deviation.to(x.dtype).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], dim=1)

    def _deviation(self, x: Tensor) -> Tensor:
        """Return the deviation of each image's group, (B,)."""
        size = math.gcd(len(x), self.group)
        groups = x.view(-1, size, *x.shape[1:])
        deviation = (groups.var(dim=1, correction=0) + _EPSILON).sqrt().flatten(1).mean(dim=1)
        return deviation.repeat_interleave(size)
