"""The body of a training stage: the same in a plain task and in every worker of Ray Train."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oakum.config import ConfigError, validate
from oakum.pipeline.context import StageContext, StoreCheckpointer, build_defense, build_model
from oakum.seeding import derive_seed
from oakum.training.batch_norm import use_global_statistics
from oakum.training.checkpoint import RECORD_FILE, TENSORS_FILE
from oakum.training.collective import Collective
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.optimizers import autocast_dtype, build_optimizer, build_scheduler
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState
from oakum.weights import read_planned, weights_folder

# Inputs of a training that are its teachers carry this before their name.
TEACHER = "teacher."
# The input of a training that goes on where a shorter one ended.
START = "start"


def train_model(context: StageContext) -> tuple[nn.Module, TrainingLoop]:
    """Train (or resume) the stage's model; return the selected module on the CPU and the finished loop.

    A training that ends before its recipe does leaves its whole state in the stage's payload.
    """
    config = context.task.config
    folds = {role: context.folds.labeled(fold, config["labels"]) for role, fold in config["folds"].items()}
    train, val = folds.pop("train"), folds.pop("val", None)
    recipe = validate(Recipe, config["recipe"], "recipe")
    loop = TrainingLoop(
        train=_own_rows(train, config.get("rows")),
        val=val,
        folds=folds,
        teachers={
            name.removeprefix(TEACHER): partial(context.released, name)
            for name in context.task.inputs
            if name.startswith(TEACHER)
        },
        start=partial(_state_of, context, START) if START in context.task.inputs else None,
        end=context.output if recipe.trained_epochs < recipe.epochs else None,
        snapshots=tuple(config.get("snapshots", ())),
        recipe=recipe,
        checkpointer=StoreCheckpointer(
            context.store, context.task.key, context.scratch, context.settings.checkpoint_seconds
        ),
    )
    return fit(config, loop, context.device, _initial_weights(context)).cpu(), loop


def fit(
    config: dict[str, Any], loop: TrainingLoop, device: torch.device, initial: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Train (or resume) the network of a training's configuration in `loop`, and return it.

    In an initialized process group every rank calls this and gets equal weights; only rank 0 keeps checkpoints.
    """
    defense = build_defense(config["defense"])
    state = defense.prepare(initial_state(config, loop.recipe, device, initial))
    if state.collective.world_size > 1 and not state.reduces_gradients:
        state.model = DistributedDataParallel(state.model)
    module: nn.Module = defense.fit(state, loop)
    return module


def _state_of(context: StageContext, name: str) -> Path:
    """Return a folder with the state that an input's training left."""
    manifest, folder = context.input(name), context.scratch / name
    folder.mkdir()
    for file in (TENSORS_FILE, RECORD_FILE):
        (folder / file).symlink_to(context.store.fetch(manifest, file).absolute())
    return folder


def _own_rows(train: LabeledData, rows: dict[str, Any] | None) -> LabeledData:
    """Return the part of the training fold that a teacher with rows of its own trains on."""
    if rows is None:
        return train
    index = build_defense(rows["of"]).teacher_rows(rows["teacher"], train, rows["seed"])
    return LabeledData(train.x[index], train.y[index])


def _initial_weights(context: StageContext) -> dict[str, Tensor] | None:
    """Return the tensors that training starts from, checked against the stage's key, or None for a random start."""
    config = context.task.config
    name = config["model"].get("initial_weights")
    if name is None:
        return None
    return read_planned(weights_folder(context.settings.data_home), name, config["initial_weights_sha256"])


def initial_state(
    config: dict[str, Any], recipe: Recipe, device: torch.device, initial: Mapping[str, Tensor] | None = None
) -> TrainState:
    """Return the state before the first step; weights depend on the training's seed and `initial` alone."""
    torch.manual_seed(derive_seed(config["seed"], "init"))
    classifier = build_model(config)
    if initial is not None:
        classifier.load_initial(initial)
    if recipe.epochs == 0 and classifier.left_as_drawn:
        raise ConfigError(
            f"the weights {config['model']['initial_weights']!r} leave {', '.join(classifier.left_as_drawn)} of "
            f"{config['model']['name']} random: they are not those of {config['num_classes']} classes, and with "
            "epochs 0 nothing trains the rest; give weights of a classifier of these classes, or epochs above 0"
        )
    model = build_defense(config["defense"]).build(classifier).to(device)
    collective = Collective.current()
    if recipe.batch_norm == "global" and collective.world_size > 1:
        use_global_statistics(model, collective)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(recipe, [parameter for parameter in model.parameters() if parameter.requires_grad])
    return TrainState(
        model=model,
        optimizer=optimizer,
        scheduler=build_scheduler(recipe, optimizer),
        num_classes=config["num_classes"],
        seed=config["seed"],
        device=device,
        collective=collective,
        autocast_dtype=autocast_dtype(recipe),
        channels_last=recipe.channels_last,
    )
