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
            left to right with probability one half; `cutout` sets a window of half the side to 0, its center uniform
            over the image (`cut_out`). Their order has no meaning: crop comes first, cutout last.

    Raises:
        ValueError: rows instead of images, or an unknown step.
    """
    if x.dim() != 4:
        raise ValueError(
            f"augmentation needs images (B, C, H, W), got shape {tuple(x.shape)}; remove recipe.augmentation"
        )
    unknown = sorted(set(steps) - {"crop", "flip", "cutout"})
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; use crop, flip or cutout")
    draws = keyed_uniform(keys, 5)
    if "crop" in steps:
        x = shift(x, *((draws[:, :2] * (2 * PADDING + 1)).long() - PADDING).unbind(dim=1))
    if "flip" in steps:
        x = torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    if "cutout" in steps:
        x = cut_out(x, _center(draws[:, 3], x.shape[2]), _center(draws[:, 4], x.shape[3]))
    return x


def cut_out(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] with a window of half their height and width set to 0.

    Args:
        x: halves of an odd height or width are rounded up.
        row, column: (B,) int64, the window's center: its middle pixel, or the pixel right below and to the right of the
            middle of an even window. What leaves the image is cut off.
    """
    height, width = _half(x.shape[2]), _half(x.shape[3])
    inside = windows(x, row - height // 2, column - width // 2, height, width)
    return x.masked_fill(inside, 0.0)


def windows(x: Tensor, top: Tensor, left: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """Return where each image (B, C, H, W) is inside its window, (B, 1, H, W) bool; windows may leave the image.

    Args:
        top, left: (B,) int64, the first row and column of each window.
        height, width: (B,) int64 or one number, in pixels.
    """
    rows = torch.arange(x.shape[2], device=x.device) - top.view(-1, 1)
    columns = torch.arange(x.shape[3], device=x.device) - left.view(-1, 1)
    in_rows = (rows >= 0) & (rows < torch.as_tensor(height, device=x.device).view(-1, 1))
    in_columns = (columns >= 0) & (columns < torch.as_tensor(width, device=x.device).view(-1, 1))
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def shift(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return images (B, C, H, W) seen through a window moved by (B,) whole pixels; what lies outside is 0."""
    batch, _, height, width = x.shape
    margin = int(max(down.abs().max(), right.abs().max())) if batch else 0
    padded = F.pad(x, (margin,) * 4)
    rows = margin + down.view(-1, 1) + torch.arange(height, device=x.device)
    columns = margin + right.view(-1, 1) + torch.arange(width, device=x.device)
    samples = torch.arange(batch, device=x.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _half(side: int) -> int:
    return (side + 1) // 2


def _center(draw: Tensor, side: int) -> Tensor:
    """Return (B,) int64 for uniform draws in [0, 1): any pixel, and the one past the end for an even window."""
    return (draw * (side + 1 - _half(side) % 2)).long()
