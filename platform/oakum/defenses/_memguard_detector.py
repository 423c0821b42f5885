"""MemGuard's defense classifier: how much does a vector of scores look like a member's?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.seeding import derive_seed, torch_generator

_HIDDEN = (256, 128, 64)
_BATCH_SIZE = 64


class Detector(nn.Sequential):
    """C > 256 > 128 > 64 > 1 with ReLU: probabilities (B, C), sorted ascending -> logits of membership (B, 1)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        width = num_classes
        for hidden in _HIDDEN:
            self.extend([_linear(width, hidden), nn.ReLU()])
            width = hidden
        self.append(_linear(width, 1))


def membership_logits(detector: nn.Module, probabilities: Tensor) -> Tensor:
    """Return u (B,), positive where the detector says member, for probabilities (B, C) in any order."""
    logits: Tensor = detector(probabilities.sort(dim=1).values)
    return logits.squeeze(1)


def train_detector(
    detector: Detector, members: Tensor, others: Tensor, *, epochs: int, learning_rate: float, seed: int
) -> None:
    """Train with plain SGD on batches of 64 and the binary cross-entropy, in which either side weighs one half.

    Args:
        detector: trained in place; its `requires_grad` flags are left as they were.
        members: probabilities (M, C) float32, in any order.
        others: the same of known non-members, (N, C).
        epochs: over members and non-members together, in an order drawn from `seed`.
        learning_rate: constant.
        seed: of the order of samples.
    """
    x = torch.cat([members, others]).sort(dim=1).values
    is_member = torch.cat([x.new_ones(len(members)), x.new_zeros(len(others))])
    weights = torch.where(is_member == 1, len(x) / (2 * len(members)), len(x) / (2 * len(others)))
    parameters = list(detector.parameters())
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    detector.requires_grad_(True)
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch_generator(derive_seed(seed, "detector", epoch)))
        for index in order.to(x.device).split(_BATCH_SIZE):
            optimizer.zero_grad(set_to_none=True)
            logits = detector(x[index]).squeeze(1)
            F.binary_cross_entropy_with_logits(logits, is_member[index], weight=weights[index]).backward()
            optimizer.step()
    for parameter in frozen:
        parameter.requires_grad_(False)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
