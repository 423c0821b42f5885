"""The training loop: epochs, history, checkpoints. The same loop runs in a task and under Ray Train.

Every random stream is derived from (training seed, role, epoch), so that a resumed training continues with the
very numbers of an undisturbed one, and data order does not depend on the number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.faults import fault_point
from oakum.models.base import predict_log_probabilities
from oakum.records import MetricValue
from oakum.seeding import derive_seed, sample_keys, torch_generator
from oakum.training.augmentation import augment
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.identity_sampler import identity_batches
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

LossFunction = Callable[[TrainState, Batch], Tensor]
Sampler = Callable[[TrainState], Iterator[Tensor]]


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class Checkpointer(Protocol):
    """Where unfinished training is kept."""

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        """Keep the state after `epoch` epochs; may decline when the last one is recent."""

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        """Load the newest checkpoint into `parts` and return its record, or None when there is none."""


class NoCheckpoints:
    """Keeps nothing: for tests and for trainings shorter than a checkpoint's cost."""

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        return

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        return None


@dataclass(frozen=True)
class LabeledData:
    """Samples in memory: x (N, *dims) float32 in [0, 1], y (N,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return int(self.y.shape[0])


@dataclass
class TrainingLoop:
    """Runs a loss over the training fold for the recipe's epochs.

    With several workers each rank's loss is that of its shard, scaled so that the average over ranks is the loss of the
    global batch (`TrainState.batch_mean`).

    Attributes:
        train: the training fold (with planted canaries, if any).
        val: the validation fold, or None; it never changes the weights.
        folds: further folds that the defense declared in `reads`, by name.
        teachers: what the defense declared in `teachers`, by name: released models in eval mode, loaded at the call.
        start: returns the folder of the state that a shorter training left, which this one goes on from as if it had
            been its own; None: begin with the first epoch.
        end: folder to leave the whole state in, for a training that goes on; None: leave none.
        snapshots: keep the weights after these numbers of epochs (ascending) and stop after the last of them; empty:
            train the recipe's `trained_epochs`.
        kept: number of epochs -> weights of that snapshot.
        metrics: further numbers of the finished training, by metric key (`privacy/epsilon`).
        sampler: returns the global batches of an epoch as positions in the fold; None shuffles the whole fold, or draws
            the recipe's `images_per_class`.
        history: one row an epoch; the truth that trackers and reports read.
    """

    train: LabeledData
    val: LabeledData | None
    recipe: Recipe
    checkpointer: Checkpointer = field(default_factory=NoCheckpoints)
    folds: Mapping[str, LabeledData] = field(default_factory=dict)
    teachers: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    start: Callable[[], Path] | None = None
    end: Path | None = None
    snapshots: tuple[int, ...] = ()
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    metrics: dict[str, MetricValue] = field(default_factory=dict)
    sampler: Sampler | None = None
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self, state: TrainState, loss: LossFunction) -> nn.Module:
        """Train to the last epoch, from the newest checkpoint or else from `start`, and return the selected model.

        Raises:
            TrainingDivergedError: the loss is not finite; names the epoch and where training may be resumed.
            CheckpointError: `start` is the state of another network or optimizer.
        """
        best = BestState()
        parts = {**self.parts(state), "best": best, "snapshots": Snapshots(self.kept)}
        record = self.checkpointer.load(parts)
        if record is None and self.start is not None:
            record = load_parts(self.start(), parts)
        if record is not None:
            self._take_up(state, record)
        fault_point("train.before_first_checkpoint")
        while state.epoch < (self.snapshots[-1] if self.snapshots else self.recipe.trained_epochs):
            row = self.run_epoch(state, loss)
            if state.epoch in self.snapshots:
                self.kept[state.epoch] = _copy_of(unwrap(state.model))
            if self.recipe.select == "best_val":
                best.offer(unwrap(state.model), row["val/accuracy"])
            if state.collective.rank == 0:
                self.checkpointer.save(state.epoch, parts, self._record(state))
            fault_point("train.between_epochs")
        if self.end is not None and state.collective.rank == 0:
            save_parts(self.end, parts, self._record(state))
        module = unwrap(state.model)
        if best.state:
            module.load_state_dict(best.state)
        return module

    def run_epoch(self, state: TrainState, loss: LossFunction) -> dict[str, Any]:
        """Train one epoch, append its row to the history and return it."""
        started = time.time()
        state.counters.clear()
        torch.manual_seed(derive_seed(state.seed, "epoch", state.epoch))
        state.model.train()
        totals = _Totals()
        rate = float(state.optimizer.param_groups[0]["lr"])
        for batch in self.batches(state):
            state.optimizer.zero_grad(set_to_none=True)
            value = loss(state, batch)
            value.backward()
            state.optimizer.step()
            state.step += 1
            totals.add(value, state.last_logits, batch.y)
        if state.scheduler is not None:
            state.scheduler.step()
        row = {"epoch": state.epoch, "learning_rate": rate, **totals.summary(state), **dict(state.counters)}
        if row["train/loss"] is None:
            raise TrainingDivergedError(
                f"the training loss is not finite in epoch {state.epoch} (counted from 0); lower the learning rate or "
                "the defense's strength; the last good checkpoint is kept and the same command resumes from it"
            )
        if self.val is not None:
            row["val/accuracy"], row["val/loss"] = evaluate(unwrap(state.model), self.val)
        state.epoch += 1
        row.update(seconds=time.time() - started, finished=time.time())
        self.history.append(row)
        if self.on_epoch is not None:
            self.on_epoch(row)
        return row

    def batches(self, state: TrainState) -> Iterator[Batch]:
        """Yield this rank's shard of every global batch of the epoch, in the order of (seed, epoch).

        Raises:
            ConfigError: `images_per_class` does not fit the training fold or the defense.
        """
        rank, workers = state.collective.rank, state.collective.world_size
        for whole in self._global_batches(state):
            index = whole[rank::workers]
            x = self.train.x[index].to(state.device)
            if self.recipe.augmentation:
                keys = sample_keys(derive_seed(state.seed, "augmentation", state.epoch), index.to(state.device))
                x = augment(x, keys, self.recipe.augmentation)
            yield Batch(x, self.train.y[index].to(state.device), index, self.train.y[whole])

    def _global_batches(self, state: TrainState) -> Iterator[Tensor]:
        images = self.recipe.images_per_class
        if images is None:
            return (self.sampler or self._shuffled)(state)
        if self.sampler is not None:
            raise ConfigError("recipe.images_per_class: this defense draws its batches by itself; remove the option")
        generator = torch_generator(derive_seed(state.seed, "order", state.epoch))
        return identity_batches(self.train.y, self.recipe.batch_size // images, images, generator)

    def _shuffled(self, state: TrainState) -> Iterator[Tensor]:
        count, size = len(self.train), self.recipe.batch_size
        order = torch.randperm(count, generator=torch_generator(derive_seed(state.seed, "order", state.epoch)))
        stop = count - count % size if self.recipe.drop_last else count
        for start in range(0, stop, size):
            yield order[start : min(start + size, stop)]

    def _record(self, state: TrainState) -> dict[str, Any]:
        metrics = {name: value.to_json() for name, value in self.metrics.items()}
        return {"history": self.history, "epoch": state.epoch, "step": state.step, "metrics": metrics}

    def _take_up(self, state: TrainState, record: dict[str, Any]) -> None:
        self.history[:] = record["history"]
        state.epoch, state.step = record["epoch"], record["step"]
        for name, value in record.get("metrics", {}).items():
            self.metrics.setdefault(name, MetricValue.from_json(value))

    @staticmethod
    def parts(state: TrainState) -> dict[str, Any]:
        """Return what a checkpoint must hold, by name."""
        parts: dict[str, Any] = {"model": unwrap(state.model), "optimizer": state.optimizer, **state.extras}
        if state.scheduler is not None:
            parts["scheduler"] = state.scheduler
        return parts


class BestState:
    """The weights of the best validation accuracy so far; the earliest epoch wins ties."""

    def __init__(self) -> None:
        self.accuracy = -1.0
        self.state: dict[str, Tensor] = {}

    def offer(self, module: nn.Module, accuracy: float) -> None:
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.state = _copy_of(module)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracy, self.state = state["accuracy"], state["state"]


class Snapshots:
    """The kept snapshots as a part of checkpoints."""

    def __init__(self, kept: dict[int, dict[str, Tensor]]) -> None:
        self._kept = kept

    def state_dict(self) -> dict[str, Any]:
        return {str(epoch): state for epoch, state in self._kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept.clear()
        self._kept.update({int(epoch): weights for epoch, weights in state.items()})


def _copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class _Totals:
    """Numbers of this rank's steps in one epoch, kept as tensors so that no step waits for the device."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def add(self, value: Tensor, logits: Tensor | None, y: Tensor) -> None:
        count = float(y.shape[0])
        correct = cross_entropy = torch.zeros((), dtype=torch.float64, device=y.device)
        if logits is not None:
            cross_entropy = F.cross_entropy(logits.double(), y, reduction="sum")
            correct = (logits.argmax(dim=1) == y).sum().double()
        self._steps.append(torch.stack([value.detach().double(), cross_entropy, correct, correct.new_tensor(count)]))

    def summary(self, state: TrainState) -> dict[str, Any]:
        """Return the epoch's means over the samples of all ranks; a loss that is not finite is None.

        The loss of a global batch is the average of what the ranks minimized.
        """
        if not self._steps:
            return {"train/loss": 0.0, "train/cross_entropy": 0.0, "train/accuracy": 0.0}
        values, *counted = state.collective.sum(torch.stack(self._steps)).unbind(dim=1)
        losses = values / state.collective.world_size * counted[-1]
        loss, cross_entropy, correct, count = (float(column.sum()) for column in (losses, *counted))
        if not count:
            return {"train/loss": 0.0, "train/cross_entropy": 0.0, "train/accuracy": 0.0}
        finite = loss == loss and abs(loss) != float("inf")
        return {
            "train/loss": loss / count if finite else None,
            "train/cross_entropy": cross_entropy / count,
            "train/accuracy": correct / count,
        }


def evaluate(module: nn.Module, data: LabeledData) -> tuple[float, float]:
    """Return (accuracy, mean cross-entropy in nats) of an eval-mode pass over at least one sample."""
    device = next(module.parameters()).device
    log_probabilities = predict_log_probabilities(module, data.x.to(device)).cpu()
    loss = F.nll_loss(log_probabilities, data.y)
    accuracy = (log_probabilities.argmax(dim=1) == data.y).double().mean()
    return float(accuracy), float(loss)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a data-parallel wrapper, or the model itself."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, nn.Module)
    return inner
