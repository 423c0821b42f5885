"""The undefended baseline `none`, and the base class of every defense.

A paper overrides only what it changes: `build` (the network), `prepare` (optimizer, second player), `loss` (what a
step minimizes), `fit` (the whole training), `release` (what the adversary may query). What it needs beside the
training fold it declares: `reads` (further folds), `teachers` (models trained before), `snapshot`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from oakum.config import ConfigError, FrozenConfig, validate
from oakum.models._normalization import batch_to_group_norm
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

if TYPE_CHECKING:
    from oakum.training.loop import LabeledData, TrainingLoop


@dataclass(frozen=True)
class Teacher:
    """A model that is trained before this one, as a stored stage of its own with the same network and recipe.

    Attributes:
        defense: its defense as plain data, `{"name": "none"}` for an ordinary model.
        own_rows: whether it trains on the rows that `Defense.teacher_rows` gives, with a seed of its own; otherwise on
            the whole training fold with the seed of the model that it teaches, so that it is the undefended model
            of that seed itself.
        public: whether it trains on the public fold with the original classes and a seed of its own: its head is as
            wide as the data set has classes, and it never meets a private row. Not together with `own_rows`.
    """

    defense: dict[str, Any]
    own_rows: bool = False
    public: bool = False

    def __post_init__(self) -> None:
        if self.own_rows and self.public:
            raise ValueError("a teacher trains on rows of its own or on the public fold, not on both")


@dataclass(frozen=True)
class Snapshot:
    """An earlier epoch of another training: settings with equal `defense` share one training.

    Attributes:
        defense: what is trained, as plain data.
        epoch: released after so many epochs.
    """

    defense: dict[str, Any]
    epoch: int


class Defense:
    """Trains with the mean cross-entropy and releases the model as it is.

    Attributes:
        source: the paper, or None for the baseline.
        searchable: whether `search_spaces/<name>.yaml` exists; False for a method with nothing to tune.
        needs_taps: whether `loss` reads hidden layers; models without tap points are refused before training.
        couples_batch: whether the loss of one sample depends on the others in its batch. The batch size is then
            part of the method, and per-sample gradients do not exist.
        reads: folds beside the training fold that `fit` reads from `loop.folds`, such as `reference`. A shadow model
            reads the adversary's own in their place (`shadow_reference`).
        masks_output: whether `release` hides something that the weights would show. A label-only attack is then added
            to the experiment, and attacks with access to weights act on `unmasked`.
        schedulable: settings that a `schedule` may change between epochs: read anew at every step, and no part of the
            network, the optimizer, the released model or a privacy accounting.
        version: an int once the method is stable; None puts the fingerprint of its code into stage keys.
    """

    source: ClassVar[Source | None] = None
    searchable: ClassVar[bool] = False
    needs_taps: ClassVar[bool] = False
    couples_batch: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    masks_output: ClassVar[bool] = False
    schedulable: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        """Settings that every defense has.

        Attributes:
            norm: `group` replaces the model's batch normalization by group normalization (min(32, channels) groups, as
                the RelaxLoss experiments do for DP-SGD); set it on `none` for a row on the same network.
            schedule: epoch, counted from 0 -> settings from this epoch on; the others stay as they were before it.
                Trainings that agree up to an epoch listed here share what is trained until then.
        """

        norm: Literal["model", "group"] = Field(default="model")
        schedule: dict[int, dict[str, Any]] = Field(default={})

        @model_serializer(mode="wrap")
        def _leave_out_no_schedule(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
            """Say nothing of a schedule where there is none: documents and keys of plain settings do not know it."""
            data: dict[str, Any] = plain(self)
            if self.schedule == {}:
                data.pop("schedule", None)
            return data

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """The name in YAML."""
        stem = type(self).__module__.rsplit(".", 1)[-1]
        return "none" if stem == "base" else stem

    def check(self, model: type[Classifier], num_classes: int) -> list[str]:
        """Return warnings for this combination; called when the plan is made, before any work.

        Raises:
            ConfigError: the model cannot serve this defense.
        """
        if self.needs_taps and not model.tap_names:
            raise ConfigError(
                f"defense {self.name!r} needs hidden layers, but model "
                f"{model.__module__.rsplit('.', 1)[-1]!r} declares no tap points; choose a model with tap points "
                "(`oakum list models` shows them)"
            )
        return []

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Return warnings for a recipe and a training fold of `train_size` samples; called when the plan is made.

        Raises:
            ConfigError: the defense cannot train so.
        """
        return []

    def phases(self, epochs: int) -> dict[int, Config]:
        """Return the settings of each part of the training, without a schedule, by the epoch that it begins in.

        The first begins in epoch 0. An entry of the schedule that changes nothing is a part too.

        Args:
            epochs: of the whole recipe.

        Raises:
            ConfigError: the schedule names an epoch that is not inside the training, a setting that cannot change
                while it trains, or a value that is none.
        """
        options = self.config.model_dump(mode="json")
        schedule = options.pop("schedule", None)
        if not isinstance(schedule, dict):
            return {0: self.config}
        if self.snapshot() is not None or not self.schedulable:
            raise ConfigError(
                f"defense {self.name!r} has no setting that can change during training; remove `schedule`"
            )
        found = {0: validate(type(self.config), options, self.name)}
        for epoch, changes in sorted(self.config.schedule.items()):
            where = f"{self.name}: schedule.{epoch}"
            if not 1 <= epoch < epochs:
                raise ConfigError(
                    f"{where}: training has the epochs 0 to {epochs - 1}, and epoch 0 has the settings outside the "
                    "schedule; write an epoch between"
                )
            for name in changes:
                if name not in self.schedulable:
                    raise ConfigError(
                        f"{where}: {name!r} cannot change during training; what can: {', '.join(self.schedulable)}"
                    )
            options |= changes
            found[epoch] = validate(type(self.config), options, where)
        return found

    def teachers(self) -> dict[str, Teacher]:
        """Return the models that are trained first, by name; `fit` finds them in `loop.teachers`."""
        return {}

    def teacher_rows(self, teacher: str, data: LabeledData, seed: int) -> Tensor:
        """Return the positions (int64) of the training fold that a teacher with `own_rows` trains on.

        Args:
            teacher: its name.
            data: the training fold of the model that it teaches.
            seed: of the model that it teaches.
        """
        raise TypeError(f"{type(self).__name__} must implement teacher_rows")

    def snapshot(self) -> Snapshot | None:
        """Return which epoch of which training this defense releases, or None when it trains a model of its own."""
        return None

    def build(self, model: Classifier) -> nn.Module:
        """Return the network whose weights are trained and stored, given a fresh classifier; it may change `model`.

        Called before the optimizer is made, and whenever stored weights are loaded. What has `requires_grad` False
        is not optimized.
        """
        if self.config.norm == "group":
            batch_to_group_norm(model)
        return model

    def prepare(self, state: TrainState) -> TrainState:
        """Return the state to train with; called once, before the first epoch and before a checkpoint is loaded."""
        return state

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the scalar to minimize for this rank's shard of the batch (mean cross-entropy, in nats).

        Under data parallelism gradients are averaged over ranks: `state.batch_mean` is right for shards of any
        size, and a loss that couples the batch gathers what it needs through `state.collective`.
        """
        return state.batch_mean(F.cross_entropy(state.forward(batch.x), batch.y, reduction="none"))

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train and return the network of `build`.

        `loop.run(state, self.loss)` is the ordinary loop with its checkpoints. Numbers to report beside the
        accuracies go into `loop.metrics` (`privacy/epsilon`).
        """
        return loop.run(state, self.loss)

    def release(self, module: nn.Module, seed: int) -> nn.Module:
        """Return what the adversary may query; its logits' softmax are the released scores.

        Equal inputs get equal answers, whatever else is in the batch: randomness is keyed by the input's content
        (`oakum.seeding.content_keys`).

        Args:
            module: the network of `build` with its trained weights.
            seed: a secret of the defender, for keyed randomness.
        """
        return module

    def unmasked(self, module: nn.Module) -> nn.Module:
        """Return the classifier that an adversary with the weights works on: differentiable, without any mask."""
        return module
