"""HAMP: train with soft labels toward uncertain predictions, and release scores that keep their ranking alone."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from scipy.optimize import brentq
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.seeding import content_keys, keyed_uniform
from oakum.training.state import Batch, TrainState

Variant = Literal["paper", "released_code"]

_GRID_STEP = 0.01
_GRAY_LEVELS = 255
# Of the largest over the second value, relative to it or to 1: no later rounding makes them equal.
_LEAST_LEAD = 1e-6


def soft_label_entropy(true_probability: float, num_classes: int) -> float:
    """Return the entropy in nats of a label that spreads 1 - `true_probability` evenly over the other classes."""
    rest = 1 - true_probability
    return -_x_log_x(true_probability) - _x_log_x(rest) + rest * math.log(num_classes - 1)


def true_class_probability(gamma: float, num_classes: int, variant: Variant = "paper") -> float:
    """Return the true class's probability q in (1/C, 1] of the soft label whose entropy is gamma ln C.

    Args:
        gamma: in [0, 1); 0 gives the hard label.
        num_classes: C, at least 2.
        variant: `released_code` takes the largest multiple of 0.01 whose entropy is at least gamma ln C.
    """
    wanted = gamma * math.log(num_classes)
    if wanted == 0:
        return 1.0
    exact = float(brentq(lambda q: soft_label_entropy(q, num_classes) - wanted, 1 / num_classes, 1.0, xtol=1e-12))
    return exact if variant == "paper" else math.floor(exact / _GRID_STEP) * _GRID_STEP


def hamp_loss(
    logits: Tensor, y: Tensor, *, true_probability: float, alpha: float, variant: Variant = "paper"
) -> Tensor:
    """Return each sample's KL(t || p) - alpha H(p) in nats, (B,); t is the soft label of y, p = softmax(logits).

    Args:
        logits: (B, C), C >= 2.
        y: (B,) int64.
        true_probability: of class y in t; the other classes share the rest.
        alpha: weight of the prediction's entropy.
        variant: `released_code` divides the divergence by C, as its mean over all B C elements does.
    """
    num_classes = logits.shape[1]
    log_probabilities = logits.log_softmax(dim=1)
    true = log_probabilities.gather(1, y[:, None]).squeeze(1)
    rest = (1 - true_probability) / (num_classes - 1)
    cross_entropy = -(true_probability * true + rest * (log_probabilities.sum(dim=1) - true))
    divergence = cross_entropy - soft_label_entropy(true_probability, num_classes)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    return divergence / (num_classes if variant == "released_code" else 1) - alpha * entropy


def masked_logits(logits: Tensor, values: Tensor) -> Tensor:
    """Return (B, C): the k-th smallest of a row's `values` at the class with its k-th smallest logit.

    The argmax stays what it is in `logits`, also where the largest values tie: the predicted class then gets a slightly
    larger one (by a millionth). Classes with equal logits are ranked in their order.

    Args:
        logits: (B, C).
        values: (B, C) of the same dtype; only their set matters.
    """
    predicted = logits.argmax(dim=1, keepdim=True)
    ranking = logits.scatter(1, predicted, torch.inf).argsort(dim=1, stable=True)
    ascending = values.sort(dim=1).values
    top, second = ascending[:, -1], ascending[:, -2]
    ascending[:, -1] = torch.maximum(top, second + _LEAST_LEAD * second.abs().clamp(min=1))
    return torch.empty_like(logits).scatter(1, ranking, ascending)


def random_inputs(x: Tensor, seed: int) -> Tensor:
    """Return a random input for each row of `x` (B, *dims), keyed by its content and the seed.

    Images (B, C, H, W) get uniform gray levels 0, 1/255, ..., 254/255 in every channel; rows (B, F) get fair bits.
    """
    draws = keyed_uniform(content_keys(seed, x), x[0].numel() if len(x) else 0).view_as(x).to(x.dtype)
    if x.dim() == 4:
        return (draws * _GRAY_LEVELS).floor() / _GRAY_LEVELS
    return (draws < 0.5).to(x.dtype)


class RankingOnly(nn.Module):
    """Answers (B, *dims) with logits (B, C) of a random input, rearranged to rank the classes as the true ones do."""

    def __init__(self, classifier: nn.Module, num_classes: int, seed: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = num_classes
        self._seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C); gradients reach x as if they were the classifier's own."""
        logits: Tensor = self.classifier(x)
        with torch.no_grad():
            answer = masked_logits(logits, self.classifier(random_inputs(x, self._seed)))
        # The difference is exactly 0: the ranking is that of `answer`.
        return answer + (logits - logits.detach())


class HAMP(Defense):
    """Soft labels of entropy gamma ln C, a reward of alpha for each nat of the prediction's entropy, and masked scores.

    A query's answer holds the sorted scores of a random input, given to the classes in the order in which the model
    ranks them for the query. Labels and rankings stay; values tell nothing of the query but which random input its
    content drew, so asking again gives the same answer.

    The weights show the classifier without the mask (`unmasked`).

    Differs from the paper: `alpha` counts beside a divergence summed over classes, as the formula is written. The
    authors' code takes its mean over classes too: its alpha, learning rate r and weight decay d do under SGD what
    C alpha, r / C and C d do here, and the published alphas belong to `variant: released_code`. That code also keeps
    the order of batches, starts the optimizer (SGD, momentum 0.99) anew in every epoch, and releases the best
    validation epoch; here the recipe decides. The random input is keyed by the query's content instead of fresh.
    """

    source = Source(
        title="Overconfidence is a Dangerous Thing: Mitigating Membership Inference Attacks by Enforcing Less "
        "Confident Prediction",
        authors="Zitao Chen, Karthik Pattabiraman",
        venue="NDSS",
        year=2024,
        link="https://arxiv.org/abs/2307.01610",
    )
    searchable: ClassVar[bool] = True
    masks_output: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("gamma", "alpha")

    class Config(Defense.Config):
        """Settings of HAMP.

        Attributes:
            gamma: entropy of the soft labels, as a part of ln C; 0 trains with hard labels. The paper uses 0.5 to 0.95.
            alpha: weight of the prediction's entropy, which is maximized.
            variant: `released_code` solves for the soft label on a grid of 0.01 and divides the divergence by C.
        """

        gamma: float = Field(ge=0, lt=1)
        alpha: float = Field(ge=0)
        variant: Variant = "paper"

    config: Config

    def check(self, model: type[Classifier], num_classes: int) -> list[str]:
        """Refuse a single class."""
        if num_classes < 2:
            raise ConfigError(f"hamp needs at least 2 classes to spread probability over, not {num_classes}")
        return super().check(model, num_classes)

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean of `hamp_loss` over the global batch."""
        config = self.config
        terms = hamp_loss(
            state.forward(batch.x),
            batch.y,
            true_probability=true_class_probability(config.gamma, state.num_classes, config.variant),
            alpha=config.alpha,
            variant=config.variant,
        )
        return state.batch_mean(terms)

    def release(self, module: nn.Module, seed: int) -> nn.Module:
        """Return the masked classifier, whose random inputs are keyed by `seed`."""
        assert isinstance(module, Classifier)
        return RankingOnly(module, module.num_classes, seed)


def _x_log_x(x: float) -> float:
    return x * math.log(x) if x > 0 else 0.0
