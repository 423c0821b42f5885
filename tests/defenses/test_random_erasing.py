from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oakum.config import ConfigError, validate
from oakum.defenses.base import Defense
from oakum.defenses.random_erasing import IMAGENET_MEAN, RandomErasing, erase
from oakum.models.base import InputShape
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.seeding import derive_seed, keyed_uniform, sample_keys
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

CLASSES, ROWS = 3, 24


def erasing(**settings: Any) -> RandomErasing:
    return RandomErasing(validate(RandomErasing.Config, settings, "defense"))


def images(count: int = ROWS, channels: int = 3, side: int = 8) -> Tensor:
    return 0.05 + 0.3 * torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def network(channels: int = 3) -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(SmallCNN.Config(width=2), InputShape((channels, 8, 8)), CLASSES)


def fresh_state(**changes: Any) -> TrainState:
    model = network()
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), CLASSES, **{"seed": 4, **changes})


def batch_of(rows: Tensor) -> Batch:
    return Batch(images()[rows], rows % CLASSES, rows)


def seen(defense: Defense, state: TrainState, rows: Tensor) -> Tensor:
    """Return the images that the model is given."""
    given: list[Tensor] = []
    handle = state.model.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    defense.loss(state, batch_of(rows))
    handle.remove()
    return given[0]


def naive(image: Tensor, key: Tensor, probability: float, scale: tuple[float, float], fill: list[float]) -> Tensor:
    first, second, third, fourth = keyed_uniform(key.view(1), 4)[0].tolist()
    if first >= probability:
        return image
    height, width = image.shape[1:]
    side = min(round(math.sqrt((scale[0] + (scale[1] - scale[0]) * second) * height * width)), height, width)
    top, left = (math.floor(draw * (size - side + 1)) for draw, size in ((third, height), (fourth, width)))
    result = image.clone()
    for channel, value in enumerate(fill):
        result[channel, top : top + side, left : left + side] = value
    return result


@pytest.mark.parametrize("shape", [(8, 8), (12, 5)])
@pytest.mark.parametrize(("probability", "scale"), [(1.0, (0.1, 0.4)), (0.4, (0.05, 1.0))])
def test_it_equals_a_twin_by_loops(shape: tuple[int, int], probability: float, scale: tuple[float, float]) -> None:
    x = torch.rand(60, 3, *shape, generator=torch.Generator().manual_seed(0))
    keys = sample_keys(3, torch.arange(60))
    fill = [0.2, 0.5, 0.9]
    got = erase(x, keys, probability=probability, scale=scale, fill=fill)
    expected = [naive(image, key, probability, scale, fill) for image, key in zip(x, keys, strict=True)]
    assert torch.equal(got, torch.stack(expected))


@pytest.mark.parametrize(("side", "scale", "mean"), [(32, (0.1, 0.4), 0.25), (64, (0.1, 0.8), 0.45)])
def test_the_mean_erased_share_is_that_of_the_scale(side: int, scale: tuple[float, float], mean: float) -> None:
    keys = sample_keys(0, torch.arange(3000))
    hole = erase(torch.zeros(3000, 1, side, side), keys, probability=1.0, scale=scale, fill=[1.0])
    shares = hole.flatten(1).mean(1)
    assert shares.mean().item() == pytest.approx(mean, abs=0.01)
    assert shares.min() >= scale[0] - 2 / side and shares.max() <= scale[1] + 2 / side


def test_squares_lie_anywhere_and_share_of_erased_images_is_the_probability() -> None:
    keys = sample_keys(0, torch.arange(4000))
    hole = erase(torch.zeros(4000, 1, 8, 8), keys, probability=0.3, scale=(0.1, 0.4), fill=[1.0])
    assert hole.flatten(1).any(1).float().mean().item() == pytest.approx(0.3, abs=0.03)
    corners = hole[:, 0, [0, 0, 7, 7], [0, 7, 0, 7]].mean(0)
    assert corners.min() > 0 and corners.max() < 2 * corners.min()


def test_probability_zero_equals_none_bit_for_bit() -> None:
    recipe = Recipe(optimizer="sgd", epochs=2, batch_size=8)
    found = []
    for defense in (erasing(probability=0.0), Defense(Defense.Config())):
        loop = TrainingLoop(LabeledData(images(), torch.arange(ROWS) % CLASSES), None, recipe)
        state = defense.fit(fresh_state(), loop).state_dict()
        found.append((state, [row["train/loss"] for row in loop.history]))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())


def test_draws_belong_to_seed_epoch_and_sample() -> None:
    defense, everyone = erasing(), torch.arange(ROWS)
    whole = seen(defense, fresh_state(), everyone)
    for rows in (everyone[1::3], everyone.flip(0), torch.tensor([7])):
        assert torch.equal(seen(defense, fresh_state(), rows), whole[rows])
    assert torch.equal(seen(defense, fresh_state(step=9), everyone), whole)
    for other in (fresh_state(epoch=1), fresh_state(seed=5)):
        assert not torch.equal(seen(defense, other, everyone), whole)
    keys = sample_keys(derive_seed(4, "erasing", 0), everyone)
    expected = erase(images(), keys, probability=1.0, scale=(0.1, 0.4), fill=IMAGENET_MEAN)
    assert torch.equal(whole, expected) and not torch.equal(whole, images())


def test_loss_is_the_cross_entropy_of_erased_images() -> None:
    defense, state = erasing(), fresh_state()
    value = defense.loss(state, batch_of(torch.arange(ROWS)))
    expected = F.cross_entropy(
        network()(seen(defense, fresh_state(), torch.arange(ROWS))), torch.arange(ROWS) % CLASSES
    )
    assert value.item() == pytest.approx(expected.item())


def test_the_batch_and_the_released_model_are_untouched() -> None:
    state, batch = fresh_state(), batch_of(torch.arange(ROWS))
    erasing().loss(state, batch)
    assert torch.equal(batch.x, images())
    assert erasing().release(state.model, seed=0) is state.model


@pytest.mark.parametrize(
    ("settings", "channels", "expected"),
    [
        ({}, 3, (0.485, 0.456, 0.406)),
        ({}, 1, (0.449,)),
        ({"fill": [0.2]}, 3, (0.2,)),
        ({"fill": [0.1, 0.2, 0.3]}, 3, (0.1, 0.2, 0.3)),
        ({"variant": "released_code"}, 3, (0.7425, 0.728, 0.703)),
        ({"variant": "released_code", "fill": [0.0]}, 1, (0.5,)),
    ],
)
def test_fills(settings: dict[str, Any], channels: int, expected: tuple[float, ...]) -> None:
    defense = erasing(**settings)
    assert defense.fill(channels) == pytest.approx(expected)
    model = network(channels)
    assert defense.build(model) is model
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), CLASSES, seed=4)
    x = torch.zeros(4, channels, 8, 8)
    given: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    defense.loss(state, Batch(x, torch.zeros(4, dtype=torch.long), torch.arange(4)))
    largest = given[0].amax(dim=(0, 2, 3)).tolist()
    assert largest == pytest.approx(expected * (channels if len(expected) == 1 else 1))


def test_rows_and_fills_of_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs images, but the data has shape \(6,\)"):
        erasing().build(MLP(MLP.Config(hidden=(4,)), InputShape((6,)), CLASSES))
    with pytest.raises(ConfigError, match="fill has 3 values, but images have 1 channels"):
        erasing(fill=[0.1, 0.2, 0.3]).build(network(1))


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": [0.0, 0.4]},
        {"scale": [0.1, 1.1]},
        {"scale": [0.4, 0.1]},
        {"scale": [0.1]},
        {"probability": 1.5},
        {"fill": []},
        {"fill": [1.2]},
        {"variant": "as coded"},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="defense"):
        erasing(**bad)
