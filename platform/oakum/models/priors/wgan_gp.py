"""WGAN-GP: the generator that GMI searches, with a gradient-penalized critic."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from oakum.models.priors._updates import Checkpoint, Resume, run_updates, square_image
from oakum.models.priors.base import Prior
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

_BASE_SIZE = 4


class WGANGP(Prior):
    """The GAN of GMI and BiDO for square images of 4 * 2^n pixels.

    With 100 latents, 64x64 color images and width 64 it has 5,142,083 (generator) and 4,316,545 (critic)
    parameters; with 32x32 gray images 1,443,777 and 1,030,913.

    Differs from the released code: batches are drawn with replacement, each step from a stream of its own, and the
    budget counts critic steps. The published 300 epochs of 30,000 CelebA images are 140,625 of them; MNIST's published
    learning rate is 0.004.
    """

    source = Source(
        title="Improved Training of Wasserstein GANs",
        authors="Gulrajani et al.",
        venue="NeurIPS",
        year=2017,
        link="arXiv:1704.00028",
    )
    network_names: ClassVar[tuple[str, ...]] = ("generator", "critic")

    class Config(Prior.Config):
        latent_size: int = Field(default=100, ge=1)
        width: int = Field(default=64, ge=1, description="channels beside the image; doubled at each halving")
        critic_updates: int = Field(default=3000, ge=1, description="critic steps in all")
        critic_per_generator: int = Field(default=5, ge=1, description="critic steps for each generator step")
        batch_size: int = Field(default=64, ge=2, description="public images of a step")
        learning_rate: float = Field(default=2e-4, gt=0, description="of both Adam optimizers")
        gradient_penalty: float = Field(default=10.0, ge=0, description="weight of the penalty")
        log_every: int = Field(default=100, ge=1, description="critic steps between history rows and checkpoints")

        @model_validator(mode="after")
        def _generator_learns(self) -> Self:
            if self.critic_updates < self.critic_per_generator:
                raise ValueError(
                    f"critic_updates {self.critic_updates} is less than critic_per_generator "
                    f"{self.critic_per_generator}: the generator would never be trained"
                )
            return self

    config: Config

    def build(self) -> dict[str, nn.Module]:
        channels, stages = self._geometry()
        config = self.config
        return {
            "generator": Generator(config.latent_size, channels, stages, config.width),
            "critic": Critic(channels, stages, config.width),
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
        generator, critic = networks["generator"], networks["critic"]
        for network in networks.values():
            network.to(images.device)
        parts: dict[str, Any] = {
            **networks,
            "generator_optimizer": self._optimizer(generator),
            "critic_optimizer": self._optimizer(critic),
        }

        def update(step: int) -> dict[str, Tensor]:
            stream = torch_generator(derive_seed(seed, "step", step))
            losses = self._critic_step(parts, self._draw(images, stream), stream)
            if (step + 1) % config.critic_per_generator == 0:
                losses["generator_loss"] = self._generator_step(parts, stream)
            return losses

        updates, log_every = config.critic_updates, config.log_every
        return networks, run_updates(update, parts, resume, checkpoint, updates=updates, log_every=log_every)

    def _geometry(self) -> tuple[int, int]:
        """Return (channels, doublings from 4 pixels a side)."""
        channels, size = square_image("wgan_gp", self.input_shape, 2 * _BASE_SIZE)
        return channels, (size // _BASE_SIZE).bit_length() - 1

    def _optimizer(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999))

    def _draw(self, images: Tensor, stream: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (self.config.batch_size,), generator=stream)
        return images[index]

    def _latents(self, stream: torch.Generator, device: torch.device) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.latent_size, generator=stream).to(device)

    def _critic_step(self, parts: dict[str, Any], real: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        critic, optimizer = parts["critic"], parts["critic_optimizer"]
        with torch.no_grad():
            fake = parts["generator"](self._latents(stream, real.device))
        mix = torch.rand(len(real), generator=stream).to(real.device).view(-1, 1, 1, 1)
        loss, wasserstein, penalty = critic_loss(critic, real, fake, mix, self.config.gradient_penalty)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {
            "critic_loss": loss.detach(),
            "wasserstein": wasserstein.detach(),
            "gradient_penalty": penalty.detach(),
        }

    def _generator_step(self, parts: dict[str, Any], stream: torch.Generator) -> Tensor:
        generator, critic, optimizer = parts["generator"], parts["critic"], parts["generator_optimizer"]
        critic.requires_grad_(False)
        loss = -critic(generator(self._latents(stream, next(generator.parameters()).device))).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        critic.requires_grad_(True)
        detached: Tensor = loss.detach()
        return detached


class Generator(nn.Module):
    """Latents (B, Z) -> images (B, C, 4 * 2^stages, 4 * 2^stages) in [0, 1]."""

    def __init__(self, latent_size: int, channels: int, stages: int, width: int) -> None:
        super().__init__()
        widest = width << (stages - 1)
        self.widest = widest
        self.project = nn.Linear(latent_size, widest * _BASE_SIZE**2, bias=False)
        self.project_norm = nn.BatchNorm1d(widest * _BASE_SIZE**2)
        layers: list[nn.Module] = []
        for stage in range(stages - 1):
            inner = widest >> stage
            layers += [_upsample(inner, inner // 2, bias=False), nn.BatchNorm2d(inner // 2), nn.ReLU()]
        layers += [_upsample(width, channels, bias=True), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        hidden = self.project_norm(self.project(z)).relu()
        images: Tensor = self.layers(hidden.view(-1, self.widest, _BASE_SIZE, _BASE_SIZE))
        return images


class Critic(nn.Module):
    """Images (B, C, S, S) -> scores (B,); larger = more like the public data."""

    def __init__(self, channels: int, stages: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
        for stage in range(stages - 1):
            inner = width << stage
            layers += [
                nn.Conv2d(inner, 2 * inner, 5, stride=2, padding=2),
                nn.InstanceNorm2d(2 * inner, affine=True),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width << (stages - 1), 1, _BASE_SIZE))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x).flatten()
        return scores


def critic_loss(
    critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, Wasserstein estimate, gradient penalty), scalars.

    loss = -(mean D(real) - mean D(fake)) + weight * mean((||grad D(real + mix (fake - real))||_2 - 1)^2), with
    real and fake (B, C, S, S) and mix (B, 1, 1, 1) in [0, 1].
    """
    scores = critic(torch.cat([real, fake]))
    wasserstein = scores[: len(real)].mean() - scores[len(real) :].mean()
    between = (real + mix * (fake - real)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
    return weight * penalty - wasserstein, wasserstein, penalty


def _upsample(channels_in: int, channels_out: int, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels_in, channels_out, 5, stride=2, padding=2, output_padding=1, bias=bias)
