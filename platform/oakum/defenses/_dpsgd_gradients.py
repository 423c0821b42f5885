"""Per-sample gradients of a model by Opacus, clipped, summed over the workers, and noised once a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.defenses._dpsgd_accounting import import_opacus
from oakum.seeding import derive_seed, torch_generator
from oakum.training.state import Batch, TrainState

PerSample = Literal["hooks", "ghost"]


@dataclass(frozen=True)
class PoissonSampling:
    """Batches that every row of the fold joins independently with the same probability.

    Attributes:
        rows: N, the size of the fold.
        expected: expected rows in a batch: the recipe's batch size, or N where that is less.
    """

    rows: int
    expected: int

    @property
    def rate(self) -> float:
        """The probability of a row to be in a batch."""
        return self.expected / self.rows

    @property
    def steps_per_epoch(self) -> int:
        """N over the expected batch size, rounded."""
        return max(1, round(self.rows / self.expected))

    def batches(self, state: TrainState) -> Iterator[Tensor]:
        """Yield the global batches of the epoch: ascending positions (int64), possibly none of them."""
        for step in range(self.steps_per_epoch):
            generator = torch_generator(derive_seed(state.seed, "poisson", state.epoch, step))
            is_in = torch.rand(self.rows, dtype=torch.float64, generator=generator) < self.rate
            yield is_in.nonzero().flatten()


@dataclass(frozen=True)
class _GhostLoss:
    """What the training loop asks of a loss: Opacus's two backward passes, and the number to show."""

    passes: Any
    shown: Tensor

    def backward(self) -> None:
        self.passes.backward()

    def detach(self) -> Tensor:
        return self.shown


class PrivateGradients:
    """Replaces a state's optimizer by one that steps along clipped, summed and noised per-sample gradients.

    A step uses (sum of clipped gradients + N(0, (noise_multiplier * max_grad_norm)^2)) / expected_batch_size. With
    several workers each clips its own rows and rank 0 alone adds the noise, before all take the sum. Weights keep
    their names; the checkpoint of the optimizer is that of the recipe's.

    Args:
        state: its model must have passed `require_per_sample_gradients`.
        noise_multiplier: at least 0.
        max_grad_norm: L2 norm over all parameters to which each row's gradient is clipped.
        expected_batch_size: what sums are divided by, whatever the size of a batch.
        per_sample: `hooks` holds all per-sample gradients, (B, parameters) numbers; `ghost` computes their norms
            layer by layer and goes backward a second time.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: int,
        per_sample: PerSample,
    ) -> None:
        import_opacus()
        from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

        self._is_ghost = per_sample == "ghost"
        self._generator = torch_generator(0, str(state.device))
        self._collective = state.collective
        self._convolutions = [
            layer.register_forward_pre_hook(_rearrange)
            for layer in state.model.modules()
            if isinstance(layer, nn.modules.conv._ConvNd)
        ]
        self._hooks = (
            GradSampleHooksFastGradientClipping(state.model, max_grad_norm=max_grad_norm)
            if self._is_ghost
            else GradSampleHooks(state.model)
        )
        self._optimizer = (DPOptimizerFastGradientClipping if self._is_ghost else DPOptimizer)(
            state.optimizer,
            noise_multiplier=noise_multiplier if state.collective.rank == 0 else 0.0,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            generator=self._generator,
        )
        self._optimizer.attach_step_hook(self._sum_over_workers)
        state.optimizer = self._optimizer

    def loss(self, state: TrainState, batch: Batch) -> Any:
        """Return the mean cross-entropy over the global batch; its `backward` leaves what the optimizer clips.

        The noise of the step that follows depends on (seed, step) alone. A global batch without rows has loss 0, and
        its step adds noise to nothing.
        """
        self._generator.manual_seed(derive_seed(state.seed, "noise", state.step))
        if not len(batch.y):
            return self._nothing(state, batch)
        losses = F.cross_entropy(state.forward(batch.x), batch.y, reduction="none")
        shown = state.batch_mean(losses.detach())
        if self._is_ghost:
            from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

            return _GhostLoss(DPTensorFastGradientClipping(self._hooks, self._optimizer, losses), shown)
        # Opacus takes back a mean over this rank's rows; the difference is exactly 0.
        own = losses.mean()
        return shown + (own - own.detach())

    def close(self) -> None:
        """Remove all hooks and per-sample gradients from the model."""
        self._optimizer.zero_grad(set_to_none=True)
        self._hooks.cleanup()
        for handle in self._convolutions:
            handle.remove()

    def _nothing(self, state: TrainState, batch: Batch) -> Tensor:
        for parameter in self._optimizer.params:
            if self._is_ghost:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        state.last_logits = batch.x.new_zeros((0, state.num_classes))
        return state.batch_mean(batch.x.new_zeros(0)).requires_grad_()

    def _sum_over_workers(self, optimizer: Any) -> None:
        for parameter in optimizer.params:
            parameter.grad = self._collective.sum(parameter.grad)


def _rearrange(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs of a convolution in row-major order: Opacus 1.6 silently misreads others, as channels_last."""
    return tuple(each.reshape(-1).view(each.shape) for each in inputs)


def require_per_sample_gradients(model: nn.Module) -> None:
    """Refuse models without per-sample gradients, and stop activations from overwriting what hooks hold.

    Raises:
        ConfigError: names a layer that mixes the rows of a batch, or that Opacus cannot treat.
    """
    import_opacus()
    from opacus.validators import ModuleValidator

    for name, layer in model.named_modules():
        place = f"dpsgd: layer {name!r} ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{place} mixes the rows of a batch, which then have no gradients of their own; set norm: group"
            )
        validator = ModuleValidator.VALIDATORS.get(type(layer))
        problems = validator(layer) if validator else []
        if problems:
            raise ConfigError(f"{place} has no per-sample gradients: {problems[0]}; choose another model")
        is_trained = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        if is_trained and next(layer.buffers(), None) is not None:
            raise ConfigError(f"{place} has both weights and buffers, which Opacus refuses; choose another model")
        if getattr(layer, "inplace", False):
            layer.inplace = False
