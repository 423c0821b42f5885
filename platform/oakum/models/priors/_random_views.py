"""Random views of images through which a gradient flows: a crop, a flip, a rotation, brightness and contrast."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Uniform numbers that a view takes: area, top, left, flip, angle, whether brightness and contrast change, how much.
DRAWS = 8
_HALF = 0.5


@dataclass(frozen=True)
class Views:
    """What a random view may do to an image.

    Attributes:
        smallest_area: share of the image that a square crop keeps at least; it is enlarged to the image's size.
        flip: whether every second view is a mirror image.
        degrees: largest rotation to either side.
        jitter: largest relative change of brightness and of contrast.
        jitter_share: of the views that change brightness and contrast.
    """

    smallest_area: float = 0.8
    flip: bool = True
    degrees: float = 5.0
    jitter: float = 0.2
    jitter_share: float = 0.5

    def of(self, x: Tensor, draws: Tensor) -> Tensor:
        """Return one view of each image, in the shape and dtype of x.

        Crop, flip and rotation are one bilinear resampling; what lies outside the image is 0. Brightness and then
        contrast, about the image's mean, are clipped to [0, 1] as torchvision does.

        Args:
            x: (B, C, S, S) in [0, 1].
            draws: (B, 8) uniform in [0, 1). An image's view depends on its own row alone.
        """
        draws = draws.to(x)
        side = (self.smallest_area + (1 - self.smallest_area) * draws[:, 0]).sqrt()
        down, right = ((1 - side) * (2 * draws[:, column] - 1) for column in (1, 2))
        mirror = torch.where(draws[:, 3] < _HALF, -1.0, 1.0).to(x) if self.flip else torch.ones_like(side)
        angle = math.radians(self.degrees) * (2 * draws[:, 4] - 1)
        cosine, sine = side * angle.cos(), side * angle.sin()
        rows = [torch.stack([mirror * cosine, -mirror * sine, right], 1), torch.stack([sine, cosine, down], 1)]
        grid = F.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
        seen = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

        is_changed = draws[:, 5] < self.jitter_share
        brightness, contrast = (
            torch.where(is_changed, 1 + self.jitter * (2 * draws[:, column] - 1), 1.0).view(-1, 1, 1, 1)
            for column in (6, 7)
        )
        seen = (seen * brightness).clamp(0, 1)
        mean = seen.mean(dim=(1, 2, 3), keepdim=True)
        return (mean + (seen - mean) * contrast).clamp(0, 1)
