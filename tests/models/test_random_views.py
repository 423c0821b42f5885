from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oakum.models.priors._random_views import DRAWS, Views

AREA, TOP, LEFT, FLIP, ANGLE, IS_CHANGED, BRIGHTNESS, CONTRAST = range(DRAWS)
UNCHANGED = Views(smallest_area=1.0, flip=False, degrees=0.0, jitter=0.0)


def pictures(rows: int = 3) -> Tensor:
    return torch.rand(rows, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draws(rows: int = 3, **columns: float) -> Tensor:
    """The middle of every range, but for the columns named."""
    values = torch.full((rows, DRAWS), 0.5, dtype=torch.float64)
    for name, value in columns.items():
        values[:, globals()[name]] = value
    return values


def test_without_changes_a_view_is_the_image() -> None:
    torch.testing.assert_close(UNCHANGED.of(pictures(), torch.rand(3, DRAWS)), pictures())


def test_a_flip_is_a_mirror_image_for_half_of_the_draws() -> None:
    views = Views(smallest_area=1.0, degrees=0.0, jitter=0.0)
    torch.testing.assert_close(views.of(pictures(), draws(FLIP=0.49)), pictures().flip(3))
    torch.testing.assert_close(views.of(pictures(), draws(FLIP=0.5)), pictures())


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (180.0, 2)])
def test_a_rotation_turns_the_image(degrees: float, turns: int) -> None:
    views = Views(smallest_area=1.0, flip=False, degrees=degrees, jitter=0.0)
    for end, sign in ((0.0, -1), (1.0, 1)):
        found = views.of(pictures(), draws(ANGLE=end))
        assert any(
            torch.allclose(found, torch.rot90(pictures(), sign * direction * turns, (2, 3))) for direction in (1, -1)
        )


@pytest.mark.parametrize(("top", "left"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_crop_of_a_quarter_is_that_corner_enlarged(top: float, left: float) -> None:
    views = Views(smallest_area=0.25, flip=False, degrees=0.0, jitter=0.0)
    found = views.of(pictures(), draws(AREA=0.0, TOP=top, LEFT=left))
    rows, columns = slice(int(4 * top), int(4 * top) + 4), slice(int(4 * left), int(4 * left) + 4)
    corner = pictures()[:, :, rows, columns]
    expected = F.interpolate(corner, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])


def test_areas_are_uniform_between_the_smallest_and_one() -> None:
    """An image whose pixels are their own row shows how much of it is seen."""
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 64, 1).expand(2000, 1, 64, 64)
    values = torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = Views(flip=False, degrees=0.0, jitter=0.0).of(ramp, values)[:, 0, :, 32]
    side = (seen[:, 48] - seen[:, 16]) / (ramp[0, 0, 48, 0] - ramp[0, 0, 16, 0])
    area = side**2
    assert area.min() >= 0.8 - 1e-6 and area.max() <= 1 + 1e-6
    assert area.mean() == pytest.approx(0.9, abs=0.005)


def test_brightness_and_contrast_are_those_of_the_draws() -> None:
    views = Views(smallest_area=1.0, flip=False, degrees=0.0, jitter=0.2, jitter_share=0.5)
    x = pictures() * 0.5 + 0.1
    torch.testing.assert_close(views.of(x, draws(IS_CHANGED=0.5, BRIGHTNESS=1.0, CONTRAST=1.0)), x)
    brighter = x * 1.2
    mean = brighter.mean(dim=(1, 2, 3), keepdim=True)
    found = views.of(x, draws(IS_CHANGED=0.49, BRIGHTNESS=1.0, CONTRAST=0.0))
    torch.testing.assert_close(found, mean + 0.8 * (brighter - mean))


def test_views_stay_in_range_and_rows_do_not_influence_each_other() -> None:
    values = torch.rand(3, DRAWS, generator=torch.Generator().manual_seed(1))
    found = Views(jitter_share=1.0).of(pictures(), values)
    assert found.shape == pictures().shape and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(Views(jitter_share=1.0).of(pictures()[1:2], values[1:2]), found[1:2])


def test_a_gradient_reaches_the_image() -> None:
    x = (pictures() * 0.5 + 0.2).requires_grad_(True)
    values = torch.rand(3, DRAWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda image: Views().of(image, values), (x,))
