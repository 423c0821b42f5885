"""Families of distributions over latents that VMI fits: one member for each class, all computed as one batch.

Shapes: I classes, N samples, L layers, D numbers. Noise is standard normal everywhere, so that one row of noise is one
sample whatever the family.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.attacks.inversion._flow import FlowBank, standard_normal_log_density


class Family(nn.Module):
    """I distributions over latents (L, D).

    Attributes:
        layers: L. A family of one layer gives all layers of a generator the same latent.
        latent_size: D.
        noise_size: standard normal numbers that make one sample.
    """

    def __init__(self, layers: int, latent_size: int, noise_size: int) -> None:
        super().__init__()
        self.layers = layers
        self.latent_size = latent_size
        self.noise_size = noise_size

    def sample(self, count: int, streams: Sequence[torch.Generator]) -> Tensor:
        """Return samples (I, count, L, D); those of a class depend on its stream (on the CPU) alone."""
        samples: Tensor = self(self.noise(count, streams))
        return samples

    def noise(self, count: int, streams: Sequence[torch.Generator]) -> Tensor:
        """Return noise (I, count, noise_size), from a stream for each class; float32 draws in the family's dtype."""
        drawn = torch.stack([torch.randn(count, self.noise_size, generator=stream) for stream in streams])
        return drawn.to(next(self.parameters()))

    def kl(self, count: int, streams: Sequence[torch.Generator]) -> Tensor:
        """Return KL(q || N(0, I)) (I,), the mean over the layers' marginals, estimated from `count` fresh samples."""
        samples, log_density = self.sample_and_log_density(self.noise(count, streams))
        return (log_density - standard_normal_log_density(samples)).mean(dim=(1, 2))

    def sample_and_log_density(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples (I, N, L, D) and the log-density of each layer's marginal (I, N, L)."""
        samples = self(noise)
        return samples, self.log_density(samples)

    @abstractmethod
    def forward(self, noise: Tensor) -> Tensor:
        """Return samples (I, N, L, D) from noise (I, N, noise_size)."""

    @abstractmethod
    def log_density(self, samples: Tensor) -> Tensor:
        """Return the log-density (I, N, L) of each layer's marginal at samples (I, N, L, D)."""


class Gaussians(Family):
    """Gaussians with full covariance, one for each class and layer; they start as N(0, I).

    The layers of one sample share their noise, as those of the released layered flow share theirs: at the start all
    layers have the same latent, which is what a generator was trained on.

    The factor L of the covariance L L^T is lower triangular with the exponential of a parameter on its diagonal: it is
    invertible wherever the optimizer goes. The released factor is any matrix.
    """

    def __init__(self, classes: int, layers: int, latent_size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(layers, latent_size, noise_size=latent_size)
        self.mean = nn.Parameter(torch.zeros(classes, layers, latent_size, dtype=dtype))
        self.below = nn.Parameter(torch.zeros(classes, layers, latent_size, latent_size, dtype=dtype))
        self.log_diagonal = nn.Parameter(torch.zeros(classes, layers, latent_size, dtype=dtype))

    def factor(self) -> Tensor:
        """Return L (I, L, D, D)."""
        return cholesky_factor(self.below, self.log_diagonal)

    def forward(self, noise: Tensor) -> Tensor:
        return affine(noise[:, None], self.mean, self.factor()).transpose(1, 2)

    def log_density(self, samples: Tensor) -> Tensor:
        return gaussian_log_density(samples.transpose(1, 2), self.mean, self.factor()).transpose(1, 2)

    def entropy(self) -> Tensor:
        """Return the entropy (I, L) in nats."""
        return gaussian_entropy(self.factor())

    def kl(self, count: int, streams: Sequence[torch.Generator]) -> Tensor:
        """Return KL(q || N(0, I)) (I,), the mean over the layers; exact: nothing is drawn."""
        return gaussian_kl(self.mean, self.factor()).mean(dim=1)


class Mixtures(Family):
    """Mixtures of Gaussians with full covariance, one for each class; one layer.

    A component is drawn by the Gumbel-max rule; gradients reach the weights as if the draw had been soft (temperature
    1). Means start near 0, each from its class's stream, with identity covariances and equal weights.
    """

    def __init__(
        self,
        streams: Sequence[torch.Generator],
        components: int,
        latent_size: int,
        spread: float = 0.1,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(layers=1, latent_size=latent_size, noise_size=latent_size + components)
        means = torch.stack([torch.randn(components, latent_size, generator=stream) for stream in streams])
        classes = len(streams)
        self.mean = nn.Parameter((spread * means).to(dtype))
        self.below = nn.Parameter(torch.zeros(classes, components, latent_size, latent_size, dtype=dtype))
        self.log_diagonal = nn.Parameter(torch.zeros(classes, components, latent_size, dtype=dtype))
        self.logits = nn.Parameter(torch.zeros(classes, components, dtype=dtype))

    def forward(self, noise: Tensor) -> Tensor:
        choice = hard_choice(self.logits[:, None], noise[..., self.latent_size :])
        factor = cholesky_factor(self.below, self.log_diagonal)
        candidates = affine(noise[:, None, :, : self.latent_size], self.mean, factor)
        return torch.einsum("ink,iknd->ind", choice, candidates)[:, :, None]

    def log_density(self, samples: Tensor) -> Tensor:
        factor = cholesky_factor(self.below, self.log_diagonal)
        components = gaussian_log_density(samples.transpose(1, 2), self.mean, factor)
        return mixture_log_density(components.transpose(1, 2), self.logits[:, None])[..., None]


class Flows(Family):
    """Glow flows, one for each class and layer, see `FlowBank`.

    The layers of one sample share the noise at the top of their flows, and draw what is split off on their own.
    """

    def __init__(
        self,
        streams: Sequence[torch.Generator],
        layers: int,
        latent_size: int,
        steps: int = 10,
        levels: int = 3,
        width: int = 100,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        bank = FlowBank(streams, layers, latent_size, steps, levels, width, dtype, device)
        super().__init__(layers, latent_size, noise_size=bank.top_size + layers * (latent_size - bank.top_size))
        self.bank = bank

    def forward(self, noise: Tensor) -> Tensor:
        return self.sample_and_log_density(noise)[0]

    def sample_and_log_density(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        classes, count = noise.shape[:2]
        top = noise[:, None, :, : self.bank.top_size].expand(-1, self.layers, -1, -1)
        splits = noise[..., self.bank.top_size :].reshape(classes, count, self.layers, -1).transpose(1, 2)
        samples, log_density = self.bank.decode(top.flatten(0, 1), splits.flatten(0, 1))
        return self._by_class(samples), self._by_class(log_density)

    def log_density(self, samples: Tensor) -> Tensor:
        return self._by_class(self.bank.encode(samples.transpose(1, 2).flatten(0, 1))[1])

    def _by_class(self, value: Tensor) -> Tensor:
        """Return (I, N, L, ...) of (I * L, N, ...)."""
        by_class: Tensor = value.unflatten(0, (-1, self.layers))
        return by_class.transpose(1, 2)


def cholesky_factor(below: Tensor, log_diagonal: Tensor) -> Tensor:
    """Return the lower triangular matrix (..., D, D) with exp(log_diagonal) on and `below` under the diagonal."""
    return below.tril(-1) + torch.diag_embed(log_diagonal.exp())


def affine(noise: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return mean + factor @ noise (..., N, D) for rows of noise (..., N, D), mean (..., D), factor (..., D, D)."""
    return mean[..., None, :] + noise @ factor.transpose(-1, -2)


def gaussian_log_density(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return log N(x; mean, factor factor^T) (..., N) of x (..., N, D); `factor` (..., D, D) is lower triangular."""
    centered = (x - mean[..., None, :]).transpose(-1, -2)
    whitened: Tensor = torch.linalg.solve_triangular(factor, centered, upper=False).transpose(-1, -2)
    return standard_normal_log_density(whitened) - _log_determinant(factor)[..., None]


def gaussian_entropy(factor: Tensor) -> Tensor:
    """Return the entropy (...) in nats of N(., factor factor^T); `factor` (..., D, D) is lower triangular."""
    return _log_determinant(factor) + 0.5 * factor.shape[-1] * (1 + math.log(2 * math.pi))


def gaussian_kl(mean: Tensor, factor: Tensor) -> Tensor:
    """Return KL(N(mean, factor factor^T) || N(0, I)) (...); `factor` (..., D, D) is lower triangular."""
    second_moment = mean.square().sum(-1) + factor.square().sum((-1, -2))
    return 0.5 * (second_moment - mean.shape[-1]) - _log_determinant(factor)


def mixture_log_density(components: Tensor, logits: Tensor) -> Tensor:
    """Return log sum_k w_k exp(components_k) (...) with w = softmax(logits); both (..., K)."""
    density: Tensor = torch.logsumexp(components + logits.log_softmax(-1), dim=-1)
    return density


def hard_choice(logits: Tensor, noise: Tensor) -> Tensor:
    """Return a one-hot draw (..., K) with probabilities softmax(logits) (..., K) from standard normal noise (..., K).

    Forward it is hard; its gradient is that of softmax(logits + Gumbel noise).
    """
    gumbel: Tensor = -(-torch.special.log_ndtr(noise)).log()
    soft = (logits + gumbel).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + (soft - soft.detach())


def _log_determinant(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
