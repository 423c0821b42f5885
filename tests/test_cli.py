"""Commands: what they print, and the exit codes that scripts rely on."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum import __version__, cli, registry, session
from oakum.config import ConfigError
from oakum.session import Home
from oakum.store import DamagedEntryError, StoreError


def test_without_a_command_the_help_is_shown(home: Home, oakum: Callable[..., Any]) -> None:
    answer = oakum(home=home)
    assert answer.code == 0 and "usage: oakum" in answer.out and "quickstart.yaml" in answer.out


def test_the_version(home: Home, oakum: Callable[..., Any]) -> None:
    assert oakum("--version", home=home).out == f"oakum {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "invalid choice: 'rnu'"),
        (["run"], "the following arguments are required: file"),
        (["run", "x.yaml", "--seeds", "one"], "write 0-4 or 0,3,7"),
        (["run", "x.yaml", "--seeds", "4-0"], "names no seed"),
        (["run", "x.yaml", "--max-hours", "0"], "must be more than 0"),
        (["run", "x.yaml", "--max-hours", "nan"], "must be more than 0"),
        (["run", "x.yaml", "--executor", "slurm"], "invalid choice: 'slurm'"),
        (["run", "x.yaml", "--checkpoint-seconds", "-1"], "must not be negative"),
        (["run", "x.yaml", "--only", "trian"], "unknown stage 'trian'; parts: attack, evaluation, prior, "),
        (["run", "x.yaml"], "cannot read x.yaml: No such file or directory"),
        (["list", "defences"], "invalid choice: 'defences'"),
        (["report", "nothing"], "no plan is called 'nothing'"),
        (["store", "show", "abc"], "no stored stage has a key that begins with 'abc'"),
        (["why", "abc"], "no stored stage has a key that begins with 'abc'"),
        (["store", "gc", "--min-age-hours", "-1"], "must not be negative"),
        (["data", "prepare", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["data", "verify", "location30"], "oakum data prepare location30"),
    ],
)
def test_wrong_commands_end_with_2_and_say_why(
    home: Home, oakum: Callable[..., Any], arguments: list[str], said: str
) -> None:
    answer = oakum(*arguments, home=home)
    assert answer.code == 2 and answer.out == "" and said in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "must hold a mapping at the top level, not list"),
        ("name: [\n", "is not valid YAML"),
        ("name: a\nname: b\n", "the key 'name' is given twice"),
        ("name: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    ],
)
def test_files_that_are_no_experiment(
    home: Home, oakum: Callable[..., Any], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    for command in ("run", "check"):
        answer = oakum(command, file, home=home)
        assert answer.code == 2 and said in answer.err and "bad.yaml" in answer.err


def test_a_misspelled_key_names_its_path_and_the_nearest_before_anything_starts(
    home: Home,
    oakum: Callable[..., Any],
    tiny: dict[str, Any],
    write: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    monkeypatch.setattr(session, "_start_executor", started.append)
    tiny["recipe"]["epoch"] = 3
    for command in ("run", "check"):
        answer = oakum(command, write(tiny), home=home)
        assert answer.code == 2
        assert answer.err == "oakum: tiny.yaml: recipe.epoch: unknown key; did you mean 'epochs'?\n"
    assert not started


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.epochs", "write path.to.key=value"),
        ("recipe.epochs=[", "is not valid YAML"),
        ("attacks.membership.7=loss", "'7' is not an index of a list of 2"),
        ("recipe.epochs.more=1", "neither a mapping nor a list"),
        ("recipe.epochs=-1", "greater than or equal to 0 (got -1)"),
        ("recipe.epochs=0", "targets need 1 or more"),
    ],
)
def test_wrong_overrides(home: Home, oakum: Callable[..., Any], finished: Any, override: str, said: str) -> None:
    answer = oakum("check", finished.file, "--set", override, home=home)
    assert answer.code == 2 and said in answer.err


def test_a_run_prints_the_table_and_where_things_are(
    home: Home, oakum: Callable[..., Any], finished_short: Any
) -> None:
    answer = oakum("run", finished_short.file, "--executor", "serial", "--no-tracking", home=home)
    assert answer.code == 0
    assert "short  1 setting x 1 seed, data digits" in answer.out
    assert f"report:  {home.report('short')}" in answer.out and "MLflow:  " in answer.out
    assert "3 stages: 0 stored, 3 to run" in answer.err
    again = oakum("run", finished_short.file, "--executor", "serial", "--no-tracking", home=home)
    assert again.code == 0 and again.err == "" and "nothing was run" in again.out


def test_json_goes_to_standard_output_alone(home: Home, oakum: Callable[..., Any], finished_short: Any) -> None:
    answer = oakum(
        "run", finished_short.file, "--executor", "serial", "--no-tracking", "--json", "--seeds", "3",
        "--set", "recipe.epochs=1", home=home,
    )  # fmt: skip
    found = json.loads(answer.out)
    assert answer.code == 0 and found["failed"] == [] and found["report"] == str(home.report("short"))
    reported = json.loads(oakum("report", "short", "--json", home=home).out)
    assert reported.keys() <= found.keys()
    shown = json.loads(
        oakum("check", finished_short.file, "--seeds", "3", "--set", "recipe.epochs=1", "--json", home=home).out
    )
    assert shown["experiment"]["seeds"] == [3] and shown["experiment"]["recipe"]["epochs"] == 1
    assert all(row["stages"] == row["stored"] == 1 for row in shown["kinds"].values())


def test_chosen_kinds_are_told(home: Home, oakum: Callable[..., Any], finished_short: Any) -> None:
    command = ["run", finished_short.file, "--executor", "serial", "--no-tracking"]
    answer = oakum(*command, "--only", "train", "--only", "answers", home=home)
    assert answer.code == 0
    assert "1 stages were not run (--only, --skip or --max-hours); run again to go on" in answer.err
    assert "nothing was run" not in answer.out
    assert oakum(*command, "--skip", "membership", home=home).code == 0
    assert oakum(*command, "--max-hours", "1", home=home).err.startswith("3 stages: 2 stored, 1 to run")


def test_a_failed_stage_ends_with_3_and_its_trace(
    home: Home, oakum: Callable[..., Any], short: dict[str, Any], write: Callable[..., Path]
) -> None:
    short["recipe"] |= {"optimizer": "sgd", "learning_rate": 1.0e30}
    answer = oakum("run", write(short), "--executor", "serial", "--no-tracking", "--json", home=home)
    assert answer.code == 3
    assert json.loads(answer.out)["failed"] == ["train none/0 clean"]
    assert "TrainingDivergedError" in answer.err and "  | " in answer.err
    assert "2 stages that need it were not run" in answer.err


def test_the_catalog(home: Home, oakum: Callable[..., Any]) -> None:
    answer = oakum("list", "--json", home=home)
    found = json.loads(answer.out)
    assert {(entry["kind"], entry["name"]) for entry in found} == {
        (kind, name) for kind in registry.KINDS for name in registry.available(kind)
    }
    assert all(entry["summary"] for entry in found)
    text = oakum("list", "defenses", home=home).out
    assert text.startswith("defenses\n") and "ICLR 2022]" in text and "mlp" not in text


def test_data_sets(home: Home, oakum: Callable[..., Any]) -> None:
    entries = {entry["name"]: entry for entry in json.loads(oakum("data", "list", "--json", home=home).out)}
    assert entries["digits"]["prepared"] and not entries["location30"]["prepared"]
    text = oakum("data", "list", home=home).out
    assert "oakum data prepare location30" in text and "comes with a package" in text
    verified = oakum("data", "verify", "digits", home=home)
    assert verified.code == 0 and verified.out.startswith("digits: 1797 rows are as their manifest says")
    again = oakum("data", "prepare", "digits", "--force", home=home)
    assert again.code == 0 and again.out.startswith("digits: 1797 rows of shape (1, 8, 8)")


def test_the_command_of_the_user_interface(home: Home, oakum: Callable[..., Any]) -> None:
    answer = oakum("ui", "--print", home=home)
    assert answer.code == 0 and "mlflow ui --backend-store-uri sqlite:///" in answer.out
    assert str(home.folder) in answer.out


def test_the_doctor(home: Home, oakum: Callable[..., Any]) -> None:
    answer = oakum("doctor", home=home)
    lines = answer.out.splitlines()
    assert {line.split()[1] for line in lines} == {
        "python", "packages", "home", "store", "disk", "ray", "tracking", "threads", "gpu",
    }  # fmt: skip
    assert answer.code == (2 if any(line.startswith("BAD") for line in lines) else 0)
    home.folder.chmod(0o755)
    answer = oakum("doctor", home=home)
    assert answer.code == 2 and f"run `chmod 700 {home.folder}`" in answer.out


def test_nothing_to_deliver(home: Home, oakum: Callable[..., Any]) -> None:
    answer = oakum("sync", home=home)
    assert (answer.code, answer.out) == (0, "delivered 0, waiting 0\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("wrong"), 2, "oakum: wrong\n"),
        (StoreError("disk full"), 3, "oakum: disk full\n"),
        (DamagedEntryError("train", "0" * 64, "m", "changed"), 3, "it was set aside: run the experiment again\n"),
    ],
)
def test_errors_become_exit_codes(
    home: Home,
    oakum: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    said: str,
) -> None:
    def fail(options: object) -> int:
        raise error

    monkeypatch.setitem(cli._COMMANDS, "sync", fail)
    answer = oakum("sync", home=home)
    assert answer.code == code and answer.err.endswith(said) and "Traceback" not in answer.err


def test_a_reader_that_is_gone_is_no_error_but_another_broken_pipe_is(
    home: Home, oakum: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    def fail(options: object) -> int:
        raise BrokenPipeError

    monkeypatch.setitem(cli._COMMANDS, "sync", fail)
    with pytest.raises(BrokenPipeError):
        oakum("sync", home=home)
    monkeypatch.setattr(sys, "stdout", Closed())
    assert cli.main(["sync"]) == 0


def test_mistakes_of_the_program_are_not_hidden(
    home: Home, oakum: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object) -> int:
        raise AssertionError("a mistake")

    monkeypatch.setitem(cli._COMMANDS, "sync", fail)
    with pytest.raises(AssertionError, match="a mistake"):
        oakum("sync", home=home)


@pytest.mark.parametrize(
    ("text", "expected"), [("0-2", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("5", [5]), ("0-1,4", [0, 1, 4])]
)
def test_seeds(text: str, expected: list[int]) -> None:
    options = cli.build_parser().parse_args(["run", "x.yaml", "--seeds", text])
    assert options.seeds == expected


def test_termination_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        cli._terminate(signal.SIGTERM, None)
