"""VMI: fit a distribution over a prior's latents whose images the target assigns to a class."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from oakum.attacks.access import Access, Knowledge, Target, device_of
from oakum.attacks.inversion._flow import require_halvings
from oakum.attacks.inversion._latent_search import frozen, require_finite
from oakum.attacks.inversion._variational_families import Family, Flows, Gaussians, Mixtures
from oakum.attacks.inversion.base import InversionAttack
from oakum.config import ConfigError
from oakum.models.priors.base import images_of
from oakum.registry import Source
from oakum.seeding import derive_seed, torch_generator

_FINITE_CHECK_EVERY = 50
_LAYERED = ("layered_gaussian", "flow")
_OF_FLOWS = ("flow_steps", "flow_levels", "flow_width")


@runtime_checkable
class LayeredGenerator(Protocol):
    """A generator whose layers may each have a latent of their own."""

    layers: int

    def map(self, z: Tensor, /) -> Tensor:
        """Return what the layers understand, (B, W), of latents (B, Z)."""
        ...

    def synthesize(self, inner: Tensor, /) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] of one mapped latent for each layer, (B, layers, W)."""
        ...


class VMI(InversionAttack):
    """Variational model inversion: one distribution for each class, fitted by stochastic gradient descent.

    Of each class, minimizes mean_x[-log T(class | G(x))] + kl_weight * KL(q || N(0, I)) over q, with fresh samples for
    each of the two terms and each step: the posterior under the prior raised to the power kl_weight. The
    reconstructions are samples of the fitted q. Classes do not influence each other; they are fitted side by side, as
    many as `max_rows` allows, and at least one.

    Each layer of a `LayeredGenerator` gets a latent of its own under the families `layered_gaussian` and `flow`; under
    the others all have the same. Any other generator counts as one of one layer.

    Differs from the paper: the Kullback-Leibler term of the Gaussian families is exact instead of sampled.

    Differs from the released code: the number of steps is fixed, where the code stops by what the evaluation model
    says; flows leave out weights that cannot act (see `_flow`), and their permutations are saved with them; the
    mixture's density is not divided by the number of components once more. The code has no driver for DCGAN priors.
    """

    source = Source(
        title="Variational Model Inversion Attacks",
        authors="Kuan-Chieh Wang, Yan Fu, Ke Li, Ashish Khisti, Richard Zemel, Alireza Makhzani",
        venue="NeurIPS",
        year=2021,
        link="https://arxiv.org/abs/2201.10787",
    )
    access: ClassVar[Access] = Access.WEIGHTS
    prior_networks: ClassVar[tuple[str, ...]] = ("generator",)

    class Config(InversionAttack.Config):
        """Settings of VMI; the defaults are those published for CelebA with StyleGAN2 and flows.

        Attributes:
            family: what q is. `gaussian`: full covariance; `layered_gaussian`: one such for each layer of the
                generator; `mixture`: of `components` such; `flow`: a Glow flow for each layer.
            steps: of the optimizer; 32 times 10 were published. 0 shows what the untrained family samples.
            batch: samples of each class for each step.
            optimizer, learning_rate, momentum: the published SGD at 1e-4 suits flows, whose many weights move each
                sample together, on the latents of a DCGAN too. A Gaussian has one mean for each latent, which hardly
                moves in 320 steps of learning_rate times its own gradient: with the Gaussian families and `mixture`
                take `adam` at about 0.01. `momentum` is SGD's.
            kl_weight: the exponent on the prior. 0 fits the target alone, and q shrinks to a point.
            label_smoothing: share of the wanted class that is spread over the others.
            temperature: divides the target's logits; 1 is the published attack. See GMI.
            components: of `mixture`.
            flow_steps, flow_levels, flow_width: of each flow; the latent must be divisible by 2^(flow_levels - 1).
            family_precision: of q's parameters; latents are rounded to the generator's precision.
        """

        family: Literal["gaussian", "layered_gaussian", "mixture", "flow"] = "flow"
        steps: int = Field(default=320, ge=0)
        batch: int = Field(default=32, ge=1)
        optimizer: Literal["sgd", "adam"] = "sgd"
        learning_rate: float = Field(default=1e-4, gt=0)
        momentum: float = Field(default=0.9, ge=0, lt=1)
        kl_weight: float = Field(default=1e-3, ge=0)
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        temperature: float = Field(default=1.0, gt=0)
        components: int = Field(default=5, ge=1)
        flow_steps: int = Field(default=10, ge=1)
        flow_levels: int = Field(default=3, ge=1)
        flow_width: int = Field(default=100, ge=1)
        family_precision: Literal["float32", "float64"] = "float64"

        @model_validator(mode="after")
        def _refuse_options_without_effect(self) -> Self:
            unused = {
                **({} if self.optimizer == "sgd" else {"momentum": "optimizer adam"}),
                **({} if self.family == "mixture" else {"components": f"family {self.family}"}),
                **({} if self.family == "flow" else dict.fromkeys(_OF_FLOWS, f"family {self.family}")),
            }
            for name, chosen in unused.items():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect with {chosen}; remove it")
            return self

    config: Config

    def check(self, latent_size: int) -> None:
        """Refuse latents that a flow of so many levels cannot halve."""
        if self.config.family == "flow":
            require_halvings(latent_size, self.config.flow_levels)

    def reconstruct(self, target: Target, classes: Tensor, knowledge: Knowledge) -> Tensor:
        """Return reconstructions (T, restarts, C, H, W), float32 in [0, 1], on the CPU.

        Raises:
            ConfigError: no prior was given, or its latent does not suit the flow.
            FloatingPointError: a class's distribution diverged.
        """
        generator = knowledge.generator
        if generator is None:
            raise ConfigError("attack vmi needs a prior with a generator; add one to the experiment's `priors`")
        module = target.module()
        labels = classes.tolist()
        layers = layers_of(generator) if self.config.family in _LAYERED else 1
        samples = [torch.empty(0, layers, knowledge.latent_size)]
        at_once = max(1, self.config.max_rows // self.config.batch)
        with frozen(generator, module):
            for start in range(0, len(labels), at_once):
                part = labels[start : start + at_once]
                family = self._family(part, layers, knowledge, device_of(generator))
                self._fit(family, part, generator, module, knowledge.seed)
                samples.append(self._samples(family, part, knowledge.seed))
            images = images_of(lambda latents: images_from(generator, latents), torch.cat(samples))
        return images.reshape(len(labels), self.config.restarts, *images.shape[1:])

    def _family(self, labels: list[int], layers: int, knowledge: Knowledge, device: torch.device) -> Family:
        config, size = self.config, knowledge.latent_size
        dtype = torch.float64 if config.family_precision == "float64" else torch.float32
        streams = [torch_generator(derive_seed(knowledge.seed, "vmi/init", label)) for label in labels]
        if config.family == "flow":
            shape = (config.flow_steps, config.flow_levels, config.flow_width)
            return Flows(streams, layers, size, *shape, dtype=dtype, device=device)
        if config.family == "mixture":
            return Mixtures(streams, config.components, size, dtype=dtype).to(device)
        return Gaussians(len(labels), layers, size, dtype).to(device)

    def _fit(self, family: Family, labels: list[int], generator: nn.Module, module: nn.Module, seed: int) -> None:
        config = self.config
        optimizer = self._optimizer(family)
        streams = [torch_generator(derive_seed(seed, "vmi/fit", label)) for label in labels]
        device = device_of(generator)
        wanted = torch.tensor(labels, device=device).repeat_interleave(config.batch)
        for step in range(config.steps):
            latents = family.sample(config.batch, streams)
            if step % _FINITE_CHECK_EVERY == 0:
                require_finite(latents.flatten(0, 1), "VMI", step, config.learning_rate)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                logits = module(images_from(generator, latents.flatten(0, 1)).clamp(0, 1))
            identity = identity_loss(logits / config.temperature, wanted, config.label_smoothing)
            loss = identity.view(len(labels), -1).mean(1) + config.kl_weight * family.kl(config.batch, streams)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimizer.step()

    def _optimizer(self, family: Family) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "adam":
            return torch.optim.Adam(family.parameters(), lr=config.learning_rate)
        return torch.optim.SGD(family.parameters(), lr=config.learning_rate, momentum=config.momentum)

    @torch.no_grad()
    def _samples(self, family: Family, labels: list[int], seed: int) -> Tensor:
        """Return float32 samples (T * restarts, layers, Z), class by class, on the CPU."""
        samples = []
        for restart in range(self.config.restarts):
            streams = [torch_generator(derive_seed(seed, "vmi/sample", label, restart)) for label in labels]
            samples.append(family.sample(1, streams))
        latents = torch.cat(samples, dim=1).flatten(0, 1)
        require_finite(latents, "VMI", self.config.steps, self.config.learning_rate)
        return latents.float().cpu()


def layers_of(generator: nn.Module) -> int:
    """Return how many latents the generator takes for one image: `layers` of one that treats its layers apart, or 1."""
    return generator.layers if isinstance(generator, LayeredGenerator) else 1


def images_from(generator: nn.Module, latents: Tensor) -> Tensor:
    """Return images (B, C, H, W) of latents (B, L, Z), where L is 1 or the generator's number of layers."""
    latents = latents.to(next(generator.parameters()))
    if not isinstance(generator, LayeredGenerator):
        images: Tensor = generator(latents[:, 0])
        return images
    inner = generator.map(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
    return generator.synthesize(inner.expand(-1, generator.layers, -1))


def identity_loss(logits: Tensor, classes: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return -log softmax(logits)[class] (B,), float32 or wider, of logits (B, K) and classes (B,) int64.

    With label smoothing s the wanted class has weight 1 - s and each of the others s / (K - 1).
    """
    losses = -logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    wanted = losses.gather(1, classes[:, None])[:, 0]
    if label_smoothing == 0:
        return wanted
    others = (losses.sum(1) - wanted) / (losses.shape[1] - 1)
    return (1 - label_smoothing) * wanted + label_smoothing * others
