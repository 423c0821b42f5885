from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._labels import spread_out
from oakum.report._markup import Markup, join, tag
from oakum.report._numbers import number, printable, range_text, short_labels
from oakum.report._overview import overview, unit_of
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
    flags = [flag.line for flag in overview(run.record).flags]
    assert flags == ["inverted signal: membership/entropy AUC 0.44: relaxloss (seed 1)"]


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


def test_few_attacks_keep_the_loss_attack_apart_and_many_do_not(run: Any, wide: Any) -> None:
    assert overview(run.record).column("membership_loss_auc") is not None
    view = overview(wide.record)
    assert [column.name for column in view.columns] == [
        "test_accuracy",
        "membership_auc",
        "membership_balanced_accuracy",
        "membership_tpr",
        "train_seconds",
    ]
    assert all(column.names_attack for column in view.columns if column.topic == "membership")


def test_the_strongest_balanced_accuracy_is_that_of_the_matched_shadow(wide: Any) -> None:
    column = overview(wide.record).column("membership_balanced_accuracy")
    assert column is not None
    assert column.title == "Balanced accuracy, matched shadow"
    for label, measurement in column.measurements.items():
        own = [cell for cell in wide.record.cells if cell.setting == label]
        means: dict[str, float] = {}
        for key in own[0].metrics:
            if key.startswith("membership/") and key.endswith("/balanced_accuracy"):
                means[key] = sum(cell.metrics[key].value for cell in own) / 3
        assert measurement.key == max(means, key=means.__getitem__)
        assert measurement.spread.mean == pytest.approx(max(means.values()))


def _searched(*seeds: dict[str, dict[str, float]]) -> RunRecord:
    """Return a top-1 for each setting and attack of each seed."""
    cells = tuple(
        CellRecord(
            label,
            label,
            {},
            seed,
            {f"inversion/{attack}/top1": MetricValue(value) for attack, value in own.items()},
            {},
        )
        for seed, values in enumerate(seeds)
        for label, own in values.items()
    )
    return RunRecord("n", "", "k", "p", {}, {}, {}, cells, ())


def test_settings_are_compared_by_the_attacks_that_met_all_of_them(searched: Any) -> None:
    view = overview(searched.record)
    column = view.column("inversion_top1")
    assert column is not None
    assert column.title == "Inversion top-1, strongest attack"
    assert column.chance == 0.05
    assert {label: one.attack for label, one in column.measurements.items()} == dict.fromkeys(
        ("none", "bido 0.05/0.5", "relaxloss"), "kedmi"
    )
    (warning,) = [text for text in view.warnings if "vmi" in text]
    assert warning == (
        "Inversion by vmi did not meet every setting in every seed; where settings are compared it is by gmi, kedmi."
    )


def test_one_common_attack_is_still_named_beside_others() -> None:
    view = overview(_searched({"none": {"gmi": 0.4, "vmi": 0.9}, "a": {"gmi": 0.3}, "not attacked": {}}))
    column = view.column("inversion_top1")
    assert column is not None
    assert column.names_attack
    assert column.measurements["none"].attack == column.measurements["a"].attack == "gmi"
    assert column.measurements["not attacked"].spread.state == "absent"


def test_an_attack_that_spared_a_seed_does_not_compare_settings() -> None:
    both, gmi = {"gmi": 0.3, "kedmi": 0.6}, {"gmi": 0.3}
    view = overview(_searched({"none": both, "a": both}, {"none": both, "a": gmi}))
    column = view.column("inversion_top1")
    assert column is not None
    assert [one.attack for one in column.measurements.values()] == ["gmi", "gmi"]
    (warning,) = [text for text in view.warnings if "kedmi" in text]
    assert warning.startswith("Inversion by kedmi did not meet every setting in every seed")


def test_attacks_without_a_common_one_are_shown_and_warned_of() -> None:
    view = overview(_searched({"none": {"vmi": 0.9}, "a": {"gmi": 0.3}}))
    column = view.column("inversion_top1")
    assert column is not None
    assert [one.attack for one in column.measurements.values()] == ["vmi", "gmi"]
    assert any("not comparable" in warning for warning in view.warnings)


def test_one_inversion_attack_needs_neither_name_nor_warning(run: Any) -> None:
    view = overview(run.record)
    column = view.column("inversion_top1")
    assert column is not None
    assert (column.title, column.names_attack) == ("Inversion top-1", False)
    assert not any("Inversion" in warning or "inversion" in warning for warning in view.warnings)


def test_balanced_accuracy_without_shadows_names_none(wide: Any) -> None:
    def without(cell: CellRecord) -> CellRecord:
        return replace(cell, metrics={key: value for key, value in cell.metrics.items() if "shadow" not in key})

    column = overview(wide.with_cells(without)).column("membership_balanced_accuracy")
    assert column is not None
    assert column.title == "Balanced accuracy"


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("membership/loss/balanced_accuracy", "percent"),
        ("membership/loss/balanced_accuracy.vanilla_shadow", "percent"),
        ("membership/loss/balanced_accuracy_per_class", "percent"),
        ("membership/loss/balanced_accuracy_per_class.vanilla_shadow", "percent"),
        ("membership/nn/tpr_at_fpr_0.01.vanilla_shadow", "percent"),
        ("membership/nn/auc.vanilla_shadow", "score"),
        ("membership/nn/average_precision", "score"),
        ("utility/test_top5_accuracy", "percent"),
        ("utility/train_loss_mean", "nats"),
        ("utility/train_loss_variance", "nats"),
        ("privacy/epsilon", "plain"),
        ("privacy/delta", "plain"),
        ("cost/shadow_seconds", "seconds"),
        ("inversion/gmi/top1", "percent"),
        ("inversion/gmi/top1.second", "percent"),
        ("inversion/gmi/top1.control", "percent"),
        ("inversion/gmi/top5", "percent"),
        ("inversion/gmi/disagreement", "percent"),
        ("inversion/gmi/faint", "percent"),
        ("inversion/gmi/precision.k5", "score"),
        ("inversion/gmi/density.k3", "score"),
        ("inversion/gmi/knn2.evaluator.control", "plain"),
        ("inversion/gmi/fid.inception", "plain"),
    ],
)
def test_units(key: str, unit: str) -> None:
    assert unit_of(key) == unit


def _masked(cell: CellRecord, *, with_label_only: bool) -> CellRecord:
    """Keep the attacks but, where it is not asked for, the label-only one; a rank is read from masked scores."""
    metrics = {key: value for key, value in cell.metrics.items() if with_label_only or "/label_only/" not in key}
    return replace(cell, metrics=metrics)


def test_a_masked_setting_without_a_label_only_attack_is_not_ranked(wide: Any) -> None:
    for with_label_only in (True, False):
        view = overview(wide.with_cells(lambda cell, keep=with_label_only: _masked(cell, with_label_only=keep)))
        masked = {setting.label for setting in view.settings if setting.is_masked}
        unranked = {setting.label for setting in view.settings if not setting.is_ranked}
        assert masked == {"memguard", "hamp"}
        assert unranked == (set() if with_label_only else masked)


def test_an_unranked_setting_is_not_called_better(wide: Any) -> None:
    view = overview(wide.with_cells(lambda cell: _masked(cell, with_label_only=False)))
    found = {verdict.setting.label: verdict for verdict in verdicts(view)}
    leak = found["hamp"].findings[1]
    assert found["hamp"].headline == "Unranked: its output is masked, and no label-only attack was run"
    assert (leak.tone, leak.chip) == ("neutral", "unranked: no label-only attack")
    assert leak.figure.startswith("\N{MINUS SIGN}0.1")
    assert found["selena"].findings[1].tone == "good"
    ranked = {verdict.setting.label: verdict for verdict in verdicts(overview(wide.record))}
    assert ranked["hamp"].headline == "Leaks less through membership (masked output)"
    assert ranked["hamp"].findings[1].tone == "good"


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


def _with_intervals(values: dict[str, list[tuple[float, float, float]]]) -> RunRecord:
    key = "membership/loss/auc"
    cells = tuple(
        CellRecord(label, "none" if label == "none" else "x", {}, seed, {key: MetricValue(value, low, high)}, {})
        for label, own in values.items()
        for seed, (value, low, high) in enumerate(own)
    )
    return RunRecord("n", "", "k", "p", {}, {}, {key: 0.5}, cells, ())


AT_CHANCE = [(0.491, 0.482, 0.499), (0.489, 0.480, 0.498)]
ABOVE = [(0.52, 0.511, 0.529), (0.53, 0.521, 0.539)]
HIGHER_AT_CHANCE = [(0.503, 0.494, 0.512), (0.504, 0.495, 0.513)]


@pytest.mark.parametrize(
    ("none", "own", "headline", "tone"),
    [
        (AT_CHANCE, HIGHER_AT_CHANCE, "Membership at chance, with it and without", "neutral"),
        (HIGHER_AT_CHANCE, AT_CHANCE, "Membership at chance, with it and without", "neutral"),
        (AT_CHANCE, ABOVE, "Leaks more through membership", "bad"),
        (ABOVE, HIGHER_AT_CHANCE, "Leaks less through membership", "good"),
        (HIGHER_AT_CHANCE, [(0.501, 0.492, 0.510), ABOVE[1]], "No consistent change for membership", "neutral"),
    ],
)
def test_what_is_at_chance_does_not_leak_more_than_what_is_at_chance(
    none: list[Any], own: list[Any], headline: str, tone: str
) -> None:
    verdict = verdicts(overview(_with_intervals({"none": none, "a": own})))[1]
    assert verdict.headline == headline
    assert verdict.findings[0].tone == tone


def test_a_leak_that_only_the_seeds_together_show_is_a_leak() -> None:
    below = [(0.499 + 0.001 * (seed % 2), 0.48, 0.52) for seed in range(5)]
    above = [(0.508 + 0.001 * seed, 0.49, 0.53) for seed in range(5)]
    verdict = verdicts(overview(_with_intervals({"none": below, "a": above})))[1]
    assert verdict.headline == "Leaks more through membership"
    assert verdict.findings[0].tone == "bad"


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
        (1e-5, "plain", False, "1e\N{MINUS SIGN}5"),
        (1.13449, "nats", False, "1.134"),
        (0.0, "nats", False, "0.000"),
        (1.74e-4, "nats", False, "0.00017"),
        (1.5e-8, "nats", False, "1.5e\N{MINUS SIGN}8"),
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
