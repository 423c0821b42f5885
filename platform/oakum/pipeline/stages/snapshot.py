"""An earlier epoch of a training as a model of its own; payload: as of `train`."""

from __future__ import annotations

import json
import shutil
from typing import Any

from oakum.pipeline.context import StageContext
from oakum.pipeline.stages.train import snapshot, summary_of


def run(context: StageContext) -> dict[str, Any]:
    """Take one epoch out of a training; payload: `model.safetensors`, `history.json`, `config.json`."""
    config = context.task.config
    training = context.input("training")
    shutil.copyfile(context.store.fetch(training, snapshot(config["epoch"])), context.output / "model.safetensors")
    history = json.loads(context.store.read(training, "history.json"))["epochs"][: config["epoch"]]
    context.write_json("history.json", {"epochs": history})
    context.write_json("config.json", config)
    return summary_of(history, {})
