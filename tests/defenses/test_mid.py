from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from oakum.config import ConfigError, validate
from oakum.defenses.mid import MID, BottleneckClassifier, information
from oakum.models.base import Classifier, InputShape, count_parameters
from oakum.models.mcnn import MCNN
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.seeding import content_keys, derive_seed, keyed_normal, sample_keys
from oakum.training.checkpoint import load_parts, save_parts
from oakum.training.loop import LabeledData, NoCheckpoints, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES, ROWS, WIDTH, CODE = 3, 30, 10, 5


class NormalizedHead(Classifier):
    """Two features, a normalization that belongs to the head, and the head."""

    tap_names: ClassVar[tuple[str, ...]] = ("hidden", "normalized")
    head_modules: ClassVar[tuple[str, ...]] = ("norm", "head")
    trunk_width = WIDTH

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(Classifier.Config(mean=(0.5,)), InputShape((8,)), num_classes)
        self.body = nn.Sequential(nn.Linear(8, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self.body(x)

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.body(x)
        normalized = self.norm(hidden)
        return self.head(normalized), [hidden, normalized]


class Trunkless(Classifier):
    pass


class OnDisk(NoCheckpoints):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        self.folder.mkdir(exist_ok=True)
        save_parts(self.folder, parts, record)

    def load(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        return load_parts(self.folder, parts) if self.folder.exists() else None


class StoppedError(Exception):
    pass


def mid(**settings: Any) -> MID:
    return MID(validate(MID.Config, {"beta": 0.01, **settings}, "defense"))


def data() -> LabeledData:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(ROWS) % CLASSES
    return LabeledData((torch.rand(ROWS, 8, generator=generator) + y.view(-1, 1)) / CLASSES, y)


def network(**settings: Any) -> BottleneckClassifier:
    torch.manual_seed(0)
    return mid(**settings).build(NormalizedHead())


def wide_code() -> BottleneckClassifier:
    """A network whose codes have deviations near 1, so that noise is seen."""
    model = network()
    with torch.no_grad():
        model.statistics.bias[CODE:] += 5
    return model


def state_of(model: nn.Module, **changes: Any) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.2), CLASSES, **{"seed": 4, **changes})


def batch_of(rows: Tensor) -> Batch:
    return Batch(data().x[rows], data().y[rows], rows)


def logits_of(state: TrainState, rows: Tensor) -> Tensor:
    mid().loss(state, batch_of(rows))
    assert state.last_logits is not None
    return state.last_logits


def train(defense: MID, **changes: Any) -> tuple[BottleneckClassifier, TrainingLoop]:
    recipe = Recipe(optimizer="sgd", learning_rate=0.2, epochs=4, batch_size=8)
    torch.manual_seed(0)
    state = state_of(defense.build(NormalizedHead()))
    state.optimizer = build_optimizer(recipe, list(state.model.parameters()))
    loop = TrainingLoop(data(), None, recipe, **changes)
    return defense.fit(state, loop), loop


def equal(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_information_equals_a_naive_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    mu, std = torch.randn(6, 4, dtype=torch.float64, generator=generator), 0.1 + torch.rand(6, 4, generator=generator)
    expected = [
        sum(-0.5 * (1 + 2 * math.log(s) - m * m - s * s) for m, s in zip(*pair, strict=True))
        for pair in zip(mu.tolist(), std.tolist(), strict=True)
    ]
    assert information(mu, std.double()).tolist() == pytest.approx(expected, rel=1e-12)
    assert information(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("cls", "dims", "parameters"), [(MCNN, (1, 32, 32), 1_094_917), (MLP, (6,), None), (SmallCNN, (1, 9, 8), None)]
)
def test_every_parameter_is_trained_and_none_is_left_over(
    cls: type[Classifier], dims: tuple[int, ...], parameters: int | None
) -> None:
    model = cls(cls.Config(), InputShape(dims), 5)
    trunk_width = model.trunk_width
    head = count_parameters(model.head)
    own = count_parameters(model) - head
    built = mid().build(model)
    code = trunk_width // 2
    assert count_parameters(built) == own + (trunk_width + 1) * 2 * code + (code + 1) * 5
    assert parameters in (None, count_parameters(built))
    x = torch.rand(4, *dims)
    mid().loss(state_of(built), Batch(x, torch.arange(4), torch.arange(4))).backward()
    assert all(parameter.grad is not None for parameter in built.parameters())


def test_all_modules_behind_the_trunk_are_taken_out() -> None:
    names = {name.split(".")[1] for name in network().state_dict() if name.startswith("classifier.")}
    assert names == {"body"}


def test_the_trunk_starts_as_that_of_the_undefended_model() -> None:
    torch.manual_seed(0)
    plain = NormalizedHead()
    assert equal(network().classifier.body, plain.body)


def test_group_normalization_is_taken_along() -> None:
    built = mid(norm="group").build(SmallCNN(SmallCNN.Config(width=2), InputShape((1, 8, 8)), CLASSES))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in built.modules())


def test_models_without_a_trunk_are_refused() -> None:
    assert mid().check(NormalizedHead, CLASSES) == []
    with pytest.raises(ConfigError, match="needs a trunk"):
        mid().check(Trunkless, CLASSES)
    model = NormalizedHead()
    model.trunk_width = 0
    with pytest.raises(ConfigError, match="trunk_width is above 0"):
        mid().build(model)
    model.trunk_width = 1
    with pytest.raises(ConfigError, match="no code of half its width"):
        mid().build(model)


def test_loss_equals_a_sample_by_sample_twin() -> None:
    model = wide_code()
    state = state_of(model, step=11)
    model.classifier.body[1].eval()  # statistics of a batch are no business of a twin of samples
    rows = torch.tensor([5, 0, 29, 17])
    got = mid(beta=0.3).loss(state, batch_of(rows)).item()
    total = 0.0
    for row in rows.tolist():
        hidden = model.classifier.body(data().x[row : row + 1] - 0.5)[0]
        mean, raw = model.statistics(hidden).tolist()[:CODE], model.statistics(hidden).tolist()[CODE:]
        deviation = [math.log1p(math.exp(value - 5)) for value in raw]
        noise = keyed_normal(sample_keys(derive_seed(4, "bottleneck", 11), torch.tensor([row])), CODE)[0].tolist()
        code = torch.tensor([m + s * e for m, s, e in zip(mean, deviation, noise, strict=True)])
        total += F.cross_entropy(model.head(code), data().y[row]).item()
        total += 0.3 * sum((m * m + s * s - 1) / 2 - math.log(s) for m, s in zip(mean, deviation, strict=True))
    assert got == pytest.approx(total / 4, rel=1e-5)


def test_noise_belongs_to_seed_step_and_sample_whatever_the_batch() -> None:
    model = wide_code()
    model.classifier.body[1] = nn.Identity()
    everyone = torch.arange(ROWS)
    whole = logits_of(state_of(model), everyone)
    for rows in (everyone[1::3], everyone.flip(0), torch.tensor([12])):
        torch.testing.assert_close(logits_of(state_of(model), rows), whole[rows])
    for other in (state_of(model, step=1), state_of(model, seed=5)):
        assert not torch.allclose(logits_of(other, everyone), whole, atol=1e-3)


def test_shards_add_up_to_the_global_batch() -> None:
    model = wide_code()
    model.classifier.body[1] = nn.Identity()

    def gradient(rows: Tensor) -> Tensor:
        loss = mid().loss(state_of(model), batch_of(rows))
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

    shards = [torch.arange(ROWS)[rank::4] for rank in range(4)]
    together = sum(gradient(rows) * (len(rows) / ROWS) for rows in shards)
    torch.testing.assert_close(together, gradient(torch.arange(ROWS)), rtol=1e-4, atol=1e-6)


def test_training_needs_keys() -> None:
    model = network()
    with pytest.raises(RuntimeError, match="set `keys`"):
        model(data().x)
    model.keys = torch.arange(3)
    with pytest.raises(RuntimeError, match="one key for each sample"):
        model(data().x)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    state = state_of(wide_code())
    torch.manual_seed(1)
    first, after = logits_of(state, torch.arange(ROWS)), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    state.model.load_state_dict(wide_code().state_dict())
    assert torch.equal(logits_of(state, torch.arange(ROWS)), first)


def test_taps_end_with_the_code() -> None:
    model = network()
    model.keys = torch.arange(ROWS)
    _, taps = model(data().x, with_taps=True)
    assert [tap.shape[1] for tap in taps] == [CODE, CODE]
    model.eval()
    logits, taps = model(data().x, with_taps=True)
    assert [tap.shape[1] for tap in taps] == [WIDTH, WIDTH, CODE, CODE]
    assert torch.equal(taps[0], model.classifier.body(data().x - 0.5)) and torch.equal(taps[0], taps[1])
    assert torch.equal(logits, model.head(taps[-1])) and torch.equal(logits, model(data().x))
    assert (taps[-2] > 0).all()


def test_the_released_model_reads_the_mean_by_default() -> None:
    model, _ = train(mid())
    released = mid().release(model, seed=3).eval()
    mu, _ = model.code(data().x)
    assert torch.equal(released(data().x), model.head(mu))
    assert mid().unmasked(model) is model


def test_released_noise_is_keyed_by_the_query() -> None:
    model = wide_code().eval()
    defense = mid(inference="noise")
    released, other = (defense.release(model, seed).eval() for seed in (3, 4))
    x = data().x.requires_grad_(True)
    answers = released(x)
    torch.testing.assert_close(released(x[[4, 9, 4]]), answers[[4, 9, 4]])
    assert not torch.allclose(answers, other(x)) and not torch.allclose(answers, model(x))
    mu, std = model.code(x)
    expected = model.head(mu + std * keyed_normal(content_keys(3, x), CODE))
    assert torch.equal(answers, expected)
    (gradient,) = torch.autograd.grad(answers.log_softmax(1)[:, 0].sum(), x)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    unmasked = defense.unmasked(model)
    assert torch.equal(unmasked(x), model.head(mu)) and unmasked(x).requires_grad
    assert not released.training and released.num_classes == CLASSES


def test_a_larger_beta_leaves_less_information() -> None:
    left = [information(*train(mid(beta=beta))[0].eval().code(data().x)).mean().item() for beta in (0.0, 1.0)]
    assert left[1] < 0.5 * left[0]


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected, _ = train(mid())

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(mid(), checkpointer=OnDisk(tmp_path / "work"), on_epoch=interrupt)
    resumed, loop = train(mid(), checkpointer=OnDisk(tmp_path / "work"))
    assert equal(resumed, expected) and len(loop.history) == 4
    copy.deepcopy(resumed)


def test_a_wrapped_model_draws_the_same_noise(tmp_path: Path) -> None:
    alone, wrapped = state_of(wide_code()), state_of(wide_code())
    expected = logits_of(alone, torch.arange(ROWS))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped.model = DistributedDataParallel(wrapped.model)
        loss = mid().loss(wrapped, batch_of(torch.arange(ROWS)))
        loss.backward()
        assert torch.equal(wrapped.last_logits, expected)
        assert all(parameter.grad is not None for parameter in wrapped.model.parameters())
    finally:
        dist.destroy_process_group()


def test_bfloat16_is_weighed_in_float32() -> None:
    state = state_of(network(), autocast_dtype=torch.bfloat16)
    value = mid().loss(state, batch_of(torch.arange(ROWS)))
    assert value.dtype == torch.float32 and value.isfinite()


@pytest.mark.parametrize("bad", [{"beta": -1.0}, {"inference": "draw"}, {"alpha": 1.0}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="defense"):
        mid(**bad)


def test_beta_has_no_default() -> None:
    with pytest.raises(ConfigError, match="beta: this key is required"):
        validate(MID.Config, {}, "defense")
