"""Crops, flips and cutouts of training images: the maths, what they depend on, and their place in the loop."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from oakum.seeding import derive_seed, keyed_uniform, sample_keys
from oakum.training.augmentation import PADDING, augment, cut_out, shift, windows
from oakum.training.collective import Collective
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState


def images(count: int = 6, channels: int = 2, height: int = 9, width: int = 11) -> Tensor:
    return 0.1 + 0.9 * torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def keys(count: int, seed: int = 3) -> Tensor:
    return sample_keys(seed, torch.arange(count))


def moved(image: list[list[float]], down: int, right: int) -> list[list[float]]:
    height, width = len(image), len(image[0])
    return [
        [image[i + down][j + right] if 0 <= i + down < height and 0 <= j + right < width else 0.0 for j in range(width)]
        for i in range(height)
    ]


def without_window(image: list[list[float]], down: float, right: float) -> list[list[float]]:
    """Set half of the height and width to 0 around a center, given as shares of its range."""
    ranges = []
    for draw, side in ((down, len(image)), (right, len(image[0]))):
        size = math.ceil(side / 2)
        center = math.floor(draw * (side + (1 if size % 2 == 0 else 0)))
        ranges.append(range(center - size // 2, center - size // 2 + size))
    rows, columns = ranges
    return [[0.0 if i in rows and j in columns else v for j, v in enumerate(row)] for i, row in enumerate(image)]


def naive(x: Tensor, sample_key: Tensor, steps: tuple[str, ...]) -> Tensor:
    result = []
    for sample, image in enumerate(x.tolist()):
        first, second, third, fourth, fifth = keyed_uniform(sample_key[sample : sample + 1], 5)[0].tolist()
        planes = image
        if "crop" in steps:
            down, right = (math.floor(draw * 9) - 4 for draw in (first, second))
            planes = [moved(plane, down, right) for plane in planes]
        if "flip" in steps and third < 0.5:
            planes = [[row[::-1] for row in plane] for plane in planes]
        if "cutout" in steps:
            planes = [without_window(plane, fourth, fifth) for plane in planes]
        result.append(planes)
    return torch.tensor(result)


@pytest.mark.parametrize("steps", [(), ("crop",), ("flip",), ("flip", "crop"), ("cutout",), ("crop", "flip", "cutout")])
@pytest.mark.parametrize("shape", [(40, 2, 9, 11), (40, 1, 3, 2), (5, 3, 32, 32)])
def test_it_equals_a_twin_by_loops(shape: tuple[int, ...], steps: tuple[str, ...]) -> None:
    x = images(*shape)
    assert torch.equal(augment(x, keys(len(x)), steps), naive(x, keys(len(x)), steps))


def test_no_step_changes_nothing() -> None:
    x = images()
    assert torch.equal(augment(x, keys(6), ()), x)


def test_images_are_changed_by_their_own_keys_alone() -> None:
    x = images(30)
    steps = ("crop", "flip", "cutout")
    whole = augment(x, keys(30), steps)
    for rows in (torch.arange(30)[1::4], torch.arange(30).flip(0), torch.tensor([7])):
        assert torch.equal(augment(x[rows], keys(30)[rows], steps), whole[rows])
    assert not torch.equal(augment(x, keys(30, seed=4), steps), whole)


def test_a_step_does_not_change_the_draws_of_another() -> None:
    x = images(30)
    cropped = augment(x, keys(30), ("crop",))
    both = augment(x, keys(30), ("crop", "flip"))
    is_flipped = (both != cropped).flatten(1).any(1)
    assert torch.equal(both, torch.where(is_flipped.view(-1, 1, 1, 1), cropped.flip(3), cropped))
    assert torch.equal(augment(x, keys(30), ("flip",))[is_flipped], x[is_flipped].flip(3))
    cut = augment(x, keys(30), ("crop", "flip", "cutout"))
    hole = augment(torch.ones_like(x), keys(30), ("cutout",)) == 0
    assert torch.equal(cut, both.masked_fill(hole, 0.0))


def test_every_window_is_equally_likely() -> None:
    side = 2 * PADDING + 1
    count = 81 * 100
    x = torch.zeros(count, 1, side, side)
    x[:, 0, PADDING, PADDING] = 1.0
    found = augment(x, keys(count), ("crop",)).flatten(1)
    assert found.sum(1).unique().tolist() == [1.0]
    seen = Counter(found.argmax(1).tolist())
    assert len(seen) == side * side
    assert stats.chisquare([seen[place] for place in range(side * side)]).pvalue > 1e-3


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.zeros(4000, 1, 1, 2)
    x[..., 0] = 1.0
    assert augment(x, keys(4000), ("flip",))[:, 0, 0, 1].mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (0, -2), (-4, 4), (8, 0), (9, 0), (0, -11), (20, 20)])
def test_shifts_equal_a_twin_by_loops(down: int, right: int) -> None:
    x = images(2, 1)
    got = shift(x, torch.tensor([down, 1]), torch.tensor([right, -1]))
    assert got[0, 0].tolist() == moved(x[0, 0].tolist(), down, right)
    assert got[1, 0].tolist() == moved(x[1, 0].tolist(), 1, -1)


@pytest.mark.parametrize(("side", "centers"), [(6, 6), (8, 9)])
def test_every_center_of_a_cutout_is_equally_likely(side: int, centers: int) -> None:
    """An odd window (3 of 6) has its middle pixel anywhere; an even one (4 of 8) may also be half past the far edge."""
    count = centers * centers * 40
    left = augment(torch.ones(count, 1, side, side), keys(count), ("cutout",)).view(count, -1)
    seen = Counter(tuple(row) for row in left.int().tolist())
    assert len(seen) == centers * centers
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_a_cutout_inside_the_image_is_a_quarter_of_it() -> None:
    x = images(2, 3, 8, 8)
    got = cut_out(x, torch.tensor([4, 0]), torch.tensor([5, 8]))
    assert (got == 0).flatten(2).sum(2).tolist() == [[16] * 3, [4] * 3]
    assert (got[0, :, 2:6, 3:7] == 0).all() and (got[1, :, :2, 6:] == 0).all()
    assert torch.equal(got[got != 0], x[got != 0])


def test_windows_may_leave_the_image_and_differ_in_size() -> None:
    x = torch.zeros(4, 1, 5, 6)
    sizes = torch.tensor([2, 0, 9, 1])
    got = windows(x, torch.tensor([-1, 2, -3, 4]), torch.tensor([5, 2, -3, 0]), sizes, 2)
    assert got.shape == (4, 1, 5, 6) and got.dtype == torch.bool
    inside = [{tuple(place) for place in each.nonzero()[:, 1:].tolist()} for each in got]
    assert inside == [{(0, 5)}, set(), set(), {(4, 0), (4, 1)}]


def test_values_stay_in_their_range_and_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        got = augment(images().to(dtype), keys(6), ("crop", "flip", "cutout"))
        assert got.dtype == dtype and got.shape == images().shape and got.min() >= 0 and got.max() <= 1


def test_an_empty_batch_stays_empty() -> None:
    assert augment(images()[:0], keys(0), ("crop", "flip", "cutout")).shape == (0, 2, 9, 11)


def test_rows_and_unknown_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 7\); remove recipe\.augmentation"):
        augment(torch.rand(4, 7), keys(4), ("flip",))
    with pytest.raises(ValueError, match="unknown augmentation 'rotate'; use crop, flip or cutout"):
        augment(images(), keys(6), ("crop", "rotate"))


def loop(*steps: str) -> TrainingLoop:
    recipe = Recipe(batch_size=8, augmentation=steps)
    return TrainingLoop(LabeledData(images(21), torch.arange(21) % 3), None, recipe)


def state(epoch: int = 0, seed: int = 1, collective: Collective | None = None) -> TrainState:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainState(model, optimizer, 3, seed, epoch=epoch, collective=collective or Collective())


def seen(running: TrainState) -> dict[int, Tensor]:
    """Return each sample's image of one epoch, by its position in the fold."""
    found = {}
    for batch in loop("crop", "flip").batches(running):
        found |= dict(zip(batch.index.tolist(), batch.x, strict=True))
    return found


def test_the_loop_augments_by_seed_epoch_and_sample() -> None:
    for epoch in (0, 3):
        expected = augment(
            images(21), sample_keys(derive_seed(1, "augmentation", epoch), torch.arange(21)), ("crop", "flip")
        )
        found = seen(state(epoch))
        assert len(found) == 21 and all(torch.equal(found[row], expected[row]) for row in range(21))
    first = torch.stack([seen(state())[row] for row in range(21)])
    for other in (state(epoch=1), state(seed=2)):
        assert not torch.equal(torch.stack([seen(other)[row] for row in range(21)]), first)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_see_the_images_of_one(workers: int) -> None:
    alone = seen(state())
    together: dict[int, Tensor] = {}
    for rank in range(workers):
        together |= seen(state(collective=Collective(rank, workers)))
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[row], alone[row]) for row in alone)


def test_without_augmentation_images_are_untouched() -> None:
    assert all(torch.equal(batch.x, images(21)[batch.index]) for batch in loop().batches(state()))
