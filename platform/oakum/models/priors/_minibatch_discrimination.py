"""Minibatch discrimination: lets a discriminator see that the images of a batch resemble each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ROWS_PER_BLOCK = 16


class MinibatchDiscrimination(nn.Module):
    """Features (B, F) -> (B, F + outputs): beside each row's features, how near the other rows come to it.

    Rows are projected to `outputs` points of `kernel_size` coordinates by one learned tensor, N(0, 1) at first. In
    eval mode each row is judged as if it were alone in its batch, so that what is appended is zero and rows do not
    influence each other.

    Differs from the released code: there rows are compared in eval mode too. With distinct images and an N(0, 1)
    projection of thousands of features the L1 distances are in the hundreds or more, their exponentials are 0 in
    float32, and both modes agree; they differ only for near copies, which a collapsed generator makes.

    Source: Salimans et al., "Improved Techniques for Training GANs", NIPS 2016, section 3.2.
    """

    def __init__(self, features: int, outputs: int, kernel_size: int) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(features, outputs, kernel_size))

    def forward(self, features: Tensor, batches: int = 1) -> Tensor:
        """Append to each row how near others come.

        Args:
            batches: equal batches that the rows are made of, one after another; rows are compared within theirs. One
                call for several batches projects them together, which saves gradients as large as the projection.
        """
        if self.training:
            projected = torch.einsum("nf,fbc->nbc", features, self.projection)
            closeness = torch.cat([summed_closeness(batch) for batch in projected.tensor_split(batches)])
        else:
            closeness = features.new_zeros(len(features), self.projection.shape[1])
        return torch.cat([features, closeness], dim=1)


def summed_closeness(projected: Tensor, rows_per_block: int = _ROWS_PER_BLOCK) -> Tensor:
    """Return o_ib = sum_{j != i} exp(-sum_c |M_ibc - M_jbc|), (N, B), of M (N, B, C), float32 or float64.

    Rows are compared with all others block by block: no tensor of N * N * B * C values exists, neither here nor in the
    backward pass, and the block's size changes results by rounding only.
    """
    points = projected.transpose(0, 1).contiguous()
    blocks = [
        torch.cdist(block, points, p=1.0).neg().exp().sum(dim=2) - 1  # minus the row's closeness to itself
        for block in points.split(rows_per_block, dim=1)
    ]
    return torch.cat(blocks, dim=1).T
