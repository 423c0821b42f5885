"""Seeds: one experiment seed, many independent streams that are named by their role.

A role never names the defense, so that every setting of one seed index meets the same split, the same
initialization, the same order of batches and the same starts of its attacks: the settings are paired.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_SEED_BITS = 63


def derive_seed(experiment_seed: int, role: str, *index: int) -> int:
    """Return a seed in [0, 2**63) from SHA-256 of the experiment seed, a role and indices.

    Equal arguments give equal seeds on every platform; different roles or indices give independent streams.
    """
    text = json.dumps([int(experiment_seed), role, *(int(i) for i in index)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def numpy_generator(seed: int) -> np.random.Generator:
    """Return a NumPy generator (PCG64) that depends on `seed` alone."""
    return np.random.default_rng(seed)


def torch_generator(seed: int, device: str = "cpu") -> torch.Generator:
    """Return a torch generator on `device` that depends on `seed` alone."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return generator


def sample_keys(seed: int, index: torch.Tensor) -> torch.Tensor:
    """Return one int64 key for each sample of `index` (B,) int64; equal arguments give equal keys on every device."""
    return _mix(index * _STEP + _signed(seed))


def content_keys(seed: int, x: torch.Tensor) -> torch.Tensor:
    """Return one int64 key for each row of `x` (B, ...) float32 that depends on its values and `seed` alone."""
    import torch

    bits = (x.detach().float().flatten(1) + 0.0).contiguous().view(torch.int32).long()
    weights = _mix(torch.arange(bits.shape[1], device=x.device) * _STEP + _signed(seed)) | 1
    return _mix((_mix(bits) * weights).sum(dim=1))


def keyed_uniform(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` float32 numbers in [0, 1) for each of `keys` (B,) int64, shape (B, count).

    A row depends on its key alone. Counter-based: SplitMix64 (Steele, Lea, Flood 2014) in wrapping int64 arithmetic.
    """
    import torch

    counters = torch.arange(1, count + 1, device=keys.device) * _STEP
    return _shift(_mix(keys[:, None] + counters), 40).float() * 2.0**-24


def keyed_normal(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` standard normal float32 numbers for each of `keys` (B,) int64, shape (B, count).

    A row depends on its key alone: Box-Muller of `keyed_uniform`.
    """
    import torch

    half = (count + 1) // 2
    uniform = keyed_uniform(keys, 2 * half)
    radius = (-2 * torch.log1p(-uniform[:, :half])).sqrt()
    angle = 2 * math.pi * uniform[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift int64 right as if it were unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >= 1 << 63 else seed
