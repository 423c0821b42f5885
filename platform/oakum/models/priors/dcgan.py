"""DCGAN: a small convolutional generator, the low-resource prior of VMI."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from oakum.models.priors._updates import Checkpoint, Resume, run_updates, square_image
from oakum.models.priors.base import Prior
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

_BASE_SIZE = 4
_STAGES = {16: 2, 32: 3, 64: 4}  # image size -> doublings of the base size
_WEIGHT_STD = 0.02


class DCGAN(Prior):
    """A GAN of 4x4 (transposed) convolutions for square images of 16, 32 or 64 pixels.

    The generator ends in tanh; images leave it, and enter the critic, in [0, 1]. With 100 latents and width 64 it has
    3,576,704 parameters for 64x64 color images and 3,444,480 for 32x32 gray ones.

    Differs from the released code: its generators have 300 parameters more (3,577,004 and 3,444,780), an embedding and
    a linear layer for class labels that nothing uses; they are left out. The critic with spectral normalization has no
    batch normalization, because the scale that the one bounds is the scale that the other removes.
    """

    source = Source(
        title="Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
        authors="Alec Radford, Luke Metz, Soumith Chintala",
        venue="ICLR",
        year=2016,
        link="https://arxiv.org/abs/1511.06434",
    )
    network_names: ClassVar[tuple[str, ...]] = ("generator", "critic")

    class Config(Prior.Config):
        """Settings of DCGAN.

        Attributes:
            width: channels beside a 64x64 image; the 4x4 map has 8 times as many whatever the size. MNIST: width 10
                with 50 latents.
            spectral_norm: whether the critic's convolutions have spectral norm 1; else its middle layers have batch
                normalization.
            updates: generator steps in all, each after one critic step on the same fakes.
            instance_noise: standard deviation of the noise on every image that the critic sees in training, where
                images are in [-1, 1].
        """

        latent_size: int = Field(default=100, ge=1)
        width: int = Field(default=64, ge=1)
        spectral_norm: bool = True
        updates: int = Field(default=10_000, ge=1)
        batch_size: int = Field(default=64, ge=2)
        learning_rate: float = Field(default=2e-4, gt=0)
        instance_noise: float = Field(default=0.1, ge=0)
        log_every: int = Field(default=100, ge=1)

    config: Config

    def build(self) -> dict[str, nn.Module]:
        channels, stages = self._geometry()
        config = self.config
        return {
            "generator": Generator(config.latent_size, channels, stages, config.width),
            "critic": Critic(channels, stages, config.width, config.spectral_norm),
        }

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
        for network in networks.values():
            network.to(images.device)
        parts: dict[str, Any] = {
            **networks,
            "generator_optimizer": self._optimizer(networks["generator"]),
            "critic_optimizer": self._optimizer(networks["critic"]),
        }

        def update(step: int) -> dict[str, Tensor]:
            stream = torch_generator(derive_seed(seed, "step", step))
            index = torch.randint(len(images), (config.batch_size,), generator=stream)
            return self._update(parts, images[index], stream)

        updates, log_every = config.updates, config.log_every
        return networks, run_updates(update, parts, resume, checkpoint, updates=updates, log_every=log_every)

    def _geometry(self) -> tuple[int, int]:
        channels, size = square_image("dcgan", self.input_shape, min(_STAGES), max(_STAGES))
        return channels, _STAGES[size]

    def _optimizer(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999))

    def _update(self, parts: dict[str, Any], real: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        """Make a critic step, then a generator step on the same fakes; return the losses (scalars)."""
        generator, critic = parts["generator"], parts["critic"]
        latents = torch.randn(len(real), self.config.latent_size, generator=stream).to(real.device)
        fake = generator(latents)

        real_loss = binary_loss(critic(self._noisy(real, stream)), is_real=True)
        critic_loss = real_loss + binary_loss(critic(self._noisy(fake.detach(), stream)), is_real=False)
        _descend(parts["critic_optimizer"], critic_loss)

        critic.requires_grad_(False)
        generator_loss = binary_loss(critic(self._noisy(fake, stream)), is_real=True)
        _descend(parts["generator_optimizer"], generator_loss)
        critic.requires_grad_(True)
        return {"critic_loss": critic_loss.detach(), "generator_loss": generator_loss.detach()}

    def _noisy(self, images: Tensor, stream: torch.Generator) -> Tensor:
        std_in_unit_range = self.config.instance_noise / 2
        return images + std_in_unit_range * torch.randn(images.shape, generator=stream).to(images.device)


class Generator(nn.Module):
    """Latents (B, Z) -> images (B, C, 4 * 2^stages, 4 * 2^stages) in [0, 1]."""

    def __init__(self, latent_size: int, channels: int, stages: int, width: int) -> None:
        super().__init__()
        inner = 8 * width
        start = nn.ConvTranspose2d(latent_size, inner, _BASE_SIZE, bias=False)
        layers: list[nn.Module] = [_started(start), nn.BatchNorm2d(inner), nn.ReLU()]
        for _ in range(stages - 1):
            layers += [_upsample(inner, inner // 2), nn.BatchNorm2d(inner // 2), nn.ReLU()]
            inner //= 2
        layers += [_upsample(inner, channels), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.layers(z[:, :, None, None])
        return (images + 1) / 2


class Critic(nn.Module):
    """Images (B, C, S, S) in [0, 1] -> logits (B,); larger = more like the public data."""

    def __init__(self, channels: int, stages: int, width: int, spectral: bool) -> None:
        super().__init__()
        inner = (8 * width) >> (stages - 1)
        layers: list[nn.Module] = [_downsample(channels, inner, spectral), nn.LeakyReLU(0.2)]
        for _ in range(stages - 1):
            layers.append(_downsample(inner, 2 * inner, spectral))
            layers += [] if spectral else [nn.BatchNorm2d(2 * inner)]
            layers.append(nn.LeakyReLU(0.2))
            inner *= 2
        last = _started(nn.Conv2d(inner, 1, _BASE_SIZE))
        layers.append(spectral_norm(last) if spectral else last)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(2 * x - 1).flatten()
        return logits


def binary_loss(logits: Tensor, is_real: bool) -> Tensor:
    """Return the binary cross-entropy (scalar) of logits (B,) that should all say real, or all say fake."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _started(convolution: nn.ConvTranspose2d | nn.Conv2d) -> nn.Module:
    """Return the convolution with the paper's starting weights."""
    nn.init.normal_(convolution.weight, std=_WEIGHT_STD)
    return convolution


def _upsample(channels_in: int, channels_out: int) -> nn.Module:
    return _started(nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False))


def _downsample(channels_in: int, channels_out: int, spectral: bool) -> nn.Module:
    convolution = _started(nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1))
    return spectral_norm(convolution) if spectral else convolution
