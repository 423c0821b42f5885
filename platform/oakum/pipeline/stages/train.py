"""Train one model; payload: `model.safetensors`, `history.json`, `config.json`."""

from __future__ import annotations

from typing import Any

from oakum.pipeline.context import StageContext
from oakum.pipeline.training import train_model
from oakum.records import MetricValue
from oakum.training.checkpoint import save_module


def run(context: StageContext) -> dict[str, Any]:
    """Train one model; payload: `model.safetensors`, `history.json`, `config.json`."""
    config = context.task.config
    module, history = train_model(context)
    save_module(module, context.output / "model.safetensors")
    context.write_json("history.json", {"epochs": history})
    context.write_json("config.json", config)
    last = history[-1]
    names = {"train/accuracy": "train_accuracy", "train/loss": "train_loss", "val/accuracy": "val_accuracy"}
    metrics = {name: MetricValue(last[column]).to_json() for column, name in names.items() if column in last}
    return {"metrics": metrics, "epochs": len(history), "train_seconds": sum(row["seconds"] for row in history)}
