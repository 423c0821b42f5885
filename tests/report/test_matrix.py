from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._matrix import Entry, matrix, membership_attacks
from oakum.report._overview import overview
from oakum.report.statistics import Spread


def of(*values: float) -> Spread:
    return Spread(dict(enumerate(values)), {}, {})


def record(values: dict[str, dict[str, list[float | None]]], chance: dict[str, float] | None = None) -> RunRecord:
    """Return a record from label -> metric key -> values by seed."""
    cells = []
    for label, metrics in values.items():
        for seed in range(max(len(own) for own in metrics.values())):
            found = {key: MetricValue(own[seed]) for key, own in metrics.items()}
            cells.append(CellRecord(label, "none" if label == "none" else "x", {}, seed, found, {}))
    return RunRecord("n", "", "k", "p", {}, {}, chance or {}, tuple(cells), ())


def test_entries_are_the_metrics_of_every_cell(wide: Any) -> None:
    found = matrix(wide.record, overview(wide.record), "auc")
    assert found is not None
    assert len(found.entries) == 18 * 13
    assert (found.chance, found.unit) == (0.5, "score")
    for (label, attack), entry in found.entries.items():
        own = {cell.seed: cell.metrics for cell in wide.record.cells if cell.setting == label}
        values = {seed: metrics[f"membership/{attack}/auc"].value for seed, metrics in own.items()}
        assert entry.matched.values == values
        key = f"membership/{attack}/auc.vanilla_shadow"
        vanilla = {seed: metrics[key].value for seed, metrics in own.items() if key in metrics}
        assert (entry.vanilla.values if entry.vanilla else {}) == vanilla


def test_attacks_stand_in_the_order_of_the_file(wide: Any) -> None:
    names = [entry["name"] for entry in wide.record.config["attacks"]["membership"]]
    assert list(membership_attacks(wide.record)) == names
    config = {"attacks": {"membership": ["label_rank", {"name": "loss"}, "never_run"]}}
    assert membership_attacks(replace(wide.record, config=config))[:3] == ("label_rank", "loss", "nn")
    assert set(membership_attacks(replace(wide.record, config={}))) == set(names)


def test_only_what_a_shadow_decides_is_paired(wide: Any) -> None:
    view = overview(wide.record)
    paired = {}
    for metric in ("auc", "balanced_accuracy", "balanced_accuracy_per_class", "tpr_at_fpr_0.01"):
        found = matrix(wide.record, view, metric)
        assert found is not None
        paired[metric] = found.paired
    fitted = {"nn", "inverted_classifier"}
    names = set(membership_attacks(wide.record))
    assert paired["auc"] == paired["tpr_at_fpr_0.01"] == fitted
    assert paired["balanced_accuracy"] == names - {"correctness"}
    assert paired["balanced_accuracy_per_class"] == names - {"correctness", "nn"}


def test_chance_is_recorded_and_for_rates_the_rate_itself(wide: Any) -> None:
    view = overview(wide.record)
    rates = matrix(wide.record, view, "tpr_at_fpr_0.01")
    assert rates is not None
    assert rates.chance == 0.01
    found = matrix(replace(wide.record, chance={}), view, "auc")
    assert found is not None
    assert found.chance is None
    assert found.flattered(view) == {}


def test_nothing_measured_is_no_matrix(wide: Any) -> None:
    assert matrix(wide.record, overview(wide.record), "accuracy_on_the_moon") is None


def test_strongest_is_the_largest_mean_of_the_best_resolved() -> None:
    run = record({
        "none": {"membership/a/auc": [0.6, 0.62], "membership/b/auc": [0.9, None], "membership/c/auc": [0.61, 0.63]},
        "x": {"membership/a/auc": [None, None]},
    })  # fmt: skip
    view = overview(run)
    found = matrix(run, view, "auc")
    assert found is not None
    assert found.strongest(view.settings[0]) == "c"
    assert found.strongest(view.settings[1]) is None
    assert found.largest == 0.9


@pytest.mark.parametrize(
    ("matched", "vanilla", "is_flattered"),
    [
        ((0.56, 0.57), (0.5, 0.5), True),
        ((0.52, 0.52), (0.51, 0.51), True),
        ((0.52, 0.52), (0.49, 0.49), True),
        ((0.56, 0.57), (0.511, 0.511), False),
        ((0.519, 0.519), (0.5, 0.5), False),
        ((0.60, 0.50), (0.5, 0.5), False),
        ((0.56, 0.57), (), False),
        ((), (0.5, 0.5), False),
    ],
)
def test_flattered_needs_guessing_with_one_shadow_and_a_leak_with_the_other(
    matched: tuple[float, ...], vanilla: tuple[float, ...], is_flattered: bool
) -> None:
    assert Entry(of(*matched), of(*vanilla), ()).is_flattered(0.5) is is_flattered


def test_a_matched_figure_within_noise_of_chance_is_not_flattered() -> None:
    vanilla = of(0.5, 0.5)
    clear = Spread({0: 0.56, 1: 0.57}, {}, {0: (0.51, 0.6), 1: (0.52, 0.61)})
    unclear = Spread({0: 0.56, 1: 0.57}, {}, {0: (0.49, 0.6), 1: (0.52, 0.61)})
    assert Entry(clear, vanilla, ()).is_flattered(0.5)
    assert not Entry(unclear, vanilla, ()).is_flattered(0.5)


def test_no_shadow_or_no_common_seed_is_not_flattered() -> None:
    assert not Entry(of(0.7), None, ()).is_flattered(0.5)
    assert not Entry(of(0.7), Spread({4: 0.5}, {}, {}), ()).is_flattered(0.5)


def test_flattered_settings_equal_a_count_by_hand(wide: Any) -> None:
    view = overview(wide.record)
    found = matrix(wide.record, view, "balanced_accuracy")
    assert found is not None
    expected: dict[str, list[str]] = {}
    for setting in view.settings:
        for attack in membership_attacks(wide.record):
            pairs = [
                [cell.metrics[f"membership/{attack}/balanced_accuracy{end}"].value for end in ("", ".vanilla_shadow")]
                for cell in setting.cells
            ]
            matched, vanilla = (sum(column) / 3 for column in zip(*pairs, strict=True))
            lows = [cell.metrics[f"membership/{attack}/balanced_accuracy"].low for cell in setting.cells]
            is_leak = matched >= 0.52 and all(one > other for one, other in pairs) and min(lows) > 0.5
            if abs(vanilla - 0.5) <= 0.01 and is_leak:
                expected.setdefault(setting.label, []).append(attack)
    assert expected
    assert found.flattered(view) == expected
    auc = matrix(wide.record, view, "auc")
    assert auc is not None
    assert auc.flattered(view) == {}


@pytest.mark.parametrize(("value", "is_inverted"), [(0.449, True), (0.45, False), (0.55, False)])
def test_inverted_is_an_auc_below_45_percent(value: float, is_inverted: bool) -> None:
    assert Entry(of(value), None, ()).is_inverted is is_inverted
    assert not Entry(of(), None, ()).is_inverted


def test_flags_are_those_of_the_attack(wide: Any) -> None:
    found = matrix(wide.record, overview(wide.record), "auc")
    assert found is not None
    assert found.entries["hamp", "entropy"].flags == ("inverted signal",)
    assert found.entries["memguard", "loss"].flags == ("one class predicted (vanilla shadow)",)
    assert found.entries["hamp", "grad_x_l1"].flags == ("zero gradients",)
