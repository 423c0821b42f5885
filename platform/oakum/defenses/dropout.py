"""Dropout before the last linear layer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.seeding import derive_seed, sample_keys
from oakum.training.loop import unwrap
from oakum.training.state import Batch, TrainState


class Dropout(Defense):
    """Trains with random zeros in the model's dropout layers; the released model drops nothing.

    A mask belongs to (seed, layer, step, sample): it does not depend on how the batch is cut into shards.

    Differs from the paper: only the input of the last linear layer is dropped, as in the RelaxLoss experiments, not the
    model's input and every hidden layer. Kept values are scaled up in training instead of weights down afterwards.
    """

    source = Source(
        title="Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
        authors="Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov",
        venue="JMLR",
        year=2014,
        link="https://jmlr.org/papers/v15/srivastava14a.html",
    )
    searchable: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("rate",)

    class Config(Defense.Config):
        """Settings of dropout.

        Attributes:
            rate: probability that a value is dropped; 0 is ordinary training. RelaxLoss compares with 0.1 to 0.9.
        """

        rate: float = Field(default=0.5, ge=0, lt=1)

    config: Config

    def build(self, model: Classifier) -> nn.Module:
        """Switch the model's dropout layers on.

        Raises:
            ConfigError: it has none.
        """
        network = super().build(model)
        layers = model.dropout_layers()
        if not layers:
            raise ConfigError(
                f"defense 'dropout' needs dropout layers, but model {type(model).__module__.rsplit('.', 1)[-1]!r} has "
                "none; choose another model"
            )
        for layer in layers:
            layer.rate = self.config.rate
        return network

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean cross-entropy with this step's masks."""
        model = unwrap(state.model)
        assert isinstance(model, Classifier)
        index = batch.index.to(state.device)
        for number, layer in enumerate(model.dropout_layers()):
            layer.keys = sample_keys(derive_seed(state.seed, "dropout", number, state.step), index)
        return super().loss(state, batch)
