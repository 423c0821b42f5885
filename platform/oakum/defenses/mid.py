"""MID: logits from a noisy code that keeps little information about the input."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.seeding import content_keys, derive_seed, keyed_normal, sample_keys
from oakum.training.loop import unwrap
from oakum.training.state import Batch, TrainState

# Of the linear layer's output before softplus: codes start with little noise.
_DEVIATION_OFFSET = 5.0


def information(mu: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mu, std^2) || N(0, 1)) in nats, summed over the code of each sample, (B,), at least 0.

    Args:
        mu, std: (B, k); std above 0.
    """
    return (mu.square() + std.square() - 1 - 2 * std.log()).sum(dim=1) / 2


class BottleneckClassifier(nn.Module):
    """The trunk of a classifier, a Gaussian code of half its width, and a linear head on the code.

    In training mode the head reads a draw of the code, in eval mode its mean.

    Attributes:
        classifier: gives the trunk; its own head is taken out.
        statistics: linear, trunk -> mean and deviation of the code.
        head: linear, code -> logits.
        keys: (B,) int64, one for each sample of the next batch; to be set before every forward pass in training mode.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        code_width = classifier.trunk_width // 2
        self.classifier = without_head(classifier)
        self.statistics = nn.Linear(classifier.trunk_width, 2 * code_width)
        self.head = nn.Linear(code_width, classifier.num_classes)
        self.num_classes = classifier.num_classes
        self.input_shape = classifier.input_shape
        self.keys: Tensor | None = None

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the code, each (B, k), for x (B, *dims) in [0, 1]; deviations are positive."""
        mu, raw = self.statistics(self.classifier.trunk(self.classifier.normalize(x))).chunk(2, dim=1)
        return mu, F.softplus(raw - _DEVIATION_OFFSET)

    def draw(self, x: Tensor, keys: Tensor) -> Tensor:
        """Return logits (B, K) of codes with the noise of `keys` (B,) int64; gradients reach x through both parts."""
        return self._draw(*self.code(x), keys)

    def forward(self, x: Tensor, with_taps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits (B, K), or (logits, taps) when `with_taps`.

        The last taps are deviation and mean of the code. In eval mode the classifier's own come before them, from a
        second pass; in training mode normalization layers would count it.
        """
        mu, std = self.code(x)
        if self.training:
            if self.keys is None or len(self.keys) != len(x):
                raise RuntimeError("a bottleneck needs one key for each sample: set `keys` before a training step")
            logits = self._draw(mu, std, self.keys)
        else:
            logits = self.head(mu)
        if not with_taps:
            return logits
        own = [] if self.training else self.classifier.logits_and_taps(self.classifier.normalize(x))[1]
        return logits, [*own, std, mu]

    def _draw(self, mu: Tensor, std: Tensor, keys: Tensor) -> Tensor:
        logits: Tensor = self.head(mu + std * keyed_normal(keys, mu.shape[1]))
        return logits


def without_head(classifier: Classifier) -> Classifier:
    """Take the modules behind the trunk, named in `head_modules`, out of a classifier, and return it.

    What passes them is not changed from then on, so that taps can still be read.
    """
    for name in classifier.head_modules:
        classifier.get_submodule(name)
        setattr(classifier, name, nn.Identity())
    return classifier


class NoisyBottleneck(nn.Module):
    """Answers (B, *dims) with logits (B, K) of a noisy code; the noise is keyed by the query's content."""

    def __init__(self, bottleneck: BottleneckClassifier, seed: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.num_classes = bottleneck.num_classes
        self.input_shape = bottleneck.input_shape
        self._seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K); gradients reach x as if the noise were a constant."""
        return self.bottleneck.draw(x, content_keys(self._seed, x))


class MID(Defense):
    """Puts a variational information bottleneck in the place of the head; adds beta times its information.

    The loss is cross-entropy plus beta * KL(N(mu, std^2) || N(0, 1)), summed over the code and averaged over the batch.
    In training, noise belongs to (seed, step, sample): it does not depend on how the batch is cut into shards.

    The weights show the mean of every code (`unmasked`), whatever is released.

    Differs from the released code: the head reads the code's mean at inference, where the authors' code draws fresh
    noise for every query and for every gradient of an attack. With `inference: noise` the released model draws too, but
    equal queries get equal noise, so that asking again does not average it out. Optimizer and epochs are the recipe's.
    """

    source = Source(
        title="Improving Robustness to Model Inversion Attacks via Mutual Information Regularization",
        authors="Tianhao Wang, Yuheng Zhang, Ruoxi Jia",
        venue="AAAI",
        year=2021,
        link="https://arxiv.org/abs/2009.05241",
    )
    searchable: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("beta",)

    class Config(Defense.Config):
        """Settings of the information bottleneck.

        Attributes:
            beta: weight of the information; it has no default, as it differs by data: 0.003 to 0.02 on faces with
                VGG-16, 0.2 on MNIST.
            inference: what the released model reads, the `mean` of the code or a draw with `noise`.
        """

        beta: float = Field(ge=0)
        inference: Literal["mean", "noise"] = "mean"

    config: Config

    def check(self, model: type[Classifier], num_classes: int) -> list[str]:
        """Refuse models without a trunk."""
        if model.trunk is Classifier.trunk:
            raise _no_trunk(model)
        return super().check(model, num_classes)

    def build(self, model: Classifier) -> nn.Module:
        """Return a `BottleneckClassifier` on the model's trunk.

        Raises:
            ConfigError: the model offers none, or one too narrow for a code.
        """
        if model.trunk_width == 0:
            raise _no_trunk(type(model))
        if model.trunk_width < 2:
            raise ConfigError(f"mid: a trunk of width {model.trunk_width} leaves no code of half its width; widen it")
        classifier = super().build(model)
        assert isinstance(classifier, Classifier)
        return BottleneckClassifier(classifier)

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of this step's draws plus beta times the mean information."""
        network = unwrap(state.model)
        assert isinstance(network, BottleneckClassifier)
        network.keys = sample_keys(derive_seed(state.seed, "bottleneck", state.step), batch.index.to(state.device))
        logits, (std, mu) = state.forward_with_taps(batch.x)
        losses = F.cross_entropy(logits, batch.y, reduction="none") + self.config.beta * information(mu, std)
        return state.batch_mean(losses)

    def release(self, module: nn.Module, seed: int) -> nn.Module:
        """Return the trained network, or one with noise that is keyed by `seed` and the query."""
        assert isinstance(module, BottleneckClassifier)
        return NoisyBottleneck(module, seed) if self.config.inference == "noise" else module


def _no_trunk(model: type[Classifier]) -> ConfigError:
    return ConfigError(
        f"defense 'mid' needs a trunk to put its bottleneck on, but model {model.__module__.rsplit('.', 1)[-1]!r} "
        "offers none; choose a model whose trunk_width is above 0"
    )
