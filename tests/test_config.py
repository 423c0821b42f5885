"""Configuration errors say where, and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from oakum.config import ConfigError, FrozenConfig, apply_overrides, read_yaml, validate


class Recipe(FrozenConfig):
    learning_rate: float = Field(0.1, gt=0)
    epochs: int = Field(10, ge=1)
    momentum: float | None = None


class Small(FrozenConfig):
    name: Literal["small"]
    width: int = 4


class Large(FrozenConfig):
    name: Literal["large"]
    depth: int = 4


class Rule(FrozenConfig):
    source: str = Field("all", alias="from")


class Range(FrozenConfig):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.high < self.low:
            raise ValueError("high is below low")
        return self


class Experiment(FrozenConfig):
    name: str
    recipe: Recipe = Recipe()
    settings: list[Recipe] = Field(default_factory=list)
    by_name: dict[str, Recipe] = Field(default_factory=dict)
    pair: tuple[int, Recipe] | None = None
    model: Annotated[Small | Large, Field(discriminator="name")] | None = None
    rules: tuple[Rule, ...] = ()
    shape: tuple[int, ...] = ()
    range: Range = Range()


def problem(data: dict[str, Any], where: str = "file.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Experiment, data, where)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "recip": {}}, "file.yaml: recip: unknown key; did you mean 'recipe'?"),
        (
            {"name": "x", "recipe": {"learning_rat": 1.0}},
            "file.yaml: recipe.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        (
            {"name": "x", "settings": [{}, {"epoch": 1}]},
            "file.yaml: settings.1.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            {"name": "x", "by_name": {"bido": {"epoch": 1}}},
            "file.yaml: by_name.bido.epoch: unknown key; did you mean 'epochs'?",
        ),
        ({"name": "x", "pair": [1, {"epoch": 1}]}, "file.yaml: pair.1.epoch: unknown key; did you mean 'epochs'?"),
        (
            {"name": "x", "model": {"name": "small", "widht": 1}},
            "file.yaml: model.widht: unknown key; did you mean 'width'?",
        ),
        ({"name": "x", "rules": [{"form": "all"}]}, "file.yaml: rules.0.form: unknown key; did you mean 'from'?"),
        (
            {"name": "x", "recipe": {"zzz": 1}},
            "file.yaml: recipe.zzz: unknown key; valid keys: epochs, learning_rate, momentum",
        ),
        ({}, "file.yaml: name: this key is required"),
    ],
)
def test_a_wrong_key_is_named_with_its_path_and_the_nearest_valid_one(data: dict[str, Any], message: str) -> None:
    assert problem(data) == message


def test_a_place_inside_a_file_is_continued_with_a_dot() -> None:
    assert problem({"name": "x", "recip": {}}, "file.yaml: experiment").startswith("file.yaml: experiment.recip: ")


def test_every_problem_has_its_own_line() -> None:
    lines = problem({"recipe": {"epochs": 0, "learning_rate": -1.0}}).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["name", "recipe.learning_rate", "recipe.epochs"]


def test_what_a_method_itself_refuses_is_said_in_its_words() -> None:
    assert problem({"name": "x", "range": {"low": 2}}) == "file.yaml: range: high is below low"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1e-3", "0.001"),
        ("1.25e4", "12500.0"),
        ("1e-7", "1.0e-07"),
        ("2.5e22", "2.5e+22"),
        ("1e22", "1.0e+22"),
        ("'0.5'", "0.5"),
    ],
)
def test_a_number_that_yaml_reads_as_text_comes_with_the_right_spelling(
    tmp_path: Path, text: str, written: str
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(f"name: x\nrecipe: {{learning_rate: {text}}}\n")
    message = problem(read_yaml(file))
    assert message == (
        f"file.yaml: recipe.learning_rate: YAML reads {text.strip(chr(39))!r} as text, not as a number; write {written}"
    )
    file.write_text(f"name: x\nrecipe: {{learning_rate: {written}}}\n")
    assert validate(Experiment, read_yaml(file), "file.yaml").recipe.learning_rate == float(text.strip("'"))


def test_a_whole_number_is_suggested_where_one_is_needed() -> None:
    assert problem({"name": "x", "recipe": {"epochs": "1e2"}}).endswith("not as a number; write 100")
    assert "write" not in problem({"name": "x", "recipe": {"epochs": "1.5"}})
    assert "write" not in problem({"name": "x", "recipe": {"epochs": "many"}})
    assert "write" not in problem({"name": "x", "recipe": {"learning_rate": "inf"}})


@pytest.mark.parametrize(
    "recipe",
    [
        {"epochs": 1.0},
        {"epochs": True},
        {"learning_rate": True},
        {"learning_rate": float("nan")},
        {"momentum": float("inf")},
    ],
)
def test_types_are_not_converted(recipe: dict[str, Any]) -> None:
    (key,) = recipe
    assert problem({"name": "x", "recipe": recipe}).startswith(f"file.yaml: recipe.{key}: ")


def test_whole_numbers_are_fine_as_floats_and_lists_as_tuples() -> None:
    experiment = validate(Experiment, {"name": "x", "recipe": {"learning_rate": 1}, "shape": [1, 2]}, "file.yaml")
    assert experiment.recipe.learning_rate == 1.0
    assert isinstance(experiment.recipe.learning_rate, float)
    assert experiment.shape == (1, 2)


def test_configurations_made_in_python_are_strict_and_frozen() -> None:
    with pytest.raises(ValueError, match="epochs"):
        Recipe(epochs="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]


def test_an_unquoted_date_is_text_and_a_set_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("name: 2026-11-22\n")
    assert validate(Experiment, read_yaml(file), "file.yaml").name == "2026-11-22"
    file.write_text("name: x\nshape: !!set {1, 2}\n")
    assert "set" in problem(read_yaml(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"- 1\n", "must hold a mapping"),
        (b"a: [1\n", "not valid YAML"),
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' is given twice"),
        (b"a: {b: 1, b: 2}\n", "line 1, column 11"),
        (b"a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_an_unreadable_file_is_named_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_a_folder_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        read_yaml(tmp_path)


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("base: &base {x: 1, y: 2}\nmore: &more {<<: *base, x: 3}\nmost: {<<: *more, x: 4}\n")
    assert read_yaml(file)["most"] == {"x": 4, "y": 2}


def test_overrides_change_a_copy() -> None:
    data: dict[str, Any] = {"recipe": {"epochs": 1}, "settings": [{"epochs": 1}, {"epochs": 1}], "empty": None}
    changed = apply_overrides(
        data, ["recipe.epochs=2", "settings.1.epochs=3", "new.key=a=b", "empty.x=[1, 2]", "recipe.learning_rate=1.0e-3"]
    )
    assert changed == {
        "recipe": {"epochs": 2, "learning_rate": 0.001},
        "settings": [{"epochs": 1}, {"epochs": 3}],
        "new": {"key": "a=b"},
        "empty": {"x": [1, 2]},
    }
    assert data == {"recipe": {"epochs": 1}, "settings": [{"epochs": 1}, {"epochs": 1}], "empty": None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.epochs", "write path.to.key=value"),
        ("=1", "write path.to.key=value"),
        ("settings.2.epochs=1", "'2' is not an index of a list of 1"),
        ("settings.-1.epochs=1", "'-1' is not an index"),
        ("settings.²=1", "'²' is not an index"),
        ("settings.1=1", "'1' is not an index"),
        ("name.x=1", "'name' is neither a mapping nor a list"),
        ("recipe.epochs.x.y=1", "'recipe.epochs' is neither a mapping nor a list"),
        ("name=[1", "'\\[1' is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(override: str, message: str) -> None:
    data = {"name": "x", "recipe": {"epochs": 1}, "settings": [{"epochs": 1}]}
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(data, [override])
    assert repr(override) in str(caught.value)


def test_a_misspelled_override_is_found_by_validation() -> None:
    data = apply_overrides({"name": "x"}, ["recipe.epoch=3"])
    assert problem(data) == "file.yaml: recipe.epoch: unknown key; did you mean 'epochs'?"
