"""Early stopping: release an earlier epoch of the undefended training."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense, Snapshot
from oakum.registry import Source
from oakum.training.loop import TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState


class EarlyStopping(Defense):
    """Releases the weights of the undefended model after a fixed number of epochs.

    The learning rate follows the schedule of the whole recipe. All stops of one table are snapshots of one training.

    The number of epochs is a setting, as in the RelaxLoss experiments (Chen et al. 2022, appendix B.5); no validation
    curve decides it.
    """

    source = Source(
        title="Systematic Evaluation of Privacy Risks of Machine Learning Models",
        authors="Liwei Song, Prateek Mittal",
        venue="USENIX Security",
        year=2021,
        link="https://arxiv.org/abs/2003.10595",
    )
    searchable: ClassVar[bool] = True

    class Config(Defense.Config):
        """Settings of early stopping.

        Attributes:
            epoch: the number of epochs after which the model is released; at most `recipe.epochs`.
        """

        epoch: int = Field(ge=1)

    config: Config

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Warn where the recipe selects an epoch by itself.

        Raises:
            ConfigError: training ends before the stop.
        """
        warnings = super().check_training(recipe, train_size)
        if self.config.epoch > recipe.epochs:
            raise ConfigError(
                f"early_stopping: epoch {self.config.epoch} is after the end of training; set it to at most "
                f"recipe.epochs ({recipe.epochs})"
            )
        if recipe.select == "best_val":
            warnings.append(
                "early_stopping: recipe.select best_val has no effect; the stop decides which epoch is released"
            )
        return warnings

    def snapshot(self) -> Snapshot:
        """Return the stop as an epoch of the undefended training of the same seed."""
        return Snapshot({"name": "none", "norm": self.config.norm}, self.config.epoch)

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train up to the stop and return its weights."""
        loop.snapshots = (self.config.epoch,)
        module = super().fit(state, loop)
        module.load_state_dict(loop.kept[self.config.epoch])
        return module
