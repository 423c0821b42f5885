"""The conditional GAN of PLG-MI: public images that the target takes for a class teach the GAN that class."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import predict_log_probabilities
from oakum.models.priors._projection_networks import ConditionalGenerator, ProjectionDiscriminator
from oakum.models.priors._random_views import DRAWS, Views
from oakum.models.priors._updates import Checkpoint, Resume, run_updates, square_image
from oakum.models.priors.base import Prior
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

PLGMI = Source(
    title="Pseudo Label-Guided Model Inversion Attack via Conditional Generative Adversarial Network",
    authors="Xiaojian Yuan, Kejiang Chen, Jie Zhang, Weiming Zhang, Nenghai Yu, Yang Zhang",
    venue="AAAI",
    year=2023,
    link="https://arxiv.org/abs/2302.09814",
)

_BASE_SIZE = 4
# Real images get this much uniform noise, one step of 8 bits.
_DEQUANTIZATION = 1 / 256


class PseudoLabelGAN(Prior):
    """The conditional GAN of PLG-MI for square images of 4 * 2^n pixels, trained against one target.

    The public images to which the target gives the highest probability of a class are that class's real images. A
    projection discriminator sees image and class; the generator also makes the target give its images their class, by
    a maximum-margin loss on random views of them.

    Differs from the released code: images are in [0, 1] everywhere (there the generator ends in [-1, 1] and the target
    gets that), batches are drawn with replacement from streams of their own, a view is one resampling in which a
    rotation shows what lies beside the crop instead of black, and the target is asked for nothing but the generator's
    steps need.
    """

    source = PLGMI
    network_names: ClassVar[tuple[str, ...]] = ("generator", "projection_discriminator")
    needs_target: ClassVar[bool] = True

    class Config(Prior.Config):
        """Settings of the conditional GAN; the defaults are the published ones, the budget aside.

        Attributes:
            width: channels beside the image; doubled at each halving.
            images_per_class: public images taken as a class's own; one image may serve several classes.
            updates: steps of the generator; published: 30,000.
            discriminator_per_generator: steps of the discriminator after each.
            learning_rate: of Adam with betas (0, 0.9), for both networks.
            identity_weight: of the target's maximum-margin loss beside the discriminator's.
            flip: whether views of generated images may be mirror images; not for digits.
            precision: of convolutions and target; losses stay float32.
            log_every: generator steps between rows of the history, which are where training can be resumed.
        """

        latent_size: int = Field(default=128, ge=1)
        width: int = Field(default=64, ge=1)
        images_per_class: int = Field(default=30, ge=1)
        updates: int = Field(default=3000, ge=1)
        discriminator_per_generator: int = Field(default=5, ge=1)
        batch_size: int = Field(default=64, ge=2)
        learning_rate: float = Field(default=2e-4, gt=0)
        identity_weight: float = Field(default=0.2, ge=0)
        flip: bool = True
        precision: Literal["float32", "bfloat16"] = "float32"
        log_every: int = Field(default=50, ge=1)

    config: Config

    def build(self) -> dict[str, nn.Module]:
        """Return the untrained networks.

        Raises:
            ConfigError: the images have another shape, or the number of classes was not given.
        """
        channels, size = square_image("pseudo_label_gan", self.input_shape, 2 * _BASE_SIZE)
        stages = (size // _BASE_SIZE).bit_length() - 1
        if self.num_classes < 2:
            raise ConfigError("prior 'pseudo_label_gan' needs the number of the target's classes, 2 or more")
        config, classes = self.config, self.num_classes
        return {
            "generator": ConditionalGenerator(config.latent_size, classes, channels, stages, config.width),
            "projection_discriminator": ProjectionDiscriminator(classes, channels, stages, config.width),
        }

    def train(
        self,
        images: Tensor,
        seed: int,
        resume: Resume,
        checkpoint: Checkpoint,
        target: nn.Module | None = None,
    ) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
        """Train on the public images that the target takes for its classes; see `Prior.train`.

        Raises:
            ConfigError: no target was given.
            ArithmeticError: a loss is NaN or infinite.
        """
        if target is None:
            raise ConfigError("prior 'pseudo_label_gan' is trained against a target, and none was given")
        target.eval()
        config = self.config
        torch.manual_seed(derive_seed(seed, "init"))
        networks = self.build()
        for network in networks.values():
            network.to(images.device)
        parts: dict[str, Any] = {
            **networks,
            "generator_optimizer": self._optimizer(networks["generator"]),
            "discriminator_optimizer": self._optimizer(networks["projection_discriminator"]),
        }
        chosen = choose_images(predict_log_probabilities(target, images), config.images_per_class)

        def update(step: int) -> dict[str, Tensor]:
            stream = torch_generator(derive_seed(seed, "step", step))
            losses = self._generator_step(parts, target, images.device, stream)
            for _ in range(config.discriminator_per_generator):
                losses |= self._discriminator_step(parts, images, chosen, stream)
            return losses

        history = run_updates(update, parts, resume, checkpoint, updates=config.updates, log_every=config.log_every)
        return networks, history

    def _optimizer(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.config.learning_rate, betas=(0.0, 0.9), fused=True)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _draw(self, device: torch.device, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return latents (B, Z) and classes (B,)."""
        rows = self.config.batch_size
        latents = torch.randn(rows, self.config.latent_size, generator=stream)
        return latents.to(device), torch.randint(self.num_classes, (rows,), generator=stream).to(device)

    def _generator_step(
        self, parts: dict[str, Any], target: nn.Module, device: torch.device, stream: torch.Generator
    ) -> dict[str, Tensor]:
        discriminator, optimizer = parts["projection_discriminator"], parts["generator_optimizer"]
        latents, classes = self._draw(device, stream)
        draws = torch.rand(len(classes), DRAWS, generator=stream).to(device)
        discriminator.requires_grad_(False)
        with self._autocast(device):
            fake = parts["generator"](latents, classes)
            scores = discriminator(fake, classes)
            logits = target(Views(flip=self.config.flip).of(fake.float(), draws))
        on_realness, on_identity = -scores.float().mean(), margin_loss(logits.float(), classes).mean()
        loss = on_realness + self.config.identity_weight * on_identity
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        discriminator.requires_grad_(True)
        return {"generator_loss": loss.detach(), "identity_loss": on_identity.detach()}

    def _discriminator_step(
        self, parts: dict[str, Any], images: Tensor, chosen: Tensor, stream: torch.Generator
    ) -> dict[str, Tensor]:
        optimizer = parts["discriminator_optimizer"]
        rows = self.config.batch_size
        real_classes = torch.randint(len(chosen), (rows,), generator=stream)
        places = torch.randint(chosen.shape[1], (rows,), generator=stream)
        noise = torch.rand(rows, *images.shape[1:], generator=stream).to(images.device)
        real = images[chosen[real_classes.to(chosen.device), places.to(chosen.device)]] + _DEQUANTIZATION * noise
        latents, fake_classes = self._draw(images.device, stream)
        with self._autocast(images.device):
            with torch.no_grad():
                fake = parts["generator"](latents, fake_classes)
            scores = parts["projection_discriminator"](
                torch.cat([real, fake.to(real.dtype)]), torch.cat([real_classes.to(images.device), fake_classes])
            )
        loss = hinge_loss(scores[:rows].float(), scores[rows:].float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"discriminator_loss": loss.detach()}


def choose_images(scores: Tensor, images_per_class: int) -> Tensor:
    """Return for each class the rows (K, n) int64 of the images with its highest scores, best first.

    n is `images_per_class`, or N where there are fewer images. Of equal scores the earlier row comes first.

    Args:
        scores: (N, K) of the target.
    """
    return scores.sort(dim=0, descending=True, stable=True).indices[:images_per_class].T


def margin_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Return how far the best other logit (B, K) is above that of the class, (B,); below 0 where the class wins."""
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], float("-inf")).amax(dim=1)
    return others - own.flatten()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean max(0, 1 - real) + mean max(0, 1 + fake) of the discriminator's scores, each (B,)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
