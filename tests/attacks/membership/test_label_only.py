from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.attacks.membership.label_only import LabelOnly
from oakum.config import ConfigError, validate


class Linear(nn.Module):
    """Logits (B, 3) of flattened inputs; keeps what it was asked."""

    num_classes = 3

    def __init__(self, features: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(features, 3, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.reshape(-1, len(self.weight)) @ self.weight


def points_of(x: Tensor, seed: int = 1) -> Points:
    y = torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(seed))
    return Points(x, y, torch.arange(len(x)) + 100)


def scores_of(model: Linear, points: Points, seed: int = 0, **options: object) -> tuple[np.ndarray, Target]:
    target = Target(lambda: model, LabelOnly.access, 3)
    scores = LabelOnly(LabelOnly.Config(**options)).score(target, points, Knowledge(seed=seed))
    assert scores.dtype == np.float64 and scores.shape == (len(points),)
    return scores, target


def images(count: int = 7) -> Tensor:
    return torch.rand(count, 1, 6, 8, generator=torch.Generator().manual_seed(2))


def rows(count: int = 30, features: int = 40) -> Tensor:
    return (torch.rand(count, features, generator=torch.Generator().manual_seed(2)) < 0.3).float()


def naive_view(image: np.ndarray, down: int, right: int, is_flipped: bool) -> np.ndarray:
    source = image[:, :, ::-1] if is_flipped else image
    result = np.zeros_like(image)
    _, height, width = image.shape
    for i, j in product(range(height), range(width)):
        if 0 <= i + down < height and 0 <= j + right < width:
            result[:, i, j] = source[:, i + down, j + right]
    return result


@pytest.mark.parametrize("shift", [2, 4])
def test_images_are_seen_in_18_views(shift: int) -> None:
    points, model = points_of(images()), Linear(48)
    scores, target = scores_of(model, points, shift=shift)
    assert target.queries == 18 * 7
    for image, y, score in zip(points.x.numpy(), points.y.tolist(), scores, strict=True):
        views = [naive_view(image, *view) for view in product((0, -shift, shift), (0, -shift, shift), (False, True))]
        predictions = [int((view.flatten() @ model.weight.detach().numpy()).argmax()) for view in views]
        correct = [prediction == y for prediction in predictions]
        assert score == pytest.approx((sum(correct) + 0.5 * correct[0]) / 18.5)


def test_rows_are_seen_themselves_and_with_flipped_features() -> None:
    points, model = points_of(rows()), Linear(40)
    scores, target = scores_of(model, points, views=10, flip_probability=0.1)
    assert target.queries == 11 * 30
    first, *others = model.seen
    assert torch.equal(first, points.x)
    changed = torch.stack([(view - points.x).abs() for view in others])
    assert set(changed.unique().tolist()) == {0.0, 1.0}
    assert changed.mean().item() == pytest.approx(0.1, abs=0.01)
    assert changed.flatten(0, 1).unique(dim=0).shape[0] > 250
    correct = np.stack([(view @ model.weight).argmax(1).numpy() == points.y.numpy() for view in model.seen])
    assert scores.tolist() == pytest.approx((correct.sum(0) + 0.5 * correct[0]) / 11.5)


def test_draws_belong_to_the_row_and_the_attacks_seed() -> None:
    points, options = points_of(rows()), {"views": 4, "flip_probability": 0.3}
    whole, _ = scores_of(Linear(40), points, **options)
    order = torch.arange(29, -1, -1)
    reversed_points = Points(points.x[order], points.y[order], points.rows[order])
    assert (scores_of(Linear(40), reversed_points, **options)[0] == whole[::-1]).all()
    assert not (scores_of(Linear(40), points, seed=1, **options)[0] == whole).all()


def test_the_point_itself_breaks_ties_and_weighs_less_than_two_views() -> None:
    class Recorded(Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            right = [[0, 1, 1], [1, 1, 0], [1, 0, 0]][len(self.seen) - 1]
            return torch.tensor([[float(value), 0.5, 0.0] for value in right])

    points = Points(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.arange(3))
    scores, _ = scores_of(Recorded(2), points, views=2)
    assert scores.tolist() == pytest.approx([2 / 3.5, 2.5 / 3.5, 1.5 / 3.5])


def test_it_asks_for_labels_alone_and_takes_no_points() -> None:
    assert LabelOnly.access is Access.LABEL and not LabelOnly.needs_shadow
    for x, features in ((rows(0), 40), (images(0), 48)):
        assert scores_of(Linear(features), points_of(x))[0].tolist() == []


def test_many_points_are_asked_in_parts_of_all_views() -> None:
    x = rows(1100, 4)
    scores, target = scores_of(Linear(4), points_of(x), views=2)
    alone, _ = scores_of(Linear(4), Points(x[1050:], points_of(x).y[1050:], torch.arange(1150, 1200)), views=2)
    assert target.queries == 3300 and (scores[1050:] == alone).all()


@pytest.mark.parametrize("bad", [{"shift": 0}, {"views": 0}, {"flip_probability": 0.0}, {"flip_probability": 1.0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(LabelOnly.Config, bad, "attack")
