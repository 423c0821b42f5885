"""TL-DMI: pretrain on public data, freeze the early layers, train the late ones on private data."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense, Teacher
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.seeding import derive_seed
from oakum.training.loop import TrainingLoop, unwrap
from oakum.training.state import TrainState

SOURCE = "source"


class PartlyFrozen(nn.Module):
    """A classifier whose layers before a given one are not trained and see no batch's statistics.

    Layers are ordered as the model registers them. Frozen parameters have `requires_grad` False. Modules whose every
    tensor is frozen stay in eval mode: their normalization reads the source's statistics and changes none.

    Attributes:
        classifier: answers as it would alone.
        frozen: names of the parameters and buffers of `classifier` that training does not change.
    """

    def __init__(self, classifier: Classifier, first_trainable: str) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_classes = classifier.num_classes
        self.input_shape = classifier.input_shape
        self.frozen = _tensors_before(classifier, first_trainable)
        self._frozen_modules = [name for name, _ in classifier.named_modules() if name and self._is_frozen(name)]
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in self.frozen)
        self.train()

    def train(self, mode: bool = True) -> PartlyFrozen:
        """Set training or eval mode; what is frozen stays in eval mode."""
        super().train(mode)
        for name in self._frozen_modules:
            self.classifier.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor, with_taps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return what the classifier returns."""
        answer: Tensor | tuple[Tensor, list[Tensor]] = self.classifier(x, with_taps)
        return answer

    def _is_frozen(self, module: str) -> bool:
        tensors = {name for name in self.classifier.state_dict() if name.startswith(f"{module}.")}
        return bool(tensors) and tensors <= self.frozen


class TransferFreeze(Defense):
    """Starts from a model of public data and trains only the late layers, with a fresh head, on private data.

    The source has the same network. With `source: public` it is the undefended model of the public fold with the
    original classes, trained by the same recipe; with `source: weights` it is the model's initial weights. Layers
    before `first_trainable` keep its values bit for bit, and those after it start from it. Only what is trained of the
    head (the model's `head_modules`) starts from values drawn from the training's seed, whatever the source has there.

    Differs from the released code: frozen normalization keeps the source's statistics, which the authors' code goes on
    adapting to private data, and `first_trainable` names a layer instead of counting it. The authors pretrain on
    ImageNet or on other faces; optimizer, epochs and their choice belong to the experiment.
    """

    source = Source(
        title="Model Inversion Robustness: Can Transfer Learning Help?",
        authors="Sy-Tuyen Ho, Koh Jun Hao, Keshigeyan Chandrasegaran, Ngoc-Bao Nguyen, Ngai-Man Cheung",
        venue="CVPR",
        year=2024,
        link="https://arxiv.org/abs/2405.05588",
    )
    searchable: ClassVar[bool] = True

    class Config(Defense.Config):
        """Settings of transfer learning with frozen layers.

        Attributes:
            source: where the frozen layers come from: the `public` fold, or the model's initial `weights`.
            first_trainable: name of a module of the model, such as `block3` or `stages.3`. What the model registers
                before it is frozen: nothing with the model's first layer, all but the head with its head.
        """

        source: Literal["public", "weights"] = "public"
        first_trainable: str = Field(min_length=1)

    config: Config

    def teachers(self) -> dict[str, Teacher]:
        """Return the undefended model of the public fold, unless the model brings its weights."""
        if self.config.source == "weights":
            return {}
        return {SOURCE: Teacher({"name": "none", "norm": self.config.norm}, public=True)}

    def build(self, model: Classifier) -> nn.Module:
        """Return a `PartlyFrozen` around the model.

        Raises:
            ConfigError: the model has no such layer, or no initial weights to keep, or these did not fit a layer that
                is to be frozen (it would stay random), or belong to another normalization.
        """
        if self.config.source == "weights" and model.config.initial_weights is None:
            raise ConfigError(
                "transfer_freeze: source 'weights' keeps the model's initial weights, but it has none; set "
                "model.initial_weights or defense.source: public"
            )
        if self.config.source == "weights" and self.config.norm != "model":
            raise ConfigError(
                "transfer_freeze: norm 'group' would replace the normalization that the initial weights were trained "
                "with; leave defense.norm out, or set defense.source: public"
            )
        classifier = super().build(model)
        assert isinstance(classifier, Classifier)
        network = PartlyFrozen(classifier, self.config.first_trainable)
        random = sorted(name for name in network.frozen if name.startswith(classifier.left_as_drawn or ("\0",)))
        if random:
            raise ConfigError(
                f"transfer_freeze: the initial weights hold nothing that fits {random[0]!r}, so it would be frozen at "
                "random values; give weights for this image size, or an earlier defense.first_trainable"
            )
        return network

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Take over the source's layers, train the late ones, and make sure that the frozen ones did not change.

        Raises:
            ConfigError: the source is another network.
            RuntimeError: training changed a frozen tensor.
        """
        network = unwrap(state.model)
        assert isinstance(network, PartlyFrozen)
        if network.classifier.config.initial_weights is not None:
            self._draw_head(network, state.seed)
        if self.config.source == "public":
            take_over(network, loop.teachers[SOURCE]().state_dict())
        before = {name: value.clone() for name, value in network.classifier.state_dict().items()}
        trained = loop.run(state, self.loss)
        assert isinstance(trained, PartlyFrozen)
        after = trained.classifier.state_dict()
        changed = sorted(name for name in trained.frozen if not torch.equal(before[name], after[name]))
        if changed:
            raise RuntimeError(f"transfer_freeze: training changed the frozen tensor {changed[0]!r}")
        return trained

    @torch.no_grad()
    def _draw_head(self, network: PartlyFrozen, seed: int) -> None:
        """Give the head, where it is trained, the values that a training of this seed without initial weights draws."""
        classifier = network.classifier
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            drawn = type(classifier)(classifier.config, classifier.input_shape, classifier.num_classes)
        own, fresh = classifier.state_dict(), super().build(drawn).state_dict()
        for name in _names_of_head(classifier) - network.frozen:
            own[name].copy_(fresh[name])


def take_over(network: PartlyFrozen, source: dict[str, Tensor]) -> None:
    """Copy the frozen tensors, and all others but the head's, from a source's state into a network, in place.

    Raises:
        ConfigError: the source lacks one of them, or has it in another shape; nothing is copied then.
    """
    own = network.classifier.state_dict()
    fresh = _names_of_head(network.classifier) - network.frozen
    wanted = [name for name in own if name not in fresh]
    for name in wanted:
        if name not in source or source[name].shape != own[name].shape:
            found = f"has it with shape {tuple(source[name].shape)}" if name in source else "has none"
            raise ConfigError(
                f"transfer_freeze: the model needs {name!r} with shape {tuple(own[name].shape)}, but its source "
                f"{found}; the source must be the same network, and no layer with one output per class can be frozen"
            )
    for name in wanted:
        own[name].copy_(source[name])


def _names_of_head(classifier: Classifier) -> frozenset[str]:
    head = tuple(f"{name}." for name in classifier.head_modules)
    return frozenset(name for name in classifier.state_dict() if name.startswith(head))


def _tensors_before(classifier: Classifier, first_trainable: str) -> frozenset[str]:
    """Return the names of all parameters and stored buffers that are registered before a module.

    Raises:
        ConfigError: the classifier has no such module with parameters.
    """
    names = list(classifier.state_dict())
    count = next((place for place, name in enumerate(names) if name.startswith(f"{first_trainable}.")), None)
    if count is None:
        children = ", ".join(name for name, child in classifier.named_children() if child.state_dict())
        raise ConfigError(
            f"transfer_freeze: the model has no layer {first_trainable!r} with parameters; set "
            f"defense.first_trainable to one of {children}, or to a layer inside one"
        )
    return frozenset(names[:count])
