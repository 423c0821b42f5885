"""Search spaces: what a file may say, what is drawn, and that every shipped space fits its defense."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from oakum.config import ConfigError
from oakum.search.space import Parameter, Point, SearchSpace, load_space

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


def written(folder: Path, data: dict[str, Any], name: str = "relaxloss") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def drawn(space: SearchSpace, count: int) -> list[Point]:
    generator = np.random.default_rng(0)

    def pick(path: str, parameter: Parameter) -> Any:
        return parameter.at(generator.random())

    return [space.draw(pick) for _ in range(count)]


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_every_shipped_space_fits_its_defense(file: Path) -> None:
    space = load_space(file)
    assert file.stem.startswith(space.defense) and (space.parameters or space.grid)
    for point in drawn(space, 20):
        assert space.settings(point)["name"] == space.defense and not space.changes(point)


@pytest.mark.parametrize(
    ("sampler", "low", "high", "middle"), [("uniform", 1.0, 3.0, 2.0), ("loguniform", 0.01, 1.0, 0.1)]
)
def test_a_range_has_its_ends_and_its_middle(
    tmp_path: Path, sampler: str, low: float, high: float, middle: float
) -> None:
    entry = {"sampler": sampler, "low": low, "high": high}
    parameter = load_space(written(tmp_path, {"defense.alpha": entry})).parameters["defense.alpha"]
    assert [parameter.at(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([low, middle, high])


def test_whole_numbers_and_steps_are_drawn_alike(tmp_path: Path) -> None:
    data = {
        "defense.teachers": {"sampler": "integer", "low": 4, "high": 6},
        "defense.left_out": {"sampler": "choice", "values": [2, 3]},
    }
    points = drawn(load_space(written(tmp_path, data, "selena")), 600)
    for path, values in (("defense.teachers", {4, 5, 6}), ("defense.left_out", {2, 3})):
        counts = Counter(point[path] for point in points)
        assert counts.keys() == values and all(isinstance(value, int) for value in counts)
        assert min(counts.values()) > 0.8 * 600 / len(values)
    stepped = {"defense.alpha": {"sampler": "uniform", "low": 0.0, "high": 1.0, "step": 0.25}}
    alphas = {point["defense.alpha"] for point in drawn(load_space(written(tmp_path, stepped)), 200)}
    assert alphas == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_condition_decides_what_a_point_has(tmp_path: Path) -> None:
    data = {
        "defense": "bido",
        "fixed": {"defense.lambda_x": 0.1},
        "defense.lambda_y": {"sampler": "uniform", "low": 0.1, "high": 1.0},
        "defense.coco_norm": {
            "sampler": "choice",
            "values": ["frobenius", "spectral"],
            "when": {"defense.measure": "coco"},
        },
        "defense.measure": {"sampler": "choice", "values": ["hsic", "coco"]},
        "recipe.weight_decay": {"sampler": "loguniform", "low": 1e-5, "high": 1e-3},
    }
    space = load_space(written(tmp_path, data, "mine"))
    points = drawn(space, 50)
    assert {point["defense.measure"] for point in points} == {"hsic", "coco"}
    for point in points:
        assert ("defense.coco_norm" in point) == (point["defense.measure"] == "coco")
        assert space.settings(point)["lambda_x"] == 0.1 and space.changes(point).keys() == {"recipe.weight_decay"}


@pytest.mark.parametrize(
    "order", list(itertools.permutations(("defense.coco_norm", "defense.measure", "recipe.epochs")))
)
def test_conditions_of_conditions_are_drawn_before_what_they_condition(tmp_path: Path, order: tuple[str, ...]) -> None:
    entries: dict[str, Any] = {
        "recipe.epochs": {"sampler": "choice", "values": [2, 4]},
        "defense.measure": {"sampler": "choice", "values": ["hsic", "coco"], "when": {"recipe.epochs": 4}},
        "defense.coco_norm": {
            "sampler": "choice", "values": ["frobenius", "spectral"], "when": {"defense.measure": "coco"},
        },
    }  # fmt: skip
    fixed = {"defense.lambda_x": 0.1, "defense.lambda_y": 0.1}
    space = load_space(written(tmp_path, {"fixed": fixed, **{path: entries[path] for path in order}}, "bido"))
    assert list(space.parameters) == list(entries)
    points = drawn(space, 60)
    assert {point.get("defense.measure") for point in points} == {None, "hsic", "coco"}
    for point in points:
        assert ("defense.measure" in point) == (point["recipe.epochs"] == 4)
        assert ("defense.coco_norm" in point) == (point.get("defense.measure") == "coco")


def test_a_bound_behind_two_conditions_is_held_against_the_schema(tmp_path: Path) -> None:
    data = {
        "grid": [{"defense.lambda_x": 0.1, "defense.lambda_y": 0.1}],
        "defense.lambda_x": {"sampler": "uniform", "low": -1.0, "high": 1.0, "when": {"defense.coco_norm": "spectral"}},
        "defense.coco_norm": {"sampler": "choice", "values": ["spectral"], "when": {"defense.measure": "coco"}},
        "defense.measure": {"sampler": "choice", "values": ["hsic", "coco"]},
    }
    with pytest.raises(ConfigError, match=r"outside of the schema.lambda_x: .*got -1.0"):
        load_space(written(tmp_path, data, "bido"))


def test_a_grid_carries_the_fixed_values(tmp_path: Path) -> None:
    data = {"fixed": {"defense.variant": "paper"}, "grid": [{"defense.alpha": 0.5}, {"defense.alpha": 1.0}]}
    space = load_space(written(tmp_path, data))
    assert [space.settings(point) for point in space.grid_points()] == [
        {"name": "relaxloss", "variant": "paper", "alpha": 0.5},
        {"name": "relaxloss", "variant": "paper", "alpha": 1.0},
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "is empty"),
        ({"defense": "relaxloss"}, "the space is empty; write paths with samplers, or a grid"),
        ({"defense": "relaxlos"}, "unknown defense 'relaxlos'; did you mean 'relaxloss'"),
        ({"defense.alpha": 1.0}, "defense.alpha: write `sampler:` with one of uniform, loguniform, integer, choice"),
        ({"defense.alpha": {"sampler": "normal"}}, "got 'normal'"),
        ({"defense.alpha": {"sampler": "uniform", "low": 1.0}}, "defense.alpha.high: this key is required"),
        ({"defense.alpha": {"sampler": "uniform", "low": 2.0, "high": 1.0}}, "must be below high"),
        ({"defense.alpha": {"sampler": "loguniform", "low": 0.0, "high": 1.0}}, "loguniform needs low above 0"),
        ({"defense.alpha": {"sampler": "uniform", "low": -1.0, "high": 1.0}}, "-1.0 is outside of the schema"),
        ({"defense.alhpa": {"sampler": "uniform", "low": 0.1, "high": 1.0}}, "did you mean 'alpha'?"),
        ({"defense.alpha": {"sampler": "choice", "values": []}}, "defense.alpha.values"),
        ({"grid": [{"defense.alpha": -2.0}]}, "grid.0"),
        ({"grid": {"defense.alpha": 1.0}}, "grid: write a list of mappings"),
        (
            {"defense.alpha": {"sampler": "uniform", "low": 0.1, "high": 1.0, "when": {"defense.beta": 1}}},
            "defense.alpha.when: 'defense.beta' is not in this space; give it a sampler, or a value under `fixed`",
        ),
        (
            {
                "defense.alpha": {"sampler": "uniform", "low": 0.1, "high": 1.0, "when": {"defense.variant": "paper"}},
                "defense.variant": {"sampler": "choice", "values": ["paper"], "when": {"recipe.epochs": 2}},
                "recipe.epochs": {"sampler": "choice", "values": [2], "when": {"defense.variant": "paper"}},
            },
            "conditions in a circle (defense.variant -> recipe.epochs -> defense.variant)",
        ),
        (
            {"defense.alpha": {"sampler": "uniform", "low": 0.1, "high": 1.0, "when": {"defense.alpha": 1}}},
            "conditions in a circle (defense.alpha -> defense.alpha)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    file = tmp_path / "relaxloss.yaml"
    file.write_text(yaml.safe_dump(data) if data else "")
    with pytest.raises(ConfigError) as caught:
        load_space(file)
    assert said in str(caught.value)
