"""Train a generator on public images, or take an imported one.

Payload: one safetensors a network, `history.json`, `samples.png`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from oakum.config import ConfigError
from oakum.models.base import InputShape
from oakum.models.priors.base import Prior
from oakum.pipeline.context import StageContext, StoreCheckpointer, build_method
from oakum.records import MetricValue
from oakum.seeding import derive_seed, torch_generator
from oakum.training.checkpoint import CheckpointError, load_strictly, save_module
from oakum.weights import read_planned, weights_folder


def run(context: StageContext) -> dict[str, Any]:
    """Train a generator on public images, or take an imported one; payload: as the module says."""
    config = context.task.config
    cls, options = build_method("priors", config["prior"])
    prior: Prior = cls(options, InputShape(tuple(config["input_shape"])), config.get("num_classes", 0))
    networks, history = (_imported if "weights" in config else _trained)(context, prior)
    for name, network in networks.items():
        save_module(network, context.output / f"{name}.safetensors")
    _save_samples(networks["generator"], options.latent_size, config["seed"], context.output / "samples.png")
    context.write_json("history.json", {"epochs": history})
    last = history[-1] if history else {"step": 0}
    return {
        "metrics": {name: MetricValue(value).to_json() for name, value in last.items() if isinstance(value, float)},
        "steps": last["step"],
    }


def _trained(context: StageContext, prior: Prior) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    target = context.unmasked("target").requires_grad_(False) if prior.needs_target else None
    images = context.folds.points("public", labels="all").x.to(context.device)
    seconds = context.settings.checkpoint_seconds
    keeper = StoreCheckpointer(context.store, context.task.key, context.scratch, seconds)
    return prior.train(images, context.task.config["seed"], keeper.load, keeper.save, target)


def _imported(context: StageContext, prior: Prior) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    """Return the prior's networks with the weights that were imported for them, and a history of no steps.

    Raises:
        ConfigError: weights that are not there or do not fit.
    """
    networks, folder = prior.build(), weights_folder(context.settings.data_home)
    for part, file in context.task.config["weights"].items():
        tensors = read_planned(folder, file["name"], file["sha256"])
        try:
            load_strictly(networks[part], tensors, where=f"the weights {file['name']!r} as the prior's {part}")
        except CheckpointError as error:
            raise ConfigError(f"{error}; give weights of this method, image size and latent size") from error
    return networks, []


@torch.no_grad()
def _save_samples(generator: nn.Module, latent_size: int, seed: int, path: Path) -> None:
    """Write 4 rows of 16 random images of the prior: what the attacks can draw at all."""
    device = next(generator.parameters()).device
    z = torch.randn(64, latent_size, generator=torch_generator(derive_seed(seed, "samples"))).to(device)
    images = (generator.eval()(z).cpu() * 255).round().to(torch.uint8)
    channels, height, width = images.shape[1:]
    grid = images.view(4, 16, channels, height, width).permute(0, 3, 1, 4, 2).reshape(4 * height, 16 * width, channels)
    Image.fromarray(grid.squeeze(2).numpy()).save(path)
