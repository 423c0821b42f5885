"""SELENA: the index sets against their definition, the targets against a naive twin, and the student's training."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.defenses._left_out import left_out_teachers, rows_with_duplicates
from oakum.defenses.base import Defense, Teacher
from oakum.defenses.selena import SELENA, split_targets
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES = 3
RECIPE = Recipe(learning_rate=1e-2, epochs=4, batch_size=16)
SPACE = Path(__file__).parents[2] / "search_spaces" / "selena.yaml"


def rows(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed))


def data(count: int = 60) -> LabeledData:
    return LabeledData(rows(count), torch.arange(count) % CLASSES)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MLP(MLP.Config(hidden=(8,)), InputShape((6,)), CLASSES).eval()


def state(seed: int = 1) -> TrainState:
    model = network(seed).train()
    return TrainState(model, torch.optim.Adam(model.parameters(), lr=RECIPE.learning_rate), CLASSES, seed)


def selena(**settings: Any) -> SELENA:
    return SELENA(SELENA.Config(**{"teachers": 5, "left_out": 2, **settings}))


def loop_of(defense: SELENA, train: LabeledData, **settings: Any) -> TrainingLoop:
    teachers = {name: lambda number=number: network(100 + number) for number, name in enumerate(defense.teachers())}
    return TrainingLoop(train, None, RECIPE, teachers=teachers, **settings)


@pytest.mark.parametrize(("teachers", "left_out"), [(25, 10), (5, 4), (2, 1)])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_sample_is_left_out_by_that_many_different_teachers(teachers: int, left_out: int, grouped: bool) -> None:
    drawn = left_out_teachers(rows(200), 3, teachers, left_out, grouped)
    assert drawn.shape == (200, left_out) and drawn.dtype == torch.int64
    for row in drawn.tolist():
        assert len(set(row)) == left_out and row == sorted(row)
        assert row[0] >= 0 and row[-1] < teachers


@pytest.mark.parametrize("grouped", [True, False])
def test_all_sets_are_equally_likely(grouped: bool) -> None:
    """Chi-square over the 10 pairs of 5 teachers; 9 degrees of freedom exceed 33.7 with probability 1e-4."""
    count = 20_000
    drawn = left_out_teachers(rows(count, width=2), 0, 5, 2, grouped)
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 10
    expected = count / 10
    assert sum((seen - expected) ** 2 / expected for seen in counts.values()) < 33.7


@pytest.mark.parametrize("grouped", [True, False])
def test_sets_follow_from_the_seed_and_the_sample_alone(grouped: bool) -> None:
    x = rows(50)
    drawn = left_out_teachers(x, 3, 25, 10, grouped)
    assert torch.equal(drawn, left_out_teachers(x.clone(), 3, 25, 10, grouped))
    assert torch.equal(drawn[:20], left_out_teachers(x[:20], 3, 25, 10, grouped))
    assert (drawn != left_out_teachers(x, 4, 25, 10, grouped)).any(dim=1).float().mean() > 0.9


def test_more_samples_than_a_chunk_get_the_sets_that_they_have_alone() -> None:
    x = rows(1100)
    drawn = left_out_teachers(x, 3, 25, 10, True)
    for place in (0, 511, 512, 1099):
        assert torch.equal(drawn[place : place + 1], left_out_teachers(x[place : place + 1], 3, 25, 10, True))


def test_duplicates_share_a_set_where_they_are_grouped() -> None:
    x = rows(40)
    x[7] = x[30] = x[3]
    x[12] = x[11]
    grouped = left_out_teachers(x, 3, 25, 10, True)
    assert torch.equal(grouped[7], grouped[3]) and torch.equal(grouped[30], grouped[3])
    assert torch.equal(grouped[12], grouped[11]) and not torch.equal(grouped[11], grouped[3])
    alone = left_out_teachers(x, 3, 25, 10, False)
    assert not torch.equal(alone[7], alone[3]) and not torch.equal(alone[30], alone[3])
    assert rows_with_duplicates(x) == 5
    assert rows_with_duplicates(rows(40)) == 0


def test_a_teacher_trains_on_the_samples_that_do_not_leave_it_out() -> None:
    defense = SELENA(SELENA.Config())
    fold = data(1000)
    drawn = left_out_teachers(fold.x, 9, 25, 10, True).tolist()
    seen = Counter[int]()
    for number, name in enumerate(defense.teachers()):
        positions = defense.teacher_rows(name, fold, 9)
        assert positions.dtype == torch.int64
        assert positions.tolist() == [i for i, row in enumerate(drawn) if number not in row]
        # Binomial with mean 600 and standard deviation 15.5.
        assert abs(len(positions) - 600) < 5 * math.sqrt(1000 * 0.6 * 0.4)
        seen.update(positions.tolist())
    assert set(seen.values()) == {15} and len(seen) == 1000


def test_teachers_are_undefended_models_on_rows_of_their_own() -> None:
    teachers = selena(teachers=12, norm="group").teachers()
    assert list(teachers) == [f"teacher_{number:02d}" for number in range(12)]
    assert set(map(str, teachers.values())) == {str(Teacher({"name": "none", "norm": "group"}, own_rows=True))}


def naive_targets(modules: list[nn.Module], x: Tensor, left_out: Tensor) -> list[list[float]]:
    result = []
    for sample, numbers in zip(x, left_out.tolist(), strict=True):
        mean = [0.0] * CLASSES
        for number in numbers:
            with torch.no_grad():
                logits = modules[number](sample[None])[0].tolist()
            total = sum(math.exp(value) for value in logits)
            mean = [m + math.exp(value) / total / len(numbers) for m, value in zip(mean, logits, strict=True)]
        result.append(mean)
    return result


def test_targets_equal_a_naive_twin() -> None:
    x = rows(30)
    left_out = left_out_teachers(x, 3, 5, 2, True)
    modules = [network(seed) for seed in range(5)]
    loaders = {f"teacher_{number:02d}": lambda module=module: module for number, module in enumerate(modules)}
    targets = split_targets(loaders, x, left_out, torch.device("cpu"))
    assert targets.shape == (30, CLASSES) and targets.dtype == torch.float32
    assert targets.tolist() == [pytest.approx(row, abs=1e-6) for row in naive_targets(modules, x, left_out)]
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 30)


class Recording(nn.Module):
    """Remembers every sample that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, ...]] = []
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.asked += map(tuple, x.tolist())
        self.modes.add(self.training)
        return x[:, :CLASSES]


def test_no_teacher_is_asked_about_a_sample_that_it_trained_on() -> None:
    defense, fold, current = selena(), data(), state()
    teachers = {name: Recording() for name in defense.teachers()}
    loaders = {name: lambda module=module: module for name, module in teachers.items()}
    defense.fit(current, TrainingLoop(fold, None, RECIPE, teachers=loaders))
    answers = Counter[tuple[float, ...]]()
    for name, teacher in teachers.items():
        trained_on = {tuple(row) for row in fold.x[defense.teacher_rows(name, fold, current.seed)].tolist()}
        assert teacher.asked and not trained_on & set(teacher.asked)
        assert teacher.modes == {False}
        answers.update(teacher.asked)
    assert set(answers.values()) == {2} and len(answers) == len(fold)


def test_the_label_of_a_sample_does_not_reach_its_own_target_nor_that_of_its_twins() -> None:
    def targets(defense: SELENA, fold: LabeledData) -> Tensor:
        modules = {}
        for number, name in enumerate(defense.teachers()):
            chosen = defense.teacher_rows(name, fold, 1)
            own = TrainingLoop(LabeledData(fold.x[chosen], fold.y[chosen]), None, RECIPE)
            modules[name] = Defense(Defense.Config()).fit(state(100 + number), own).eval()
        loaders = {name: lambda module=module: module for name, module in modules.items()}
        grouped = defense.config.group_duplicates
        return split_targets(loaders, fold.x, left_out_teachers(fold.x, 1, 5, 2, grouped), torch.device("cpu"))

    fold = data()
    fold.x[20] = fold.x[8]
    other = LabeledData(fold.x, fold.y.clone())
    other.y[8] = (other.y[8] + 1) % CLASSES
    for grouped in (True, False):
        defense = selena(group_duplicates=grouped)
        changed = (targets(defense, fold) != targets(defense, other)).any(dim=1)
        assert not changed[8] and changed.sum() > 10
        assert bool(changed[20]) == (not grouped)


def test_the_student_minimizes_the_cross_entropy_with_its_targets() -> None:
    """A plain twin of the loop: same order of batches, soft targets looked up by position, true labels unread."""
    from oakum.seeding import derive_seed, torch_generator

    defense, fold = selena(), data()
    expected = state()
    left_out = left_out_teachers(fold.x, expected.seed, 5, 2, True)
    targets = torch.tensor(naive_targets([network(100 + number) for number in range(5)], fold.x, left_out))
    for epoch in range(RECIPE.epochs):
        order = torch.randperm(len(fold), generator=torch_generator(derive_seed(expected.seed, "order", epoch)))
        for index in order.split(RECIPE.batch_size):
            expected.optimizer.zero_grad()
            p = expected.model(fold.x[index]).softmax(dim=1)
            (-(targets[index] * p.log()).sum() / len(index)).backward()
            expected.optimizer.step()
    wrong_labels = LabeledData(fold.x, (fold.y + 1) % CLASSES)
    loop = loop_of(defense, wrong_labels)
    student = defense.fit(state(), loop)
    for mine, theirs in zip(student.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert defense.release(student, 0) is student and defense.unmasked(student) is student


def test_certain_teachers_that_are_right_give_ordinary_training() -> None:
    defense, fold = selena(), data()

    class Knowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            place = (x[:, None] == fold.x[None]).all(dim=2).float().argmax(dim=1)
            return 1e3 * F.one_hot(fold.y[place], CLASSES).float()

    loop = TrainingLoop(fold, None, RECIPE, teachers={name: Knowing for name in defense.teachers()})
    student = defense.fit(state(), loop)
    undefended = Defense(Defense.Config()).fit(state(), TrainingLoop(fold, None, RECIPE))
    for mine, theirs in zip(student.parameters(), undefended.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_it_reports_how_many_rows_share_their_content() -> None:
    fold = data()
    fold.x[4] = fold.x[9]
    loop = loop_of(selena(), fold)
    selena().fit(state(), loop)
    assert loop.metrics["training/duplicate_rows"].value == 2.0


class OnDisk:
    """Keeps every checkpoint in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        (self.folder / str(epoch)).mkdir()
        save_parts(self.folder / str(epoch), parts, record)

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        found = sorted(self.folder.iterdir(), key=lambda path: int(path.name))
        return load_parts(found[-1], parts) if found else None


def test_a_resumed_student_ends_with_the_same_bits(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise StoppedError

    defense, fold = selena(), data()
    expected = defense.fit(state(), loop_of(defense, fold))
    checkpoints = OnDisk(tmp_path)
    with pytest.raises(StoppedError):
        defense.fit(state(), loop_of(defense, fold, checkpointer=checkpoints, on_epoch=interrupt))
    assert len(list(tmp_path.iterdir())) == 2
    loop = loop_of(defense, fold, checkpointer=checkpoints)
    resumed = defense.fit(state(), loop)
    assert [row["epoch"] for row in loop.history] == [0, 1, 2, 3]
    for mine, theirs in zip(resumed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_loss_of_one_sample_does_not_depend_on_its_batch() -> None:
    assert not SELENA.couples_batch and not SELENA.masks_output
    taken: list[Any] = []

    class Listening(TrainingLoop):
        def run(self, state: TrainState, loss: Any) -> nn.Module:
            taken.append(loss)
            return state.model

    defense, fold, current = selena(), data(), state()
    listening = Listening(fold, None, RECIPE, teachers=loop_of(defense, fold).teachers)
    defense.fit(current, listening)
    index = torch.arange(10)
    whole = taken[0](current, Batch(fold.x[index], fold.y[index], index))
    parts = [taken[0](current, Batch(fold.x[i], fold.y[i], i)) for i in index.split(1)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_check_training_refuses_folds_that_may_leave_a_teacher_without_a_batch() -> None:
    defense = SELENA(SELENA.Config())
    assert defense.check_training(RECIPE, 100) == []
    with pytest.raises(ConfigError, match="about 6 of the 10 samples, perhaps on 0, and needs 1; draw a larger"):
        defense.check_training(RECIPE, 10)
    dropping = Recipe(epochs=1, batch_size=64, drop_last=True)
    assert defense.check_training(dropping, 200) == []
    with pytest.raises(ConfigError, match=r"about 93 of the 155 samples, perhaps on 62, and needs 64.*drop_last"):
        defense.check_training(dropping, 155)


def test_a_teacher_without_rows_is_refused() -> None:
    same = LabeledData(torch.zeros(30, 6), torch.zeros(30, dtype=torch.int64))
    (left_out,) = left_out_teachers(same.x[:1], 0, 5, 2, True).tolist()
    with pytest.raises(ConfigError, match="is left out by all 30 samples"):
        selena().teacher_rows(f"teacher_{left_out[0]:02d}", same, 0)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"teachers": 10, "left_out": 10}, "left_out 10 must be less than teachers 10"),
        ({"left_out": 0}, "greater than or equal to 1"),
        ({"teachers": 1, "left_out": 1}, "greater than or equal to 2"),
        ({"teachers": 25.5}, "integer"),
        ({"teacher": 5}, "did you mean 'teachers'?"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(SELENA.Config, bad, "defense")
    assert said in str(error.value)


def test_every_point_of_the_search_space_is_valid() -> None:
    space = yaml.safe_load(SPACE.read_text())
    points = [{key.removeprefix("defense."): value for key, value in point.items()} for point in space["grid"]]
    drawn = [
        {"teachers": k, "left_out": left_out}
        for k in space["defense.teachers"]["values"]
        for left_out in space["defense.left_out"]["values"]
    ]
    for point in points + drawn:
        validate(SELENA.Config, point, "defense")
