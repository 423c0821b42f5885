"""StyleGAN2: a generator whose every layer follows a style of its own, for attacks that search styles."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.models.priors._modulated_convolution import (
    EqualizedConvolution,
    EqualizedLinear,
    Filter,
    MinibatchDeviation,
    ModulatedConvolution,
    activated,
)
from oakum.models.priors._updates import Checkpoint, Resume, run_updates, square_image
from oakum.models.priors.base import Prior
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

_BASE_SIZE = 4
_SMALLEST_IMAGE = 16
_GROUP = 4
_MAPPING_RATE = 0.01
_EPSILON = 1e-8
_ADAM_BETAS = (0.0, 0.99)


class StyleGAN2(Prior):
    """Generator with skip connections between its colors, residual critic, and a running average of the generator.

    `build()["generator"]` is the running average (EMA) of the generator that plays against the critic; it is what
    `train` returns. The defaults are the network of VMI for 64x64 color images: 10 styles, 22,243,608 (generator) and
    23,407,361 (critic) parameters.

    Differs from the paper: the noise of each layer is one fixed image in training as well (the paper draws it anew), so
    that a style determines its image; path length regularization is off unless `path_length_weight` is set; mixing
    of two styles is decided and cut for each image instead of for the batch; in eval mode the critic's minibatch
    deviation is a running average, so that images are scored one by one.
    Differs from the released code: the adaptive augmentation of StyleGAN2-ADA is not built, so that few public images
    (some thousands) overfit the critic; single precision throughout.
    """

    source = Source(
        title="Analyzing and Improving the Image Quality of StyleGAN",
        authors="Karras et al.",
        venue="CVPR",
        year=2020,
        link="arXiv:1912.04958",
    )
    network_names: ClassVar[tuple[str, ...]] = ("generator", "critic")

    class Config(Prior.Config):
        """Settings of StyleGAN2; the sizes are those of VMI's prior.

        Attributes:
            latent_size, style_size: entries of z and of each style w.
            mapping_layers: depth of the network that maps z to w.
            channel_base, channel_max: a layer at s x s pixels has min(channel_base // s, channel_max) channels.
            updates: steps of the generator and of the critic.
            batch_size: a multiple of 4, the group whose deviation the critic sees.
            learning_rate: of Adam(0, 0.99) for both; the mapping network learns 100 times slower.
            r1_weight: gamma of gamma / 2 * mean ||grad D||^2 on public images, for pixels in [-1, 1] as published. The
                best value grows with the square of the image size; raise it when the critic's loss falls to nearly 0,
                for the generator then learns nothing.
            r1_interval: the penalty is a step of its own, `r1_interval` times as large, after every so many updates.
            ema_half_life: in images shown: the average of the generator's weights forgets half of the past over it.
            ema_ramp: bounds the half-life by this share of the images shown so far, so that a short training does not
                remember its start; 0 switches the bound off.
            style_mixing: probability that an image takes its coarse layers from one style and the rest from another.
            path_length_weight: of the path length penalty; 0 is off, 2 as published.
            path_length_interval: as `r1_interval`, for the path length penalty.
            log_every: updates between rows of the history.
        """

        latent_size: int = Field(default=512, ge=1)
        style_size: int = Field(default=512, ge=1)
        mapping_layers: int = Field(default=2, ge=1)
        channel_base: int = Field(default=16384, ge=1)
        channel_max: int = Field(default=512, ge=1)
        updates: int = Field(default=20_000, ge=1)
        batch_size: int = Field(default=32, ge=_GROUP, multiple_of=_GROUP)
        learning_rate: float = Field(default=2.5e-3, gt=0)
        r1_weight: float = Field(default=2.0, ge=0)
        r1_interval: int = Field(default=16, ge=1)
        ema_half_life: float = Field(default=10_000.0, gt=0)
        ema_ramp: float = Field(default=0.05, ge=0)
        style_mixing: float = Field(default=0.9, ge=0, le=1)
        path_length_weight: float = Field(default=0.0, ge=0)
        path_length_interval: int = Field(default=4, ge=1)
        log_every: int = Field(default=100, ge=1)

    config: Config

    def build(self) -> dict[str, nn.Module]:
        channels, size = self._geometry()
        config = self.config
        widths = {s: max(1, min(config.channel_base // s, config.channel_max)) for s in _sizes(size)}
        mapping = Mapping(config.latent_size, config.style_size, config.mapping_layers)
        return {"generator": Generator(mapping, widths, channels), "critic": Critic(widths, channels)}

    def train(
        self,
        images: Tensor,
        seed: int,
        resume: Resume,
        checkpoint: Checkpoint,
        target: nn.Module | None = None,
    ) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
        config = self.config
        torch.manual_seed(derive_seed(seed, "init"))
        networks = self.build()
        player = copy.deepcopy(networks["generator"])
        parts: dict[str, Any] = {**networks, "player": player, "path_length": PathLength()}
        for module in parts.values():
            module.to(images.device)
        path_length_interval = config.path_length_interval if config.path_length_weight else None
        parts["player_optimizer"] = self._optimizer(player, path_length_interval)
        parts["critic_optimizer"] = self._optimizer(parts["critic"], config.r1_interval if config.r1_weight else None)
        history = run_updates(
            lambda step: self._update(parts, images, step, derive_seed(seed, "step", step)),
            parts,
            resume,
            checkpoint,
            updates=config.updates,
            log_every=config.log_every,
            hint="lower its learning rate or raise its r1_weight",
        )
        return networks, history

    def _geometry(self) -> tuple[int, int]:
        return square_image("stylegan2", self.input_shape, _SMALLEST_IMAGE)

    def _optimizer(self, network: nn.Module, penalty_interval: int | None) -> torch.optim.Adam:
        """Return Adam with rate and betas corrected for the additional step after every `penalty_interval` updates."""
        share = penalty_interval / (penalty_interval + 1) if penalty_interval else 1.0
        first, second = _ADAM_BETAS
        rate = self.config.learning_rate * share
        return torch.optim.Adam(network.parameters(), lr=rate, betas=(first**share, second**share), eps=_EPSILON)

    def _update(self, parts: dict[str, Any], images: Tensor, step: int, seed: int) -> dict[str, Tensor]:
        """Take one step of each player, and a step on each penalty that is due; return what there is to log."""
        config, stream = self.config, torch_generator(seed)
        index = torch.randint(len(images), (config.batch_size,), generator=stream)
        real = images[index.to(images.device)]
        parts["critic"].requires_grad_(False)
        logged = self._player_step(parts, real.device, stream)
        if config.path_length_weight and (step + 1) % config.path_length_interval == 0:
            logged |= self._path_length_step(parts, real.device, stream)
        parts["critic"].requires_grad_(True)
        logged |= self._critic_step(parts, real, stream)
        if config.r1_weight and (step + 1) % config.r1_interval == 0:
            logged |= self._r1_step(parts, real)
        shown = (step + 1) * config.batch_size
        decay = ema_decay(config.batch_size, shown, config.ema_half_life, config.ema_ramp)
        move_average(parts["generator"], parts["player"], decay)
        return logged

    def _player_step(self, parts: dict[str, Any], device: torch.device, stream: torch.Generator) -> dict[str, Tensor]:
        styles = self._styles(parts["player"], self.config.batch_size, device, stream)
        loss = F.softplus(-parts["critic"](parts["player"].render(styles))).mean()
        _descend(parts["player_optimizer"], loss)
        return {"generator_loss": loss.detach()}

    def _path_length_step(
        self, parts: dict[str, Any], device: torch.device, stream: torch.Generator
    ) -> dict[str, Tensor]:
        config = self.config
        styles = self._styles(parts["player"], config.batch_size // 2, device, stream)
        images = parts["player"].render(styles)
        direction = torch.randn(images.shape, generator=stream).to(device)
        penalty = parts["path_length"](images, styles, direction)
        _descend(parts["player_optimizer"], config.path_length_weight * config.path_length_interval * penalty)
        return {"path_length_penalty": penalty.detach()}

    def _critic_step(self, parts: dict[str, Any], real: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        critic = parts["critic"]
        with torch.no_grad():
            styles = self._styles(parts["player"], len(real), real.device, stream)
            fake = parts["player"].render(styles)
        fake_scores, real_scores = critic(fake), critic(real)
        loss = F.softplus(fake_scores).mean() + F.softplus(-real_scores).mean()
        _descend(parts["critic_optimizer"], loss)
        return {
            "critic_loss": loss.detach(),
            "real_score": real_scores.detach().mean(),
            "fake_score": fake_scores.detach().mean(),
        }

    def _r1_step(self, parts: dict[str, Any], real: Tensor) -> dict[str, Tensor]:
        penalty = r1_penalty(parts["critic"], real)
        _descend(parts["critic_optimizer"], self.config.r1_weight / 2 * self.config.r1_interval * penalty)
        return {"gradient_penalty": penalty.detach()}

    def _styles(self, player: Generator, count: int, device: torch.device, stream: torch.Generator) -> Tensor:
        """Return styles (count, layers, W) of fresh latents, some of them mixed."""
        z = torch.randn(2, count, self.config.latent_size, generator=stream)
        mixed = torch.rand(count, generator=stream) < self.config.style_mixing
        cut = torch.randint(1, player.layers, (count,), generator=stream)
        from_second = mixed[:, None] & (torch.arange(player.layers) >= cut[:, None])
        first, second = player.map(z.to(device)).unsqueeze(2)
        return torch.where(from_second[:, :, None].to(device), second, first)


class Mapping(nn.Module):
    """Latents (..., Z) -> styles (..., W): z over its root mean square, then linear layers with leaky ReLU."""

    def __init__(self, latent_size: int, style_size: int, layers: int) -> None:
        super().__init__()
        self.style_size = style_size
        sizes = [latent_size] + [style_size] * layers
        self.layers = nn.Sequential(
            *[EqualizedLinear(size_in, size_out, rate=_MAPPING_RATE) for size_in, size_out in pairwise(sizes)]
        )

    def forward(self, z: Tensor) -> Tensor:
        hidden = z * (z.square().mean(dim=-1, keepdim=True) + _EPSILON).rsqrt()
        for layer in self.layers:
            hidden = activated(layer(hidden))
        return hidden


class Generator(nn.Module):
    """Latents (B, Z) -> images (B, C, S, S) in [0, 1].

    Every layer follows a style: 0 is the convolution at 4x4, 2b - 1 and 2b are those of block b, and 2b + 1 also colors
    the image of block b; the last style does nothing else.

    An attack that searches inside the network runs the blocks itself: features are `constant`, one copy for each
    image, and colors None; then `features, colors = block(features, colors, styles)` for `blocks` in order; the images
    are `unit_range(colors).clamp(0, 1)`.

    Attributes:
        layers: number of styles, 2 log2(S) - 2.
        constant: (1, channels, 4, 4), learned.
        blocks: one for each size 4, 8, ..., S.
    """

    def __init__(self, mapping: Mapping, widths: dict[int, int], colors: int) -> None:
        """Build it for `widths`: size in pixels -> channels, from 4 pixels up."""
        super().__init__()
        self.mapping = mapping
        self.layers = 2 * len(widths)
        self.constant = nn.Parameter(torch.randn(1, widths[_BASE_SIZE], _BASE_SIZE, _BASE_SIZE))
        self.blocks = nn.ModuleList(
            SynthesisBlock(number, size, widths.get(size // 2), width, colors, mapping.style_size)
            for number, (size, width) in enumerate(widths.items())
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesize(self.map(z).unsqueeze(1).expand(-1, self.layers, -1))

    def map(self, z: Tensor) -> Tensor:
        """Return the styles (..., W) of latents (..., Z)."""
        styles: Tensor = self.mapping(z)
        return styles

    def synthesize(self, styles: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [0, 1] of styles (B, layers, W); a pixel that is cut off has no gradient."""
        return self.render(styles).clamp(0, 1)

    def render(self, styles: Tensor) -> Tensor:
        """Return images (B, C, S, S) of styles (B, layers, W) before they are cut off: what the critic trains on."""
        first, *others = self.blocks
        features, colors = first(self.constant.expand(len(styles), -1, -1, -1), None, styles)
        for block in others:
            features, colors = block(features, colors, styles)
        return unit_range(colors)


class SynthesisBlock(nn.Module):
    """One size of the generator: doubled features, two convolutions, and colors added to the smaller image's.

    Args:
        number: 0 for the first, which has one convolution and doubles nothing.
        channels_in: of the block before; None for the first.
    """

    def __init__(
        self, number: int, size: int, channels_in: int | None, channels: int, colors: int, style_size: int
    ) -> None:
        super().__init__()
        self.first_style = max(0, 2 * number - 1)
        self.convolutions = nn.ModuleList()
        if channels_in is not None:
            self.convolutions.append(StyledConvolution(channels_in, channels, size, style_size, upsample=True))
        self.convolutions.append(StyledConvolution(channels, channels, size, style_size))
        self.color = ModulatedConvolution(channels, colors, 1, style_size, demodulate=False)
        self.color_bias = nn.Parameter(torch.zeros(colors, 1, 1))
        self.filter = Filter()

    def forward(self, features: Tensor, colors: Tensor | None, styles: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, channels, S, S) and colors (B, C, S, S), nominally in [-1, 1], from those of S / 2.

        Args:
            styles: (B, layers, W), of which the block takes its own.
        """
        layer = self.first_style
        for convolution in self.convolutions:
            features = convolution(features, styles[:, layer])
            layer += 1
        added: Tensor = self.color(features, styles[:, layer]) + self.color_bias
        return features, added if colors is None else self.filter.doubled(colors) + added


class StyledConvolution(nn.Module):
    """A modulated 3x3 convolution, a constant noise image of learned strength, a bias and a leaky ReLU."""

    noise: Tensor

    def __init__(self, channels_in: int, channels_out: int, size: int, style_size: int, upsample: bool = False) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(channels_in, channels_out, 3, style_size, upsample=upsample)
        self.bias = nn.Parameter(torch.zeros(channels_out, 1, 1))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(size, size))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return activated(self.convolution(x, style) + self.noise_strength * self.noise + self.bias)


class Critic(nn.Module):
    """Images (B, C, S, S), nominally in [0, 1] -> scores (B,); larger = more like the public data."""

    def __init__(self, widths: dict[int, int], colors: int) -> None:
        """Build it for `widths`: size in pixels -> channels, from 4 pixels up to S."""
        super().__init__()
        sizes = sorted(widths, reverse=True)
        last = widths[_BASE_SIZE]
        self.from_colors = EqualizedConvolution(colors, widths[sizes[0]], 1)
        self.blocks = nn.Sequential(*[CriticBlock(widths[size], widths[smaller]) for size, smaller in pairwise(sizes)])
        self.deviation = MinibatchDeviation(_GROUP)
        self.convolution = EqualizedConvolution(last + 1, last, 3)
        self.hidden = EqualizedLinear(last * _BASE_SIZE**2, last)
        self.score = EqualizedLinear(last, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.deviation(self.blocks(activated(self.from_colors(2 * x - 1))))
        hidden = activated(self.hidden(activated(self.convolution(features)).flatten(1)))
        scores: Tensor = self.score(hidden).flatten()
        return scores


class CriticBlock(nn.Module):
    """Two convolutions to half the size beside a linear shortcut; their sum over sqrt(2) keeps the variance."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = EqualizedConvolution(channels_in, channels_in, 3)
        self.second = EqualizedConvolution(channels_in, channels_out, 3, halve=True)
        self.filter = Filter()
        self.shortcut = EqualizedConvolution(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = activated(self.second(activated(self.first(x))))
        summed: Tensor = (branch + self.shortcut(self.filter.halved(x))) / math.sqrt(2)
        return summed


class PathLength(nn.Module):
    """How far the lengths of the generator's steps are from their running average."""

    average: Tensor

    def __init__(self, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(()))

    def forward(self, images: Tensor, styles: Tensor, direction: Tensor) -> Tensor:
        """Return mean((|J^T y| - a)^2), with gradients, for pixels in [-1, 1]; a is updated first.

        J^T y is the gradient of the image along y = direction / sqrt(H W) with respect to one image's styles, |.| the
        root of its squares summed over entries and averaged over layers, and a the running average of |J^T y|.

        Args:
            images: (B, C, H, W) in [0, 1], made from `styles`.
            styles: (B, layers, W).
            direction: (B, C, H, W), standard normal.
        """
        along = 2 * (images * direction).sum() / math.sqrt(images.shape[2] * images.shape[3])
        (gradient,) = torch.autograd.grad(along, styles, create_graph=True)
        lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
        self.average.lerp_(lengths.detach().mean(), self.momentum)
        return (lengths - self.average).square().mean()


def r1_penalty(critic: nn.Module, real: Tensor) -> Tensor:
    """Return mean ||grad D(x)||^2 over images `real` (B, C, S, S) in [0, 1], with gradients.

    The gradient is taken per pixel in [-1, 1], as published: a quarter of the penalty per pixel in [0, 1].
    """
    images = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return (gradient / 2).square().flatten(1).sum(dim=1).mean()


def ema_decay(batch_size: int, shown: int, half_life: float, ramp: float) -> float:
    """Return the weight of the past in the running average after `shown` images, the last `batch_size` included.

    It halves over `half_life` images, or over `ramp * shown` images where that is less and `ramp` is not 0.
    """
    effective = min(half_life, ramp * shown) if ramp else half_life
    return float(0.5 ** (batch_size / effective))


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Set each weight of `average` to decay * itself + (1 - decay) * that of `current`; buffers are left alone."""
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def unit_range(colors: Tensor) -> Tensor:
    """Return colors in [-1, 1] as pixels in [0, 1]; nothing is cut off."""
    return (colors + 1) / 2


def _sizes(size: int) -> list[int]:
    """Return 4, 8, ..., size."""
    return [_BASE_SIZE << stage for stage in range((size // _BASE_SIZE).bit_length())]


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
