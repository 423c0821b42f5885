"""Reconstruct classes of a target; payload: `reconstructions.safetensors`.

Tensors: `images` (T, M, C, H, W) float32 in [0, 1], as the attack made them; `classes` (T,) int64; and, of an attack
with a prior, `unoptimized` (U, C, H, W) like `images`: what the prior draws without any search.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oakum.attacks.access import Knowledge, Target
from oakum.models.base import InputShape
from oakum.models.priors.base import images_of
from oakum.pipeline.context import StageContext, build_method
from oakum.seeding import derive_seed, torch_generator
from oakum.training.checkpoint import load_module

UNOPTIMIZED = 256


def run(context: StageContext) -> dict[str, Any]:
    """Reconstruct the stage's classes of the target; payload: `reconstructions.safetensors`."""
    config = context.task.config
    cls, options = build_method("attacks.inversion", config["attack"])
    attack = cls(options)
    classes = torch.tensor(config["classes"])
    target = Target(
        lambda: _laid_out(context.released("target"), context.device),
        attack.access,
        config["num_classes"],
        load_unmasked=lambda: _laid_out(context.unmasked("target"), context.device),
    )
    knowledge = _knowledge(context, needs_prior=attack.needs_prior)
    images = attack.reconstruct(target, classes, knowledge)
    if not bool(torch.isfinite(images).all()):
        raise ArithmeticError(
            f"attack {config['attack']['name']!r} made images that are not finite; lower its learning rate"
        )
    tensors = {"images": _kept(images), "classes": classes}
    if knowledge.generator is not None:
        tensors["unoptimized"] = _kept(_unoptimized(knowledge, context.device))
    save_file(tensors, context.output / "reconstructions.safetensors")
    return {
        "metrics": {},
        "reconstructions": int(images.shape[0] * images.shape[1]),
        "access": attack.access.name.lower(),
    }


def _kept(images: Tensor) -> Tensor:
    return images.clamp(0, 1).float().cpu().contiguous()


def _laid_out(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with channels last where that was measured to be faster (benchmarks/inversion.py): CPUs."""
    return network.to(memory_format=torch.channels_last) if device.type == "cpu" else network


def _unoptimized(knowledge: Knowledge, device: torch.device) -> Tensor:
    assert knowledge.generator is not None
    stream = torch_generator(derive_seed(knowledge.seed, "unoptimized"))
    return images_of(knowledge.generator, torch.randn(UNOPTIMIZED, knowledge.latent_size, generator=stream).to(device))


def _knowledge(context: StageContext, needs_prior: bool) -> Knowledge:
    seed = context.task.config["seed"]
    if not needs_prior:
        return Knowledge(seed=seed)
    manifest = context.input("prior")
    config = manifest.key_document["config"]
    cls, options = build_method("priors", config["prior"])
    networks = cls(options, InputShape(tuple(config["input_shape"])), config.get("num_classes", 0)).build()
    for name, network in networks.items():
        load_module(network, context.store.fetch(manifest, f"{name}.safetensors"))
        _laid_out(network.eval().requires_grad_(False).to(context.device), context.device)
    return Knowledge(
        seed=seed,
        generator=networks["generator"],
        critic=networks.get("critic"),
        networks=networks,
        latent_size=options.latent_size,
    )
