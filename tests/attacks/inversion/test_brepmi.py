from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from oakum.attacks.access import Access, AccessError, Knowledge, Target
from oakum.attacks.inversion.brepmi import BREPMI, Starts, find_starts, repel_from_border
from oakum.config import ConfigError, validate

SIZE, CLASSES = 4, 4
SETTINGS = {"points": 16, "radius": 0.5, "growth": 1.3, "grow_share": 0.875, "clip": 1.5, "patience": 20}


class ImagesOfLatents(nn.Module):
    """A generator that hides no latent: pixel = sigmoid(entry)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return (self.scale * z).sigmoid().view(-1, 1, 2, 2)


def quadrants() -> nn.Module:
    """Classes are the quadrants of a latent's first two entries."""
    layer = nn.Linear(SIZE, CLASSES)
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.zero_()
        layer.weight[:, :2] = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
        layer.bias.copy_(-layer.weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def quadrant_labels(z: Tensor) -> Tensor:
    return 2 * (z[:, 0] > 0).long() + (z[:, 1] > 0).long()


def stored_draws(rows: int, count: int, turns: int = 200) -> Tensor:
    return torch.randn(turns, rows, count, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def started(latents: Tensor, spent: int = 0) -> Starts:
    rows = len(latents)
    return Starts(latents, torch.ones(rows, dtype=torch.bool), torch.full((rows,), spent))


def attack(classes=(0, 1, 2, 3), seed: int = 7, access: Access = Access.LABEL, classifier=None, **settings) -> Tensor:
    config = BREPMI.Config(**{"restarts": 3, "max_queries": 1000, "radius": 0.3, **settings})
    target = Target(classifier or quadrants, access, CLASSES)
    knowledge = Knowledge(seed=seed, generator=ImagesOfLatents(), latent_size=SIZE)
    return BREPMI(config).reconstruct(target, torch.tensor(classes), knowledge)


def naive_search(z, label, draws, *, points, radius, growth, grow_share, clip, patience, max_queries, spent):
    """One latent in Python numbers, with every step written out."""
    z, found, idle, queries = list(z), list(z), 0, spent

    def has_label(latent) -> bool:
        return 2 * (latent[0] > 0) + (latent[1] > 0) == label

    for turn in range(len(draws)):
        if idle >= patience or queries + points + 1 > max_queries:
            return found, radius, queries
        inside, repulsion = 0, [0.0] * SIZE
        for point in range(points):
            direction = draws[turn][point].tolist()
            length = math.sqrt(sum(value**2 for value in direction))
            unit = [value / length for value in direction]
            queries += 1
            if has_label([a + radius * b for a, b in zip(z, unit, strict=True)]):
                inside += 1
            else:
                repulsion = [a - b / points for a, b in zip(repulsion, unit, strict=True)]
        if inside / points > grow_share:
            found, radius, idle = list(z), radius * growth, 0
            continue
        idle += 1
        step = min(radius / 3, 3.0)
        moved = [max(-clip, min(clip, a + step * b)) for a, b in zip(z, repulsion, strict=True)]
        queries += 1
        if has_label(moved):
            z = moved
    raise AssertionError("the search did not stop")


@pytest.mark.parametrize("max_queries", [200, 2000])
@pytest.mark.parametrize("changes", [{}, {"radius": 12.0}, {"grow_share": 0.0}, {"clip": 0.3, "patience": 3}])
def test_the_search_equals_a_naive_twin_for_every_row(changes, max_queries) -> None:
    settings = {**SETTINGS, **changes, "max_queries": max_queries}
    starts = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(-0.3, 0.3)
    classes, draws = quadrant_labels(starts), stored_draws(6, 16)
    found = repel_from_border(
        started(starts, spent=11), classes, quadrant_labels, lambda turn, rows: draws[turn, rows], **settings
    )
    for row, label in enumerate(classes.tolist()):
        z, radius, queries = naive_search(starts[row].tolist(), label, draws[:, row], spent=11, **settings)
        torch.testing.assert_close(found.latents[row], torch.tensor(z, dtype=torch.float64))
        assert found.radii[row].item() == pytest.approx(radius)
        assert found.queries[row] == queries <= max_queries


def test_the_center_leaves_the_border() -> None:
    """In a quadrant the best center is its corner, where clipping ends: (clip, clip)."""
    starts = torch.tensor([[0.05, 0.02, 0.0, 0.0], [-0.05, 0.4, 0.0, 0.0]])
    draws = stored_draws(2, 16, 4000).float()
    found = repel_from_border(
        started(starts),
        quadrant_labels(starts),
        quadrant_labels,
        lambda turn, rows: draws[turn, rows],
        **{**SETTINGS, "patience": 300, "max_queries": 20_000},
    )
    assert (found.latents[:, :2].abs() > 1).all()
    assert torch.equal(quadrant_labels(found.latents), quadrant_labels(starts))


def test_a_class_without_border_grows_its_sphere_until_the_queries_end() -> None:
    draws = stored_draws(1, 16)
    found = repel_from_border(
        started(torch.zeros(1, SIZE)),
        torch.zeros(1, dtype=torch.long),
        lambda z: torch.zeros(len(z), dtype=torch.long),
        lambda turn, rows: draws[turn, rows].float(),
        **{**SETTINGS, "max_queries": 100},
    )
    assert found.queries.item() == 96  # the seventh round could need 17 more
    assert found.radii.item() == pytest.approx(0.5 * 1.3**6)


def test_a_start_is_the_first_latent_of_its_class() -> None:
    draws = torch.randn(3, 2, 64, SIZE, generator=torch.Generator().manual_seed(5)).abs() * 2
    draws[1, 1, 7, 0] = -3.0
    classes = torch.tensor([3, 1])
    found = find_starts(
        classes, quadrant_labels, lambda turn, rows: draws[turn, rows], latent_size=SIZE, clip=1.5, max_queries=150
    )
    assert torch.equal(found.latents[0], draws[0, 0, 0].clamp(-1.5, 1.5))
    assert torch.equal(found.latents[1], draws[1, 1, 7].clamp(-1.5, 1.5))
    assert found.is_found.all()
    assert found.queries.tolist() == [64, 128]


def test_a_start_that_is_not_found_is_the_last_latent_and_costs_exactly_the_cap() -> None:
    draws, asked = torch.rand(3, 1, 64, SIZE), []

    def labels_of(z: Tensor) -> Tensor:
        asked.append(len(z))
        return quadrant_labels(z)

    found = find_starts(
        torch.tensor([0]), labels_of, lambda turn, rows: draws[turn, rows], latent_size=SIZE, clip=1.5, max_queries=150
    )
    assert not found.is_found.any()
    assert found.queries.tolist() == [150] == [sum(asked)]
    assert torch.equal(found.latents[0], draws[2, 0, 150 - 128 - 1])


def test_a_failed_start_is_an_attempt_that_failed() -> None:
    """A target that never answers class 0 still gives its images: nothing is left out of the count."""
    classifier = quadrants()
    with torch.no_grad():
        classifier[1].bias[0] = -100.0
    images = attack(classifier=lambda: classifier)
    assert images.shape == (4, 3, 1, 2, 2)
    labels = classifier(images.flatten(0, 1)).argmax(dim=1).view(4, 3)
    assert (labels[0] != 0).all()
    assert (labels[1:] == torch.tensor([[1], [2], [3]])).all()


def test_shape_range_repeatability_and_independence() -> None:
    images = attack()
    assert images.shape == (4, 3, 1, 2, 2)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, attack())
    assert not torch.equal(images, attack(seed=8))
    torch.testing.assert_close(attack(max_rows=5), images)
    torch.testing.assert_close(attack(classes=(2,)), images[2:3])
    torch.testing.assert_close(attack(restarts=5)[:, :3], images)
    torch.testing.assert_close(attack(precision="bfloat16"), images, rtol=0, atol=0.2)


@pytest.mark.parametrize("max_queries", [1, 64, 500])
def test_no_restart_asks_for_more_labels_than_its_cap(max_queries) -> None:
    target = Target(quadrants, Access.LABEL, CLASSES)
    knowledge = Knowledge(seed=1, generator=ImagesOfLatents(), latent_size=SIZE)
    config = BREPMI.Config(restarts=2, max_queries=max_queries, radius=0.3)
    BREPMI(config).reconstruct(target, torch.arange(CLASSES), knowledge)
    assert 0 < target.queries <= 8 * max_queries


def test_labels_are_all_that_is_asked_for() -> None:
    class OnlyLabels(nn.Module):
        """A release whose scores cannot be read."""

        def labels(self, x: Tensor) -> Tensor:
            return quadrants()(x).argmax(dim=1)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("scores were asked for")

    assert torch.equal(attack(classifier=OnlyLabels), attack())
    with pytest.raises(AccessError):
        Target(quadrants, BREPMI.access, CLASSES).module()


def test_it_needs_a_generator() -> None:
    with pytest.raises(ConfigError, match="priors"):
        BREPMI(BREPMI.Config()).reconstruct(
            Target(quadrants, Access.LABEL, CLASSES), torch.tensor([0]), Knowledge(latent_size=SIZE)
        )


@pytest.mark.parametrize(
    "settings",
    [{"points": 0}, {"radius": 0}, {"growth": 1.0}, {"grow_share": 1.0}, {"patience": 0}, {"max_queries": 0}],
)
def test_settings_without_sense_are_refused(settings) -> None:
    with pytest.raises(ConfigError):
        validate(BREPMI.Config, settings, "attacks.inversion")
