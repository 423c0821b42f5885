from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._labels import spread_out
from oakum.report._markup import Markup, join, tag
from oakum.report._numbers import number, printable, range_text, short_labels
from oakum.report._overview import overview
from oakum.report._verdict import verdicts
from oakum.report.statistics import Spread


def test_strongest_attack_is_chosen_for_each_setting(run: Any) -> None:
    column = overview(run.record).column("membership_auc")
    assert column is not None
    for label, measurement in column.measurements.items():
        means = {
            attack: sum(
                cell.metrics[f"membership/{attack}/auc"].value for cell in run.record.cells if cell.setting == label
            )
            / 3
            for attack in ("loss", "entropy")
        }
        assert measurement.attack == max(means, key=means.__getitem__)
        assert measurement.spread.mean == pytest.approx(max(means.values()))


def test_the_lowest_resolved_rate_is_the_headline(run: Any) -> None:
    column = overview(run.record).column("membership_tpr")
    assert column is not None
    assert column.title == "TPR at 1\N{NO-BREAK SPACE}% FPR"
    assert column.chance == 0.01


def test_columns_of_what_was_not_measured_do_not_exist(run: Any) -> None:
    record = run.with_cells(
        lambda cell: replace(
            cell, metrics={key: value for key, value in cell.metrics.items() if key.startswith("utility")}
        )
    )
    assert [column.name for column in overview(record).columns] == ["test_accuracy"]


def test_chance_is_read_and_never_assumed(run: Any) -> None:
    view = overview(replace(run.record, chance={}))
    assert all(column.chance is None for column in view.columns)


def test_unresolved_reasons_are_listed_once(run: Any) -> None:
    assert overview(run.record).unresolved == (
        "membership/*/tpr_at_fpr_0.001: needs 10 expected false positives, 1000 non-members give 1",
    )


def test_flags_name_setting_and_seed(run: Any) -> None:
    assert overview(run.record).flags == ("relaxloss: inverted signal: membership/entropy AUC 0.44 (seed 1)",)


def test_missing_baseline_and_single_seeds_are_warned_of(run: Any) -> None:
    view = overview(run.with_cells(lambda cell: cell if cell.setting != "none" and cell.seed == 0 else None))
    assert view.baseline is None
    assert any("undefended" in warning for warning in view.warnings)
    assert any("one seed only" in warning for warning in view.warnings)
    assert all(not column.differences for column in view.columns)


def test_the_baseline_is_the_defense_and_not_the_label(run: Any) -> None:
    view = overview(run.with_cells(lambda cell: replace(cell, setting="plain") if cell.setting == "none" else cell))
    assert view.baseline is not None
    assert view.baseline.label == "plain"


def _record(values: dict[str, list[float]]) -> RunRecord:
    cells = tuple(
        CellRecord(label, "none" if label == "none" else "x", {}, seed, {"membership/loss/auc": MetricValue(value)}, {})
        for label, own in values.items()
        for seed, value in enumerate(own)
    )
    return RunRecord("n", "", "k", "p", {}, {}, {}, cells, ())


@pytest.mark.parametrize(
    ("own", "headline", "chip", "tone"),
    [
        ([0.6, 0.6, 0.6], "Leaks less through membership", "lower in all 3 seeds", "good"),
        ([0.8, 0.8, 0.8], "Leaks more through membership", "higher in all 3 seeds", "bad"),
        ([0.6, 0.8, 0.6], "No consistent change for membership", "seeds disagree", "neutral"),
        ([0.7, 0.7, 0.7], "Exactly the baseline's membership", "the same in all 3 seeds", "neutral"),
        ([0.6], "One seed only: the differences below may be noise", "one seed, spread unknown", "neutral"),
    ],
)
def test_verdicts_say_what_the_seeds_allow(own: list[float], headline: str, chip: str, tone: str) -> None:
    baseline, verdict = verdicts(overview(_record({"none": [0.7] * len(own), "a": own})))
    assert baseline.findings[0].figure == "0.700"
    assert verdict.headline == headline
    assert (verdict.findings[0].chip, verdict.findings[0].tone) == (chip, tone)


def test_verdict_from_five_seeds_uses_the_t_interval() -> None:
    own = [0.60, 0.61, 0.59, 0.60, 0.62]
    verdict = verdicts(overview(_record({"none": [0.7] * 5, "a": own})))[1]
    assert verdict.findings[0].chip.startswith("lower, 95 % t interval \N{MINUS SIGN}0.1")


def test_verdict_names_chance_only_where_every_seed_has_an_interval(run: Any) -> None:
    by_label = {verdict.setting.label: verdict for verdict in verdicts(overview(run.record))}
    sentences = " ".join(finding.sentence for finding in by_label["dpsgd eps=8"].findings)
    assert "Not told apart from chance in all 3 seeds." in sentences
    assert "Not told apart" not in by_label["none"].findings[1].sentence


@pytest.mark.parametrize(
    ("value", "unit", "sign", "text"),
    [
        (0.94123, "percent", False, "94.1 %"),
        (-0.0163, "percent", True, "\N{MINUS SIGN}1.6 points"),
        (-0.00001, "percent", True, "0.0 points"),
        (0.60549, "score", False, "0.605"),
        (0.0, "score", True, "0.000"),
        (0.011, "score", True, "+0.011"),
        (23.4, "seconds", False, "23 s"),
        (4000.0, "seconds", False, "67 min"),
        (90000.0, "seconds", False, "25.0 h"),
        (12.3456, "plain", False, "12.35"),
    ],
)
def test_numbers(value: float, unit: Any, sign: bool, text: str) -> None:
    assert number(value, unit, sign=sign).replace("\N{NO-BREAK SPACE}", " ") == text


def test_range_says_how_many_seeds_it_lacks() -> None:
    assert range_text(Spread({0: 0.5, 1: 0.6}, {2: "few"}, {}), "score") == "0.500\N{EN DASH}0.600 (2 of 3 seeds)"
    assert range_text(Spread({0: -0.5, 1: 0.6}, {}, {}), "score") == "\N{MINUS SIGN}0.500 to 0.600"
    assert range_text(Spread({0: 0.5}, {}, {}), "score") == "one seed"
    assert range_text(Spread({}, {}, {}), "score") == ""


def test_markup_escapes_text_and_attributes() -> None:
    element = tag("p", "<b>&", Markup("<i></i>"), title='"><script>', class_=None)
    assert element == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i></i></p>'
    assert join("<", None, Markup("<")) == "&lt;<"


def test_printable_replaces_what_rewrites_a_terminal_or_turns_text_around() -> None:
    assert printable("a\x1b[31mb\u202ec") == "a\ufffd[31mb\ufffdc"


def test_spread_out_keeps_order_and_distance() -> None:
    placed = spread_out([0.5, 0.5, 0.5, 0.9], gap=0.1)
    assert placed == pytest.approx([0.4, 0.5, 0.6, 0.9])


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["abc", "abd"], ["abc", "abd"]),
        (["a" * 12, "b" * 12], ["a" * 9 + "\N{HORIZONTAL ELLIPSIS}", "b" * 9 + "\N{HORIZONTAL ELLIPSIS}"]),
        (["a" * 11 + "x", "a" * 11 + "y"], ["aaaaa\N{HORIZONTAL ELLIPSIS}aaax", "aaaaa\N{HORIZONTAL ELLIPSIS}aaay"]),
        (["a" * 7 + "x" + "a" * 5, "a" * 7 + "y" + "a" * 5], None),
        (["a" * 20 + "x" + "a" * 20, "a" * 20 + "y" + "a" * 20], None),
    ],
)
def test_short_labels_stay_different(labels: list[str], short: list[str] | None) -> None:
    found = short_labels(labels, 10)
    assert len(set(found.values())) == len(labels)
    assert all(len(text) <= 10 for text in found.values())
    if short is not None:
        assert list(found.values()) == short
