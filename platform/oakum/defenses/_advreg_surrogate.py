"""The second player of adversarial regularization: a network that tells members from non-members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

Inputs = Literal["softmax", "sorted_softmax", "logits", "sorted_logits"]
Penalty = Literal["log", "linear", "square", "centered_square"]
SurrogateLoss = Literal["cross_entropy", "squared_error"]
LayoutName = Literal["texas", "purchase", "cifar", "image"]


@dataclass(frozen=True)
class Layout:
    """Widths of a surrogate for K classes; a layer of one output follows `head`.

    Attributes:
        scores: layers on the target's scores, K inputs, each followed by ReLU.
        labels: layers on the label, K inputs; empty when the surrogate does not see the label.
        head: layers on both branches side by side, each followed by ReLU.
        has_linear_labels: whether the layers on the label go without ReLU.
        has_normal_weights: whether weights start from N(0, 0.01^2) and biases from 0, otherwise both from the uniform
            distribution over +-1/sqrt(inputs).
    """

    scores: tuple[int, ...]
    labels: tuple[int, ...] = ()
    head: tuple[int, ...] = ()
    has_linear_labels: bool = False
    has_normal_weights: bool = True


LAYOUTS: dict[LayoutName, Layout] = {
    "texas": Layout(scores=(512, 64), labels=(64,), head=(64,), has_linear_labels=True),
    "purchase": Layout(scores=(1024, 512, 64), labels=(128, 64), head=(512, 256, 128, 64)),
    "cifar": Layout(scores=(1024, 512, 64), labels=(128, 64), head=(256, 128, 64)),
    "image": Layout(scores=(100,), has_normal_weights=False),
}


@dataclass(frozen=True)
class Form:
    """One published form of the game.

    Attributes:
        layout: of the surrogate.
        inputs: what the surrogate sees of the target's answer; `sorted_` puts the values in ascending order.
        has_signed_labels: whether labels are vectors of -1 with +1 at the class, otherwise one-hot.
        loss: what the surrogate minimizes.
        penalty: what the target minimizes.
        freezes_hidden: whether only the surrogate's last layer is trained.
    """

    layout: LayoutName
    inputs: Inputs
    has_signed_labels: bool
    loss: SurrogateLoss
    penalty: Penalty
    freezes_hidden: bool = False


class Surrogate(nn.Module):
    """D(z, y): gives each answer of the target the log-odds of being a member's."""

    def __init__(self, form: Form, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.form = form
        layout = LAYOUTS[form.layout]
        self.scores = _layers(num_classes, layout.scores)
        self.labels = _layers(num_classes, layout.labels, is_linear=layout.has_linear_labels)
        joined = sum(branch[-1] for branch in (layout.scores, layout.labels) if branch)
        self.head = _layers(joined, layout.head)
        self.output = skip_init(nn.Linear, (joined, *layout.head)[-1], 1)
        for layer in self._linear_layers():
            _initialize(layer, layout.has_normal_weights, generator)
            layer.requires_grad_(layer is self.output or not form.freezes_hidden)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return log-odds (B,) of membership for the target's logits (B, K) and labels y (B,) int64.

        Their sigmoid is D in [0, 1], 1 for a member.
        """
        hidden = self.scores(attack_inputs(logits, self.form.inputs))
        if len(self.labels):
            vectors = label_vectors(y, logits.shape[1], signed=self.form.has_signed_labels).to(hidden.dtype)
            hidden = torch.cat([hidden, self.labels(vectors)], dim=1)
        odds: Tensor = self.output(self.head(hidden)).squeeze(1)
        return odds

    def _linear_layers(self) -> Iterator[nn.Linear]:
        return (layer for layer in self.modules() if isinstance(layer, nn.Linear))


def attack_inputs(logits: Tensor, inputs: Inputs) -> Tensor:
    """Return what a surrogate sees of logits (B, K), of equal shape; gradients flow through sorting."""
    values = logits.softmax(dim=1) if inputs in ("softmax", "sorted_softmax") else logits
    return values.sort(dim=1).values if inputs in ("sorted_softmax", "sorted_logits") else values


def label_vectors(y: Tensor, num_classes: int, *, signed: bool) -> Tensor:
    """Return (B, K) int64 vectors of labels y (B,): 1 at the class and 0 elsewhere, or -1 where `signed`."""
    one_hot = F.one_hot(y, num_classes)
    return 2 * one_hot - 1 if signed else one_hot


def surrogate_loss(member_odds: Tensor, nonmember_odds: Tensor, loss: SurrogateLoss) -> Tensor:
    """Return the mean of what the surrogate minimizes over as many members as non-members.

    Args:
        member_odds, nonmember_odds: (B,) log-odds of membership.
        loss: `cross_entropy` is -(log D) for members and -log(1 - D) for others, the negative gain of Nasr et al.
            2018; `squared_error` is (D - 1)^2 and D^2.
    """
    if loss == "cross_entropy":
        return -(F.logsigmoid(member_odds).mean() + F.logsigmoid(-nonmember_odds).mean()) / 2
    return ((member_odds.sigmoid() - 1).square().mean() + nonmember_odds.sigmoid().square().mean()) / 2


def penalties(odds: Tensor, penalty: Penalty) -> Tensor:
    """Return what the target pays for each member, (B,), before the weight alpha.

    Args:
        odds: (B,) log-odds of membership; D is their sigmoid.
        penalty: `log` is 0.5 log D, the members' part of the surrogate's gain (Nasr et al. 2018); `linear`
            is D - 0.5; `square` is D^2; `centered_square` is (D - 0.5)^2, the only one that is least at D = 0.5.
    """
    if penalty == "log":
        return 0.5 * F.logsigmoid(odds)
    probability = odds.sigmoid()
    if penalty == "linear":
        return probability - 0.5
    return probability.square() if penalty == "square" else (probability - 0.5).square()


def _layers(inputs: int, widths: tuple[int, ...], *, is_linear: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, width in zip((inputs, *widths), widths, strict=False):
        layers.append(skip_init(nn.Linear, before, width))
        if not is_linear:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _initialize(layer: nn.Linear, has_normal_weights: bool, generator: torch.Generator) -> None:
    if has_normal_weights:
        nn.init.normal_(layer.weight, std=0.01, generator=generator)
        nn.init.zeros_(layer.bias)
        return
    bound = layer.in_features**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
