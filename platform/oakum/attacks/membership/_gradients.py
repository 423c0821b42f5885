"""Gradients of the cross-entropy sample by sample, and the statistics of each that tell members from non-members.

Source: Chen, Yu, Fritz, "RelaxLoss", ICLR 2022, section 6.1; its released code for the statistics beside the norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb, factorial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

STATISTICS = ("l1", "l2", "min", "max", "mean", "skewness", "kurtosis")
_MOST_SAMPLES = 256
# Beyond this a CPU gains nothing, and memory grows.
_MOST_SAMPLES_ON_CPU = 32
_MOST_BYTES = 512 * 2**20
# Numbers that are summed up at a time: on a CPU what its caches hold, which is three times as fast as all at once.
_BLOCK = 2**26
_BLOCK_ON_CPU = 2**16
# A standard deviation below this share of the mean is rounding, and one below 1e-75 has no fourth power in float64.
_SMALLEST_SPREAD = 1e-12
_SMALLEST_VARIANCE = 1e-150

# Columns of `x/l1`, `x/l2`, `w/l1` and `w/l2`.
_NORMS = [0, 1, 7, 8]

Batch = tuple[Tensor, Tensor]
# (module, x (B, *dims), y (B,)) -> statistics (B, 14), those of x first.
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Moments:
    """What the statistics of B vectors are made of: vectors are joined and multiplied without being laid out.

    Attributes:
        count: n, the length of every vector.
        mean: (B,) float64.
        central: (5, B) float64: averages of (v - mean)^k for k = 0 to 4.
        total: (B,) float64: sum of |v|.
        smallest, largest: (B,) float64: of |v|.
    """

    count: int
    mean: Tensor
    central: Tensor
    total: Tensor
    smallest: Tensor
    largest: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Moments:
        """Take vectors (B, *dims) of any floating dtype and n >= 1; computed in float64 in two passes."""
        values = vectors.detach().flatten(1).double()
        sizes = values.abs()
        mean = values.mean(dim=1)
        deviations = values - mean[:, None]
        squares = deviations.square()
        powers = [squares.mean(dim=1), _mean_product(squares, deviations), _mean_product(squares, squares)]
        central = torch.stack([torch.ones_like(mean), torch.zeros_like(mean), *powers])
        smallest, largest = sizes.aminmax(dim=1)
        return cls(values.shape[1], mean, central, sizes.sum(dim=1), smallest, largest)

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of the concatenated vectors; at least one part."""
        count = sum(part.count for part in parts)
        means = torch.stack([part.mean for part in parts])
        weights = means.new_tensor([part.count / count for part in parts])[:, None]
        mean = (weights * means).sum(dim=0)
        shift = means - mean
        central = torch.stack([part.central for part in parts], dim=1)
        about = [sum(comb(k, j) * central[j] * shift ** (k - j) for j in range(k + 1)) for k in range(5)]
        return cls(
            count,
            mean,
            torch.stack([(weights * power).sum(dim=0) for power in about]),
            torch.stack([part.total for part in parts]).sum(dim=0),
            torch.stack([part.smallest for part in parts]).amin(dim=0),
            torch.stack([part.largest for part in parts]).amax(dim=0),
        )

    def times(self, other: Moments) -> Moments:
        """Return the moments of the outer products.

        With u = a + s and v = b + t around the means a and b, uv - ab = a t + b s + s t, whose powers expand into
        products of the central moments of both.
        """
        central = torch.zeros_like(self.central)
        for power in range(5):
            for p in range(power + 1):
                for q in range(power - p + 1):
                    r = power - p - q
                    ways = factorial(power) // (factorial(p) * factorial(q) * factorial(r))
                    factor = ways * self.mean**p * other.mean**q
                    central[power] += factor * self.central[q + r] * other.central[p + r]
        return Moments(
            self.count * other.count,
            self.mean * other.mean,
            central,
            self.total * other.total,
            self.smallest * other.smallest,
            self.largest * other.largest,
        )

    def statistics(self) -> Tensor:
        """Return (B, 7) float64 in the order of `STATISTICS`.

        `l1` and `l2` are norms; `min` and `max` are of |v|; skewness and excess kurtosis are those of the population
        (biased), and 0 for a constant vector.
        """
        _, _, variance, third, fourth = self.central
        varies = variance > (_SMALLEST_SPREAD * self.mean).square().clamp(min=_SMALLEST_VARIANCE)
        spread = torch.where(varies, variance, 1.0)
        skewness = torch.where(varies, third / spread**1.5, 0.0)
        kurtosis = torch.where(varies, fourth / spread**2 - 3, 0.0)
        norm = (self.count * (variance + self.mean.square())).sqrt()
        return torch.stack([self.total, norm, self.smallest, self.largest, self.mean, skewness, kurtosis], dim=1)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the average of a * b over the second of two dimensions."""
    mean: Tensor = torch.linalg.vecdot(a, b) / a.shape[1]
    return mean


def gradient_statistics(
    module: nn.Module, x: Tensor, y: Tensor, *, chunk: int | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return `x/l1`, ..., `x/kurtosis`, `w/l1`, ..., `w/kurtosis` (see `STATISTICS`), each (N,) float64.

    `x/` is of the gradient of a sample's cross-entropy with respect to its normalized input, as the released code
    takes it: the gradient with respect to x times `module.input_scale` (1 where the module has none). Norms are
    therefore not comparable between data sets. `w/` is of the gradient with respect to all parameters together:
    biases, affine parts of normalization layers and frozen parameters included.

    Every sample is taken alone, in eval mode, in the dtype and on the device of the module, which stays as it is.
    Three ways give the same numbers up to rounding; the first that can follow the module is taken:

    * all parameters belong to linear layers over rows: such a layer's gradient is the outer product of what comes
      back and what went in, and the moments of a product are made of the moments of both;
    * `torch.func.vmap` over samples;
    * one sample after the other, for modules whose control flow depends on data.

    Args:
        module: x (B, *dims) -> logits (B, K).
        x: (N, *dims); N may be 0.
        y: (N,) int64.
        chunk: samples that are held at once; None: at most 256, and for `vmap` 512 MiB of gradients and 32 on a CPU.

    Raises:
        ValueError: x and y differ in length, or the module has no parameters.
        FloatingPointError: a gradient is not finite.
    """
    if len(x) != len(y):
        raise ValueError(f"need one label for each sample, got {len(y)} labels for {len(x)} samples")
    if next(module.parameters(), None) is None:
        raise ValueError(f"{type(module).__name__} has no parameters: there is no gradient with respect to them")
    was_training = module.training
    module.eval()
    try:
        table = _table(module, x, y, chunk)
    finally:
        module.train(was_training)
    broken = int((~np.isfinite(table)).any(axis=1).sum())
    if broken:
        raise FloatingPointError(
            f"the gradients of {broken} of {len(x)} samples are not finite: the model's training probably diverged; "
            "look at its losses and train with a smaller learning rate"
        )
    names = [f"{of}/{statistic}" for of in ("x", "w") for statistic in STATISTICS]
    return {name: column.copy() for name, column in zip(names, table.T, strict=True)}


def _table(module: nn.Module, x: Tensor, y: Tensor, chunk: int | None) -> NDArray[np.float64]:
    """Return the statistics (N, 14), those of x first."""
    first = next(module.parameters())

    def batches(size: int) -> Iterator[Batch]:
        for part, labels in zip(x.split(size), y.split(size), strict=True):
            yield part.to(first.device, first.dtype), labels.to(first.device)

    if not len(x):
        return np.empty((0, 2 * len(STATISTICS)))
    method = _method(module, next(batches(2))[0])
    size = 1 if method is _by_sample else chunk or _chunk_size(module, method)
    return torch.cat([method(module, *batch) for batch in batches(size)]).cpu().numpy()


def _chunk_size(module: nn.Module, method: Method) -> int:
    if method is _by_factors:
        return _MOST_SAMPLES
    bytes_a_sample = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    most = _MOST_SAMPLES_ON_CPU if next(module.parameters()).device.type == "cpu" else _MOST_SAMPLES
    return max(1, min(most, _MOST_BYTES // bytes_a_sample))


def _method(module: nn.Module, x: Tensor) -> Method:
    """Return the fastest way that can follow the module, tried on a few samples x (B, *dims)."""
    with torch.no_grad():
        # The gradients of the least likely class are large, so that a comparison tells.
        y = module(x).argmin(dim=1)
    try:
        expected = _by_vmap(module, x, y)
    except RuntimeError:
        # So does vmap refuse what it cannot follow; any other fault comes back sample by sample.
        return _by_sample
    if not _has_only_linear_layers(module, x):
        return _by_vmap
    # A module may also use a layer's weight outside of the layer, which only the norms of `w` show.
    found = _by_factors(module, x, y)
    return _by_factors if torch.allclose(found[:, _NORMS], expected[:, _NORMS], rtol=1e-3) else _by_vmap


def _by_vmap(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, (parameters, buffers), (x[None],)), y[None])

    of_w, of_x = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0, 0))(parameters, x, y)
    return _statistics(module, of_x, _moments(of_w.values()))


@torch.enable_grad()
def _by_sample(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Take a batch of one sample."""
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    x = x.detach().requires_grad_()
    loss = F.cross_entropy(functional_call(module, (parameters, dict(module.named_buffers())), (x,)), y)
    of_x, *of_w = torch.autograd.grad(loss, [x, *parameters.values()], materialize_grads=True)
    return _statistics(module, of_x, _moments(each[None] for each in of_w))


@torch.enable_grad()
def _by_factors(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Take one backward pass of the sum: rows do not meet, so it holds every sample's gradient.

    The gradient of weight and bias together is the outer product of the output's gradient and (input, 1).
    """
    x = x.detach().requires_grad_()
    with _recorded_calls(module) as calls:
        loss = F.cross_entropy(module(x), y, reduction="sum")
    of_x, *of_outputs = torch.autograd.grad(loss, [x, *(call.output for call in calls)], materialize_grads=True)
    of_w = []
    for call, of_output in zip(calls, of_outputs, strict=True):
        inputs = call.input if call.layer.bias is None else F.pad(call.input, (0, 1), value=1.0)
        of_w.append(Moments.of(of_output).times(Moments.of(inputs)))
    return _statistics(module, of_x, of_w)


def _moments(gradients: Iterable[Tensor]) -> list[Moments]:
    """Return the moments of each (B, *dims), cut into blocks."""
    found = []
    for gradient in gradients:
        block = _BLOCK_ON_CPU if gradient.device.type == "cpu" else _BLOCK
        width = max(1, block // len(gradient))
        found += [Moments.of(part) for part in gradient.flatten(1).split(width, dim=1)]
    return found


def _statistics(module: nn.Module, of_x: Tensor, of_w: Sequence[Moments]) -> Tensor:
    """Return (B, 14) from the gradients with respect to x (B, *dims) and the moments of those of each parameter."""
    normalized = of_x * getattr(module, "input_scale", 1.0)
    return torch.cat([Moments.of(normalized).statistics(), Moments.joined(of_w).statistics()], dim=1)


@dataclass(frozen=True)
class _Call:
    """What one call of a linear layer took and gave."""

    layer: nn.Linear
    input: Tensor
    output: Tensor


@contextmanager
def _recorded_calls(module: nn.Module) -> Iterator[list[_Call]]:
    """Collect the calls of all linear layers inside the block."""
    calls: list[_Call] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        calls.append(_Call(layer, inputs[0].detach(), output))
        # An activation may overwrite what it gets.
        return output.clone()

    hooks = [each.register_forward_hook(record) for each in module.modules() if isinstance(each, nn.Linear)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _has_only_linear_layers(module: nn.Module, x: Tensor) -> bool:
    """Whether all parameters belong to linear layers, each of which is called once, with rows (B, features)."""
    layers = [each for each in module.modules() if next(each.parameters(recurse=False), None) is not None]
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    with torch.no_grad(), _recorded_calls(module) as calls:
        module(x)
    called = [call.layer for call in calls]
    once = len(called) == len(layers) and set(called) == set(layers)
    return once and all(call.input.dim() == 2 for call in calls)
