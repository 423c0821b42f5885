from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._matrix_section import matrix_section
from oakum.report._overview import overview
from oakum.report._palette import looks

QUANTITIES = ("auc", "balanced_accuracy", "balanced_accuracy_per_class", "tpr_at_fpr_0.01")


def section(wide: Any, record: RunRecord | None = None, store: Any = None) -> str:
    shown = wide.record if record is None else record
    view = overview(shown)
    return str(matrix_section(shown, view, looks(view), store or wide.store)).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def markup(wide: Any) -> str:
    return section(wide)


@pytest.fixture(scope="module")
def found(markup: str, tables: Callable[[str], Any]) -> dict[str, Any]:
    return dict(zip(QUANTITIES, tables(markup), strict=True))


def body(table: list[list[Any]]) -> dict[str, list[Any]]:
    """Return label -> cells of the rows below the three rows of headings."""
    return {row[0].text.removesuffix("masked output").strip(): row[1:] for row in table[3:]}


def column(table: list[list[Any]], attack: str) -> int:
    """Return the place of an attack's first column, from the widths of the headings."""
    place = 0
    for cell in table[1]:
        if cell.text.replace("_ ", "_") == attack:
            return place
        place += int(cell.attributes.get("colspan") or 1)
    raise AssertionError(attack)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_row_is_as_wide_as_the_headings(found: dict[str, Any], quantity: str) -> None:
    table = found[quantity]
    widths = [sum(int(cell.attributes.get("colspan") or 1) for cell in row) for row in table]
    utility = sum(1 for cell in table[1] if cell.attributes.get("rowspan") == "2")
    assert utility == 3
    assert widths[0] == widths[1] + 1 == widths[2] + 1 + utility
    assert set(widths[3:]) == {widths[0]}
    assert len(table) == 3 + 18


def test_columns_are_grouped_by_access(found: dict[str, Any]) -> None:
    table = found["auc"]
    assert [cell.text for cell in table[0]] == [
        "Setting",
        "Accuracy, %",
        "Black box: scores",
        "White box: weights",
        "Label only",
    ]
    attacks = [cell.text.replace("_ ", "_") for cell in table[1][3:]]
    assert attacks == [
        *("nn", "confidence", "loss", "entropy", "modified_entropy", "label_rank"),
        *("grad_x_l1", "grad_x_l2", "grad_w_l1", "grad_w_l2", "inverted_classifier"),
        *("correctness", "label_only"),
    ]


def test_the_use_of_shadows_stands_above_every_column(found: dict[str, Any]) -> None:
    auc, balanced = ([cell.text for cell in found[name][2]] for name in ("auc", "balanced_accuracy"))
    assert auc == ["matched", "vanilla", *["no shadow"] * 9, "matched", "vanilla", *["no shadow"] * 2]
    assert balanced == [*["matched", "vanilla"] * 11, "no shadow", "matched", "vanilla"]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_cells_hold_mean_range_and_every_seed(wide: Any, found: dict[str, Any], quantity: str) -> None:
    table = found[quantity]
    scale, digits = (1, 3) if quantity == "auc" else (100, 1)
    for label, cells in body(table).items():
        own = [cell for cell in wide.record.cells if cell.setting == label]
        for attack in ("nn", "grad_w_l2", "label_rank"):
            for offset, suffix in ((0, ""), (1, ".vanilla_shadow")):
                key = f"membership/{attack}/{quantity}{suffix}"
                if key not in own[0].metrics:
                    continue
                values = [scale * cell.metrics[key].value for cell in own]
                cell = cells[column(table, attack) + offset]
                assert cell.text.startswith(f"{sum(values) / 3:.{digits}f}")
                assert f"{min(values):.{digits}f}\N{EN DASH}{max(values):.{digits}f}" in cell.text
                for seed, value in enumerate(values):
                    assert f"seed {seed}: {value:.{digits}f}" in cell.title
    assert set(body(table)) == {cell.setting for cell in wide.record.cells}


def test_the_baseline_comes_first(wide: Any, tables: Callable[[str], Any]) -> None:
    labels = list(body(tables(section(wide, replace(wide.record, cells=tuple(reversed(wide.record.cells)))))[0]))
    assert labels[:2] == ["none", "selena"]
    assert labels[-1] == "relaxloss alpha=0.5"


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_one_attack_of_each_row_is_marked_as_the_strongest(found: dict[str, Any], quantity: str) -> None:
    table = found[quantity]
    for cells in body(table).values():
        own = [cell for cell in cells[3:] if "vanilla" not in cell.classes]
        (strongest,) = [cell for cell in own if "strongest" in cell.classes]
        means = [float(cell.words[0]) for cell in own]
        assert float(strongest.words[0]) == max(means)


def test_shades_rise_with_the_distance_from_chance(found: dict[str, Any]) -> None:
    def shade(cell: Any) -> int:
        style = cell.attributes.get("style")
        return int(style.removeprefix("--shade-of-cell:").removesuffix("%")) if style else 0

    for quantity in QUANTITIES:
        cells = [cell for row in body(found[quantity]).values() for cell in row[3:] if "vanilla" not in cell.classes]
        shades: dict[float, list[int]] = {}
        for cell in cells:
            shades.setdefault(float(cell.words[0]), []).append(shade(cell))
        ordered = [shades[mean] for mean in sorted(shades)]
        assert all(max(lower) <= min(higher) for lower, higher in itertools.pairwise(ordered))
        assert ordered[0] == [0]
        assert 25 <= ordered[-1][0] <= 36


def test_inverted_signals_are_marked_and_explained(markup: str, found: dict[str, Any]) -> None:
    cell = body(found["auc"])["hamp"][column(found["auc"], "entropy")]
    assert "inverted" in cell.classes
    assert "\N{DOUBLE DAGGER}" in cell.text
    assert markup.count("Inverted signal: an AUC below 0.45") == 1
    others = [cell for row in body(found["auc"]).values() for cell in row if "inverted" in cell.classes]
    assert others == [cell]


def test_flags_are_in_the_tooltip_of_the_figure_that_they_concern(found: dict[str, Any]) -> None:
    table = found["balanced_accuracy"]
    place = column(table, "loss")
    matched, vanilla = body(table)["memguard"][place : place + 2]
    assert "one class predicted" not in matched.title
    assert "flag: one class predicted" in vanilla.title
    gradients = body(table)["hamp"][column(table, "grad_x_l1")]
    assert "flag: zero gradients" in gradients.title
    assert "*" in gradients.text


def test_flattered_settings_are_marked_counted_and_named(markup: str, found: dict[str, Any]) -> None:
    table = found["balanced_accuracy"]
    marked = {}
    for label, cells in body(table).items():
        flattered = [cell for cell in cells if "flattered" in cell.classes]
        if flattered:
            marked[label] = len(flattered)
            assert all("vanilla" in cell.classes and "\N{DAGGER}" in cell.text for cell in flattered)
    assert f"The vanilla shadow flatters {len(marked)} of 17 defended settings" in markup
    for label, count in marked.items():
        assert f"{label} ({count} of 13 attacks)" in markup
    assert "none" not in marked
    assert {"relaxloss alpha=1.0", "label smoothing", "memguard"} <= set(marked)
    assert not [cell for row in body(found["auc"]).values() for cell in row if "flattered" in cell.classes]


def test_where_nothing_is_flattered_the_line_says_so(wide: Any) -> None:
    def same(cell: CellRecord) -> CellRecord:
        metrics = {
            key: cell.metrics[key.removesuffix(".vanilla_shadow")] if key.endswith(".vanilla_shadow") else value
            for key, value in cell.metrics.items()
        }
        return replace(cell, metrics=metrics)

    text = section(wide, wide.with_cells(same))
    assert "0 of 17 defended settings have an attack" in text
    assert "flatters" not in text


def test_masked_settings_are_marked_and_explained(wide: Any, markup: str, found: dict[str, Any]) -> None:
    heads = {row[0].text for row in found["auc"][3:] if "masked" in row[0].text}
    assert heads == {"memguard masked output", "hamp masked output"}
    assert "act on the model without the mask" in markup
    assert "not ranked" not in markup

    def without(cell: CellRecord) -> CellRecord:
        metrics = {key: value for key, value in cell.metrics.items() if "/label_only/" not in key}
        return replace(cell, metrics=metrics)

    text = section(wide, wide.with_cells(without))
    assert text.count("masked output; unranked: no label-only attack") == 2 * 4
    assert "a masked setting is shown but not ranked" in text


def test_without_masks_no_word_is_lost_on_them(wide: Any) -> None:
    assert "mask" not in section(wide, wide.with_cells(lambda cell: replace(cell, flags=())))


def test_chance_and_protocol_are_named(markup: str) -> None:
    assert "chance is 0.500" in markup
    assert "chance is 50.0 %" in markup
    assert "An attack that guesses finds 1 %" in markup
    assert "no shadow model is used, but for nn and inverted_classifier" in markup
    assert "The thresholds of correctness need no shadow" in markup


def test_unresolved_and_absent_figures_have_no_number(wide: Any, tables: Callable[[str], Any]) -> None:
    def change(cell: CellRecord) -> CellRecord:
        metrics = dict(cell.metrics)
        if cell.setting == "selena":
            metrics["membership/loss/auc"] = MetricValue(None, note="no members <b>")
            del metrics["membership/nn/auc"], metrics["membership/nn/auc.vanilla_shadow"]
        return replace(cell, metrics=metrics)

    text = section(wide, wide.with_cells(change))
    table = tables(text)[0]
    cells = body(table)["selena"]
    unresolved, absent = (cells[column(table, attack)] for attack in ("loss", "nn"))
    assert (unresolved.text, unresolved.title) == ("unresolved", "no members <b>")
    assert (absent.text, absent.title) == ("\N{EN DASH}", "not measured")
    assert "<b>" not in text


def test_without_the_store_access_is_not_guessed(wide: Any, tables: Callable[[str], Any]) -> None:
    class Empty:
        def manifests(self, refs: Any) -> dict[Any, Any]:
            return {}

    table = tables(section(wide, store=Empty()))[0]
    assert [cell.text for cell in table[0]] == ["Setting", "Accuracy, %", "Access not recorded"]


def test_without_shadows_there_are_no_pairs(wide: Any, tables: Callable[[str], Any]) -> None:
    def without(cell: CellRecord) -> CellRecord:
        kept = {key: value for key, value in cell.metrics.items() if "shadow" not in key}
        kept = {key: value for key, value in kept.items() if "balanced" not in key or "correctness" in key}
        return replace(cell, metrics=kept)

    text = section(wide, wide.with_cells(without))
    found = tables(text)
    assert len(found) == 3
    assert {cell.text for cell in found[0][2]} == {"no shadow"}
    assert [cell.text for cell in found[1][1]][3:] == ["correctness"]
    assert "The thresholds belong to the attacks; no shadow model is used." in text
    assert "vanilla" not in text


def test_rates_that_nobody_resolves_are_not_called_resolved(wide: Any) -> None:
    def few(cell: CellRecord) -> CellRecord:
        note = "unresolved: needs 10,000 non-members, has 90"
        return replace(
            cell,
            metrics={
                key: MetricValue(None, note=note) if "tpr_at" in key else value for key, value in cell.metrics.items()
            },
        )

    text = section(wide, wide.with_cells(few))
    assert "TPR at 10 % FPR, %" in text
    assert "the largest rate asked for, since there is no rate that every attack on every setting resolves" in text
    assert "the lowest rate" not in text


def test_one_attack_alone_makes_no_matrix(wide: Any) -> None:
    def only_loss(cell: CellRecord) -> CellRecord:
        metrics = {key: value for key, value in cell.metrics.items() if key.split("/")[1] == "loss"}
        return replace(cell, metrics=metrics)

    assert section(wide, wide.with_cells(only_loss)) == "None"


def test_validation_accuracy_stands_in_for_test_accuracy(wide: Any, tables: Callable[[str], Any]) -> None:
    def validated(cell: CellRecord) -> CellRecord:
        return replace(cell, metrics={key.replace("test_", "val_"): value for key, value in cell.metrics.items()})

    heads = [cell.text for cell in tables(section(wide, wide.with_cells(validated)))[0][1]]
    assert heads[:2] == ["val top-1", "train top-1"]
