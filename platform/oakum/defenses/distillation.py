"""Self-distillation: train on an undefended model's softened answers beside the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.defenses.base import Defense, Teacher
from oakum.registry import Source
from oakum.training.loop import TrainingLoop
from oakum.training.state import Batch, TrainState

Variant = Literal["paper", "released_code"]
TeacherLogits = Callable[[Batch], Tensor]

TEACHER = "teacher"
_ROWS_AT_ONCE = 256


def distillation(
    logits: Tensor,
    y: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float,
    temperature: float,
    variant: Variant = "paper",
) -> Tensor:
    """Return alpha * T^2 * KL(teacher || student) + (1 - alpha) * CE of each sample, (B,), in nats, at least 0.

    KL is between the softmax of both logits divided by T, summed over classes (Hinton et al. 2015, section 2).

    Args:
        logits: (B, K), the student's.
        y: (B,) int64.
        teacher_logits: (B, K), a constant.
        alpha: in [0, 1]; 0 gives the cross-entropy itself.
        temperature: T > 0, in units of logits.
        variant: `released_code` averages KL over classes instead of summing it, so that it is K times smaller.
    """
    divergence = F.kl_div(
        (logits / temperature).log_softmax(dim=1),
        (teacher_logits.detach() / temperature).log_softmax(dim=1),
        reduction="none",
        log_target=True,
    )
    per_sample = divergence.sum(dim=1) if variant == "paper" else divergence.mean(dim=1)
    cross_entropy = F.cross_entropy(logits, y, reduction="none")
    return alpha * temperature**2 * per_sample + (1 - alpha) * cross_entropy


class Distillation(Defense):
    """Trains with the answers of an undefended teacher that has the same network, samples and seed.

    The teacher answers in eval mode. Without augmentation its logits are computed once for the whole training fold,
    otherwise for the augmented images of each batch.

    Differs from the paper: the RelaxLoss paper, whose baseline this is, writes KL(student || teacher) and its code
    computes KL(teacher || student); so do the cited paper and both variants here. Images are not required.
    """

    source = Source(
        title="Distilling the Knowledge in a Neural Network",
        authors="Geoffrey Hinton, Oriol Vinyals, Jeff Dean",
        venue="NIPS workshop",
        year=2014,
        link="https://arxiv.org/abs/1503.02531",
    )
    searchable: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("alpha", "temperature")

    class Config(Defense.Config):
        """Settings of distillation.

        Attributes:
            alpha: weight of the teacher in [0, 1], against 1 - alpha of the labels; 0 is ordinary training.
            temperature: softens both models' answers; RelaxLoss compares with 1 to 100.
            variant: `paper`, or the K times smaller divergence of the released code.
        """

        alpha: float = Field(default=0.5, ge=0, le=1)
        temperature: float = Field(default=10.0, gt=0)
        variant: Variant = "paper"

    config: Config

    def teachers(self) -> dict[str, Teacher]:
        """Return the undefended model of the same seed, on the same kind of network."""
        return {TEACHER: Teacher({"name": "none", "norm": self.config.norm})}

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Refuse: the teacher's answers are known to `fit` alone."""
        raise TypeError("the loss of distillation needs a teacher: call fit with loop.teachers['teacher']")

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train on the labels and on the teacher of `loop.teachers`."""
        config = self.config
        teacher_logits = _teacher_logits(loop, state.device)

        def loss(state: TrainState, batch: Batch) -> Tensor:
            losses = distillation(
                state.forward(batch.x),
                batch.y,
                teacher_logits(batch),
                alpha=config.alpha,
                temperature=config.temperature,
                variant=config.variant,
            )
            return state.batch_mean(losses)

        return loop.run(state, loss)


def _teacher_logits(loop: TrainingLoop, device: torch.device) -> TeacherLogits:
    """Return what gives the teacher's logits (B, K) for a batch: looked up, or computed where images are augmented."""
    teacher = loop.teachers[TEACHER]()
    if loop.recipe.augmentation:
        return torch.no_grad()(lambda batch: teacher(batch.x))
    with torch.no_grad():
        known = torch.cat([teacher(x.to(device)) for x in loop.train.x.split(_ROWS_AT_ONCE)])
    return lambda batch: known[batch.index.to(device)]
