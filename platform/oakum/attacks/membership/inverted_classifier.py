"""Inverted classifier attack: learn on a shadow model how scores look after a mask made a membership classifier err."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership._scores import confidence_score
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

HIDDEN = (256, 128, 64)
EPOCHS = 200
BATCH_SIZE = 256
LEARNING_RATE = 1e-3


class InvertedClassifier(MembershipAttack):
    """Scores a point by a network of the shape of MemGuard's detector, trained on the shadow models' released scores.

    MemGuard moves a vector just across the boundary of the defender's detector, so that the detector, read with the
    opposite sign, still tells members from non-members. The adversary replays the defense on shadow models and trains
    on what they release: the network learns the flipped relation itself, no sign is changed by hand.

    Its input is the released probabilities sorted ascending, and the probability of the point's label, which the
    defender's detector does not see. `nn` has a smaller network, reads logarithms, and no label.

    Differs from the paper: this adaptive attack is not in it, and the paper's attacker trains on undefended
    shadow models. The adversary has the released scores of shadow models only, so it cannot train on clean ones.
    """

    source = Source(
        title="MemGuard: Defending against Black-Box Membership Inference Attacks via Adversarial Examples",
        authors="Jinyuan Jia, Ahmed Salem, Michael Backes, Yang Zhang, Neil Zhenqiang Gong",
        venue="CCS",
        year=2019,
        link="https://arxiv.org/abs/1909.10594",
    )
    needs_shadow: ClassVar[bool] = True
    fixed_threshold: ClassVar[float | None] = 0.5

    class Config(MembershipAttack.Config):
        """Settings of the inverted classifier attack.

        Attributes:
            with_label: whether the network sees the probability of the label; without, it sees what the defender's
                detector sees.
        """

        with_label: bool = True

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._fitted: tuple[Knowledge, nn.Module] | None = None

    @torch.no_grad()
    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64, the network's probability of membership.

        Raises:
            ValueError: no shadow model, or none with members and non-members.
        """
        inputs = self._inputs(target.scores(points), points.y.cpu().numpy())
        scores: NDArray[np.float64] = self._network(knowledge)(inputs).squeeze(1).double().sigmoid().numpy()
        return scores

    def _inputs(self, log_probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> Tensor:
        """Return float32 inputs (N, K) or, with the label's probability in the last column, (N, K + 1)."""
        true = confidence_score(log_probabilities, y)[:, None]
        ascending = np.sort(np.exp(log_probabilities), axis=1)
        return torch.from_numpy(np.hstack([ascending, true]) if self.config.with_label else ascending).float()

    def _network(self, knowledge: Knowledge) -> nn.Module:
        """Return the network that is fitted to this knowledge."""
        if self._fitted is None or self._fitted[0] is not knowledge:
            self._fitted = (knowledge, self._fit(knowledge))
        return self._fitted[1]

    def _fit(self, knowledge: Knowledge) -> nn.Module:
        is_member = np.concatenate([shadow.is_member for shadow in knowledge.shadow] or [np.empty(0, dtype=bool)])
        if is_member.all() or not is_member.any():
            raise ValueError(
                "the inverted_classifier attack learns from members and non-members of shadow models: give the "
                "experiment the folds shadow_train and shadow_test"
            )
        inputs = torch.cat([self._inputs(shadow.log_probabilities, shadow.y) for shadow in knowledge.shadow])
        network = build_network(inputs.shape[1], derive_seed(knowledge.seed, "inverted_classifier.start"))
        fit(network, inputs, torch.from_numpy(is_member).float(), knowledge.seed)
        return network


def build_network(width: int, seed: int) -> nn.Module:
    """Return width > 256 > 128 > 64 > 1 with ReLU: inputs (B, width) -> logits of membership (B, 1).

    Weights are Glorot-uniform draws of `seed`, biases 0, as those of MemGuard's detector.
    """
    generator = torch_generator(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((width, *HIDDEN, 1)):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.enable_grad()
def fit(network: nn.Module, inputs: Tensor, is_member: Tensor, seed: int) -> None:
    """Minimize the binary cross-entropy with Adam for 200 epochs, in place.

    Args:
        network: see `build_network`.
        inputs: (N, width) float32.
        is_member: (N,) float32, 1 for members and 0 for others.
        seed: of the order of samples.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for epoch in range(EPOCHS):
        seed_of_order = derive_seed(seed, "inverted_classifier.order", epoch)
        for index in torch.randperm(len(inputs), generator=torch_generator(seed_of_order)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(inputs[index]).squeeze(1), is_member[index]).backward()
            optimizer.step()
