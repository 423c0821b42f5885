from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from oakum.attacks.membership.label_rank import LabelRank


def test_equals_a_naive_twin(ask, logits, labels) -> None:
    expected = [-sorted(row, reverse=True).index(row[y]) for row, y in zip(logits.tolist(), labels, strict=True)]
    scores = ask(LabelRank, log_softmax(logits, axis=1), labels)
    assert scores.tolist() == expected


def test_values_do_not_matter_only_their_ranking(ask, logits, labels) -> None:
    scores = ask(LabelRank, log_softmax(logits, axis=1), labels)
    assert (ask(LabelRank, log_softmax(np.arctan(logits) * 5, axis=1), labels) == scores).all()


def test_ties_share_their_ranks_and_released_zeros_rank_last(ask) -> None:
    logs = np.array([[0.0, -np.inf, -np.inf], [0.0, -np.inf, -np.inf], [np.log(1 / 3)] * 3])
    assert ask(LabelRank, logs, np.array([0, 1, 2])).tolist() == [0.0, -1.5, -1.0]


def test_nan_is_refused(ask, logits, labels) -> None:
    logits[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN for 1 of 200"):
        ask(LabelRank, logits, labels)
