"""The undefended baseline `none`, and the base class of every defense.

A paper overrides only what it changes: `prepare` (model, optimizer), `loss` (what a step minimizes), `fit` (the
whole training), `release` (what the adversary may query).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError, FrozenConfig
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.training.state import Batch, TrainState

if TYPE_CHECKING:
    from oakum.training.loop import TrainingLoop


class Defense:
    """Trains with the mean cross-entropy and releases the model as it is.

    Attributes:
        source: the paper, or None for the baseline.
        searchable: whether `search_spaces/<name>.yaml` exists; False for a method with nothing to tune.
        needs_taps: whether `loss` reads hidden layers; models without tap points are refused before training.
        couples_batch: whether the loss of one sample depends on the others in its batch. The batch size is then
            part of the method, and per-sample gradients do not exist.
        version: an int once the method is stable; None puts the fingerprint of its code into stage keys.
    """

    source: ClassVar[Source | None] = None
    searchable: ClassVar[bool] = False
    needs_taps: ClassVar[bool] = False
    couples_batch: ClassVar[bool] = False
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def check(self, model: type[Classifier], num_classes: int) -> list[str]:
        """Return warnings for this combination; called when the plan is made, before any work.

        Raises:
            ConfigError: the model cannot serve this defense.
        """
        if self.needs_taps and not model.tap_names:
            raise ConfigError(
                f"defense {type(self).__module__.rsplit('.', 1)[-1]!r} needs hidden layers, but model "
                f"{model.__module__.rsplit('.', 1)[-1]!r} declares no tap points; choose a model with tap points "
                "(`oakum list models` shows them)"
            )
        return []

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
        """Train and return the model; `loop.run(state, self.loss)` is the ordinary loop with its checkpoints."""
        return loop.run(state, self.loss)

    def release(self, module: nn.Module) -> nn.Module:
        """Return what the adversary may query; its logits' softmax are the released scores."""
        return module
