"""Batches that hold several samples of each of their classes, as a loss that compares classes inside a batch needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from oakum.config import ConfigError


def identity_batches(
    y: Tensor, classes_per_batch: int, images_per_class: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield one epoch of batches: positions (int64) of `images_per_class` samples of each of several random classes.

    Every class is shuffled and cut into groups; a rest that fills no group is left out, and a class that is too small
    gives one group drawn with replacement. A batch takes a group of each of `classes_per_batch` random classes that
    have groups left; the epoch ends when fewer classes have.

    Args:
        y: (N,) int64 class indices.
        classes_per_batch: P.
        images_per_class: K; a batch has P * K positions, those of one class in a row.
        generator: of all draws.

    Raises:
        ConfigError: the samples have fewer than P classes.
    """
    by_class = [positions for positions in y.argsort(stable=True).split(y.bincount().tolist()) if len(positions)]
    if len(by_class) < classes_per_batch:
        raise ConfigError(
            f"recipe: batch_size {classes_per_batch * images_per_class} with images_per_class {images_per_class} takes "
            f"{classes_per_batch} classes a batch, but the training fold has {len(by_class)}; lower batch_size to at "
            f"most {len(by_class) * images_per_class} or raise images_per_class"
        )
    groups = [_groups(positions, images_per_class, generator) for positions in by_class]
    while len(left := [number for number, group in enumerate(groups) if group]) >= classes_per_batch:
        chosen = torch.randperm(len(left), generator=generator)[:classes_per_batch]
        yield torch.cat([groups[left[place]].pop() for place in chosen])


def _groups(positions: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    count = len(positions)
    if count < size:
        return [positions[torch.randint(count, (size,), generator=generator)]]
    shuffled = positions[torch.randperm(count, generator=generator)]
    return list(shuffled[: count - count % size].split(size))
