"""Train a generator on public images; payload: one safetensors a network, and `history.json`."""

from __future__ import annotations

from typing import Any

from oakum.models.base import InputShape
from oakum.models.priors.base import Prior
from oakum.pipeline.context import StageContext, StoreCheckpointer, build_method
from oakum.records import MetricValue
from oakum.training.checkpoint import save_module


def run(context: StageContext) -> dict[str, Any]:
    """Train a generator on public images; payload: one safetensors a network, and `history.json`."""
    config = context.task.config
    cls, options = build_method("priors", config["prior"])
    prior: Prior = cls(options, InputShape(tuple(config["input_shape"])))
    images = context.folds.points("public", labels="all").x.to(context.device)
    seconds = context.settings.checkpoint_seconds
    keeper = StoreCheckpointer(context.store, context.task.key, context.scratch, seconds)
    networks, history = prior.train(images, config["seed"], keeper.load, keeper.save)
    for name, network in networks.items():
        save_module(network, context.output / f"{name}.safetensors")
    context.write_json("history.json", {"epochs": history})
    last = {name: value for name, value in history[-1].items() if isinstance(value, float)}
    return {
        "metrics": {name: MetricValue(value).to_json() for name, value in last.items()},
        "steps": history[-1]["step"],
    }
