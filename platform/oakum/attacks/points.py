"""Samples that an adversary asks about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Points:
    """Samples that the adversary asks about; whether they are members is not told.

    Attributes:
        x: (N, *dims) float32 in [0, 1].
        y: (N,) int64 labels as the training set gave them (for a canary, the label it was planted with).
        rows: (N,) int64 row ids of the data set.
    """

    x: Tensor
    y: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return int(self.y.shape[0])
