"""KED-MI: recover, for each class, a distribution of latents whose images the target assigns to the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from oakum.attacks.access import Access, Knowledge, Target, device_of
from oakum.attacks.inversion._latent_search import frozen, require_finite
from oakum.attacks.inversion.base import InversionAttack
from oakum.config import ConfigError
from oakum.models.priors.base import images_of
from oakum.registry import Source
from oakum.seeding import derive_seed, keyed_normal, sample_keys

_FINITE_CHECK_EVERY = 50
_CLAMPED_TO = 1.0


@dataclass(frozen=True)
class Distributions:
    """One normal distribution of latents in each row.

    Attributes:
        mean, log_variance: (R, Z), of independent entries.
        clip: bound on the absolute value of a drawn latent's entries, or None.
    """

    mean: Tensor
    log_variance: Tensor
    clip: float | None = None

    def latents(self, noise: Tensor) -> Tensor:
        """Return latents (..., R, Z) of standard normal noise of the same shape; gradients reach both parameters."""
        drawn = self.mean + (0.5 * self.log_variance).exp() * noise
        return drawn if self.clip is None else drawn.clamp(-self.clip, self.clip)


def kedmi_loss(judged: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's prior loss softplus(r) - r = softplus(-r) and identity loss CE(scores, class), both (B,).

    Args:
        judged: (B, K) logits of the discriminator; r is their log-sum-exp, the logit of "real".
        scores: (B, K) logits of the target.
        classes: (B,) int64.
    """
    return F.softplus(-judged.logsumexp(dim=1)), F.cross_entropy(scores, classes, reduction="none")


def search_distributions(
    starts: Distributions,
    classes: Tensor,
    generator: Callable[[Tensor], Tensor],
    discriminator: Callable[[Tensor], Tensor],
    classifier: Callable[[Tensor], Tensor],
    noise: Callable[[int], Tensor],
    *,
    iterations: int,
    learning_rate: float,
    nominal_batch: int,
    identity_weight: float = 100.0,
    temperature: float = 1.0,
    autocast_dtype: torch.dtype | None = None,
) -> Distributions:
    """Minimize the expected loss over means and log-variances by Adam, with one draw of each row in each iteration.

    The loss is sum_i [softplus(-r(G(z_i))) + identity_weight * CE(T(G(z_i)), class_i)] / nominal_batch. Rows do not
    influence each other as long as the three networks treat rows independently (eval mode).

    Args:
        starts: of R rows.
        classes: (R,) int64 target classes.
        generator, discriminator, classifier: latents -> images (R, C, H, W); images -> logits (R, K), both.
        noise: iteration -> standard normal noise (R, Z).
        nominal_batch: the batch size over which the published loop averages its loss. Adam divides it out, but for
            gradients near its epsilon of 1e-8.
        temperature: divides the classifier's logits before the cross-entropy.
        autocast_dtype: of the forward passes; distributions and losses stay in the dtype of `starts`.

    Raises:
        FloatingPointError: a parameter became NaN or infinite.
    """
    mean = starts.mean.detach().clone().requires_grad_(True)
    log_variance = starts.log_variance.detach().clone().requires_grad_(True)
    distributions = Distributions(mean, log_variance, starts.clip)
    optimizer = torch.optim.Adam([mean, log_variance], lr=learning_rate)
    for iteration in range(iterations):
        latents = distributions.latents(noise(iteration))
        with torch.autocast(mean.device.type, autocast_dtype or torch.bfloat16, enabled=autocast_dtype is not None):
            images = generator(latents)
            judged, scores = discriminator(images), classifier(images)
        prior, identity = kedmi_loss(judged.to(mean.dtype), scores.to(mean.dtype) / temperature, classes)
        optimizer.zero_grad(set_to_none=True)
        ((prior.sum() + identity_weight * identity.sum()) / nominal_batch).backward()
        optimizer.step()
        if iteration % _FINITE_CHECK_EVERY == 0 or iteration == iterations - 1:
            require_finite(torch.cat([mean, log_variance], dim=1), "KED-MI", iteration, learning_rate)
    return Distributions(mean.detach(), log_variance.detach(), starts.clip)


class KEDMI(InversionAttack):
    """Distributional recovery with an inversion-specific GAN.

    For each class, `restarts` normal distributions of latents start at N(0, I) and are fitted side by side, in chunks
    that bound memory; then `samples` latents are drawn from each. A class has `restarts * samples` reconstructions,
    the samples of one restart in a row. All noise depends on the attack's seed, the class, the restart's number and
    the iteration or sample alone, so more classes, restarts or samples leave the others' noise as it is.

    Differs from the released code: the networks are frozen, draws follow from the seed, restarts are added, and in
    each iteration the discriminator judges each image alone instead of comparing it with those of other classes in
    its batch, so that classes can be split over tasks.
    """

    source = Source(
        title="Knowledge-Enriched Distributional Model Inversion Attacks",
        authors="Si Chen, Mostafa Kahla, Ruoxi Jia, Guo-Jun Qi",
        venue="ICCV",
        year=2021,
        link="https://arxiv.org/abs/2010.04092",
    )
    access: ClassVar[Access] = Access.WEIGHTS
    prior_networks: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    class Config(InversionAttack.Config):
        """Settings of KED-MI; the defaults are those of the code released with BiDO.

        Attributes:
            restarts: independent distributions for each class.
            samples: reconstructions drawn from each distribution once it is fitted.
            iterations: steps of the fit; 0 shows random samples of the prior, a control.
            learning_rate: of Adam, for means and log-variances.
            identity_weight: weight of the classification loss beside the discriminator's.
            variant: `released_code` leaves latents as they are drawn, as its clipping has no effect; `clamped` clips
                each draw to [-1, 1], in the fit as part of the graph and at the end, as LOMMA does. The two are
                different attacks.
            initial_log_variance: where the log-variances start; 0 in the code released with BiDO, 1 in LOMMA's.
            temperature: divides the target's logits in the classification loss; see GMI.
            nominal_batch: divides the summed loss; of next to no influence under Adam.
        """

        restarts: int = Field(default=1, ge=1)
        samples: int = Field(default=5, ge=1)
        iterations: int = Field(default=5000, ge=0)
        learning_rate: float = Field(default=2e-2, gt=0)
        identity_weight: float = Field(default=100.0, ge=0)
        variant: Literal["released_code", "clamped"] = "released_code"
        initial_log_variance: float = Field(default=0.0, ge=-10, le=10)
        temperature: float = Field(default=1.0, gt=0)
        nominal_batch: int = Field(default=60, ge=1)

    config: Config

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, restarts * samples, C, H, W), float32 in [0, 1], on the CPU.

        Raises:
            ConfigError: no prior with generator and discriminator was given.
            FloatingPointError: the fit diverged.
        """
        generator = knowledge.networks.get("generator")
        discriminator = knowledge.networks.get("discriminator")
        if generator is None or discriminator is None:
            raise ConfigError(
                "KED-MI needs a prior with generator and discriminator; add inversion_gan to the experiment's `priors`"
            )
        module = target.module()
        config, device = self.config, device_of(generator)
        rows = [(int(label), restart) for label in classes for restart in range(config.restarts)]
        wanted = classes.cpu().repeat_interleave(config.restarts)
        fit_keys, draw_keys = (_row_keys(knowledge.seed, role, rows) for role in ("kedmi/fit", "kedmi/draw"))
        parts = []
        with frozen(generator, discriminator, module):
            for y, fit, draw in zip(
                *(values.to(device).split(config.max_rows) for values in (wanted, fit_keys, draw_keys)), strict=True
            ):
                found = self._fit(y, fit, knowledge.latent_size, generator, discriminator, module)
                parts.append(images_of(generator, self._draw(found, draw)))
        images = torch.cat(parts)
        return images.reshape(len(classes), config.restarts * config.samples, *images.shape[1:])

    def _fit(
        self,
        y: Tensor,
        keys: Tensor,
        latent_size: int,
        generator: nn.Module,
        discriminator: nn.Module,
        module: nn.Module,
    ) -> Distributions:
        config = self.config
        mean = torch.zeros(len(y), latent_size, device=y.device)
        clip = _CLAMPED_TO if config.variant == "clamped" else None
        return search_distributions(
            Distributions(mean, torch.full_like(mean, config.initial_log_variance), clip),
            y,
            generator,
            discriminator,
            module,
            lambda iteration: keyed_normal(sample_keys(iteration, keys), latent_size),
            iterations=config.iterations,
            learning_rate=config.learning_rate,
            nominal_batch=config.nominal_batch,
            identity_weight=config.identity_weight,
            temperature=config.temperature,
            autocast_dtype=torch.bfloat16 if config.precision == "bfloat16" else None,
        )

    def _draw(self, found: Distributions, keys: Tensor) -> Tensor:
        """Return latents (R * samples, Z), the samples of a row one after another."""
        size = found.mean.shape[1]
        noise = torch.stack([keyed_normal(sample_keys(sample, keys), size) for sample in range(self.config.samples)])
        return found.latents(noise).transpose(0, 1).flatten(0, 1)


def _row_keys(seed: int, role: str, rows: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([derive_seed(seed, role, label, restart) for label, restart in rows], dtype=torch.int64)
