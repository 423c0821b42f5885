"""What the README shows works as shown."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import yaml

from oakum.pipeline.experiment import resolve_experiment
from oakum.training.state import Batch, TrainState

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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
