from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len

from oakum.records import MetricValue
from oakum.report import terminal


def _value(run: Any, label: str, key: str) -> list[float]:
    return [cell.metrics[key].value for cell in run.record.cells if cell.setting == label]


def test_the_table_holds_means_and_ranges(run: Any) -> None:
    text = terminal.plain_text(run.record, 140)
    for label in ("none", "bido 0.05/0.5", "relaxloss", "dpsgd eps=8"):
        accuracy = _value(run, label, "utility/test_accuracy")
        assert f"{100 * sum(accuracy) / 3:.1f} %" in text
        assert f"{100 * min(accuracy):.1f}-{100 * max(accuracy):.1f}" in text
        canary = _value(run, label, "canary/loss/auc")
        assert f"{sum(canary) / 3:.3f}" in text
        assert f"{min(canary):.3f}-{max(canary):.3f}" in text
    assert "[0.500]" in text
    assert "[20.0 %]" in text


def test_differences_are_paired_per_seed(run: Any) -> None:
    text = terminal.plain_text(run.record, 140)
    own, base = (_value(run, label, "canary/loss/auc") for label in ("relaxloss", "none"))
    differences = [one - other for one, other in zip(own, base, strict=True)]
    assert f"{sum(differences) / 3:+.3f}" in text
    for difference in differences:
        assert f"{difference:+.3f}" in text
    assert "95 %" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_plain_text_keeps_to_its_width_and_to_ascii(run: Any, width: int) -> None:
    text = terminal.plain_text(run.record, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert text.isascii()
    assert "relaxloss" in text


def test_eighty_columns_still_hold_a_table(run: Any) -> None:
    assert "94.2 %         0.605" in terminal.plain_text(run.record, 80)


def test_labels_are_neither_markup_nor_escape_sequences(run: Any) -> None:
    record = run.with_cells(lambda cell: replace(cell, setting=f"[red]{cell.setting}\x1b[2J"))
    text = terminal.plain_text(record, 200)
    assert "[red]none" in text
    assert "\x1b" not in text


def test_unresolved_is_a_word_and_its_reason_is_given(run: Any) -> None:
    metric = MetricValue(None, wants="low", note="needs 1000 non-members, found 30")
    record = run.with_cells(lambda cell: replace(cell, metrics=cell.metrics | {"canary/loss/auc": metric}))
    text = terminal.plain_text(record, 140)
    assert "unresolved" in text
    assert "Unresolved: " in text
    assert "found 30" in " ".join(text.split())
    assert "nan" not in text.lower()


def test_without_a_baseline_there_are_no_differences(run: Any) -> None:
    text = terminal.plain_text(run.with_cells(lambda cell: cell if cell.setting != "none" else None), 140)
    assert "Difference to" not in text
    assert "No setting trains undefended" in text


def test_a_run_without_cells_renders(run: Any) -> None:
    assert "0 settings" in terminal.plain_text(replace(run.record, cells=()), 80)


def test_summary_is_json_and_complete(run: Any) -> None:
    summary = json.loads(json.dumps(terminal.summary(run.record), allow_nan=False))
    assert summary["baseline"] == "none"
    assert summary["seeds"] == [0, 1, 2]
    relaxloss = next(setting for setting in summary["settings"] if setting["label"] == "relaxloss")
    metric = relaxloss["metrics"]["canary/loss/auc"]
    assert list(metric["values"].values()) == _value(run, "relaxloss", "canary/loss/auc")
    assert metric["difference"]["interval"] == "range of 3 seeds"
    unresolved = relaxloss["metrics"]["membership/loss/tpr_at_fpr_0.001"]
    assert unresolved["mean"] is None
    assert set(unresolved["unresolved"]) == {"0", "1", "2"}
    assert set(relaxloss["metrics"]) == set(run.record.cells[0].metrics)


def test_the_terminal_needs_no_heavy_library() -> None:
    code = "import sys, oakum.report.terminal; print(sorted({'numpy','torch','matplotlib','ray'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": "platform"}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
