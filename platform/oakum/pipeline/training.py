"""The body of a training stage: the same in a plain task and in every worker of Ray Train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oakum.config import validate
from oakum.pipeline.context import StageContext, StoreCheckpointer, build_defense, build_model
from oakum.seeding import derive_seed
from oakum.training.collective import Collective
from oakum.training.loop import TrainingLoop
from oakum.training.optimizers import autocast_dtype, build_optimizer, build_scheduler
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState


def train_model(context: StageContext) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train (or resume) the stage's model; return the selected module on the CPU and the history.

    In an initialized process group every rank calls this and gets equal weights; only rank 0 keeps checkpoints.
    """
    config = context.task.config
    recipe = validate(Recipe, config["recipe"], "recipe")
    defense = build_defense(config["defense"])
    state = initial_state(config, recipe, context.device)
    state = defense.prepare(state)
    if state.collective.world_size > 1:
        state.model = DistributedDataParallel(state.model)
    val = context.folds.labeled("val", config["labels"]) if "val" in context.task.folds else None
    loop = TrainingLoop(
        train=context.folds.labeled(config["train_fold"], config["labels"]),
        val=val,
        recipe=recipe,
        checkpointer=StoreCheckpointer(
            context.store, context.task.key, context.scratch, context.settings.checkpoint_seconds
        ),
    )
    module: nn.Module = defense.fit(state, loop)
    return module.cpu(), loop.history


def initial_state(config: dict[str, Any], recipe: Recipe, device: torch.device) -> TrainState:
    """Return the state before the first step; weights depend on the training's seed alone."""
    torch.manual_seed(derive_seed(config["seed"], "init"))
    model = build_model(config).to(device)
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
        collective=Collective.current(),
        autocast_dtype=autocast_dtype(recipe),
        channels_last=recipe.channels_last,
    )
