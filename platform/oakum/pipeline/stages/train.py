"""Train one model; payload: `model.safetensors`, `history.json`, `config.json`, and snapshots of earlier epochs.

A training that ends before its recipe does adds its state (`oakum.training.checkpoint`), which another goes on from.
"""

from __future__ import annotations

from typing import Any

from safetensors.torch import save_file

from oakum.pipeline.context import StageContext
from oakum.pipeline.training import train_model
from oakum.records import MetricValue
from oakum.training.checkpoint import save_module

_SHOWN = {"train/accuracy": "train_accuracy", "train/loss": "train_loss", "val/accuracy": "val_accuracy"}


def run(context: StageContext) -> dict[str, Any]:
    """Train one model, or go on with one; payload: as the module says, snapshots as `epoch-<n>.safetensors`."""
    config = context.task.config
    module, loop = train_model(context)
    save_module(module, context.output / "model.safetensors")
    for epoch, weights in loop.kept.items():
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, context.output / snapshot(epoch))
    context.write_json("history.json", {"epochs": loop.history})
    context.write_json("config.json", config)
    return summary_of(loop.history, loop.metrics)


def snapshot(epoch: int) -> str:
    """Return the payload file of the weights after `epoch` epochs."""
    return f"epoch-{epoch}.safetensors"


def summary_of(history: list[dict[str, Any]], metrics: dict[str, MetricValue]) -> dict[str, Any]:
    """Return the summary of a training with this history."""
    last = history[-1] if history else {}
    shown = {name: MetricValue(last[column]) for column, name in _SHOWN.items() if column in last}
    return {
        "metrics": {name: value.to_json() for name, value in {**shown, **metrics}.items()},
        "epochs": len(history),
        "train_seconds": sum(row["seconds"] for row in history),
    }
