"""Canaries: points with a fixed wrong label; a seeded coin puts half of them into training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oakum.seeding import numpy_generator

CanaryPart = Literal["all", "search", "confirmation"]


@dataclass(frozen=True)
class Canaries:
    """Planted points, in the order of the fold.

    Attributes:
        rows: (N,) int64 row ids.
        planted_label: (N,) int64, never the true label; the same whether the point is trained on or not.
        is_member: (N,) bool, exactly N // 2 of them True.
    """

    rows: NDArray[np.int64]
    planted_label: NDArray[np.int64]
    is_member: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def members(self) -> NDArray[np.int64]:
        """Row ids of the canaries that are put into training."""
        return self.rows[self.is_member]


def candidates(rows: NDArray[np.int64], part: CanaryPart, seed: int) -> NDArray[np.int64]:
    """Return the candidates of a part, in the order of the fold: all, or one of two halves that share no row.

    Halves depend on which rows there are and on the seed, not on the order of the rows.

    Args:
        rows: (N,) row ids of the fold of candidates.
        part: `search` is the half that trials may use (N odd: one less), `confirmation` the other.
        seed: equal for every seed of an experiment.
    """
    if part == "all":
        return rows
    order = numpy_generator(seed).permutation(np.sort(rows))
    half = len(rows) // 2
    return rows[np.isin(rows, order[:half] if part == "search" else order[half:])]


def plant(rows: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int, seed: int) -> Canaries:
    """Give every row a wrong label and toss the coins.

    Labels are uniform over the other classes. The coin is fair for every point, and tossed so that exactly N // 2
    points are members (N odd: one more is held out).

    Args:
        rows: (N,) row ids of the fold `canary`.
        labels: (N,) true labels of these rows as the target numbers its classes, in [0, num_classes).
        seed: see `oakum.seeding.derive_seed`; it must not depend on the defense.

    Raises:
        ValueError: fewer than 2 rows or classes, or labels outside the range.
    """
    count = len(rows)
    if count < 2 or num_classes < 2:
        raise ValueError(f"canaries need at least 2 rows and 2 classes, got {count} and {num_classes}")
    if len(labels) != count or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"canaries need one label in [0, {num_classes}) for each of {count} rows")
    generator = numpy_generator(seed)
    shift = generator.integers(1, num_classes, size=count)
    is_member = np.zeros(count, dtype=np.bool_)
    is_member[generator.permutation(count)[: count // 2]] = True
    return Canaries(rows.astype(np.int64), (labels + shift).astype(np.int64) % num_classes, is_member)
