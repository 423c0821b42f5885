"""What the README shows works as shown."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from oakum import registry
from oakum.attacks.access import Knowledge, Points, Target
from oakum.datasets.base import DataError, prepare
from oakum.pipeline.experiment import resolve_experiment
from oakum.training.state import Batch, TrainState

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_example_experiment_is_valid() -> None:
    (example,) = blocks("yaml")
    experiment = resolve_experiment(yaml.safe_load(example), "README.md")
    assert list(experiment.settings) == ["none", "weak", "strong"]


@pytest.fixture
def example_defense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (code,) = blocks("python")
    (tmp_path / "logit_squeezing.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("logit_squeezing")
    del sys.modules["logit_squeezing"]


def test_the_example_defense_computes_what_it_says(example_defense: ModuleType) -> None:
    model = torch.nn.Linear(3, 4)
    state = TrainState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), num_classes=4, seed=0)
    batch = Batch(x=torch.rand(5, 3), y=torch.tensor([0, 1, 2, 3, 0]), index=torch.arange(5))
    logits = model(batch.x)
    for beta in (0.0, 0.5):
        defense = example_defense.LogitSqueezing(example_defense.LogitSqueezing.Config(beta=beta))
        expected = F.cross_entropy(logits, batch.y) + beta * sum(z.detach() @ z.detach() for z in logits) / len(logits)
        torch.testing.assert_close(defense.loss(state, batch), expected)


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules that docs/extending.md shows, by name."""
    names = ("margin", "my_rows")
    for name, code in zip(names, blocks("python", EXTENDING), strict=True):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    groups = {"oakum.attacks.membership": "margin", "oakum.datasets": "my_rows"}

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(groups[group], groups[group], group)] if group in groups else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registry.available.cache_clear()
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]
    registry.available.cache_clear()


def test_the_example_attack_scores_by_the_margin(extensions: dict[str, ModuleType]) -> None:
    margin = registry.load("attacks.membership", "margin")
    assert margin is extensions["margin"].Margin
    answers = {7: np.log([0.7, 0.2, 0.1]), 9: np.log([0.1, 0.4, 0.5])}
    target = Target(lambda: torch.nn.Linear(2, 3), margin.access, 3, recorded=answers)
    points = Points(x=torch.zeros(2, 2), y=torch.tensor([1, 0]), rows=torch.tensor([7, 9]))
    scores = margin(margin.Config()).score(target, points, Knowledge(seed=0))
    np.testing.assert_allclose(scores, [0.5, 0.1], atol=1e-12)


def test_the_example_data_set_is_prepared_from_a_file(extensions: dict[str, ModuleType], tmp_path: Path) -> None:
    assert registry.load("datasets", "my_rows") is extensions["my_rows"].MyRows
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.random((200, 50)) < 0.5, y=np.arange(200) % 4)
    with pytest.raises(DataError, match=r"oakum data prepare my_rows --source rows\.npz"):
        prepare("my_rows", tmp_path / "data")
    prepared = prepare("my_rows", tmp_path / "data", source=tmp_path / "rows.npz")
    assert prepared.num_classes == 4 and prepared.public is False


def test_every_make_target_that_is_mentioned_exists() -> None:
    mentioned = {target for file in DOCUMENTS for target in re.findall(r"\bmake ([a-z-]+)", _code(file.read_text()))}
    assert {"run", "test", "setup", "ui"} <= mentioned
    assert mentioned <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", file.read_text()):
        assert target.startswith("https://") or (file.parent / target).exists(), target


def test_every_command_that_is_mentioned_exists(capsys: pytest.CaptureFixture[str]) -> None:
    from oakum.cli import main

    commands = {name for text in blocks("bash") for name in re.findall(r"^oakum ([a-z]+)", text, re.MULTILINE)}
    assert {"run", "check", "list"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert command in capsys.readouterr().out


def _code(text: str) -> str:
    """Return the text's code: blocks and spans."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
