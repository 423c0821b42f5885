"""Optimizer, schedule and precision of a recipe."""

from __future__ import annotations

import torch
from torch import nn

from oakum.training.recipe import Recipe


def build_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over `parameters`."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=0.9 if recipe.momentum is None else recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def build_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the recipe's schedule, stepped once an epoch, or None when the rate is constant."""
    if not recipe.milestones:
        return None
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, list(recipe.milestones), recipe.gamma)


def autocast_dtype(recipe: Recipe) -> torch.dtype | None:
    """Return the dtype of autocast, or None for full precision."""
    return torch.bfloat16 if recipe.precision == "bfloat16" else None
