"""Membership scores computed from one model's released log-probabilities; larger = more likely a member.

All take log-probabilities (N, K), float64 or convertible, and labels (N,), and return (N,) float64. N may be 0.
Logarithms inside entropies are floored at log(1e-30), as the released code of RelaxLoss does. Ties stay ties.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_FLOOR = float(np.log(1e-30))
# A defense may release probability zero: its log is replaced by this, which lies below the log-probability of any
# finite logits that occur, so that scores stay finite and their order is kept.
LOWEST_LOG_PROBABILITY = -1e9


def loss_score(log_probabilities: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return log p_y, the negative cross-entropy, in [-1e9, 0] (Yeom et al. 2018)."""
    _, true = _checked(log_probabilities, y)
    return np.maximum(true, LOWEST_LOG_PROBABILITY)


def confidence_score(log_probabilities: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return p_y in [0, 1]; ranks like `loss_score` up to ties where float64 rounds p_y to 0 or 1."""
    _, true = _checked(log_probabilities, y)
    return np.exp(true)


def entropy_score(log_probabilities: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return sum_c p_c log p_c, the negative entropy, in [-log K, 0]; the label is not used."""
    logs, _ = _checked(log_probabilities, y)
    score: NDArray[np.float64] = (np.exp(logs) * np.maximum(logs, LOG_FLOOR)).sum(axis=1)
    return score


def modified_entropy_score(log_probabilities: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return (1 - p_y) log p_y + sum_{c != y} p_c log(1 - p_c), at most 0 (Song and Mittal 2021, equation 5)."""
    logs, true = _checked(log_probabilities, y)
    probabilities = np.exp(logs)
    # -expm1 keeps the digits of 1 - p that the subtraction loses for p near 0.
    log_complements = np.log(np.maximum(-np.expm1(logs), 1e-30))
    terms = probabilities * log_complements
    rows = np.arange(len(terms))
    terms[rows, np.asarray(y)] = -np.expm1(true) * np.maximum(true, LOG_FLOOR)
    score: NDArray[np.float64] = terms.sum(axis=1)
    return score


def _checked(log_probabilities: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log-probabilities (N, K) and those of the labels (N,).

    Raises:
        ValueError: shapes do not match, a label is out of range, or a log-probability is NaN.
    """
    logs = np.asarray(log_probabilities, dtype=np.float64)
    labels = np.asarray(y)
    if logs.ndim != 2 or labels.shape != logs.shape[:1]:
        raise ValueError(f"need log-probabilities (N, K) and labels (N,), got {logs.shape} and {labels.shape}")
    if labels.size and not (labels.min() >= 0 and labels.max() < logs.shape[1]):
        raise ValueError(f"labels must lie in [0, {logs.shape[1]}), got {labels.min()} to {labels.max()}")
    broken = np.isnan(logs).any(axis=1)
    if broken.any():
        raise ValueError(
            f"the target released NaN for {int(broken.sum())} of {len(logs)} points; its training probably diverged"
        )
    return logs, logs[np.arange(len(logs)), labels.astype(np.int64)]
