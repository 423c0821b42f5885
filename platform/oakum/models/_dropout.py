"""Dropout whose masks belong to samples, so that they do not depend on how a batch is cut into shards."""

from __future__ import annotations

from torch import Tensor, nn

from oakum.seeding import keyed_uniform


class SampleDropout(nn.Module):
    """Zeroes each value with probability `rate` while training and scales the others by 1 / (1 - rate).

    Attributes:
        rate: in [0, 1); 0 passes everything.
        keys: (B,) int64, one for each sample of the next batch (see `oakum.seeding.sample_keys`); to be set before
            every forward pass in training mode with a rate above 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ...) of the same shape and dtype."""
        if not self.training or self.rate == 0:
            return x
        if self.keys is None or len(self.keys) != len(x):
            raise RuntimeError("dropout needs one key for each sample: set `keys` before a forward pass in training")
        kept = keyed_uniform(self.keys, x.shape[1:].numel()).view_as(x) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)
