"""The recipe: how a model is trained, equal for every defense of one table."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from oakum.config import FrozenConfig

GAMMA = 0.1


class Recipe(FrozenConfig):
    """Optimizer, schedule and precision of one training.

    The batch size is the global one: more workers never change it. Nor do they change results, but by rounding, where
    the model has no batch normalization or `batch_norm` is `global`. With `local` they do: each worker normalizes with
    the statistics of its own rows, as data-parallel training commonly does, the first worker's running statistics are
    released, and a batch normalization of rows of features fails on a worker that has a single one.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1, description="of SGD, 0.9 if not given; Adam has none")
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: int = Field(
        default=30,
        ge=0,
        description="0 is for evaluation models alone: use the model's `initial_weights` as they are, untrained",
    )
    batch_size: int = Field(default=64, ge=1)
    drop_last: bool = Field(default=False, description="drop the last partial batch of an epoch")
    images_per_class: int | None = Field(
        default=None,
        ge=1,
        description="batches of batch_size / images_per_class classes with so many samples each, instead of shuffled "
        "ones; an epoch leaves out what does not fill such a batch",
    )
    milestones: tuple[int, ...] = Field(
        default=(), description="epochs (from 0) at which the rate is multiplied by gamma"
    )
    gamma: float = Field(default=GAMMA, gt=0)
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 means autocast")
    channels_last: bool = False
    batch_norm: Literal["local", "global"] = Field(
        default="local",
        description="whose rows give the statistics of batch normalization in training: each worker's own, or the "
        "global batch's; the same with one worker",
    )
    augmentation: tuple[Literal["crop", "flip", "cutout"], ...] = Field(
        default=(),
        description="crop: a random window after padding 4 pixels; flip: left to right; cutout: a square of half the "
        "side becomes 0; attacks never augment",
    )
    select: Literal["last", "best_val"] = Field(default="last", description="which epoch's model is released")
    stop_after: int | None = Field(
        default=None, ge=1, description="end after so many of `epochs`; learning rates follow the whole recipe"
    )

    @property
    def changed(self) -> list[str]:
        """The options that are not at their default, in order of the fields."""
        return [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]

    @property
    def trained_epochs(self) -> int:
        """How many epochs are trained: all, or `stop_after` of them."""
        return self.epochs if self.stop_after is None else self.stop_after

    @model_validator(mode="after")
    def _refuse_options_without_effect(self) -> Recipe:
        if self.optimizer == "adam" and (self.nesterov or self.momentum is not None):
            raise ValueError("momentum and nesterov have no effect with optimizer 'adam'; remove them or use 'sgd'")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; raise momentum or remove nesterov")
        unreachable = [epoch for epoch in self.milestones if not 1 <= epoch < self.epochs]
        if unreachable and self.epochs:
            raise ValueError(
                f"milestones {unreachable} change nothing in {self.epochs} epochs; write epochs from 1 to "
                f"{self.epochs - 1}"
            )
        if self.gamma != GAMMA and not self.milestones:
            raise ValueError("gamma has no effect without milestones; add milestones or remove it")
        if self.stop_after is not None and self.stop_after > self.epochs:
            raise ValueError(f"stop_after {self.stop_after} is beyond the {self.epochs} epochs; lower it or remove it")
        if self.images_per_class is not None and self.drop_last:
            raise ValueError("drop_last has no effect with images_per_class, which drops partial batches; remove it")
        return self

    @model_validator(mode="after")
    def _check_classes_per_batch(self) -> Recipe:
        if self.images_per_class is not None and self.batch_size % self.images_per_class:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of images_per_class {self.images_per_class}; every batch "
                "holds so many samples of each of its classes"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_asked_for(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say nothing of `stop_after` where all epochs are trained: keys of whole trainings do not know it."""
        data: dict[str, Any] = plain(self)
        if self.stop_after is None:
            data.pop("stop_after", None)
        return data
