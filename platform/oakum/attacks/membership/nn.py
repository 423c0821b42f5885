"""NN attack: a small network learns from shadow models how members' predictions look."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import skip_init

from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership._scores import LOG_FLOOR
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

HIDDEN = 100
EPOCHS = 200
BATCH_SIZE = 256
LEARNING_RATE = 1e-3


class AttackNetwork(nn.Module):
    """Linear(K, 100) - ReLU - Linear(100, 1): sorted predictions (B, K) -> logit of membership (B,).

    Weights and biases start in U(-1 / sqrt(n), 1 / sqrt(n)) with n the layer's inputs, PyTorch's default.

    Args:
        num_classes: K.
        seed: of the start, which depends on nothing else.
    """

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.hidden = skip_init(nn.Linear, num_classes, HIDDEN)
        self.output = skip_init(nn.Linear, HIDDEN, 1)
        generator = torch_generator(seed)
        for layer in (self.hidden, self.output):
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B,) in the dtype of x."""
        logits: Tensor = self.output(F.relu(self.hidden(x)))
        return logits.squeeze(1)


def sorted_inputs(log_probabilities: NDArray[np.float64]) -> Tensor:
    """Return each row in ascending order, floored at log(1e-30), as float32 (N, K).

    Raises:
        ValueError: a log-probability is NaN.
    """
    broken = int(np.isnan(log_probabilities).any(axis=1).sum())
    if broken:
        raise ValueError(
            f"the model released NaN for {broken} of {len(log_probabilities)} points; its training probably diverged"
        )
    return torch.from_numpy(np.sort(np.maximum(log_probabilities, LOG_FLOOR), axis=1)).float()


def fit(
    network: AttackNetwork,
    inputs: Tensor,
    is_member: Tensor,
    *,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> list[float]:
    """Minimize the binary cross-entropy with Adam; return its average over samples in each epoch, in nats.

    The last partial batch is kept. Parameters without `requires_grad` stay.

    Args:
        network: trained in place.
        inputs: (N, K) float.
        is_member: (N,) of the same dtype, 1 for members and 0 for others.
        seed: of the order of samples.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(inputs), generator=torch_generator(derive_seed(seed, "nn_attack/order", epoch)))
        total = 0.0
        for index in order.split(batch_size):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(network(inputs[index]), is_member[index])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        losses.append(total / len(inputs))
    return losses


class NeuralNetwork(MembershipAttack):
    """Scores a point by a network's belief in membership, given the sorted prediction; needs no label.

    The network is trained on members and non-members of all shadow models together. It depends on them and on
    `knowledge.seed` alone, and one instance trains it once for all that it is asked with the same knowledge.

    Differs from the paper: the input is the released log-probabilities instead of logits. They are equal up to a
    constant for each sample, which nobody sees behind a softmax. They are floored at log(1e-30), so that a defense
    may release zero.
    """

    source = Source(
        title="ML-Leaks: Model and Data Independent Membership Inference Attacks and Defenses on Machine Learning "
        "Models",
        authors="Ahmed Salem, Yang Zhang, Mathias Humbert, Pascal Berrang, Mario Fritz, Michael Backes",
        venue="NDSS",
        year=2019,
        link="https://arxiv.org/abs/1806.01246",
    )
    needs_shadow: ClassVar[bool] = True
    fixed_threshold: ClassVar[float | None] = 0.5

    class Config(MembershipAttack.Config):
        """Settings of the NN attack.

        Attributes:
            variant: `paper` trains all layers. `released_code` (of RelaxLoss) leaves the hidden layer as it is drawn
                and trains the output layer alone.
        """

        variant: Literal["paper", "released_code"] = "paper"

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._fitted: tuple[Knowledge, AttackNetwork] | None = None

    @torch.no_grad()
    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64: the probability of membership, in [0, 1].

        Raises:
            ValueError: no shadow model, or none with members and non-members.
        """
        network = self._network(knowledge)
        scores: NDArray[np.float64] = network(sorted_inputs(target.scores(points))).double().sigmoid().numpy()
        return scores

    @torch.enable_grad()
    def _network(self, knowledge: Knowledge) -> AttackNetwork:
        """Return the network that is fitted to this knowledge."""
        if self._fitted is None or self._fitted[0] is not knowledge:
            self._fitted = (knowledge, self._fit(knowledge))
        return self._fitted[1]

    def _fit(self, knowledge: Knowledge) -> AttackNetwork:
        is_member = np.concatenate([shadow.is_member for shadow in knowledge.shadow] or [np.empty(0, dtype=bool)])
        if is_member.all() or not is_member.any():
            raise ValueError(
                "the nn attack learns from members and non-members of shadow models: give the experiment the folds "
                "shadow_train and shadow_test"
            )
        inputs = sorted_inputs(np.concatenate([shadow.log_probabilities for shadow in knowledge.shadow]))
        network = AttackNetwork(inputs.shape[1], derive_seed(knowledge.seed, "nn_attack/start"))
        network.hidden.requires_grad_(self.config.variant == "paper")
        fit(network, inputs, torch.from_numpy(is_member).float(), seed=knowledge.seed)
        return network
