"""Which trials go on from a cheaper rung: asynchronous successive halving by non-dominated rank."""

from __future__ import annotations

import math

import numpy as np

from oakum.search.objectives import Floats, fronts

KEPT_SHARE = 1 / 3


def is_promoted(costs: Floats, violations: Floats, share: float = KEPT_SHARE) -> bool:
    """Whether the first row is in the best `share` of all rows (rounded up) that were measured at its rung.

    Rows are ordered by front, those of one front by the row number: among equals the newcomer goes on. With one
    objective this is the rule of asynchronous successive halving (Li et al., "A System for Massively Parallel
    Hyperparameter Tuning", MLSys 2020) in the form that decides once, when a row arrives.

    Args:
        costs: (N, M), small is good; the newcomer first.
        violations: (N,) nonnegative, 0 where feasible.
    """
    order = np.concatenate(fronts(costs, violations))
    return 0 in order[: math.ceil(share * len(costs))]
