"""What every classifier offers: logits, tap points, and its input normalization as the first layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError, FrozenConfig
from oakum.models._dropout import SampleDropout
from oakum.registry import Source


@dataclass(frozen=True)
class InputShape:
    """Shape of one sample: images are (channels, height, width), tabular rows are (features,)."""

    dims: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        return len(self.dims) == 3


class Classifier(nn.Module):
    """Base class of classifiers; a model file defines one subclass with a nested `Config`.

    Subclasses take `(config, input_shape, num_classes)` and implement `features_and_logits`.

    Attributes:
        tap_names: names of the hidden layers that `forward(x, with_taps=True)` returns, in order. Empty when
            the model offers none: defenses that need hidden layers refuse such a model.
        trunk_width: width D of what `trunk` returns; 0 when the model offers no trunk: defenses that put a bottleneck
            of their own in the head's place refuse such a model.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    tap_names: ClassVar[tuple[str, ...]] = ()
    trunk_width: int = 0
    version: ClassVar[int | None] = None
    _mean: Tensor
    _std: Tensor

    class Config(FrozenConfig):
        """Settings that every classifier has.

        Attributes:
            mean, std: per channel (images) or one number for all features; inputs x in [0, 1] become
                (x - mean) / std. None leaves them as they are.
        """

        mean: tuple[float, ...] | None = None
        std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.head_dropout = SampleDropout()
        self.register_buffer("_mean", _constant(config.mean, 0.0, input_shape), persistent=False)
        self.register_buffer("_std", _constant(config.std, 1.0, input_shape), persistent=False)

    def dropout_layers(self) -> list[SampleDropout]:
        """Return the layers that the defense `dropout` switches on: by default the one before the head."""
        return [self.head_dropout]

    def normalize(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std for x (B, *dims) in [0, 1]."""
        if self.config.mean is None and self.config.std is None:
            return x
        return (x - self._mean) / self._std

    @property
    def input_scale(self) -> Tensor:
        """What a gradient with respect to x is multiplied with to be one with respect to the normalized input."""
        return self._std

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K) and the tapped hidden layers, each (B, ...), for normalized inputs x (B, *dims).

        Apply `self.head_dropout` to what the last linear layer gets.
        """
        raise TypeError(f"{type(self).__name__} must implement logits_and_taps")

    def trunk(self, x: Tensor) -> Tensor:
        """Return the flat features (B, trunk_width) from which an information bottleneck starts, for normalized x.

        They are what the paper of the bottleneck takes: before a last normalization that belongs to the head.
        """
        raise TypeError(f"{type(self).__name__} offers no trunk")

    def forward(self, x: Tensor, with_taps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits (B, K), or (logits, taps) when `with_taps`; x is float in [0, 1] of shape (B, *dims)."""
        logits, taps = self.logits_and_taps(self.normalize(x))
        return (logits, taps) if with_taps else logits


def _constant(values: tuple[float, ...] | None, default: float, shape: InputShape) -> Tensor:
    """Return a tensor that broadcasts over samples: (C, 1, 1) for images, (1,) for rows.

    Raises:
        ConfigError: another number of values than channels.
    """
    channels = shape.dims[0] if shape.is_image else 1
    chosen = values if values is not None else (default,) * channels
    if len(chosen) not in (1, channels):
        raise ConfigError(f"model.mean and model.std need 1 or {channels} numbers, got {len(chosen)}")
    constant = torch.tensor(chosen)
    return constant.view(-1, 1, 1) if shape.is_image else constant


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def same_architecture(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have equal class and equal parameter names and shapes, the output layer's width aside."""
    if type(first) is not type(second):
        return False
    a = {name: tuple(p.shape[1:]) for name, p in first.named_parameters()}
    b = {name: tuple(p.shape[1:]) for name, p in second.named_parameters()}
    return a == b


@torch.no_grad()
def predict_log_probabilities(module: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Return float64 log-probabilities (N, K) of an eval-mode forward in float32; N may be 0.

    The module's training flag is restored afterwards.
    """
    was_training = module.training
    module.eval()
    try:
        parts = [module(part).double().log_softmax(dim=1) for part in x.split(batch_size)]
    finally:
        module.train(was_training)
    return torch.cat(parts) if parts else torch.empty(0, getattr(module, "num_classes", 0), dtype=torch.float64)
