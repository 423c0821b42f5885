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


def test_the_caution_of_a_number_is_in_the_summary(run: Any) -> None:
    noted = MetricValue(12.0, note="10 samples are too few for 128 features")
    cells = [
        replace(cell, metrics={"inversion/gmi/fd.evaluator": noted if cell.seed else MetricValue(11.0)})
        for cell in run.record.cells
    ]
    found = terminal.summary(replace(run.record, cells=tuple(cells)))["settings"][0]["metrics"]
    assert found["inversion/gmi/fd.evaluator"]["notes"] == dict.fromkeys(("1", "2"), noted.note)


@pytest.mark.parametrize("width", [60, 120])
def test_the_strongest_inversion_attack_is_named(searched: Any, width: int) -> None:
    text = terminal.plain_text(searched.record, width)
    top1 = _value(searched, "none", "inversion/kedmi/top1")
    assert f"{100 * sum(top1) / 3:.1f} %" in text
    assert "kedmi" in text
    assert "[5.0 %]" in text or "chance 5.0 %" in text
    assert "Inversion by vmi did not meet every setting" in " ".join(text.split())
    assert text.isascii()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    settings = {setting["label"]: setting for setting in terminal.summary(searched.record)["settings"]}
    strongest = {"attack": "kedmi", "metric": "inversion/kedmi/top1"}
    assert settings["relaxloss"]["strongest"]["inversion_top1"] == strongest
    assert set(settings["none"]["metrics"]) > {"inversion/vmi/top1", "inversion/gmi/knn2.evaluator.control"}


@pytest.mark.parametrize("width", [60, 100, 160])
def test_many_settings_keep_to_the_width_and_to_ascii(wide: Any, width: int) -> None:
    text = terminal.plain_text(wide.record, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert text.isascii()


def test_many_settings_and_attacks_are_one_short_table_at_100_columns(wide: Any) -> None:
    text = terminal.plain_text(wide.record, 100)
    table, differences = text.split("Difference to none")
    lines = table.splitlines()
    assert len(lines) < 4 + 18 * 3 + 6
    for label in dict.fromkeys(cell.setting for cell in wide.record.cells):
        rows = [line.split("  ")[0] for line in (*lines, *differences.splitlines())]
        assert rows.count(label) == (1 if label == "none" else 2)
    head = " ".join(table.split("----")[0].split())
    for title in ("test", "member", "balanced", "TPR at", "[0.500]", "[50.0 %]"):
        assert title in head
    assert "confidence" not in head
    none = next(line for line in lines if line.startswith("none"))
    aucs = {}
    for key in wide.record.cells[0].metrics:
        if key.startswith("membership/") and key.endswith("/auc"):
            aucs[key.split("/")[1]] = sum(_value(wide, "none", key)) / 3
    strongest = max(aucs, key=aucs.__getitem__)
    assert f"{aucs[strongest]:.3f}" in none
    assert strongest in lines[lines.index(none) + 1]


def test_short_differences_mark_where_the_seeds_agree(wide: Any) -> None:
    text = terminal.plain_text(wide.record, 100)
    assert "* where all seeds agree" in text
    row = next(line for line in text.split("Difference to none")[1].splitlines() if line.startswith("selena"))
    accuracy, base = (_value(wide, label, "utility/test_accuracy") for label in ("selena", "none"))
    differences = [one - other for one, other in zip(accuracy, base, strict=True)]
    assert len({difference > 0 for difference in differences}) == 1
    assert f"{100 * sum(differences) / 3:+.1f}*" in row


def test_masked_settings_are_named_and_unranked_without_a_label_only_attack(wide: Any) -> None:
    text = terminal.plain_text(wide.record, 100)
    assert text.count("\nmasked ") == 2
    assert "Masked: scores are changed when asked" in text
    assert "Unranked" not in text

    def without(cell: Any) -> Any:
        return replace(cell, metrics={key: value for key, value in cell.metrics.items() if "/label_only/" not in key})

    record = wide.with_cells(without)
    text = terminal.plain_text(record, 100)
    assert text.count("masked, unranked") == 2
    assert "Unranked: masked, and no label-only attack was run" in text
    settings = {setting["label"]: setting for setting in terminal.summary(record)["settings"]}
    assert (settings["hamp"]["masked"], settings["hamp"]["ranked"]) == (True, False)
    assert (settings["selena"]["masked"], settings["selena"]["ranked"]) == (False, True)


def test_flags_with_many_places_are_counted_in_the_terminal_and_listed_in_json(wide: Any) -> None:
    text = terminal.plain_text(wide.record, 100)
    assert "Flag: one class predicted (vanilla shadow): 3 settings, 11 attacks; see the report" in text
    assert "Flag: inverted signal: hamp: entropy" in text
    listed = terminal.summary(wide.record)["flags"]
    assert any(flag.startswith("one class predicted (vanilla shadow): relaxloss alpha=1.0: ") for flag in listed)


def test_the_terminal_needs_no_heavy_library() -> None:
    code = "import sys, oakum.report.terminal; print(sorted({'numpy','torch','matplotlib','ray'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": "platform"}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
