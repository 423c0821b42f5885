"""The inversion-specific GAN of KED-MI: its discriminator learns the target's classes, so its generator does too."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.priors._minibatch_discrimination import MinibatchDiscrimination
from oakum.models.priors._updates import Checkpoint, Resume, run_updates, square_image
from oakum.models.priors.base import Prior
from oakum.models.priors.wgan_gp import Generator
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

_BASE_SIZE = 4
_WIDENING_STAGES = 3


class InversionGAN(Prior):
    """The GAN of KED-MI for square images of 4 * 2^n pixels, trained against one target.

    The discriminator has a logit for each class of the target and none for fakes: log-sum-exp of its logits is the
    logit of "real". It learns the target's scores on public images, and the generator matches its features. With the
    default sizes it has 18,888,936 parameters for 1000 classes of 64x64 color images, 14,154,949 for 5 classes of
    32x32 gray images; the generator is WGAN-GP's.

    Differs from the released code: the target stays in eval mode and gets no gradients, so that training a prior
    leaves it as it is, and the three batches of a step are drawn independently with replacement instead of from three
    shuffled passes.
    """

    source = Source(
        title="Knowledge-Enriched Distributional Model Inversion Attacks",
        authors="Si Chen, Mostafa Kahla, Ruoxi Jia, Guo-Jun Qi",
        venue="ICCV",
        year=2021,
        link="https://arxiv.org/abs/2010.04092",
    )
    network_names: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    needs_target: ClassVar[bool] = True

    class Config(Prior.Config):
        """Settings of the inversion-specific GAN; the defaults are the published ones, the budget aside.

        Attributes:
            width: channels beside the image; doubled at each halving, by the discriminator twice at most.
            discriminator_updates: discriminator steps in all; the published 100 epochs over 30,000 images are 46,900.
            discriminator_per_generator: discriminator steps for each generator step.
            learning_rate: of Adam with betas (0.5, 0.999), for both networks.
            minibatch_outputs, minibatch_kernel: outputs of the minibatch discrimination and coordinates compared for
                each; 0 outputs leave it out.
            entropy_weight: of the entropy of the discriminator's classes on fakes, beside feature matching.
            entropy_reduction: over the batch; the published weight belongs to the sum.
            precision: of convolutions and target; losses, head and minibatch discrimination stay float32.
            log_every: discriminator steps between rows of the history, which are where training can be resumed.
        """

        latent_size: int = Field(default=100, ge=1)
        width: int = Field(default=64, ge=1)
        discriminator_updates: int = Field(default=3000, ge=1)
        discriminator_per_generator: int = Field(default=5, ge=1)
        batch_size: int = Field(default=64, ge=2)
        learning_rate: float = Field(default=2e-4, gt=0)
        minibatch_outputs: int = Field(default=64, ge=0)
        minibatch_kernel: int = Field(default=50, ge=1)
        entropy_weight: float = Field(default=1e-4, ge=0)
        entropy_reduction: Literal["sum", "mean"] = "sum"
        precision: Literal["float32", "bfloat16"] = "float32"
        log_every: int = Field(default=100, ge=1)

        @model_validator(mode="after")
        def _generator_learns(self) -> Self:
            if self.discriminator_updates < self.discriminator_per_generator:
                raise ValueError(
                    f"discriminator_updates {self.discriminator_updates} is less than discriminator_per_generator "
                    f"{self.discriminator_per_generator}: the generator would never be trained"
                )
            return self

    config: Config

    def build(self) -> dict[str, nn.Module]:
        """Return the untrained networks.

        Raises:
            ConfigError: the images have another shape, or the number of classes was not given.
        """
        channels, stages = self._geometry()
        if self.num_classes < 2:
            raise ConfigError("prior 'inversion_gan' needs the number of the target's classes, 2 or more")
        config = self.config
        return {
            "generator": Generator(config.latent_size, channels, stages, config.width),
            "discriminator": Discriminator(
                channels,
                stages,
                config.width,
                self.num_classes,
                minibatch_outputs=config.minibatch_outputs,
                minibatch_kernel=config.minibatch_kernel,
            ),
        }

    def train(
        self,
        images: Tensor,
        seed: int,
        resume: Resume,
        checkpoint: Checkpoint,
        target: nn.Module | None = None,
    ) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
        """Train on public images and the target's scores of them; see `Prior.train`. The target is put in eval mode.

        Raises:
            ConfigError: no target was given.
            ArithmeticError: a loss is NaN or infinite.
        """
        if target is None:
            raise ConfigError("prior 'inversion_gan' is trained against a target, and none was given")
        target.eval()
        config = self.config
        torch.manual_seed(derive_seed(seed, "init"))
        networks = self.build()
        for network in networks.values():
            network.to(images.device)
        parts: dict[str, Any] = {
            **networks,
            "generator_optimizer": self._optimizer(networks["generator"]),
            "discriminator_optimizer": self._optimizer(networks["discriminator"]),
        }

        def update(step: int) -> dict[str, Tensor]:
            stream = torch_generator(derive_seed(seed, "step", step))
            losses = self._discriminator_step(parts, images, target, stream)
            if (step + 1) % config.discriminator_per_generator == 0:
                losses |= self._generator_step(parts, images, stream)
            return losses

        history = run_updates(
            update,
            parts,
            resume,
            checkpoint,
            updates=config.discriminator_updates,
            log_every=config.log_every,
            hint="lower its learning rate, and check that the target's scores are finite",
        )
        return networks, history

    def _geometry(self) -> tuple[int, int]:
        """Return (channels, doublings from 4 pixels a side)."""
        channels, size = square_image("inversion_gan", self.input_shape, 2 * _BASE_SIZE)
        return channels, (size // _BASE_SIZE).bit_length() - 1

    def _optimizer(self, network: nn.Module) -> torch.optim.Adam:
        # Fused: with 14 million parameters the unfused form takes a tenth of a CPU step.
        return torch.optim.Adam(network.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999), fused=True)

    def _draw(self, images: Tensor, stream: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (self.config.batch_size,), generator=stream)
        return images[index]

    def _latents(self, stream: torch.Generator, device: torch.device) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.latent_size, generator=stream).to(device)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _judge(self, discriminator: Discriminator, images: Tensor, batches: int = 1) -> tuple[Tensor, Tensor]:
        """Return features (B, F) and logits (B, K), float32; rows are compared within their batch."""
        with self._autocast(images.device):
            features = discriminator.features(images)
        return features.float(), discriminator.logits_of(features.float(), batches)

    def _discriminator_step(
        self, parts: dict[str, Any], images: Tensor, target: nn.Module, stream: torch.Generator
    ) -> dict[str, Tensor]:
        discriminator, optimizer = parts["discriminator"], parts["discriminator_optimizer"]
        labeled, unlabeled = self._draw(images, stream), self._draw(images, stream)
        with torch.no_grad(), self._autocast(images.device):
            fake = parts["generator"](self._latents(stream, images.device)).float()
            scores = target(labeled)
        _, logits = self._judge(discriminator, torch.cat([labeled, unlabeled, fake]), batches=3)
        judged, real, made = logits.chunk(3)
        loss, on_labels, on_realness = discriminator_loss(judged, real, made, scores.float().softmax(dim=1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {
            "discriminator_loss": loss.detach(),
            "label_loss": on_labels.detach(),
            "realness_loss": on_realness.detach(),
        }

    def _generator_step(self, parts: dict[str, Any], images: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        generator, discriminator, optimizer = parts["generator"], parts["discriminator"], parts["generator_optimizer"]
        unlabeled, latents = self._draw(images, stream), self._latents(stream, images.device)
        discriminator.requires_grad_(False)
        with self._autocast(images.device):
            real_features = discriminator.features(unlabeled).float()
            fake = generator(latents).float()
        fake_features, fake_logits = self._judge(discriminator, fake)
        loss, matching, entropy = generator_loss(
            fake_features, real_features, fake_logits, self.config.entropy_weight, self.config.entropy_reduction
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        discriminator.requires_grad_(True)
        return {
            "generator_loss": loss.detach(),
            "feature_matching": matching.detach(),
            "entropy": entropy.detach(),
        }


class Discriminator(nn.Module):
    """Images (B, C, S, S) -> one logit for each class of the target (B, K).

    Each stage halves the image, down to 4x4. The first three are convolutions of 5x5 that widen, further ones of 3x3
    keep the width. In training mode rows are compared with each other; in eval mode each row is judged alone.
    """

    def __init__(
        self,
        channels: int,
        stages: int,
        width: int,
        num_classes: int,
        *,
        minibatch_outputs: int = 64,
        minibatch_kernel: int = 50,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inner = channels
        for stage in range(stages):
            widens = stage < _WIDENING_STAGES
            outer, kernel = (width << stage, 5) if widens else (inner, 3)
            layers += [
                nn.Conv2d(inner, outer, kernel, stride=2, padding=kernel // 2),
                nn.InstanceNorm2d(outer, affine=True),
                nn.LeakyReLU(0.2),
            ]
            inner = outer
        size = inner * _BASE_SIZE**2
        self.layers = nn.Sequential(*layers)
        self.among_rows = (
            MinibatchDiscrimination(size, minibatch_outputs, minibatch_kernel) if minibatch_outputs else None
        )
        self.head = nn.Linear(size + minibatch_outputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the flat output of the convolutions (B, F), which feature matching compares."""
        features: Tensor = self.layers(x).flatten(1)
        return features

    def logits_of(self, features: Tensor, batches: int = 1) -> Tensor:
        """Return the logits (B, K) of features (B, F) in the dtype of the weights; see `MinibatchDiscrimination`."""
        features = features.to(self.head.weight.dtype)
        if self.among_rows is not None:
            features = self.among_rows(features, batches)
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_of(self.features(x))


def discriminator_loss(
    labeled: Tensor, unlabeled: Tensor, fake: Tensor, soft_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, label loss, realness loss), scalars; loss is the sum of the other two.

    With r = log-sum-exp of an image's logits, the logit of "real": label loss = cross-entropy of the labeled images
    to the target's scores; realness loss = (mean softplus(-r(unlabeled)) + mean softplus(r(fake))) / 2.

    Args:
        labeled, unlabeled, fake: (B, K) logits of the discriminator.
        soft_labels: (B, K) probabilities that the target gives the labeled images.
    """
    on_labels = F.cross_entropy(labeled, soft_labels)
    on_realness = (F.softplus(-unlabeled.logsumexp(dim=1)).mean() + F.softplus(fake.logsumexp(dim=1)).mean()) / 2
    return on_labels + on_realness, on_labels, on_realness


def generator_loss(
    fake_features: Tensor,
    real_features: Tensor,
    fake_logits: Tensor,
    entropy_weight: float = 1e-4,
    entropy_reduction: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, feature matching, entropy), scalars; loss = feature matching + entropy_weight * entropy.

    Feature matching is the mean absolute difference of the two batches' mean features; entropy is that of the
    discriminator's class probabilities on fakes, summed or averaged over the batch.

    Args:
        fake_features, real_features: (B, F).
        fake_logits: (B, K).
    """
    matching = (fake_features.mean(dim=0) - real_features.mean(dim=0)).abs().mean()
    entropies = -(fake_logits.softmax(dim=1) * fake_logits.log_softmax(dim=1)).sum(dim=1)
    entropy = entropies.sum() if entropy_reduction == "sum" else entropies.mean()
    return matching + entropy_weight * entropy, matching, entropy
