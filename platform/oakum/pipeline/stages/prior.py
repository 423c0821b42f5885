"""Train a generator on public images; payload: one safetensors a network, `history.json`, `samples.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from oakum.models.base import InputShape
from oakum.models.priors.base import Prior
from oakum.pipeline.context import StageContext, StoreCheckpointer, build_method
from oakum.records import MetricValue
from oakum.seeding import derive_seed, torch_generator
from oakum.training.checkpoint import save_module


def run(context: StageContext) -> dict[str, Any]:
    """Train a generator on public images; payload: one safetensors a network, `history.json`, `samples.png`."""
    config = context.task.config
    cls, options = build_method("priors", config["prior"])
    prior: Prior = cls(options, InputShape(tuple(config["input_shape"])), config.get("num_classes", 0))
    target = context.unmasked("target").requires_grad_(False) if prior.needs_target else None
    images = context.folds.points("public", labels="all").x.to(context.device)
    seconds = context.settings.checkpoint_seconds
    keeper = StoreCheckpointer(context.store, context.task.key, context.scratch, seconds)
    networks, history = prior.train(images, config["seed"], keeper.load, keeper.save, target)
    for name, network in networks.items():
        save_module(network, context.output / f"{name}.safetensors")
    _save_samples(networks["generator"], options.latent_size, config["seed"], context.output / "samples.png")
    context.write_json("history.json", {"epochs": history})
    last = {name: value for name, value in history[-1].items() if isinstance(value, float)}
    return {
        "metrics": {name: MetricValue(value).to_json() for name, value in last.items()},
        "steps": history[-1]["step"],
    }


@torch.no_grad()
def _save_samples(generator: nn.Module, latent_size: int, seed: int, path: Path) -> None:
    """Write 4 rows of 16 random images of the prior: what the attacks can draw at all."""
    device = next(generator.parameters()).device
    z = torch.randn(64, latent_size, generator=torch_generator(derive_seed(seed, "samples"))).to(device)
    images = (generator.eval()(z).cpu() * 255).round().to(torch.uint8)
    channels, height, width = images.shape[1:]
    grid = images.view(4, 16, channels, height, width).permute(0, 3, 1, 4, 2).reshape(4 * height, 16 * width, channels)
    Image.fromarray(grid.squeeze(2).numpy()).save(path)
