"""What attacks that search a prior's latents share: starts that belong to (class, restart), chunks, frozen networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oakum.seeding import derive_seed, torch_generator


def start_latents(seed: int, role: str, classes: list[int], restarts: int, latent_size: int) -> Tensor:
    """Return standard normal starts (T * restarts, Z) float32, class by class, on the CPU.

    The start of a restart depends on (seed, role, class, number of the restart) alone.
    """
    starts = torch.empty(len(classes), restarts, latent_size)
    for row, label in enumerate(classes):
        for restart in range(restarts):
            generator = torch_generator(derive_seed(seed, role, label, restart))
            starts[row, restart] = torch.randn(latent_size, generator=generator)
    return starts.flatten(0, 1)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Hold modules in eval mode without gradients for their weights; restore both afterwards."""
    training = [(part, part.training) for module in modules for part in module.modules()]
    trainable = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, was_training in training:
            part.training = was_training
        for weight, required in trainable:
            weight.requires_grad_(required)


def require_finite(latents: Tensor, attack: str, iteration: int, learning_rate: float) -> None:
    """Raise `FloatingPointError` when a latent (B, ...) is NaN or infinite."""
    broken = int((~latents.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise FloatingPointError(
            f"{attack}: {broken} of {len(latents)} latents are not finite at iteration {iteration}. The gradient "
            f"exploded or a network returns NaN: lower learning_rate ({learning_rate:g}), use precision float32, and "
            "check that target and prior give finite outputs"
        )
