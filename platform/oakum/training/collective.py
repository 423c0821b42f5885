"""What a loss that couples the batch needs from the other workers: means and rows, with gradients.

With one process every function returns its input. With several, results do not depend on how the global batch
was cut into shards, as long as gradients are averaged over ranks afterwards (as DDP does).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Collective:
    """The group of processes that train one model together."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Collective:
        """Return the group of the initialized `torch.distributed` process group, or a group of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), world_size=dist.get_world_size())
        return cls()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all ranks, without gradient."""
        if self.world_size == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_with_gradient(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all ranks; gradients flow to each rank's own value.

        The gradient that reaches a value is the sum over ranks of the gradients that each rank's loss has for the sum.
        """
        if self.world_size == 1:
            return value
        total: Tensor = _Sum.apply(value)
        return total

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, concatenated in rank order; gradients flow to each rank's own rows.

        Shards may differ in their number of rows. The gradient that reaches a shard is the sum over ranks of the
        gradients that each rank's loss has for it: with a loss computed equally on every rank and gradients
        averaged over ranks, parameters get the gradient of the global loss.
        """
        if self.world_size == 1:
            return rows
        sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([rows.shape[0]], device=rows.device))
        counts = [int(size) for size in sizes]
        gathered: Tensor = _GatherRows.apply(rows, counts, self.rank)
        return gathered


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):  # type: ignore[no-untyped-def]
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, counts, rank):  # type: ignore[no-untyped-def]
        ctx.counts, ctx.rank = counts, rank
        widest = max(counts)
        padded = rows.new_zeros((widest, *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        shards = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(shards, padded)
        return torch.cat([shard[:count] for shard, count in zip(shards, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: ctx.rank])
        return total[start : start + ctx.counts[ctx.rank]], None, None
