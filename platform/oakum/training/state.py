"""What a defense sees while its model trains."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from oakum.training.collective import Collective


@dataclass(frozen=True)
class Batch:
    """One step's local samples.

    Attributes:
        x: (B, *dims) float32 in [0, 1], before the model's own normalization.
        y: (B,) int64 class indices of the target model.
        index: (B,) int64 position of each sample in its fold; keys per-sample randomness.
        global_y: labels of the whole global batch, all workers' samples, always in host memory: what depends on them
            can be decided without waiting for the device. Those of `y` where a batch is made without them.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    global_y: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.global_y is None:
            object.__setattr__(self, "global_y", self.y.cpu())


@dataclass
class TrainState:
    """Everything that changes while a model trains; `Defense.prepare` may replace its parts.

    Attributes:
        model: the classifier; may be wrapped for data parallelism. Call it through `forward`.
        optimizer: steps the parameters of `model`.
        scheduler: stepped once an epoch, or None.
        num_classes: K.
        seed: the training's seed; derive streams from it, never from global generators.
        epoch: counted from 0.
        step: optimizer steps taken so far.
        last_logits: detached logits of the latest forward, for the epoch's accuracy.
        extras: further modules and optimizers that a checkpoint must hold, by name (a defense's second player).
        reduces_gradients: whether the optimizer adds up the workers' gradients itself; the model is then not wrapped
            for data parallelism.
        counters: what a defense wants to see in the history, such as skipped batches; summed over the epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    num_classes: int
    seed: int
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    collective: Collective = field(default_factory=Collective)
    autocast_dtype: torch.dtype | None = None
    channels_last: bool = False
    epoch: int = 0
    step: int = 0
    last_logits: Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    reduces_gradients: bool = False
    counters: Counter[str] = field(default_factory=Counter)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 logits (B, K), computed under the recipe's precision."""
        logits = _at_least_float32(self._call(x, with_taps=False))
        self.last_logits = logits.detach()
        return logits

    def forward_with_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K) and the model's tapped hidden layers, each (B, ...), in at least float32."""
        logits, taps = self._call(x, with_taps=True)
        logits = _at_least_float32(logits)
        self.last_logits = logits.detach()
        return logits, [_at_least_float32(tap) for tap in taps]

    def batch_mean(self, losses: Tensor) -> Tensor:
        """Return the mean of per-sample losses (B,) over the global batch.

        With several workers the result is scaled so that its average over ranks is the global mean, and gradients
        averaged over ranks are those of the global mean, whatever the sizes of the shards. Every rank has to ask for
        it, also one without samples. A global batch without samples has mean 0.
        """
        if self.collective.world_size == 1:
            return losses.mean() if len(losses) else losses.sum()
        count = self.collective.sum(losses.new_tensor(float(losses.shape[0])))
        return losses.sum() * self.collective.world_size / count.clamp(min=1)

    def _call(self, x: Tensor, with_taps: bool):  # type: ignore[no-untyped-def]
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=enabled):
            return self.model(x, with_taps) if with_taps else self.model(x)


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
