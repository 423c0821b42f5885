"""Runs as a whole: what is run, what is not run again, and what the numbers mean."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from oakum import session, session_check, session_report
from oakum.config import ConfigError
from oakum.session import Home, RunOptions
from oakum.store import Store
from oakum.weights import write_weights

PLATFORM = Path(__file__).parent.parent / "platform"
SECOND_RUN = """
import sys
from oakum.cli import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "ray", "mlflow", "matplotlib", "pandas", "sklearn"} & set(sys.modules)), file=sys.stderr)
"""


def options(file: Path, **changes: Any) -> RunOptions:
    return RunOptions(file, **{"executor": "serial", "track": False, "quiet": True, **changes})


def test_a_finished_run_again_imports_nothing_heavy(finished: Any, own_environment: pytest.MonkeyPatch) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SECOND_RUN, "run", str(finished.file)],
        env={**os.environ, "PYTHONPATH": str(PLATFORM), "OAKUM_HOME": str(finished.home.folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stderr == "0 []\n"
    assert "everything was stored already; nothing was run" in result.stdout
    assert finished.home.report("tiny").as_posix() in result.stdout


def test_a_tracked_run_is_complete(finished: Any, tracked: Callable[..., Any]) -> None:
    found = tracked(finished.home)
    assert found.keys() == {
        ("run", ""),
        ("cell", "none|0"),
        ("cell", "relaxloss|0"),
        ("shared", "prior.wgan_gp"),
        ("shared", "evaluation"),
    }
    for cell in finished.record.cells:
        points = {(key, step): value for key, value, step in found["cell", f"{cell.setting}|0"]}
        assert len(points) == len(found["cell", f"{cell.setting}|0"])
        for key, metric in cell.metrics.items():
            if metric.value is not None and not key.startswith("cost/"):
                assert points[key, 0] == metric.value
        assert {step for key, step in points if key == "train/loss"} == {0, 1, 2}
        assert {step for key, step in points if key == "canary/train/loss"} == {0, 1, 2}
    store = Store.open(finished.home.store_uri)
    assert store.list_documents("outbox") == []


def test_only_what_changed_is_run(finished_again: Any) -> None:
    first, second = finished_again.first, finished_again.second
    assert not second.failures and second.ran == 4
    before, after = (
        {ref.key for cell in each.record.cells for ref in cell.stages.values()} for each in (first, second)
    )
    assert len(before - after) == len(after - before) == 4


def test_one_more_seed_adds_its_cells(home: Home, finished_short: Any, numbers: Callable[..., Any]) -> None:
    first = session.run(options(finished_short.file), home)
    both = session.run(options(finished_short.file, seeds=[0, 1]), home)
    assert (first.ran, both.ran) == (3, 3) and first.record.run_key == both.record.run_key
    assert [cell.seed for cell in both.record.cells] == [0, 1]
    assert numbers(first.record).items() <= numbers(both.record).items()
    assert both.record.cells[0].metrics["membership/loss/auc"] != both.record.cells[1].metrics["membership/loss/auc"]


def test_kinds_may_be_chosen_and_left_out(home: Home, finished_short: Any, numbers: Callable[..., Any]) -> None:
    file = finished_short.file
    trained = session.run(options(file, only=("train",)), home)
    assert not trained.failures and len(trained.skipped) == 2
    assert "utility/test_accuracy" not in trained.record.cells[0].metrics
    asked = session.run(options(file, skip=("membership",)), home)
    assert len(asked.skipped) == 1 and "utility/test_accuracy" in asked.record.cells[0].metrics
    whole = session.run(options(file), home)
    assert not whole.skipped and whole.ran == 1 and numbers(whole.record) == numbers(finished_short.record)


def test_after_its_time_a_run_starts_nothing_and_the_next_goes_on(home: Home, finished_short: Any) -> None:
    late = session.run(options(finished_short.file, max_hours=1e-12), home)
    assert len(late.skipped) == 3 and not late.failures
    assert not session.run(options(finished_short.file, max_hours=1.0), home).skipped


def test_an_untrained_model_leaks_nothing(home: Home, tiny: dict[str, Any], write: Callable[..., Path]) -> None:
    """Members, non-members and canaries are drawn alike: without training no attack tells them apart."""
    for name in ("evaluation", "priors"):
        del tiny[name]
    tiny["model"] = {"name": "mlp", "hidden": [16]}
    tiny["recipe"] = {"learning_rate": 1.0e-30, "epochs": 1}
    tiny["settings"] = {"none": "none"}
    tiny["attacks"] = {"membership": ["loss", "entropy", "confidence", "modified_entropy"]}
    tiny["folds"]["rules"][0]["take"] = {"canary": 300, "train": 250, "test": 250}
    (cell,) = session.run(options(write(tiny)), home).record.cells
    found = {name: value for name, value in cell.metrics.items() if name.endswith("/auc")}
    assert len(found) == 8
    for name, value in found.items():
        assert value.low is not None and value.high is not None
        assert value.low <= 0.5 <= value.high, name


def test_other_code_makes_another_plan_request(
    home: Home, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = session.request_digest(short, "short.yaml", home)
    assert digest == session.request_digest(dict(reversed(short.items())), "short.yaml", home)
    monkeypatch.setattr(session, "package_digest", lambda: "other")
    assert session.request_digest(short, "short.yaml", home) != digest


def test_other_weights_under_one_name_are_another_request(
    home: Home, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "weights_folder", lambda data_home: tmp_path)
    digests = set()
    for value in (0.0, 1.0, 1.0):
        tensors = {"head.weight": torch.full((2, 2), value)}
        write_weights(tmp_path, "mine", tensors, origin="a test", architecture="mlp", license_note="none")
        digests.add(session.request_digest(short, "short.yaml", home))
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"data": {"nam": "digits"}}, "short.yaml: data.nam: unknown key; did you mean 'name'?"),
        ({"data": None, "dta": {"name": "digits"}}, "short.yaml: dta: unknown key; did you mean 'data'?"),
        ({"data": {"name": "digit"}}, "unknown data set 'digit'; did you mean 'digits'?"),
        ({"data": {"name": "location30"}}, "oakum data prepare location30"),
    ],
)
def test_data_that_cannot_be_had_is_explained(
    home: Home, short: dict[str, Any], write: Callable[..., Path], data: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        session.run(options(write({**short, **data})), home)
    assert said in str(caught.value)
    assert Store.open(home.store_uri).entries() == []


def test_data_from_an_installed_package_is_prepared_by_the_run(tmp_path: Path, finished_short: Any) -> None:
    home = Home(tmp_path, str(tmp_path / "store"))
    summary = session_check.check(options(finished_short.file), home)
    assert (home.data / "digits" / "manifest.json").is_file() and summary["cells"] == 1


def test_check_counts_what_is_stored_and_changes_nothing(copied: Any) -> None:
    before = sorted(path for path in copied.home.folder.rglob("*"))
    summary = session_check.check(options(copied.file, seeds=[0, 1]), copied.home)
    assert sorted(path for path in copied.home.folder.rglob("*")) == before
    assert summary["cells"] == 4
    assert {kind: (row["stages"], row["stored"]) for kind, row in summary["kinds"].items()} == {
        "train": (9, 5), "prior": (1, 1), "answers": (8, 4), "membership": (16, 8),
        "inversion": (4, 2), "judge": (4, 2),
    }  # fmt: skip
    assert summary["kinds"]["prior"]["seconds"] == 0 and summary["kinds"]["train"]["seconds"] > 0
    text = session_check.describe_check(summary)
    assert text.startswith("tiny: 4 cells\n") and "alpha: 1.2" in text


def test_check_knows_no_seconds_before_the_first_run(home: Home, finished_short: Any) -> None:
    summary = session_check.check(options(finished_short.file, overrides=["execution.workers=2"]), home)
    assert summary["kinds"]["train"]["seconds"] is None
    assert "unknown: none stored yet" in session_check.describe_check(summary)
    assert any("execution.workers is 2" in warning for warning in summary["warnings"])


def test_the_report_of_a_name_is_that_of_its_latest_plan(finished_again: Any) -> None:
    home, older = finished_again.first.home, finished_again.first.record.plan_key
    record, path = session_report.report_again("tiny", home)
    assert record.plan_key == finished_again.second.record.plan_key != older and path.is_file()
    assert session_report.report_again(older[:10], home)[0].plan_key == older
    with pytest.raises(ConfigError, match="no plan is called 'nothing'"):
        session_report.report_again("nothing", home)


def test_real_pictures_are_training_images_of_the_first_seed_that_ran(finished: Any) -> None:
    record, home = finished.record, finished.home
    later = replace(record, cells=tuple(replace(cell, seed=cell.seed + 3) for cell in record.cells))
    here, there = (session_report.real_images(each, home) for each in (record, later))
    assert any(not np.array_equal(here[label], there[label]) for label in here)


def test_private_pictures_are_not_shown(finished: Any) -> None:
    shown = session_report.real_images(finished.record, finished.home)
    assert shown.keys() == set(range(5)) and all(images.shape[1:] == (1, 8, 8) for images in shown.values())
    private = replace(finished.record, data={**finished.record.data, "public": False})
    assert session_report.real_images(private, finished.home) == {}


def test_the_home_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OAKUM_STORE", raising=False)
    monkeypatch.setenv("OAKUM_HOME", str(tmp_path / "mine"))
    home = Home.of_environment()
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700 and home.store_uri == str(tmp_path / "mine" / "store")
    monkeypatch.setenv("OAKUM_STORE", "s3://bucket/store")
    assert Home.of_environment().store_uri == "s3://bucket/store"
    monkeypatch.delenv("OAKUM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Home.of_environment().folder == tmp_path / "data" / "oakum"
    (tmp_path / "file").touch()
    monkeypatch.setenv("OAKUM_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set OAKUM_HOME to a folder that you may write"):
        Home.of_environment()


def test_a_request_holds_overrides_and_seeds(finished_short: Any) -> None:
    data = session.read_request(options(finished_short.file, overrides=["recipe.epochs=9"], seeds=[4]))
    plain = yaml.safe_load(finished_short.file.read_text())
    plain["recipe"]["epochs"], plain["seeds"] = 9, [4]
    assert data == plain
