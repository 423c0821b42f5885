"""PLG-MI: search a conditional prior's latents for images that the target prefers to every other class."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from oakum.attacks.access import Access, Knowledge, Target, device_of
from oakum.attacks.inversion._latent_search import frozen, require_finite, start_latents
from oakum.attacks.inversion.base import InversionAttack
from oakum.config import ConfigError
from oakum.models.priors._random_views import DRAWS, Views
from oakum.models.priors.base import images_of
from oakum.models.priors.pseudo_label_gan import PLGMI as PAPER
from oakum.models.priors.pseudo_label_gan import margin_loss
from oakum.seeding import derive_seed, keyed_uniform, sample_keys

_FINITE_CHECK_EVERY = 50


def search_margins(
    starts: Tensor,
    classes: Tensor,
    generator: Callable[[Tensor, Tensor], Tensor],
    classifier: Callable[[Tensor], Tensor],
    view: Callable[[int, Tensor], Tensor],
    *,
    iterations: int,
    learning_rate: float,
    views: int,
    autocast_dtype: torch.dtype | None = None,
) -> Tensor:
    """Minimize, by Adam, the sum over views of max_j logit_j - logit_class; return the latents (B, Z).

    j runs over the other classes. Rows do not influence each other: Adam has a scale for every entry, and the networks
    are in eval mode.

    Args:
        starts: (B, Z) float.
        classes: (B,) int64.
        generator, classifier: latents and classes -> images (B, C, H, W) in [0, 1]; images -> logits (B, K).
        view: number of the view, images -> changed images.
        autocast_dtype: of the forward passes.

    Raises:
        FloatingPointError: a latent became NaN.
    """
    latents = starts.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=learning_rate)
    for iteration in range(iterations):
        with torch.autocast(starts.device.type, autocast_dtype or torch.bfloat16, enabled=autocast_dtype is not None):
            images = generator(latents, classes)
            images = images.to(torch.promote_types(images.dtype, torch.float32))
            logits = [classifier(view(iteration * views + number, images)) for number in range(views)]
        loss = torch.stack(
            [margin_loss(each.to(torch.promote_types(each.dtype, torch.float32)), classes).sum() for each in logits]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % _FINITE_CHECK_EVERY == 0 or iteration == iterations - 1:
            require_finite(latents.detach(), "PLG-MI", iteration, learning_rate)
    return latents.detach()


class PLGMI(InversionAttack):
    """Pseudo-label-guided inversion: the latent is searched among images of one class of a conditional prior.

    There is no term for realism: the prior learned what the class's images look like to the target.

    Differs from the released code: all classes and restarts are searched together, each from its own start and through
    its own views (there the classes of different batches share them), and a view is made as the prior makes it.
    """

    source = PAPER
    access: ClassVar[Access] = Access.WEIGHTS
    prior_networks: ClassVar[tuple[str, ...]] = ("generator", "projection_discriminator")

    class Config(InversionAttack.Config):
        """Settings of PLG-MI; the defaults are the published ones.

        Attributes:
            iterations: steps of the search; 0 shows random samples of the class's prior, a control.
            learning_rate: of Adam, for latents.
            views: random views of an image in each step.
            flip: whether views may be mirror images; not for digits.
        """

        iterations: int = Field(default=600, ge=0)
        learning_rate: float = Field(default=0.1, gt=0)
        views: int = Field(default=2, ge=1)
        flip: bool = True

    config: Config

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, restarts, C, H, W), float32 in [0, 1], on the CPU.

        Raises:
            ConfigError: no conditional prior was given.
            FloatingPointError: the search diverged.
        """
        generator = knowledge.generator
        if generator is None or "projection_discriminator" not in knowledge.networks:
            raise ConfigError("attack plgmi needs a conditional prior; add pseudo_label_gan to `priors`")
        config, device, module = self.config, device_of(generator), target.module()
        cells = [(label, restart) for label in classes.tolist() for restart in range(config.restarts)]
        keys = torch.tensor([derive_seed(knowledge.seed, "plgmi/views", *cell) for cell in cells])
        starts = start_latents(knowledge.seed, "plgmi/start", classes.tolist(), config.restarts, knowledge.latent_size)
        wanted = classes.cpu().repeat_interleave(config.restarts)
        chunks = zip(*(values.to(device).split(config.max_rows) for values in (starts, wanted, keys)), strict=True)
        with frozen(generator, module):
            images = torch.cat([self._search(z, y, key, generator, module) for z, y, key in chunks])
        return images.reshape(len(classes), config.restarts, *images.shape[1:])

    def _search(self, z: Tensor, y: Tensor, keys: Tensor, generator: nn.Module, module: nn.Module) -> Tensor:
        """Return the images (R, C, H, W) found from starts (R, Z)."""
        config = self.config
        views = Views(flip=config.flip, jitter_share=1.0)

        def view(number: int, images: Tensor) -> Tensor:
            return views.of(images, keyed_uniform(sample_keys(number, keys), DRAWS))

        latents = search_margins(
            z,
            y,
            generator,
            module,
            view,
            iterations=config.iterations,
            learning_rate=config.learning_rate,
            views=config.views,
            autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
        )
        return images_of(lambda part: generator(part, y), latents, len(latents))
