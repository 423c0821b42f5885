"""Glow on plain vectors: many independent normalizing flows of one shape, computed as one batch.

The released flow treats a latent as an image of one pixel, where a 3x3 convolution with zero padding sees nothing but
its center: the other eight ninths of its weights neither act nor learn. Here every convolution is a matrix. A flow of
512 numbers with 10 steps and 3 levels has 1,400,256 parameters instead of the released 9,878,976, and is the same
function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError

_WEIGHT_STD = 0.05
_ROWS_TO_FIT = 100
_GAIN = 3.0


def standard_normal_log_density(x: Tensor) -> Tensor:
    """Return log N(x; 0, I) (...) of vectors (..., D)."""
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * math.log(2 * math.pi))


def require_halvings(size: int, levels: int) -> int:
    """Return how often a flow of `levels` levels halves a latent of `size` numbers.

    Raises:
        ConfigError: it cannot be halved so often.
    """
    halvings = levels - 1
    if size % (1 << halvings) or size >> halvings < 2:
        raise ConfigError(
            f"a flow of {levels} levels halves the latent {halvings} times and needs 2 or more numbers at the "
            f"top, but the latent has {size}: lower flow_levels"
        )
    return halvings


class FlowBank(nn.Module):
    """F independent Glow flows: F = len(streams) * flows_per_stream, ordered by stream.

    A flow encodes x by `levels` levels of `steps` steps (normalize, permute, couple additively). Between levels the
    second half of the numbers is split off and modeled as a Gaussian given the first half; what is left at the top, a
    share 1 / 2^(levels - 1), is standard normal. At the start a flow is, but for the normalization that was fitted to
    standard normal vectors, a permutation.

    Args:
        streams: random streams on the CPU; permutations and weights of a flow depend on its stream alone.
        size: D.
        steps, levels, width: steps on each level, levels, hidden width of a coupling.

    Attributes:
        top_size: numbers that are left at the top; the other size - top_size are split off on the way.

    Raises:
        ConfigError: `size` cannot be halved `levels` - 1 times.
    """

    def __init__(
        self,
        streams: Sequence[torch.Generator],
        flows_per_stream: int,
        size: int,
        steps: int = 10,
        levels: int = 3,
        width: int = 100,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        halvings = require_halvings(size, levels)
        self.size = size
        self.top_size = size >> halvings
        draw = _Draw(streams, flows_per_stream)
        parts: list[_Step | _Split] = []
        for level in range(levels):
            here = size >> level
            parts += [_Step(draw, here, width) for _ in range(steps)]
            if level < halvings:
                parts.append(_Split(draw.flows, here))
        self.parts = nn.ModuleList(parts)
        self.to(device, dtype)
        self.fit(draw.normal(_ROWS_TO_FIT, size).to(device, dtype))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set every normalization so that its outputs for x (F, N, D) have mean 0 and variance 1."""
        for part in self._parts():
            if isinstance(part, _Step):
                part.fit(x)
            x = part.encode(x)[0]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the top (F, N, top_size) and the log-density log q(x) (F, N) of x (F, N, D)."""
        log_density = x.new_zeros(x.shape[:2])
        for part in self._parts():
            x, gain = part.encode(x)
            log_density = log_density + gain
        return x, log_density + standard_normal_log_density(x)

    def decode(self, top: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples x (F, N, D) and their log q(x) (F, N).

        Args:
            top: (F, N, top_size) standard normal.
            noise: (F, N, D - top_size) standard normal, for the numbers that are split off, the last split first.
        """
        x, used = top, 0
        log_density = standard_normal_log_density(top)
        for part in reversed(self._parts()):
            if isinstance(part, _Split):
                x, gain = part.decode(x, noise[..., used : used + part.dropped])
                used += part.dropped
            else:
                x, gain = part.decode(x)
            log_density = log_density + gain
        return x, log_density

    def _parts(self) -> list[_Step | _Split]:
        return cast("list[_Step | _Split]", list(self.parts))


class _Draw:
    """Draws of one value for each flow, each from the stream that the flow belongs to."""

    def __init__(self, streams: Sequence[torch.Generator], flows_per_stream: int) -> None:
        self.streams = streams
        self.per_stream = flows_per_stream
        self.flows = len(streams) * flows_per_stream

    def normal(self, *shape: int) -> Tensor:
        return torch.cat([torch.randn(self.per_stream, *shape, generator=stream) for stream in self.streams])

    def permutations(self, size: int) -> Tensor:
        found = [torch.randperm(size, generator=stream) for stream in self.streams for _ in range(self.per_stream)]
        return torch.stack(found)


class _ActNorm(nn.Module):
    """(x + bias) * exp(log_scale)."""

    def __init__(self, flows: int, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(flows, 1, size))
        self.log_scale = nn.Parameter(torch.zeros(flows, 1, size))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        self.bias.copy_(-x.mean(dim=1, keepdim=True))
        self.log_scale.copy_(-(x.std(dim=1, keepdim=True, correction=0) + 1e-6).log())

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias) * self.log_scale.exp()

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp() - self.bias


class _NormalizedLinear(nn.Module):
    """A matrix without bias, then ActNorm."""

    def __init__(self, draw: _Draw, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_WEIGHT_STD * draw.normal(size_in, size_out))
        self.norm = _ActNorm(draw.flows, size_out)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        self.norm.fit(torch.bmm(x, self.weight))

    def forward(self, x: Tensor) -> Tensor:
        normalized: Tensor = self.norm(torch.bmm(x, self.weight))
        return normalized


class _ZeroLinear(nn.Module):
    """(x W + bias) * exp(3 log_gain), from zero: what it is added to starts unchanged."""

    def __init__(self, flows: int, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(flows, size_in, size_out))
        self.bias = nn.Parameter(torch.zeros(flows, 1, size_out))
        self.log_gain = nn.Parameter(torch.zeros(flows, 1, size_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight) * (_GAIN * self.log_gain).exp()


class _Step(nn.Module):
    """ActNorm, a fixed permutation, an additive coupling of the second half to the first."""

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, draw: _Draw, size: int, width: int) -> None:
        super().__init__()
        self.kept = size // 2
        self.norm = _ActNorm(draw.flows, size)
        permutation = draw.permutations(size)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", permutation.argsort(dim=1))
        self.first = _NormalizedLinear(draw, self.kept, width)
        self.second = _NormalizedLinear(draw, width, width)
        self.last = _ZeroLinear(draw.flows, width, size - self.kept)

    def fit(self, x: Tensor) -> None:
        self.norm.fit(x)
        kept = _permuted(self.norm(x), self.permutation)[..., : self.kept]
        self.first.fit(kept)
        self.second.fit(F.elu(self.first(kept)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = _permuted(self.norm(x), self.permutation)
        kept, moved = y[..., : self.kept], y[..., self.kept :]
        return torch.cat([kept, moved + self._shift(kept)], dim=-1), self._log_determinant()

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = y[..., : self.kept], y[..., self.kept :]
        y = torch.cat([kept, moved - self._shift(kept)], dim=-1)
        return self.norm.inverse(_permuted(y, self.inverse_permutation)), self._log_determinant()

    def _shift(self, kept: Tensor) -> Tensor:
        shift: Tensor = self.last(F.elu(self.second(F.elu(self.first(kept)))))
        return shift

    def _log_determinant(self) -> Tensor:
        return self.norm.log_scale.sum(dim=-1)


class _Split(nn.Module):
    """Splits the second half off; it is Gaussian given the first half."""

    def __init__(self, flows: int, size: int) -> None:
        super().__init__()
        self.kept = size // 2
        self.dropped = size - self.kept
        self.moments = _ZeroLinear(flows, self.kept, 2 * self.dropped)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, dropped = x[..., : self.kept], x[..., self.kept :]
        mean, log_std = self._mean_and_log_std(kept)
        noise = (dropped - mean) * (-log_std).exp()
        return kept, standard_normal_log_density(noise) - log_std.sum(-1)

    def decode(self, kept: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._mean_and_log_std(kept)
        x = torch.cat([kept, mean + log_std.exp() * noise], dim=-1)
        return x, standard_normal_log_density(noise) - log_std.sum(-1)

    def _mean_and_log_std(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.moments(kept)
        return moments[..., 0::2], moments[..., 1::2]


def _permuted(x: Tensor, permutation: Tensor) -> Tensor:
    """Return x (F, N, C) with each flow's columns in the order of its permutation (F, C)."""
    return x.gather(-1, permutation[:, None].expand_as(x))
