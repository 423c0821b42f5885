"""How the judge stage reads reconstructions and counts floors, with a judge whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.pipeline.context import build_model
from oakum.pipeline.stages import judge

# The target's classes 0, 1, 2 are the data's 2, 5, 7; the judge knows all ten.
PRIVATE = [2, 5, 7]


class ByBrightness(nn.Module):
    """Says class k of an image whose pixels are k / 10; features are the image's mean and its square."""

    def forward(self, x: Tensor, with_taps: bool = False) -> tuple[Tensor, list[Tensor]]:
        level = x.flatten(1).mean(dim=1, keepdim=True)
        scores = -100 * (level - torch.arange(10) / 10).abs()
        return scores, [torch.cat([level, level**2], dim=1)]


def shaded(levels: Sequence[float]) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


def context(folder: Path, made: dict[str, dict[str, Tensor]], **config: Any) -> Any:
    for name, tensors in made.items():
        save_file(tensors, folder / name)
    return SimpleNamespace(
        task=SimpleNamespace(inputs=dict.fromkeys(made), config={"evaluator_classes": PRIVATE, **config}),
        input=lambda name: name,
        store=SimpleNamespace(fetch=lambda name, _: folder / name),
        device=torch.device("cpu"),
    )


def part(classes: list[int], levels: list[list[float]], unoptimized: list[float]) -> dict[str, Tensor]:
    images = torch.stack([shaded(row) for row in levels])
    return {"images": images, "classes": torch.tensor(classes), "unoptimized": shaded(unoptimized)}


def test_tasks_are_put_together_and_classes_are_numbered_as_the_judge_does(tmp_path: Path) -> None:
    made, unoptimized = judge._made(
        context(
            tmp_path,
            {
                "inversion.0": part([0, 1], [[0.2, 0.3], [0.5, 0.51234567]], [0.5]),
                "inversion.1": part([2], [[0.7, 0.1]], [0.5]),
                "control.0": part([0], [[0.0, 0.0]], [0.0]),
            },
        ),
        "inversion",
    )
    assert made is not None and unoptimized is not None
    assert made.wanted.tolist() == [2, 2, 5, 5, 7, 7] and made.restart.tolist() == [0, 1] * 3
    levels = torch.tensor([0.2, 0.3, 0.5, 0.51234567, 0.7, 0.1])
    assert torch.equal(made.images[:, 0, 0, 0], levels), "images are judged as they were made"
    assert torch.equal(unoptimized, shaded([0.5]))


def test_floors_are_counted_by_class(tmp_path: Path) -> None:
    made = {"control.0": part([0, 1, 2], [[0.2, 0.9], [0.9, 0.9], [0.7, 0.7]], [0.2, 0.2, 0.5, 0.9])}
    own = context(tmp_path, made)
    control, unoptimized = judge._made(own, "control")
    leakless = judge.Leakless(control, unoptimized)
    floors, of_control = judge._floors(ByBrightness(), "top1", leakless, np.array([2, 2, 5, 5, 7, 7]), own)
    assert of_control is not None
    assert floors["top1.control"].value == pytest.approx((0.5 + 0 + 1) / 3)
    # Two of four samples show a 2, one a 5, none a 7.
    assert floors["top1.unoptimized"].value == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)


def test_without_control_and_prior_there_are_no_floors(tmp_path: Path) -> None:
    floors, of_control = judge._floors(
        ByBrightness(), "top1", judge.Leakless(None, None), np.array([2]), context(tmp_path, {})
    )
    assert floors == {} and of_control is None


def test_other_weights_than_planned_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = (None, nn.Identity(), SimpleNamespace(sha256="found"))
    monkeypatch.setattr(judge, "open_extractor", lambda name, folder: opened)
    own = context(tmp_path, {}, extractors=[{"method": {"name": "faces"}, "weights": "planned"}])
    own.settings = SimpleNamespace(data_home=tmp_path)
    made = judge.Made(shaded([0.2]), np.array([2]), np.zeros(1, np.int64))
    with pytest.raises(ConfigError, match="not the ones that were planned; run `oakum weights prepare faces` on every"):
        judge._by_extractors(own, made, None, shaded([0.2]), np.array([2]))


@pytest.mark.parametrize("kind", ["train", "snapshot"])
def test_a_judge_with_the_network_of_the_target_is_refused(kind: str) -> None:
    def config(width: int) -> dict[str, Any]:
        return {"model": {"name": "small_cnn", "width": width}, "input_shape": [1, 8, 8], "num_classes": 3}

    def judging(width: int) -> Any:
        attacked = SimpleNamespace(key_document={"inputs": {"target": "key"}})
        target = SimpleNamespace(key_document={"config": config(2)})
        return SimpleNamespace(
            released=lambda name: build_model(config(width)),
            input=lambda name: attacked,
            store=SimpleNamespace(manifest=lambda of, key: target if (of, key) == (kind, "key") else None),
        )

    assert isinstance(judge._judge_model(judging(4), "evaluator"), nn.Module)
    with pytest.raises(ConfigError, match="has the architecture of the target; choose another"):
        judge._judge_model(judging(2), "evaluator")
