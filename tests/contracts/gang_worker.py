"""One process of a gang: trains what it is told to, alone or in a bare gloo group, until it is told to stop.

Runs by path (`runpy`) with `connection` in its globals. Trainings go through `oakum.pipeline.training.fit`, as in a
stage and under Ray Train, in float64 and without a store: data and teachers follow from seeds.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oakum.config import validate
from oakum.pipeline.context import build_defense, build_network
from oakum.pipeline.training import fit
from oakum.seeding import derive_seed, torch_generator
from oakum.training.loop import LabeledData, LossFunction, TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

PATIENCE = timedelta(seconds=60)


@dataclass
class RecordingLoop(TrainingLoop):
    """Keeps what every step minimized: the average of the ranks' losses."""

    losses: list[float] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)

    def run(self, state: TrainState, loss: LossFunction) -> nn.Module:
        def recorded(state: TrainState, batch: Batch) -> Tensor:
            value = loss(state, batch)
            self.losses.append(float(state.collective.sum(value.detach())) / state.collective.world_size)
            self.shards.append(len(batch.y))
            return value

        return super().run(state, recorded)


def fold(config: dict[str, Any], name: str, rows: int) -> LabeledData:
    """Return images that tell a little of their labels."""
    generator = torch_generator(derive_seed(config["seed"], f"fold/{name}"))
    y = torch.randint(config["num_classes"], (rows,), generator=generator)
    x = torch.rand(rows, *config["input_shape"], generator=generator)
    return LabeledData(x * (1 + y.view(-1, 1, 1, 1)) / config["num_classes"], y)


def teacher(config: dict[str, Any], name: str) -> nn.Module:
    """Return a model with weights of its own as a defense's teacher, in eval mode."""
    wanted = build_defense(config["defense"]).teachers()[name]
    config = {**config, "defense": wanted.defense}
    if wanted.public:
        config["num_classes"] *= 2
    torch.manual_seed(derive_seed(config["seed"], f"teacher/{name}"))
    return build_defense(wanted.defense).release(build_network(config), config["seed"]).eval()


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Return the losses of all steps, the history, and all weights of the training that `job` describes.

    It goes on from the state in the folder `job["start"]` and leaves its own in `job["end"]`, where these are given.
    """
    config, rows = job["config"], job["rows"]
    defense = build_defense(config["defense"])
    loop = RecordingLoop(
        train=fold(config, "train", rows["train"]),
        val=fold(config, "val", rows["val"]),
        recipe=validate(Recipe, config["recipe"], "recipe"),
        folds={name: fold(config, name, rows["other"]) for name in defense.reads},
        teachers={name: partial(teacher, config, name) for name in defense.teachers()},
        start=partial(Path, job["start"]) if "start" in job else None,
        end=Path(job["end"]) if "end" in job else None,
        snapshots=tuple(config.get("snapshots", ())),
    )
    module = fit(config, loop, torch.device("cpu"))
    kept = {f"epoch {epoch}: {name}": value for epoch, state in loop.kept.items() for name, value in state.items()}
    return {
        "losses": loop.losses,
        "shards": loop.shards,
        "history": loop.history,
        "metrics": {name: metric.value for name, metric in loop.metrics.items()},
        "weights": {name: value.numpy().copy() for name, value in {**module.state_dict(), **kept}.items()},
    }


def train_in_group(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of a new group, or alone."""
    if job["world_size"] == 1:
        return train(job)
    dist.init_process_group(
        "gloo", init_method=job["meeting"], rank=job["rank"], world_size=job["world_size"], timeout=PATIENCE
    )
    try:
        return train(job)
    finally:
        dist.destroy_process_group()


def serve(connection: Connection) -> None:
    """Answer every job with its result, or with the traceback of what went wrong, until None comes."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    while (job := connection.recv()) is not None:
        try:
            connection.send(train_in_group(job))
        except Exception:
            connection.send(traceback.format_exc())


if __name__ == "gang_worker":
    serve(globals()["connection"])
