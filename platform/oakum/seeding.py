"""Seeds: one experiment seed, many independent streams that are named by their role.

A role never names the defense, so that every setting of one seed index meets the same split, the same
initialization, the same order of batches and the same starts of its attacks: the settings are paired.
"""

from __future__ import annotations

import hashlib
import json
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
