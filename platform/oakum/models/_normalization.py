"""Exchange of normalization layers."""

from __future__ import annotations

from torch import nn

LARGEST_GROUP_COUNT = 32


def batch_to_group_norm(module: nn.Module) -> int:
    """Replace every batch normalization inside `module` by a group normalization; return how many were replaced.

    The new layers have min(32, channels) groups and an affine part that starts at 1 and 0. Where 32 does not divide
    the channels, the largest number of groups below that does is taken.
    """
    replaced = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(_groups(child.num_features), child.num_features))
            replaced += 1
        else:
            replaced += batch_to_group_norm(child)
    return replaced


def _groups(channels: int) -> int:
    most = min(LARGEST_GROUP_COUNT, channels)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
