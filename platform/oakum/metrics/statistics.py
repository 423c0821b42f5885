"""Comparison of settings across seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def paired_difference(
    values_a: Sequence[float], values_b: Sequence[float], level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Return the mean of a - b over seeds and its t interval with n - 1 degrees of freedom.

    Values of one position belong to one seed. With a single seed there is no interval: (difference, None, None). The
    interval assumes normal differences; with three seeds, say so and show every difference.

    Raises:
        ValueError: the lengths differ or there are no values.
    """
    if len(values_a) != len(values_b) or not values_a:
        raise ValueError(f"need values of the same seeds, got {len(values_a)} and {len(values_b)}")
    differences = [a - b for a, b in zip(values_a, values_b, strict=True)]
    mean = fmean(differences)
    if len(differences) == 1:
        return mean, None, None
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(differences) - 1)) * stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half
