"""Reconstruct every class of a target; payload: `reconstructions.safetensors`."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file

from oakum.attacks.access import Knowledge, Target
from oakum.models.base import InputShape
from oakum.pipeline.context import StageContext, build_method
from oakum.training.checkpoint import load_module


def run(context: StageContext) -> dict[str, Any]:
    """Reconstruct every class of the target; payload: `reconstructions.safetensors`."""
    config = context.task.config
    cls, options = build_method("attacks.inversion", config["attack"])
    attack = cls(options)
    classes = torch.arange(config["num_classes"])
    target = Target(lambda: context.released("target"), attack.access, config["num_classes"])
    images = attack.reconstruct(target, classes, _inversion_knowledge(context, needs_prior=attack.needs_prior))
    if not bool(torch.isfinite(images).all()):
        raise ArithmeticError(
            f"attack {config['attack']['name']!r} made images that are not finite; lower its learning rate"
        )
    tensors = {"images": (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous(), "classes": classes}
    save_file(tensors, context.output / "reconstructions.safetensors")
    return {
        "metrics": {},
        "reconstructions": int(images.shape[0] * images.shape[1]),
        "access": attack.access.name.lower(),
    }


def _inversion_knowledge(context: StageContext, needs_prior: bool) -> Knowledge:
    seed = context.task.config["seed"]
    if not needs_prior:
        return Knowledge(seed=seed)
    manifest = context.input("prior")
    config = manifest.key_document["config"]
    cls, options = build_method("priors", config["prior"])
    networks = cls(options, InputShape(tuple(config["input_shape"]))).build()
    for name, network in networks.items():
        load_module(network, context.store.fetch(manifest, f"{name}.safetensors"))
        network.eval().requires_grad_(False).to(context.device)
    return Knowledge(
        seed=seed, generator=networks["generator"], critic=networks["critic"], latent_size=options.latent_size
    )
