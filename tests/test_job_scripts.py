"""The scripts in jobs/ are commands of the command line: what `ray job submit` starts is what a laptop runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from oakum import cli

SCRIPTS = sorted((Path(__file__).parent.parent / "jobs").glob("*.py"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def run_script(script: Path, *arguments: str) -> int | str | None:
    """Run a script as a program in this process, and return its exit status."""
    sys.argv = [str(script), *arguments]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_there_is_a_script_for_each_kind_of_job() -> None:
    assert {"run", "search", "audit", "report"} <= {script.stem for script in SCRIPTS}


@each_script
def test_a_script_hands_its_arguments_and_status_on(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        calls.append(arguments)
        return 3

    monkeypatch.setattr(cli, "main", main)
    assert run_script(script, "--first", "two words", "last") == 3
    assert calls == [[script.stem, "--first", "two words", "last"]]


@each_script
def test_a_script_has_the_name_of_its_command(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(script, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: oakum {script.stem} ")


def test_a_job_that_cannot_do_what_is_asked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OAKUM_HOME", str(tmp_path))
    monkeypatch.delenv("OAKUM_STORE", raising=False)
    (script,) = [script for script in SCRIPTS if script.stem == "report"]
    assert run_script(script, "never-run") == cli.EXIT_BAD_CONFIG
    assert "no plan is called 'never-run'" in capsys.readouterr().err
