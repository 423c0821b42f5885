"""Label rank attack: members' labels are ranked high, whatever the scores' values are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source


class LabelRank(MembershipAttack):
    """Scores a point by the negative rank of its label among the released scores; 0 is the top.

    A defense that replaces the scores but keeps their ranking, such as HAMP, is met by nothing more at test time
    than this ranking.

    Differs from the paper: it ranks the words of a text and classifies the histogram of a user's ranks; here one
    rank is the score of one point, and nothing is fitted.
    """

    source = Source(
        title="Auditing Data Provenance in Text-Generation Models",
        authors="Congzheng Song, Vitaly Shmatikov",
        venue="KDD",
        year=2019,
        link="https://arxiv.org/abs/1811.00513",
    )

    class Config(MembershipAttack.Config):
        pass

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64 in [-(K - 1), 0]; classes that tie with the label count one half each."""
        return label_rank_score(target.scores(points), points.y.cpu().numpy())


def label_rank_score(log_probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return minus the number of classes above the label's score, plus one half for each that equals it, (N,).

    Raises:
        ValueError: a log-probability is NaN.
    """
    broken = int(np.isnan(log_probabilities).any(axis=1).sum())
    if broken:
        raise ValueError(
            f"the target released NaN for {broken} of {len(log_probabilities)} points; its training probably diverged"
        )
    true = log_probabilities[np.arange(len(y)), y][:, None]
    above = (log_probabilities > true).sum(axis=1)
    equal = (log_probabilities == true).sum(axis=1) - 1
    score: NDArray[np.float64] = -(above + equal / 2)
    return score
