"""Label-only attack: members keep their label under small changes of the input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from oakum.attacks.access import Access, Knowledge, Points, Target
from oakum.attacks.membership.base import MembershipAttack
from oakum.registry import Source
from oakum.seeding import derive_seed, keyed_uniform, sample_keys
from oakum.training.augmentation import shift

# What a correct prediction of the point itself counts beyond that of a changed view: less than one view more.
_TIE_BREAK = 0.5
# Points whose views are made at once.
_CHUNK = 1024


class LabelOnly(MembershipAttack):
    """Scores a point by the share of its views that the target gives the point's label.

    The first view is the point itself; of points with equally many correct views, those that are correct themselves
    score higher. Images are seen flipped or not, through windows moved by 0 or `shift` pixels in each of two directions
    (18 views; what lies outside is 0). Of rows, `views` copies are seen in which every feature v becomes 1 - v with
    probability `flip_probability`; draws are keyed by the row and the attack's seed.

    Differs from the paper: there, images are moved along a diamond of offsets, a network is trained on the vector of
    correct views of a shadow model, and features of rows are flipped after a noise level was chosen on a shadow model.
    Here nothing is fitted: the score is the share. Flips beside shifts are the 18 views of Aerni, Zhang and Tramer
    (2024).
    """

    source = Source(
        title="Label-Only Membership Inference Attacks",
        authors="Christopher A. Choquette-Choo, Florian Tramer, Nicholas Carlini, Nicolas Papernot",
        venue="ICML",
        year=2021,
        link="https://arxiv.org/abs/2007.14321",
    )
    access: ClassVar[Access] = Access.LABEL

    class Config(MembershipAttack.Config):
        """Settings of the label-only attack.

        Attributes:
            shift: pixels by which images are moved.
            views: changed copies of each row, beside the row itself.
            flip_probability: of each feature of such a copy. 0.02 was best for shadow models of Location-30 (446
                features); other data needs a search on shadow models of its own.
        """

        shift: int = Field(default=4, ge=1)
        views: int = Field(default=32, ge=1)
        flip_probability: float = Field(default=0.02, gt=0, lt=1)

    config: Config

    def score(self, target: Target, points: Points, knowledge: Knowledge) -> NDArray[np.float64]:
        """Return (N,) float64 in [0, 1]; asks for the label of every view."""
        parts = []
        for x, y, rows in zip(*(each.split(_CHUNK) for each in (points.x, points.y, points.rows)), strict=True):
            views = self._image_views(x) if x.dim() == 4 else self._row_views(x, rows, knowledge.seed)
            correct = np.stack([target.labels_of(view) == y.cpu().numpy() for view in views]).astype(np.float64)
            parts.append((correct.sum(axis=0) + _TIE_BREAK * correct[0]) / (len(correct) + _TIE_BREAK))
        return np.concatenate(parts)

    def _image_views(self, x: Tensor) -> Iterator[Tensor]:
        """Yield 18 images (N, C, H, W), the unchanged one first."""
        pixels = (0, -self.config.shift, self.config.shift)
        moves = [torch.full((len(x),), count, device=x.device) for count in pixels]
        for images, down, right in product((x, x.flip(3)), moves, moves):
            yield shift(images, down, right)

    def _row_views(self, x: Tensor, rows: Tensor, seed: int) -> Iterator[Tensor]:
        """Yield rows (N, F), the unchanged ones first."""
        yield x
        for view in range(self.config.views):
            keys = sample_keys(derive_seed(seed, "label_only.view", view), rows)
            is_flipped = keyed_uniform(keys, x.shape[1]) < self.config.flip_probability
            yield torch.where(is_flipped, 1 - x, x)
