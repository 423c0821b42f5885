"""Convolutions padded as TensorFlow's SAME: with a stride, right and bottom get the odd pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """A convolution with output size ceil(size / stride), for square kernels."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, groups=groups, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        top, bottom = self._padding(input.shape[2])
        left, right = self._padding(input.shape[3])
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
