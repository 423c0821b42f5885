from __future__ import annotations

from dataclasses import replace
from typing import Any

from oakum.records import RunRecord
from oakum.report._overview import overview
from oakum.report._palette import looks
from oakum.report._verdict import verdicts
from oakum.report._verdict_section import MOST_CARDS, verdict_section


def section(record: RunRecord) -> str:
    view = overview(record)
    return str(verdict_section(view, looks(view))).replace("\N{NO-BREAK SPACE}", " ")


def first_settings(record: RunRecord, count: int) -> RunRecord:
    labels = list(dict.fromkeys(cell.setting for cell in record.cells))[:count]
    return replace(record, cells=tuple(cell for cell in record.cells if cell.setting in labels))


def test_few_settings_have_cards(wide: Any) -> None:
    text = section(first_settings(wide.record, MOST_CARDS))
    assert text.count("<article") == MOST_CARDS
    assert "<details" not in text


def test_more_settings_have_a_folded_line_each(wide: Any) -> None:
    text = section(first_settings(wide.record, MOST_CARDS + 1))
    assert text.count("<details") == text.count("<summary") == MOST_CARDS + 1
    assert "<article" not in text
    assert " open" not in text.split("<details")[1]


def test_a_line_says_what_its_card_says(wide: Any) -> None:
    text = section(wide.record)
    lines = text.split("<details")[1:]
    found = verdicts(overview(wide.record))
    assert len(lines) == len(found) == 18
    for line, verdict in zip(lines, found, strict=True):
        summary, details = line.split("</summary>")
        assert verdict.setting.label in summary
        if verdict.setting.label != "none":
            assert verdict.headline in summary
        for finding in verdict.findings:
            assert finding.figure.replace("\N{NO-BREAK SPACE}", " ") in summary
            assert finding.sentence.replace("\N{NO-BREAK SPACE}", " ") in details
            assert finding.title in text.split("<details")[0]


def test_labels_are_escaped_in_lines(wide: Any) -> None:
    record = wide.with_cells(lambda cell: replace(cell, setting="<b>x") if cell.setting == "selena" else cell)
    assert "<b>x" not in section(record)
    assert "&lt;b&gt;x" in section(record)


def test_settings_that_a_search_drew_are_shortened_and_written_ones_are_not(wide: Any) -> None:
    drawn = {"alpha": 1.6754321098765, "beta": 0.00025, "classes": [0, 1]}
    record = wide.with_cells(lambda cell: replace(cell, parameters=drawn) if cell.setting == "selena" else cell)
    assert "alpha 1.6754, beta 0.00025, classes [0, 1]" in section(record)
