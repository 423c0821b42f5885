from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum.defenses.base import Defense
from oakum.models.base import InputShape
from oakum.models.strided_cnn import StridedCNN
from oakum.records import MetricValue
from oakum.training.checkpoint import CheckpointError, load_parts, save_parts
from oakum.training.collective import Collective
from oakum.training.loop import (
    BestState,
    LabeledData,
    NoCheckpoints,
    Snapshots,
    TrainingDivergedError,
    TrainingLoop,
    evaluate,
)
from oakum.training.optimizers import build_optimizer, build_scheduler
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES = 3
EPOCHS = 4


class OnDisk:
    """Keeps every checkpoint in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        target = self.folder / str(epoch)
        target.mkdir(parents=True)
        save_parts(target, parts, record)

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        found = sorted(self.folder.iterdir(), key=lambda path: int(path.name)) if self.folder.exists() else []
        return load_parts(found[-1], parts) if found else None


def data(count: int = 21, seed: int = 0) -> LabeledData:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    return LabeledData(torch.rand(count, 1, 8, 8, generator=generator) * (1 + y.view(-1, 1, 1, 1)) / CLASSES, y)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"learning_rate": 1e-2, "epochs": EPOCHS, "batch_size": 8, **changes})


def state(chosen: Recipe, seed: int = 1, **changes: Any) -> TrainState:
    torch.manual_seed(seed)
    model = StridedCNN(StridedCNN.Config(width=2, hidden=8), InputShape((1, 8, 8)), CLASSES)
    optimizer = build_optimizer(chosen, list(model.parameters()))
    scheduler = build_scheduler(chosen, optimizer)
    return TrainState(model, optimizer, CLASSES, seed, scheduler=scheduler, **changes)


def train(chosen: Recipe, loop: TrainingLoop | None = None, **changes: Any) -> tuple[dict[str, Tensor], TrainingLoop]:
    loop = loop or TrainingLoop(data(), data(12, seed=5), chosen)
    return Defense(Defense.Config()).fit(state(chosen, **changes), loop).state_dict(), loop


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in {"seconds", "finished"}} for row in history]


def test_weights_follow_from_the_seed_alone() -> None:
    first, _ = train(recipe())
    torch.rand(7)
    assert equal(first, train(recipe())[0])
    assert not equal(first, train(recipe(), seed=2)[0])


def test_the_history_has_one_row_an_epoch() -> None:
    seen: list[dict[str, Any]] = []
    chosen = recipe(milestones=(2,), gamma=0.5)
    loop = TrainingLoop(data(), data(12, seed=5), chosen, on_epoch=seen.append)
    train(chosen, loop)
    assert seen == loop.history and [row["epoch"] for row in seen] == list(range(EPOCHS))
    assert [row["learning_rate"] for row in seen] == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3])
    for row in seen:
        assert row.keys() >= {"train/loss", "train/cross_entropy", "train/accuracy", "val/accuracy", "val/loss"}
        assert row["train/loss"] == pytest.approx(row["train/cross_entropy"])


def test_the_rows_are_means_over_samples_not_over_batches() -> None:
    chosen = recipe(epochs=1, learning_rate=1e-30)
    model = state(chosen).model.train()
    module = nn.Sequential(model.features, model.head)
    loop = TrainingLoop(data(), None, chosen)
    model.dropout.p = 0.0
    still = state(chosen)
    still.model.dropout.p = 0.0
    Defense(Defense.Config()).fit(still, loop)
    logits = module(data().x).detach()
    assert loop.history[0]["train/loss"] == pytest.approx(float(F.cross_entropy(logits, data().y)), rel=1e-6)
    assert loop.history[0]["train/accuracy"] == pytest.approx(float((logits.argmax(1) == data().y).float().mean()))


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "sgd", "nesterov": True, "milestones": (1, 3)}, {"select": "best_val"}],
    ids=["adam", "sgd with a schedule", "best_val"],
)
@pytest.mark.parametrize("stop", range(1, EPOCHS))
def test_a_resumed_training_ends_with_the_same_bits(stop: int, changes: dict[str, Any], tmp_path: Path) -> None:
    chosen = recipe(**changes)
    expected, undisturbed = train(chosen)

    class StoppedError(Exception):
        pass

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == stop:
            raise StoppedError

    broken = TrainingLoop(data(), data(12, seed=5), chosen, OnDisk(tmp_path / "work"), on_epoch=interrupt)
    with pytest.raises(StoppedError):
        train(chosen, broken)
    resumed = TrainingLoop(data(), data(12, seed=5), chosen, OnDisk(tmp_path / "work"))
    found, _ = train(chosen, resumed)
    assert equal(found, expected)
    assert without_times(resumed.history) == without_times(undisturbed.history)
    assert resumed.history[stop - 1]["finished"] == broken.history[stop - 1]["finished"]


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    kept = OnDisk(tmp_path / "work")
    expected, _ = train(recipe(), TrainingLoop(data(), None, recipe(), kept))
    again = TrainingLoop(data(), None, recipe(), kept, on_epoch=lambda row: pytest.fail("trained again"))
    assert equal(train(recipe(), again)[0], expected)


def train_in_parts(ends: list[int], folder: Path, **changes: Any) -> tuple[dict[str, Tensor], TrainingLoop]:
    """Train up to each of `ends` in a loop of its own, which knows of the others what they left in a folder."""
    start = None
    for number, end in enumerate([*ends, None]):
        chosen = recipe(**changes, stop_after=end)
        left = folder / f"left-{number}"
        left.mkdir(parents=True)
        loop = TrainingLoop(data(), data(12, seed=5), chosen, start=start, end=left if end else None)
        found, _ = train(chosen, loop)
        start = partial(Path, left)
    return found, loop


@pytest.mark.parametrize("ends", [[1], [2, 3]], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "nesterov": True, "milestones": (1, 3), "weight_decay": 1e-2},
        {"select": "best_val", "learning_rate": 5e-2},
        {"precision": "bfloat16"},
    ],
    ids=["adam", "sgd with a schedule", "best_val", "bfloat16"],
)
def test_trained_in_parts_it_ends_with_the_same_bits(ends: list[int], changes: dict[str, Any], tmp_path: Path) -> None:
    expected, whole = train(recipe(**changes))
    found, last = train_in_parts(ends, tmp_path, **changes)
    assert equal(found, expected)
    assert without_times(last.history) == without_times(whole.history)


def test_a_part_resumes_from_its_own_checkpoint_first(tmp_path: Path) -> None:
    expected, _ = train(recipe())
    left = tmp_path / "left"
    left.mkdir()
    train(recipe(stop_after=1), TrainingLoop(data(), None, recipe(stop_after=1), end=left))

    class StoppedError(Exception):
        pass

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise StoppedError

    kept = OnDisk(tmp_path / "work")
    with pytest.raises(StoppedError):
        train(recipe(), TrainingLoop(data(), None, recipe(), kept, start=lambda: left, on_epoch=interrupt))
    assert [path.name for path in kept.folder.iterdir()] == ["2"]
    rows: list[dict[str, Any]] = []
    resumed = TrainingLoop(data(), None, recipe(), kept, start=lambda: pytest.fail("asked"), on_epoch=rows.append)
    assert equal(train(recipe(), resumed)[0], expected)
    assert [row["epoch"] for row in rows] == [2, 3] and [row["epoch"] for row in resumed.history] == [0, 1, 2, 3]


def test_a_part_knows_the_numbers_of_earlier_ones(tmp_path: Path) -> None:
    first = TrainingLoop(data(), None, recipe(stop_after=1), end=tmp_path)
    first.metrics |= {"training/early": MetricValue(1.0, note="of the first part"), "training/both": MetricValue(1.0)}
    train(first.recipe, first)
    second = TrainingLoop(data(), None, recipe(), start=lambda: tmp_path, metrics={"training/both": MetricValue(2.0)})
    train(second.recipe, second)
    assert second.metrics["training/early"] == MetricValue(1.0, note="of the first part")
    assert second.metrics["training/both"] == MetricValue(2.0)


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    stopped = recipe(optimizer="sgd", milestones=(1,), stop_after=1)
    train(stopped, TrainingLoop(data(), None, stopped, end=tmp_path))
    with pytest.raises(CheckpointError, match="needed are"):
        train(recipe(), TrainingLoop(data(), None, recipe(), start=lambda: tmp_path))


def test_best_val_selects_among_the_epochs_trained() -> None:
    chosen = recipe(select="best_val", learning_rate=5e-2, stop_after=2)
    found, loop = train(chosen)
    whole: list[dict[str, Tensor]] = []
    running = state(chosen)
    again = TrainingLoop(data(), data(12, seed=5), chosen)
    again.on_epoch = lambda row: whole.append({name: v.clone() for name, v in running.model.state_dict().items()})
    Defense(Defense.Config()).fit(running, again)
    accuracies = [row["val/accuracy"] for row in loop.history]
    assert len(accuracies) == 2 and equal(found, whole[accuracies.index(max(accuracies))])


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 5]), (True, [8, 8])])
def test_an_epoch_visits_every_sample_once(drop_last: bool, sizes: list[int]) -> None:
    chosen = recipe(drop_last=drop_last)
    loop = TrainingLoop(data(), None, chosen)
    batches = list(loop.batches(state(chosen)))
    assert [len(batch.y) for batch in batches] == sizes
    visited = torch.cat([batch.index for batch in batches]).tolist()
    assert len(set(visited)) == len(visited)
    assert all(torch.equal(batch.x, data().x[batch.index]) for batch in batches)


def test_the_order_changes_with_the_epoch_and_not_with_the_defense() -> None:
    chosen = recipe()
    loop, running = TrainingLoop(data(), None, chosen), state(chosen)

    def order() -> list[int]:
        return torch.cat([batch.index for batch in loop.batches(running)]).tolist()

    first = order()
    assert order() == first
    running.epoch = 1
    assert order() != first


@pytest.mark.parametrize("workers", [2, 3])
def test_shards_are_the_global_batches(workers: int) -> None:
    chosen = recipe()
    loop = TrainingLoop(data(), None, chosen)
    whole = [set(batch.index.tolist()) for batch in loop.batches(state(chosen))]
    shards = [
        [set(batch.index.tolist()) for batch in loop.batches(state(chosen, collective=Collective(rank, workers)))]
        for rank in range(workers)
    ]
    assert [set.union(*parts) for parts in zip(*shards, strict=True)] == whole
    assert all(sum(map(len, parts)) == len(set.union(*parts)) for parts in zip(*shards, strict=True))


def test_the_validation_fold_changes_no_weight() -> None:
    with_val, _ = train(recipe(), TrainingLoop(data(), data(12, seed=5), recipe()))
    without, loop = train(recipe(), TrainingLoop(data(), None, recipe()))
    assert equal(with_val, without)
    assert "val/accuracy" not in loop.history[0]


def test_best_val_releases_the_best_epoch() -> None:
    kept: list[dict[str, Tensor]] = []
    chosen = recipe(select="best_val", learning_rate=5e-2)
    loop, running = TrainingLoop(data(), data(12, seed=5), chosen), state(chosen)
    loop.on_epoch = lambda row: kept.append({k: v.clone() for k, v in running.model.state_dict().items()})
    found = Defense(Defense.Config()).fit(running, loop).state_dict()
    accuracies = [row["val/accuracy"] for row in loop.history]
    assert equal(found, kept[accuracies.index(max(accuracies))])


def test_the_earliest_of_equal_epochs_wins() -> None:
    best, module = BestState(), nn.Linear(1, 1)
    best.offer(module, 0.5)
    first = {name: value.clone() for name, value in best.state.items()}
    with torch.no_grad():
        module.weight.add_(1)
    best.offer(module, 0.5)
    assert equal(best.state, first)
    best.offer(module, 0.6)
    assert not equal(best.state, first)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_epoch(bad: float, tmp_path: Path) -> None:
    kept = OnDisk(tmp_path / "work")
    loop = TrainingLoop(data(), None, recipe(), kept)

    def loss(running: TrainState, batch: Batch) -> Tensor:
        value = F.cross_entropy(running.forward(batch.x), batch.y)
        return value * bad if running.epoch == 2 else value

    with pytest.raises(TrainingDivergedError, match="epoch 2"):
        loop.run(state(recipe()), loss)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["1", "2"]
    parts = {**loop.parts(running := state(recipe())), "best": BestState(), "snapshots": Snapshots({})}
    assert load_parts(tmp_path / "work" / "2", parts)
    assert all(torch.isfinite(value).all() for value in running.model.state_dict().values())


def test_counters_of_a_defense_are_part_of_the_row() -> None:
    loop = TrainingLoop(data(), None, recipe(epochs=2))

    def loss(running: TrainState, batch: Batch) -> Tensor:
        running.counters["seen"] += len(batch.y)
        return F.cross_entropy(running.forward(batch.x), batch.y)

    loop.run(state(recipe()), loss)
    assert [row["seen"] for row in loop.history] == [21, 21]


def test_evaluate_is_the_mean_over_samples_in_eval_mode() -> None:
    model = state(recipe()).model.train()
    accuracy, loss = evaluate(model, data())
    assert model.training
    with torch.no_grad():
        logits = model.eval()(data().x)
    assert loss == pytest.approx(float(F.cross_entropy(logits.double(), data().y)))
    assert accuracy == pytest.approx(float((logits.argmax(1) == data().y).double().mean()))


def test_no_checkpoints_keeps_nothing() -> None:
    keeper = NoCheckpoints()
    keeper.save(1, {}, {})
    assert keeper.load({}) is None
