"""GMI: search a public prior's latent space for images that the target assigns to a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.attacks.access import Access, Knowledge, Target, device_of
from oakum.attacks.inversion._latent_search import frozen, require_finite, start_latents
from oakum.attacks.inversion.base import InversionAttack
from oakum.config import ConfigError
from oakum.models.priors.base import images_of
from oakum.registry import Source

_FINITE_CHECK_EVERY = 50


@dataclass(frozen=True)
class Search:
    """What a latent search found.

    Attributes:
        latents: (B, Z) after the last iteration.
        trajectory: (iterations + 1, B, Z) with the starts first, or None.
    """

    latents: Tensor
    trajectory: Tensor | None


def gmi_loss(
    images: Tensor,
    classes: Tensor,
    critic: Callable[[Tensor], Tensor],
    classifier: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return each image's prior loss -D(x) and identity loss CE(T(x), class), both (B,) float32 or wider."""
    prior = -_at_least_float32(critic(images).reshape(len(images)))
    return prior, F.cross_entropy(_at_least_float32(classifier(images)), classes, reduction="none")


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def search_latents(
    starts: Tensor,
    classes: Tensor,
    generator: Callable[[Tensor], Tensor],
    critic: Callable[[Tensor], Tensor],
    classifier: Callable[[Tensor], Tensor],
    *,
    iterations: int,
    learning_rate: float,
    nominal_batch: int,
    momentum: float = 0.9,
    identity_weight: float = 100.0,
    clip: float = 1.0,
    temperature: float = 1.0,
    keep_trajectory: bool = False,
    autocast_dtype: torch.dtype | None = None,
) -> Search:
    """Run GMI's latent search: v <- m v - lr g; z <- clip(z - m v_before + (1 + m) v, -clip, clip), v from 0.

    g is the gradient of sum_i [-D(G(z_i)) + identity_weight * CE(T(G(z_i)), class_i)] / nominal_batch. Rows do not
    influence each other as long as the three callables treat rows independently (eval mode).

    Args:
        starts: (B, Z) float; used as they are, without clipping.
        classes: (B,) int64 target classes.
        generator, critic, classifier: latents -> images (B, C, H, W); images -> (B,) ; images -> logits (B, K).
        nominal_batch: the batch size over which the published loop averages its loss. It scales each row's step,
            whatever the number of rows here.
        temperature: divides the classifier's logits before the cross-entropy.
        autocast_dtype: of the forward passes; latents and losses stay in the dtype of `starts`.

    Raises:
        FloatingPointError: a latent became NaN.
    """
    latents, velocity = starts.detach().clone(), torch.zeros_like(starts)
    trajectory = [latents] if keep_trajectory else None
    for iteration in range(iterations):
        latents.requires_grad_(True)
        with torch.autocast(starts.device.type, autocast_dtype or torch.bfloat16, enabled=autocast_dtype is not None):
            prior, identity = gmi_loss(generator(latents), classes, critic, lambda x: classifier(x) / temperature)
        total = (prior.sum() + identity_weight * identity.sum()) / nominal_batch
        (gradient,) = torch.autograd.grad(total, latents)
        before = velocity
        velocity = momentum * before - learning_rate * gradient
        latents = (latents.detach() - momentum * before + (1 + momentum) * velocity).clamp(-clip, clip)
        if trajectory is not None:
            trajectory.append(latents)
        if iteration % _FINITE_CHECK_EVERY == 0 or iteration == iterations - 1:
            require_finite(latents, "GMI", iteration, learning_rate)
    return Search(latents.detach(), None if trajectory is None else torch.stack([z.detach() for z in trajectory]))


class GMI(InversionAttack):
    """Generative model inversion with a WGAN prior.

    All classes and restarts are searched together, in chunks that bound memory. The start of a restart depends on the
    attack's seed, the class and the restart's number alone, so more classes or restarts leave the others' starts as
    they are.

    Differs from the released code: the networks are frozen, and restarts run side by side with the loss divided by
    `nominal_batch`, which gives each latent the step it had in a batch of that size.
    """

    source = Source(
        title="The Secret Revealer: Generative Model-Inversion Attacks Against Deep Neural Networks",
        authors="Yuheng Zhang, Ruoxi Jia, Hengzhi Pei, Wenxiao Wang, Bo Li, Dawn Song",
        venue="CVPR",
        year=2020,
        link="https://arxiv.org/abs/1911.07135",
    )
    access: ClassVar[Access] = Access.WEIGHTS
    prior_networks: ClassVar[tuple[str, ...]] = ("generator", "critic")

    class Config(InversionAttack.Config):
        """Settings of GMI; the defaults are those published for CelebA.

        Attributes:
            iterations: steps of the search; 0 shows random samples of the prior, a control.
            learning_rate, momentum: of the update; 0.01 on MNIST with `nominal_batch` 5.
            identity_weight: weight of the classification loss beside the critic's.
            clip: bound on the absolute value of a latent's entries.
            temperature: divides the target's logits in the classification loss; 1 is the published attack. The loss of
                an over-confident target is zero as soon as the target is convinced, long before an independent model
                is: a temperature above 1 keeps its gradient alive, and makes the attack stronger.
            nominal_batch: divides the summed loss; part of the step size.
        """

        iterations: int = Field(default=2000, ge=0)
        learning_rate: float = Field(default=0.02, gt=0)
        momentum: float = Field(default=0.9, ge=0, lt=1)
        identity_weight: float = Field(default=100.0, ge=0)
        clip: float = Field(default=1.0, gt=0)
        temperature: float = Field(default=1.0, gt=0)
        nominal_batch: int = Field(default=60, ge=1)

    config: Config

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, restarts, C, H, W), float32 in [0, 1], on the CPU.

        Raises:
            ConfigError: no prior was given.
            FloatingPointError: the search diverged.
        """
        generator, critic = knowledge.generator, knowledge.critic
        if generator is None or critic is None:
            raise ConfigError("attack gmi needs a prior with generator and critic; add one to `priors`")
        module = target.module()
        device = device_of(generator)
        starts = start_latents(
            knowledge.seed, "gmi/start", classes.tolist(), self.config.restarts, knowledge.latent_size
        )
        wanted = classes.cpu().repeat_interleave(self.config.restarts)
        parts, rows = [], self.config.max_rows
        with frozen(generator, critic, module):
            for z, y in zip(torch.split(starts, rows), torch.split(wanted, rows), strict=True):
                latents = self._search(z.to(device), y.to(device), generator, critic, module)
                parts.append(images_of(generator, latents))
        images = torch.cat(parts)
        return images.reshape(len(classes), self.config.restarts, *images.shape[1:])

    def _search(self, z: Tensor, y: Tensor, generator: nn.Module, critic: nn.Module, module: nn.Module) -> Tensor:
        config = self.config
        return search_latents(
            z,
            y,
            generator,
            critic,
            module,
            iterations=config.iterations,
            learning_rate=config.learning_rate,
            nominal_batch=config.nominal_batch,
            momentum=config.momentum,
            identity_weight=config.identity_weight,
            clip=config.clip,
            temperature=config.temperature,
            autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
        ).latents
