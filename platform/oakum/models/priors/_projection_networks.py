"""A generator and a discriminator of residual blocks that are told the class: the networks of PLG-MI's prior."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_BASE_SIZE = 4


class ConditionalGenerator(nn.Module):
    """Latents (B, Z) and classes (B,) -> images (B, C, 4 * 2^stages, 4 * 2^stages) in [0, 1].

    Without classes a row's class is floor(K * Phi(z_0)), Phi being the normal distribution function: samples of the
    prior are then spread evenly over the classes, and a row's image still depends on its latent alone.
    """

    def __init__(self, latent_size: int, num_classes: int, channels: int, stages: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.widest = width << stages
        self.project = nn.Linear(latent_size, self.widest * _BASE_SIZE**2)
        self.blocks = nn.ModuleList(
            _GeneratorBlock(self.widest >> stage, self.widest >> (stage + 1), num_classes) for stage in range(stages)
        )
        self.norm = nn.BatchNorm2d(width)
        self.to_image = nn.Conv2d(width, channels, 1)
        _initialize(self)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        if classes is None:
            classes = self.classes_of(z)
        hidden = self.project(z).view(-1, self.widest, _BASE_SIZE, _BASE_SIZE)
        for block in self.blocks:
            hidden = block(hidden, classes)
        images: Tensor = self.to_image(self.norm(hidden).relu()).sigmoid()
        return images

    def classes_of(self, z: Tensor) -> Tensor:
        """Return the classes (B,) int64 that stand for latents (B, Z) without a class."""
        share = (1 + torch.erf(z[:, 0].float() / math.sqrt(2))) / 2
        return (share * self.num_classes).long().clamp(0, self.num_classes - 1)


class ProjectionDiscriminator(nn.Module):
    """Images (B, C, S, S) and classes (B,) -> scores (B,); larger = more like the public images of the class.

    score = w . f(x) + e_class . f(x) + b, with f the sum over places of the last features. All weights are spectrally
    normalized. Each block halves the image, the last one leaves 2x2.
    """

    def __init__(self, num_classes: int, channels: int, stages: int, width: int) -> None:
        super().__init__()
        widths = [channels, *(width << stage for stage in range(stages + 1))]
        self.blocks = nn.Sequential(
            *(
                _DiscriminatorBlock(inner, outer, is_first=stage == 0)
                for stage, (inner, outer) in enumerate(itertools.pairwise(widths))
            )
        )
        self.head = nn.Linear(widths[-1], 1)
        self.embedding = nn.Embedding(num_classes, widths[-1])
        _initialize(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(module)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        features = self.blocks(x).relu().sum(dim=(2, 3))
        scores: Tensor = self.head(features).flatten() + (self.embedding(classes) * features).sum(dim=1)
        return scores


class _ConditionalNorm(nn.Module):
    """Batch normalization whose scale and shift belong to the class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        scale, shift = (table(classes)[:, :, None, None] for table in (self.scale, self.shift))
        normalized: Tensor = self.norm(x) * scale + shift
        return normalized


class _GeneratorBlock(nn.Module):
    """Doubles the image: two convolutions beside a convolution of 1x1."""

    def __init__(self, inner: int, outer: int, num_classes: int) -> None:
        super().__init__()
        self.norm_1 = _ConditionalNorm(inner, num_classes)
        self.conv_1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm_2 = _ConditionalNorm(outer, num_classes)
        self.conv_2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        hidden = self.conv_1(F.interpolate(self.norm_1(x, classes).relu(), scale_factor=2))
        doubled: Tensor = self.conv_2(self.norm_2(hidden, classes).relu())
        doubled += self.shortcut(F.interpolate(x, scale_factor=2))
        return doubled


class _DiscriminatorBlock(nn.Module):
    """Halves the image: two convolutions beside a convolution of 1x1, averaged over 2x2."""

    def __init__(self, inner: int, outer: int, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        between = outer if is_first else inner
        self.conv_1 = nn.Conv2d(inner, between, 3, padding=1)
        self.conv_2 = nn.Conv2d(between, outer, 3, padding=1)
        self.shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv_1(x if self.is_first else x.relu()).relu()
        halved: Tensor = F.avg_pool2d(self.conv_2(hidden), 2) + self.shortcut(F.avg_pool2d(x, 2))
        return halved


def _initialize(network: nn.Module) -> None:
    """Xavier's uniform values, with gain sqrt(2) before a ReLU's other convolution; scales 1, shifts and biases 0."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = math.sqrt(2) if name.endswith(("conv_1", "conv_2")) else 1.0
            nn.init.xavier_uniform_(module.weight, gain)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.xavier_uniform_(module.weight)
    for module in network.modules():
        if isinstance(module, _ConditionalNorm):
            nn.init.ones_(module.scale.weight)
            nn.init.zeros_(module.shift.weight)
