"""Split-AI's index sets: which teachers never saw which training sample (Tang et al. 2022).

The sets are drawn from keyed streams, so that every teacher's own training and the student's agree on them without
passing them on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oakum.seeding import content_keys, derive_seed, keyed_uniform, sample_keys

_ROWS_PER_CHUNK = 512


def left_out_teachers(x: Tensor, seed: int, teachers: int, left_out: int, group_duplicates: bool) -> Tensor:
    """Return for each sample the teachers that do not train on it, (N, left_out) int64, ascending in each row.

    Each row is drawn uniformly without replacement from 0 .. teachers - 1.

    Args:
        x: (N, *dims) float32, the training fold.
        seed: of the model that is taught.
        teachers: K.
        left_out: L, less than K.
        group_duplicates: samples of equal content get equal rows; otherwise every position has a row of its own.
    """
    own_seed = derive_seed(seed, "left_out")
    keys = _content_keys(own_seed, x) if group_duplicates else sample_keys(own_seed, torch.arange(len(x)))
    order = keyed_uniform(keys, teachers).argsort(dim=1, stable=True)
    return order[:, :left_out].sort(dim=1).values


def rows_with_duplicates(x: Tensor) -> int:
    """Return how many of the samples x (N, *dims) float32 have another of equal content."""
    _, counts = _content_keys(0, x).unique(return_counts=True)
    return int(counts[counts > 1].sum())


def _content_keys(seed: int, x: Tensor) -> Tensor:
    """Return `content_keys` of all rows (N,); in chunks, because they take several times the memory of x."""
    return torch.cat([content_keys(seed, part) for part in x.split(_ROWS_PER_CHUNK)])
