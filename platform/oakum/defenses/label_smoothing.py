"""Label smoothing, positive or negative: train toward labels mixed with the uniform distribution."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.registry import Source
from oakum.training.loop import TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

Schedule = Literal["constant", "ramp", "released_code"]

RELEASED_BREAKS = (50, 75)


def smoothed_cross_entropy(logits: Tensor, y: Tensor, *, epsilon: float) -> Tensor:
    """Return (1 - epsilon) * CE + epsilon * mean over classes of -log p of each sample, (B,), in nats.

    This is the cross-entropy with the target 1 - epsilon + epsilon / K for the true class and epsilon / K for every
    other. For 0 <= epsilon < 1 it is at least the target's entropy; below 0 it has no lower bound.

    Args:
        logits: (B, K).
        y: (B,) int64.
        epsilon: at most 1; 0 gives the cross-entropy itself.
    """
    to_uniform = -logits.log_softmax(dim=1).mean(dim=1)
    return (1 - epsilon) * F.cross_entropy(logits, y, reduction="none") + epsilon * to_uniform


def scheduled_epsilon(
    epsilon: float, epoch: int, epochs: int, schedule: Schedule, breaks: tuple[int, int] | None = None
) -> float:
    """Return the smoothing of one epoch: 0 before the first break, `epsilon` from the second on, linear between.

    Args:
        epsilon: the full strength.
        epoch: counted from 0.
        epochs: of the whole training, E.
        schedule: `constant` gives `epsilon` in every epoch. `ramp` reaches it in the epoch before the second break.
            `released_code` ramps as if to reach it in the last epoch of training, epsilon * (epoch + 1 - first) /
            (E - first), and jumps to `epsilon` at the second break.
        breaks: two epochs; None means E // 2 and 3 * E // 4 for `ramp`, 50 and 75 for `released_code`.
    """
    if schedule == "constant":
        return epsilon
    first, second = breaks or _default_breaks(schedule, epochs)
    if epoch < first:
        return 0.0
    if epoch >= second:
        return epsilon
    return epsilon * (epoch + 1 - first) / ((second if schedule == "ramp" else epochs) - first)


def _default_breaks(schedule: Schedule, epochs: int) -> tuple[int, int]:
    return RELEASED_BREAKS if schedule == "released_code" else (epochs // 2, 3 * epochs // 4)


class LabelSmoothing(Defense):
    """Smooths labels by a signed epsilon.

    The loss is that of Szegedy et al. (CVPR 2016). A positive epsilon is the baseline of the membership literature; the
    cited paper finds that it helps model inversion, and that a negative one hinders it.

    Differs from the paper: the breaks of the default ramp are shares of the training, and the ramp ends at epsilon. The
    released code's are the epochs 50 and 75 of 100, with a jump from half of epsilon to epsilon. Its recipe (a
    pretrained ResNet-152, Adam, augmentation) belongs to the experiment, not to the defense.
    """

    source = Source(
        title=(
            "Be Careful What You Smooth For: Label Smoothing Can Be a Privacy Shield but Also a Catalyst for "
            "Model Inversion Attacks"
        ),
        authors="Lukas Struppek, Dominik Hintersdorf, Kristian Kersting",
        venue="ICLR",
        year=2024,
        link="https://arxiv.org/abs/2310.06549",
    )
    searchable: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("epsilon",)

    class Config(Defense.Config):
        """Settings of label smoothing.

        Attributes:
            epsilon: share of the uniform distribution in the target; 0 is ordinary training. The sign decides what the
                method is, so it has no default: 0.1 is usual, -0.05 is negative smoothing.
            schedule: how epsilon grows over the epochs, see `scheduled_epsilon`; None means `ramp` for a negative
                epsilon and `constant` otherwise. Or, as with other defenses, epoch -> settings from this epoch on.
            breaks: the epochs, counted from 0, where the ramp starts and where epsilon is at full strength.
        """

        epsilon: float = Field(ge=-1, lt=1)
        schedule: Schedule | dict[int, dict[str, Any]] | None = None  # type: ignore[assignment]
        breaks: tuple[int, int] | None = None

        @property
        def chosen_schedule(self) -> Schedule:
            """The schedule, with None resolved by the sign of epsilon."""
            if isinstance(self.schedule, str):
                return self.schedule
            return "ramp" if self.epsilon < 0 else "constant"

        @model_validator(mode="after")
        def _check_breaks(self) -> LabelSmoothing.Config:
            if self.breaks is None:
                return self
            if self.chosen_schedule == "constant":
                raise ValueError("breaks have no effect with a constant schedule; remove them or set schedule: ramp")
            if not 0 <= self.breaks[0] <= self.breaks[1]:
                raise ValueError(f"breaks must be two epochs from 0 on in ascending order, not {list(self.breaks)}")
            return self

    config: Config

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Warn of a loss without lower bound and of a schedule that does not reach epsilon.

        Raises:
            ConfigError: training ends before smoothing starts.
        """
        warnings = super().check_training(recipe, train_size)
        epsilon, schedule = self.config.epsilon, self.config.chosen_schedule
        if epsilon < 0:
            warnings.append(
                f"label_smoothing: with a negative epsilon ({epsilon:g}) the loss has no lower bound; judge training "
                "by train/cross_entropy and accuracy, and raise recipe.weight_decay if it diverges"
            )
        if epsilon == 0 or schedule == "constant":
            return warnings
        first, second = self.config.breaks or _default_breaks(schedule, recipe.epochs)
        if first >= recipe.epochs:
            raise ConfigError(
                f"label_smoothing starts in epoch {first} (counted from 0), but training has {recipe.epochs} epochs; "
                "set defense.breaks to earlier epochs or raise recipe.epochs"
            )
        if schedule == "ramp" and second > recipe.epochs:
            warnings.append(
                f"label_smoothing: training ends after {recipe.epochs} epochs, before epsilon is at full strength in "
                f"epoch {second}; set defense.breaks to earlier epochs"
            )
        if recipe.select == "best_val":
            warnings.append(
                "label_smoothing: recipe.select best_val may release an epoch from before epsilon is at full strength; "
                "use select: last"
            )
        return warnings

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean of `smoothed_cross_entropy` at full strength; `fit` follows the schedule."""
        return _batch_loss(state, batch, self.config.epsilon)

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train with the epsilon of each epoch."""
        full, schedule, breaks = self.config.epsilon, self.config.chosen_schedule, self.config.breaks

        def loss(state: TrainState, batch: Batch) -> Tensor:
            epsilon = scheduled_epsilon(full, state.epoch, loop.recipe.epochs, schedule, breaks)
            return _batch_loss(state, batch, epsilon)

        return loop.run(state, loss)


def _batch_loss(state: TrainState, batch: Batch, epsilon: float) -> Tensor:
    return state.batch_mean(smoothed_cross_entropy(state.forward(batch.x), batch.y, epsilon=epsilon))
