"""Confidence penalty: reward entropy in what the model answers."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from oakum.defenses.base import Defense
from oakum.registry import Source
from oakum.training.state import Batch, TrainState


def confidence_penalty(logits: Tensor, y: Tensor, *, alpha: float) -> Tensor:
    """Return CE - alpha * H of each sample, (B,), in nats; at least -alpha * ln K.

    H is the entropy of the softmax of `logits` (Pereyra et al. 2017, section 3).

    Args:
        logits: (B, K).
        y: (B,) int64.
        alpha: weight of the entropy; 0 gives the cross-entropy itself.
    """
    log_probabilities = logits.log_softmax(dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    return F.cross_entropy(logits, y, reduction="none") - alpha * entropy


class ConfidencePenalty(Defense):
    """Subtracts alpha times the mean entropy of the answers from the cross-entropy.

    Differs from the paper: the weight is the same in every epoch and at every entropy, as in the RelaxLoss experiments;
    the paper also anneals it and penalizes only entropies below a threshold.
    """

    source = Source(
        title="Regularizing Neural Networks by Penalizing Confident Output Distributions",
        authors="Gabriel Pereyra, George Tucker, Jan Chorowski, Lukasz Kaiser, Geoffrey Hinton",
        venue="ICLR workshop",
        year=2017,
        link="https://arxiv.org/abs/1701.06548",
    )
    searchable: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("alpha",)

    class Config(Defense.Config):
        """Settings of the confidence penalty.

        Attributes:
            alpha: weight of the entropy; 0 is ordinary training. RelaxLoss compares with 0.1 to 8.
        """

        alpha: float = Field(default=0.1, ge=0)

    config: Config

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean of `confidence_penalty` over the global batch."""
        return state.batch_mean(confidence_penalty(state.forward(batch.x), batch.y, alpha=self.config.alpha))
