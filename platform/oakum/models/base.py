"""What every classifier offers: logits, tap points, and its input normalization as the first layer."""

from __future__ import annotations

from collections.abc import Mapping
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
        head_modules: names of the modules between the trunk and the logits.
        fresh_prefixes: beginnings of the names of weights that `load_initial` may leave as drawn: the head, and what
            depends on the classes or the image size.
        published_start: what the published recipe starts training from, such as "ImageNet"; None: random values. A plan
            warns of a target without initial weights whose recipe has some.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    tap_names: ClassVar[tuple[str, ...]] = ()
    trunk_width: int = 0
    head_modules: ClassVar[tuple[str, ...]] = ("head",)
    fresh_prefixes: ClassVar[tuple[str, ...]] = ()
    published_start: ClassVar[str | None] = None
    version: ClassVar[int | None] = None
    _mean: Tensor
    _std: Tensor

    class Config(FrozenConfig):
        """Settings that every classifier has.

        Attributes:
            mean, std: per channel (images) or one number for all features; inputs x in [0, 1] become
                (x - mean) / std. None leaves them as they are.
            initial_weights: name of weights (`oakum weights list`) that training starts from; None: random.
        """

        mean: tuple[float, ...] | None = None
        std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
        initial_weights: str | None = None

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.head_dropout = SampleDropout()
        self.left_as_drawn: tuple[str, ...] = ()
        self.register_buffer("_mean", _constant(config.mean, 0.0, input_shape), persistent=False)
        self.register_buffer("_std", _constant(config.std, 1.0, input_shape), persistent=False)

    def dropout_layers(self) -> list[SampleDropout]:
        """Return the layers that the defense `dropout` switches on: by default the one before the head."""
        return [self.head_dropout]

    def load_initial(self, state: Mapping[str, Tensor]) -> None:
        """Start from the weights of another training run, such as one on ImageNet.

        What is under one of `fresh_prefixes` is taken when all of it fits and stays as drawn otherwise. All else must
        be the same in `state` and here: names, shapes, and whether they hold floats; the dtype stays the model's.
        `left_as_drawn` then says which prefixes were not taken.

        Raises:
            ConfigError: names the first three tensors that do not fit; the model is not changed.
        """
        own = self.state_dict()
        names = [*own, *(name for name in state if name not in own)]
        misfits = {name: text for name in names if (text := _misfit(own.get(name), state.get(name)))}
        fresh = tuple(prefix for prefix in self.fresh_prefixes if any(name.startswith(prefix) for name in misfits))
        offenders = [f"{name!r} {text}" for name, text in misfits.items() if not name.startswith(fresh)]
        if offenders:
            more = f" (and {len(offenders) - 3} more)" if len(offenders) > 3 else ""
            raise ConfigError(
                f"the initial weights are not those of {type(self).__name__} on {self.input_shape.dims}: "
                f"{'; '.join(offenders[:3])}{more}. Give weights of the same architecture, under the names it has here"
            )
        own.update({name: value for name, value in state.items() if not name.startswith(fresh)})
        self.load_state_dict(own)
        self.left_as_drawn = fresh

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


def _misfit(own: Tensor | None, given: Tensor | None) -> str:
    """Return what is wrong with a given tensor in the place of a module's own; empty when it fits."""
    if own is None:
        return "is not in the model"
    if given is None:
        return "is missing"
    if own.shape != given.shape:
        return f"has shape {tuple(given.shape)}, the model needs {tuple(own.shape)}"
    if own.is_floating_point() != given.is_floating_point():
        return f"holds {given.dtype}, the model needs {own.dtype}"
    return ""


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def same_architecture(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have equal parameter names and shapes, the first dimension of each aside.

    So the number of classes does not matter, nor under which of its names a network is registered.
    """
    a = {name: tuple(p.shape[1:]) for name, p in first.named_parameters()}
    b = {name: tuple(p.shape[1:]) for name, p in second.named_parameters()}
    return a == b


def same_up_to_sizes(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules are the same layers with equal kernels; widths, image size and number of classes may differ.

    The layers have to be the same by name or, under whatever names, in their order. Only layers with parameters are
    compared: their types and the shapes of their kernels.
    """
    a, b = _layers(first), _layers(second)
    return a == b or list(a.values()) == list(b.values())


def _layers(network: nn.Module) -> dict[str, tuple[type[nn.Module], tuple[torch.Size, ...]]]:
    """Return name -> type and kernel shapes of each layer that has parameters of its own, in their order."""
    own = {name: (layer, tuple(layer.parameters(recurse=False))) for name, layer in network.named_modules()}
    return {
        name: (type(layer), tuple(each.shape[2:] for each in found)) for name, (layer, found) in own.items() if found
    }


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
