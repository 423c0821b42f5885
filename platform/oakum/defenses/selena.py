"""SELENA: distill from teachers that never saw the sample; only the student is released."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses._left_out import left_out_teachers, rows_with_duplicates
from oakum.defenses.base import Defense, Teacher
from oakum.models.base import predict_log_probabilities
from oakum.records import MetricValue
from oakum.registry import Source
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

if TYPE_CHECKING:
    from oakum.training.loop import LabeledData, TrainingLoop

_DEVIATIONS = 5


def split_targets(
    teachers: Mapping[str, Callable[[], nn.Module]], x: Tensor, left_out: Tensor, device: torch.device
) -> Tensor:
    """Return the mean softmax of each sample's left-out teachers, (N, K) float32 on `device`.

    Teachers are loaded one after the other, and each answers only for the samples that it never saw. Sums are float64.

    Args:
        teachers: name -> loader of an eval-mode classifier on `device`; their order gives the numbers in `left_out`.
        x: (N, *dims) float32 in [0, 1], without augmentation.
        left_out: (N, L) int64, see `left_out_teachers`.
        device: of the teachers and the result.
    """
    sums = None
    for number, load in enumerate(teachers.values()):
        rows = (left_out == number).any(dim=1).nonzero().squeeze(1)
        probabilities = predict_log_probabilities(load(), x[rows].to(device)).exp()
        if sums is None:
            sums = probabilities.new_zeros(len(x), probabilities.shape[1])
        sums.index_add_(0, rows.to(device), probabilities)
    assert sums is not None
    return (sums / left_out.shape[1]).float()


class SELENA(Defense):
    """Trains K teachers, of which L random ones never see a given member, and a student on what those L answer for it.

    The student learns the mean of their softmax in place of the label: it answers for a member as models do for which
    that sample is a non-member. Only the student is released. Beside the student's own training this costs K trainings
    on (1 - L/K) of the members each.

    A sample's own target does not depend on its label, but the targets of similar samples do, because their sets are
    others: what they show of it stays (Aerni, Zhang and Tramer 2024). `group_duplicates` closes this for exact
    duplicates alone.

    Differs from the paper: teachers and student follow the experiment's recipe, with equal epochs and without a look at
    test data (the released code keeps the epoch of the best test accuracy, and trains the student up to twice as long
    as the teachers); exact duplicates share one set of left-out teachers.
    """

    source = Source(
        title="Mitigating Membership Inference Attacks by Self-Distillation Through a Novel Ensemble Architecture",
        authors="Xinyu Tang, Saeed Mahloujifar, Liwei Song, Virat Shejwalkar, Milad Nasr, Amir Houmansadr, "
        "Prateek Mittal",
        venue="USENIX Security",
        year=2022,
        link="https://arxiv.org/abs/2110.08324",
    )
    searchable: ClassVar[bool] = True

    class Config(Defense.Config):
        """Settings of SELENA.

        Attributes:
            teachers: K.
            left_out: L, the teachers that do not train on a sample; less than K.
            group_duplicates: samples of equal content share one set of left-out teachers, whatever their labels.
        """

        teachers: int = Field(default=25, ge=2, le=100)
        left_out: int = Field(default=10, ge=1)
        group_duplicates: bool = True

        @model_validator(mode="after")
        def _leave_someone_to_teach(self) -> SELENA.Config:
            if self.left_out >= self.teachers:
                raise ValueError(
                    f"left_out {self.left_out} must be less than teachers {self.teachers}: a teacher trains on "
                    "1 - left_out/teachers of the samples"
                )
            return self

    config: Config

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Refuse a training fold that may leave a teacher without a batch.

        Raises:
            ConfigError: five standard deviations below their mean, the rows of a teacher fill no batch.
        """
        share = 1 - self.config.left_out / self.config.teachers
        least = train_size * share - _DEVIATIONS * math.sqrt(train_size * share * (1 - share))
        needed = recipe.batch_size if recipe.drop_last else 1
        if least < needed:
            raise ConfigError(
                f"selena: a teacher trains on about {train_size * share:.0f} of the {train_size} samples, perhaps on "
                f"{max(0, math.floor(least))}, and needs {needed}; draw a larger training fold, lower left_out"
                f"{', or remove drop_last' if recipe.drop_last else ''}"
            )
        return super().check_training(recipe, train_size)

    def teachers(self) -> dict[str, Teacher]:
        """Return `teacher_00`, `teacher_01`, ...: undefended models on rows of their own."""
        document = {"name": "none", "norm": self.config.norm}
        return {name: Teacher(document, own_rows=True) for name in self._names()}

    def teacher_rows(self, teacher: str, data: LabeledData, seed: int) -> Tensor:
        """Return the positions (int64, ascending) of the samples whose left-out teachers do not include this one.

        Raises:
            ConfigError: there are none.
        """
        number = self._names().index(teacher)
        rows = (self._left_out(data.x, seed) != number).all(dim=1).nonzero().squeeze(1)
        if not len(rows):
            raise ConfigError(f"selena: {teacher} is left out by all {len(data)} samples; draw a larger training fold")
        return rows

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train the student on its teachers' answers; reports `training/duplicate_rows`."""
        x = loop.train.x
        teachers = {name: loop.teachers[name] for name in self._names()}
        targets = split_targets(teachers, x, self._left_out(x, state.seed), state.device)
        loop.metrics["training/duplicate_rows"] = MetricValue(float(rows_with_duplicates(x)))

        def loss(state: TrainState, batch: Batch) -> Tensor:
            log_probabilities = state.forward(batch.x).log_softmax(dim=1)
            return state.batch_mean(-(targets[batch.index.to(targets.device)] * log_probabilities).sum(dim=1))

        return loop.run(state, loss)

    def _names(self) -> list[str]:
        return [f"teacher_{number:02d}" for number in range(self.config.teachers)]

    def _left_out(self, x: Tensor, seed: int) -> Tensor:
        config = self.config
        return left_out_teachers(x, seed, config.teachers, config.left_out, config.group_duplicates)
