"""What the judge computes from feature networks, beside what a whole run shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oakum.metrics import inversion as metrics
from oakum.pipeline.stages.judge import Made, _by_extractor, _shares_images
from oakum.store import Manifest


class Corners(nn.Module):
    """The mean of each quarter of an image, (B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1)


def pictures(classes: list[int], shown: list[int]) -> Made:
    """Images that are bright in the quarter of the class that they show."""
    images = torch.full((len(shown), 1, 8, 8), 0.1)
    for row, quarter in enumerate(shown):
        top, left = 4 * (quarter // 2), 4 * (quarter % 2)
        images[row, :, top : top + 4, left : left + 4] = 0.9 + 0.01 * row
    return Made(images, np.array(classes), np.zeros(len(classes), dtype=np.int64))


def judged(recognizes: bool, control: Made | None) -> tuple[dict[str, float | None], np.ndarray | None]:
    extractor = SimpleNamespace(profile="fd.corners", recognizes=recognizes)
    real = pictures([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2])
    made = pictures([0, 0, 1, 2], [0, 1, 1, 2])
    found, hits = _by_extractor(extractor, Corners(), made, control, real.images, real.wanted)
    return {name: value.value for name, value in found.items()}, hits


def test_an_embedder_judges_the_control_as_it_judges_the_target() -> None:
    found, hits = judged(recognizes=True, control=pictures([1, 1, 2, 2], [3, 1, 0, 3]))
    assert found.keys() == {
        *("fd.corners", "top1.corners", "knn2.corners"),
        *("top1.corners.control", "knn2.corners.control"),
    }
    assert hits is not None and hits.tolist() == [True, False, True, True]
    assert found["top1.corners"] == 0.75 and found["top1.corners.control"] == pytest.approx(0.25)
    assert found["knn2.corners"] < found["knn2.corners.control"]


def test_without_a_control_there_is_no_floor_and_other_networks_name_nobody() -> None:
    assert judged(recognizes=True, control=None)[0].keys() == {"fd.corners", "top1.corners", "knn2.corners"}
    found, hits = judged(recognizes=False, control=pictures([0], [0]))
    assert found.keys() == {"fd.corners"} and hits is None
    assert found["fd.corners"] == pytest.approx(
        metrics.frechet_distance(
            *(
                Corners()(made.images).double().detach().numpy()
                for made in (pictures([0, 0, 1, 2], [0, 1, 1, 2]), pictures([0] * 6, [0, 0, 1, 1, 2, 2]))
            )
        ).value
    )


@pytest.mark.parametrize(
    ("epochs", "fold", "shares"), [(3, "train", True), (3, "evaluation", False), (0, "evaluation", None)]
)
def test_what_an_imported_judge_learned_from_is_not_known(epochs: int, fold: str, shares: bool | None) -> None:
    document = {"config": {"recipe": {"epochs": epochs}}, "folds": {fold: "digest"}}
    assert _shares_images(cast(Manifest, SimpleNamespace(key_document=document))) is shares
