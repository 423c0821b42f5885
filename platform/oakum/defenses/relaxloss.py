"""RelaxLoss: hold the training loss near a target alpha instead of driving it to zero."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.training.state import Batch, TrainState

Variant = Literal["paper", "released_code"]


def soft_cross_entropy(logits: Tensor, y: Tensor, *, upper: float = 1.0, detach_targets: bool = True) -> Tensor:
    """Return the posterior-flattening loss of each sample, (B,), in nats.

    The target keeps the true class's probability q = min(p_y, upper) and spreads 1 - q evenly over the others
    (the paper's section 4.2 and, for `upper`, appendix B.3).

    Args:
        logits: (B, K), K >= 2.
        y: (B,) int64.
        upper: cap on q in (0, 1]; the gradient through q is zero where it is active.
        detach_targets: whether the target is a constant.
    """
    log_probabilities = logits.log_softmax(dim=1)
    true = log_probabilities.gather(1, y[:, None]).squeeze(1)
    kept = true.exp().clamp(max=upper)
    if detach_targets:
        kept = kept.detach()
    others = (1 - kept) / (logits.shape[1] - 1)
    return -(kept * true + others * (log_probabilities.sum(dim=1) - true))


def relaxloss(
    logits: Tensor,
    y: Tensor,
    *,
    alpha: float,
    epoch: int,
    variant: Variant = "paper",
    flatten_incorrect_only: bool = False,
    upper: float = 1.0,
    detach_targets: bool = True,
    batch_loss: Tensor | None = None,
) -> Tensor:
    """Return each sample's term, (B,); their mean is what RelaxLoss minimizes (Chen et al. 2022, Algorithm 1).

    With L the batch's mean cross-entropy: gradient descent on L where L >= alpha; below, epochs take turns between
    gradient ascent on L and flattening the posteriors.

    Args:
        logits: (B, K), K >= 2.
        y: (B,) int64.
        alpha: the target loss in nats; 0 gives the cross-entropy itself.
        epoch: counted from 0. `paper` counts epochs from 1 and flattens in odd ones, hence here in even ones;
            `released_code` counts from 0 and flattens in odd ones.
        variant: `released_code` minimizes |L - alpha| in even epochs and L or the flattening in odd ones. Where it
            flattens only incorrect samples it adds the ascent term -CE to every sample; `paper` adds it to the
            correct ones alone.
        flatten_incorrect_only: flatten only samples whose argmax is wrong; the correct ones get ascent.
        upper, detach_targets: see `soft_cross_entropy`.
        batch_loss: the scalar L of the global batch, which decides the branch and the sign when `logits` are one
            worker's shard; None takes the mean over `logits`.

    Differs from the paper: the paper does not say what correct samples get when only incorrect ones are flattened;
    ascent is the reading that agrees with the released code.
    """
    losses = F.cross_entropy(logits, y, reduction="none")
    is_above = bool((losses.mean() if batch_loss is None else batch_loss) >= alpha)
    flattens = epoch % 2 == (0 if variant == "paper" else 1)
    if is_above:
        return losses if variant == "paper" or flattens else losses - alpha
    if not flattens:
        return alpha - losses
    flattening = soft_cross_entropy(logits, y, upper=upper, detach_targets=detach_targets)
    if not flatten_incorrect_only:
        return flattening
    is_correct = logits.argmax(dim=1) == y
    if variant == "paper":
        return torch.where(is_correct, -losses, flattening)
    return torch.where(is_correct, 0.0, flattening) - losses


class RelaxLoss(Defense):
    """Relaxes the loss target, so that members' losses spread out and look like non-members'.

    The branch follows the mean over the global batch: results do not depend on the number of workers.
    """

    source = Source(
        title="RelaxLoss: Defending Membership Inference Attacks without Losing Utility",
        authors="Dingfan Chen, Ning Yu, Mario Fritz",
        venue="ICLR",
        year=2022,
        link="https://arxiv.org/abs/2207.05801",
    )
    searchable: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("alpha",)

    class Config(Defense.Config):
        """Settings of RelaxLoss.

        Attributes:
            alpha: target of the mean training loss, in nats; 0 is ordinary training. The paper uses 0.2 to 3.
            variant: the paper's algorithm, or what the released code computes.
            flatten_incorrect_only: None flattens only incorrect samples of images and all samples of tabular rows,
                as the paper does for CIFAR and for Texas and Purchase.
            upper: cap on the true class's probability in the soft target; 0.3 (Purchase) and 0.1 (Texas) in the
                released code.
            detach_targets: whether soft targets are constants; None follows the variant (`paper` yes,
                `released_code` no).
        """

        alpha: float = Field(ge=0)
        variant: Variant = "paper"
        flatten_incorrect_only: bool | None = None
        upper: float = Field(default=1.0, gt=0, le=1)
        detach_targets: bool | None = None

    config: Config

    def check(self, model: type[Classifier], num_classes: int) -> list[str]:
        """Warn of an alpha near the loss of a uniform guess, ln K."""
        if num_classes < 2:
            raise ConfigError(f"relaxloss needs at least 2 classes to spread probability over, not {num_classes}")
        warnings = super().check(model, num_classes)
        chance = math.log(num_classes)
        if self.config.alpha >= 0.8 * chance:
            warnings.append(
                f"relaxloss: alpha {self.config.alpha:g} is close to the loss of a uniform guess over {num_classes} "
                f"classes ({chance:.2f}); the model may learn nothing. Stay below {0.8 * chance:.2f}"
            )
        return warnings

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean of `relaxloss`, with the branch of the global batch."""
        config = self.config
        logits = state.forward(batch.x)
        is_image = batch.x.dim() == 4
        incorrect_only = is_image if config.flatten_incorrect_only is None else config.flatten_incorrect_only
        detach = config.variant == "paper" if config.detach_targets is None else config.detach_targets
        terms = relaxloss(
            logits,
            batch.y,
            alpha=config.alpha,
            epoch=state.epoch,
            variant=config.variant,
            flatten_incorrect_only=incorrect_only,
            upper=config.upper,
            detach_targets=detach,
            batch_loss=_batch_loss(state, logits, batch.y),
        )
        return state.batch_mean(terms)


def _batch_loss(state: TrainState, logits: Tensor, y: Tensor) -> Tensor | None:
    if state.collective.world_size == 1:
        return None
    total = F.cross_entropy(logits.detach(), y, reduction="sum").double()
    reduced = state.collective.sum(torch.stack([total, total.new_tensor(float(y.shape[0]))]))
    return reduced[0] / reduced[1]
