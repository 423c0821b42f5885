"""Random changes of training images. Draws belong to samples: they depend on a sample's key alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from oakum.seeding import keyed_uniform

PADDING = 4


def augment(x: Tensor, keys: Tensor, steps: Sequence[str]) -> Tensor:
    """Return images (B, C, H, W) with the named steps applied.

    Args:
        x: in [0, 1].
        keys: (B,) int64, see `oakum.seeding.sample_keys`.
        steps: `crop` takes a random H x W window of the image padded with 4 pixels of 0 on every side; `flip` mirrors
            left to right with probability one half. Their order has no meaning: crop comes first.

    Raises:
        ValueError: rows instead of images, or an unknown step.
    """
    if x.dim() != 4:
        raise ValueError(
            f"augmentation needs images (B, C, H, W), got shape {tuple(x.shape)}; remove recipe.augmentation"
        )
    unknown = sorted(set(steps) - {"crop", "flip"})
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; use crop or flip")
    draws = keyed_uniform(keys, 3)
    if "crop" in steps:
        x = shift(x, *((draws[:, :2] * (2 * PADDING + 1)).long() - PADDING).unbind(dim=1))
    if "flip" in steps:
        x = torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    return x


def shift(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return images (B, C, H, W) seen through a window moved by (B,) whole pixels; what lies outside is 0."""
    batch, _, height, width = x.shape
    margin = int(max(down.abs().max(), right.abs().max())) if batch else 0
    padded = F.pad(x, (margin,) * 4)
    rows = margin + down.view(-1, 1) + torch.arange(height, device=x.device)
    columns = margin + right.view(-1, 1) + torch.arange(width, device=x.device)
    samples = torch.arange(batch, device=x.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
