"""Batch normalization over the global batch, which a recipe asks for with `batch_norm: global`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from oakum.training.collective import Collective


def use_global_statistics(module: nn.Module, collective: Collective) -> None:
    """Replace every batch normalization inside `module` by one that normalizes with the rows of all ranks.

    Parameters, buffers, their names and training flags stay. On CUDA devices the new layers are torch's, elsewhere
    `GlobalBatchNorm`.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(module, name, _with_global_statistics(child, collective))
        else:
            use_global_statistics(child, collective)


def _with_global_statistics(layer: _BatchNorm, collective: Collective) -> nn.Module:
    if any(tensor.is_cuda for tensor in layer.state_dict().values()):
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        return converted
    return GlobalBatchNorm(layer, collective)


class GlobalBatchNorm(_BatchNorm):
    """Batch normalization that reads, in training mode, the mean and variance of the global batch.

    Every rank has to call it in the same order, also with a batch of no rows. Running statistics are then equal on all
    ranks. In eval mode it is the layer that it replaces.

    Args:
        layer: its parameters and buffers are taken over, not copied.
        collective: the ranks whose rows are one batch.
    """

    def __init__(self, layer: _BatchNorm, collective: Collective) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = layer.affine, layer.track_running_stats
        self._collective = collective
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ...) of the shape and dtype of `x`; gradients are those of the global batch.

        Sums are float64, so that squares lose no digits.

        Raises:
            ValueError: in training mode, the ranks have fewer than two values for a channel.
        """
        if not self.training:
            return super().forward(x)
        mean, variance, count = self._statistics(x)
        self._track(mean, variance * count / (count - 1))
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normalized = (x - _per_channel(mean.to(dtype), x)) * _per_channel(scale.to(dtype), x)
        if self.bias is not None:
            normalized = normalized + _per_channel(self.bias, x)
        return normalized.to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return mean and (biased) variance of each channel, float64 (C,), and over how many values."""
        dims = [0, *range(2, x.dim())]
        values = x.double()
        own_count = values.new_tensor([x.numel() / self.num_features])
        own = torch.cat([values.sum(dims), values.square().sum(dims), own_count])
        total = self._collective.sum_with_gradient(own)
        count = round(total[-1].item())
        if count < 2:
            raise ValueError(f"batch normalization needs at least 2 values for each channel to train, not {count}")
        mean, mean_square = (total[:-1] / count).chunk(2)
        return mean, (mean_square - mean.square()).clamp(min=0), count

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(now.to(running.dtype), rate)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch normalization takes (B, C, ...), not {tuple(x.shape)}")


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))
