from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._inversion import FLOORS, Comparison, inversion_attacks, quantities
from oakum.report._inversion_section import inversion_section
from oakum.report._overview import Setting, overview
from oakum.report._palette import looks
from oakum.report.statistics import Spread

DASH = "\N{EN DASH}"
CONTROL, UNOPTIMIZED = (floor.sign for floor in FLOORS)


def section(record: RunRecord) -> str:
    view = overview(record)
    return str(inversion_section(record, view, looks(view)) or "").replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def markup(searched: Any) -> str:
    return section(searched.record)


@pytest.fixture(scope="module")
def found(markup: str, tables: Callable[[str], Any]) -> dict[str, Any]:
    """Return the summary and, for each attack, its table and the folded one."""
    names = ["summary", "gmi", "gmi k3", "kedmi", "kedmi k3", "vmi", "vmi k3"]
    return dict(zip(names, tables(markup), strict=True))


def record_of(values: dict[str, list[dict[str, MetricValue]]], chance: dict[str, float] | None = None) -> RunRecord:
    """Return setting -> seeds -> metrics of one attack, `gmi`."""
    cells = tuple(
        CellRecord(label, label, {}, seed, {f"inversion/gmi/{name}": value for name, value in metrics.items()}, {})
        for label, seeds in values.items()
        for seed, metrics in enumerate(seeds)
    )
    return RunRecord("n", "", "k", "p", {}, {}, chance or {}, cells, ())


def column(table: list[list[Any]], title: str) -> int:
    return [cell.text for cell in table[1]].index(title)


def test_headings_name_judge_network_and_chance(found: dict[str, Any]) -> None:
    groups, titles = found["gmi"][0], found["gmi"][1]
    assert [(cell.text, cell.attributes.get("colspan")) for cell in groups] == [
        ("Setting", None),
        ("Recognized as the class, %", "5"),
        ("Squared distance", "2"),
        ("Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance", "3"),
        ("PRDC, k = 5", "4"),
    ]
    assert [cell.text for cell in titles] == [
        *("top-1 chance 5.0 %", "top-5", "second model chance 5.0 %", "faceres embedder", "disagree of the accepted"),
        *("nearest evaluator", "center evaluator"),
        *("evaluator", "EfficientNet-Lite0", "Inception-v3 FID"),
        *("precision", "recall", "density", "coverage"),
    ]
    assert [cell.text for cell in found["gmi k3"][0]] == ["Setting", "PRDC, k = 3"]


@pytest.mark.parametrize("attack", ["gmi", "kedmi", "vmi"])
def test_every_row_is_as_wide_as_the_headings(found: dict[str, Any], attack: str) -> None:
    table = found[attack]
    widths = [sum(int(cell.attributes.get("colspan") or 1) for cell in row) for row in table]
    assert widths[0] == widths[1] + 1
    assert set(widths[2:]) == {widths[0]}


@pytest.mark.parametrize("attack", ["gmi", "kedmi"])
def test_top1_lists_every_seed_and_the_rest_their_range(searched: Any, found: dict[str, Any], attack: str) -> None:
    table = found[attack]
    rows = {row[0].text: row[1:] for row in table[2:]}
    for label in ("none", "bido 0.05/0.5", "relaxloss"):
        own = [cell.metrics for cell in searched.record.cells if cell.setting == label]
        top1 = [100 * metrics[f"inversion/{attack}/top1"].value for metrics in own]
        assert rows[label][0].words[0] == f"{sum(top1) / 3:.1f}"
        assert rows[label][0].words[-1] == ", ".join(f"{value:.1f}" for value in top1)
        second = [100 * metrics[f"inversion/{attack}/top1.second"].value for metrics in own]
        cell = rows[label][column(table, "second model chance 5.0 %")]
        assert cell.text == f"{sum(second) / 3:.1f} {min(second):.1f}{DASH}{max(second):.1f}"
        assert cell.title.startswith(f"seed 0: {second[0]:.1f} %")
        distance = [metrics[f"inversion/{attack}/fid.inception"].value for metrics in own]
        assert rows[label][column(table, "Inception-v3 FID")].words[0] == f"{sum(distance) / 3:.4g}"
        recall = rows[label][column(table, "recall")]
        assert (recall.text, recall.title) == ("unresolved", "unresolved: class 10 has 5, needs 6")


def test_a_floor_that_all_settings_share_is_one_row_and_others_follow_their_setting(found: dict[str, Any]) -> None:
    labels = {attack: [row[0].text for row in found[attack][2:]] for attack in ("gmi", "kedmi")}
    assert labels["gmi"] == ["none", "bido 0.05/0.5", "relaxloss", "no-target control", "unoptimized samples"]
    own = "its unoptimized samples"
    assert labels["kedmi"] == ["none", own, "bido 0.05/0.5", own, "relaxloss", own, "no-target control"]


def test_floors_stand_below_the_columns_that_have_them(searched: Any, found: dict[str, Any]) -> None:
    table = found["gmi"]
    control = table[-2]
    values = [
        100 * cell.metrics["inversion/gmi/top1.control"].value
        for cell in searched.record.cells
        if cell.setting == "none"
    ]
    assert control[1].text == f"{sum(values) / 3:.1f} {', '.join(f'{value:.1f}' for value in values)}"
    assert control[1 + column(table, "nearest evaluator")].text == f"311 310{DASH}312"
    shown = {place for place, cell in enumerate(control) if cell.text}
    assert shown == {0, 1, 1 + column(table, "nearest evaluator")}


def test_the_strongest_attack_of_each_row_is_framed(found: dict[str, Any]) -> None:
    table = found["summary"]
    assert [cell.text for cell in table[0]] == [
        "Setting", "gmi chance 5.0 %", "kedmi chance 5.0 %", "vmi chance 5.0 %"
    ]  # fmt: skip
    framed = {row[0].text: [place for place, cell in enumerate(row) if "strongest" in cell.classes] for row in table}
    assert framed == {"Setting": [], "none": [3], "bido 0.05/0.5": [2], "relaxloss": [2]}
    assert [row[3].text for row in table[2:]] == [DASH, DASH]


def test_what_is_not_above_a_floor_is_called_not_believable(found: dict[str, Any], markup: str) -> None:
    marked = {row[0].text: row[1].words for row in found["gmi"][2:5]}
    assert marked["relaxloss"][1] == CONTROL + UNOPTIMIZED
    assert not any(CONTROL in "".join(marked[label]) for label in ("none", "bido 0.05/0.5"))
    text = markup.split("gmi attack")[1].split("kedmi attack")[0]
    assert f"{CONTROL} Not believable: top-1 is not above the no-target control. " in text
    assert "relaxloss: 8.3 % against 9.9 %, above it in 0 of 3 seeds" in text
    assert f"{UNOPTIMIZED} Not believable: top-1 is not above the unoptimized samples. " in text
    assert "Not believable" not in markup.split("vmi attack")[1]


@pytest.mark.parametrize(
    ("top1", "floor", "interval", "standing"),
    [
        ([0.3, 0.4], [0.1, 0.1], None, "above"),
        ([0.3, 0.05], [0.1, 0.1], None, "not above"),
        ([0.1, 0.1], [0.1, 0.1], None, "not above"),
        ([0.3], [0.1], (0.2, 0.4), "above"),
        ([0.3], [0.1], (0.05, 0.4), "not above"),
        ([0.3], [0.1], None, "unsettled"),
        ([0.1], [0.3], None, "not above"),
        ([0.3], [], None, "unknown"),
        ([0.20, 0.21, 0.19, 0.20, 0.18], [0.1] * 5, None, "above"),
        ([0.20, 0.01, 0.4, 0.11, 0.12], [0.1] * 5, None, "not above"),
        ([0.90, 0.92, 0.88, 0.91, 0.095], [0.1] * 5, None, "above"),
    ],
)
def test_standing_follows_the_seeds_or_the_interval(
    top1: list[float], floor: list[float], interval: tuple[float, float] | None, standing: str
) -> None:
    values = Spread(dict(enumerate(top1)), {}, {0: interval} if interval else {})
    one = Comparison(Setting("a", "a", {}, (), 0), values, Spread(dict(enumerate(floor)), {}, {}))
    assert one.standing == standing


def test_one_seed_without_an_interval_settles_nothing(tables: Callable[[str], Any]) -> None:
    text = section(record_of({"none": [{"top1": MetricValue(0.5), "top1.control": MetricValue(0.1)}]}))
    assert tables(text)[0][2][1].text == "50.0 \N{SECTION SIGN}"
    assert "One seed, and no interval over identities" in text
    assert "Not believable" not in text


def test_without_a_control_the_section_says_so() -> None:
    text = section(record_of({"none": [{"top1": MetricValue(0.5), "top1.second": MetricValue(0.4)}]}))
    assert "No control was run" in text
    assert "Gray rows" not in text
    assert "chance" not in text


def test_only_what_was_measured_has_a_column(tables: Callable[[str], Any]) -> None:
    text = section(record_of({"none": [{"top1": MetricValue(0.5), "knn2.evaluator": MetricValue(12.0)}]}))
    (table,) = tables(text)
    assert [cell.text for cell in table[1]] == ["top-1", "nearest evaluator"]
    assert "wide" not in text


def test_profiles_have_columns_of_their_own_and_unknown_metrics_none() -> None:
    metrics = ["fd.faceres", "fd.evaluator", "knn2.faceres", "knn2.evaluator", "knn2.evaluator.control", "oddity",
               "top1.control", "top1.second.control", "top1.my-faces", "coverage.k10", "precision.k5"]  # fmt: skip
    found = [(one.metric, one.title, one.remark) for one in quantities(metrics)]
    assert found == [
        ("top1.my-faces", "my-faces", "embedder"),
        ("knn2.evaluator", "nearest", "evaluator"),
        ("knn2.faceres", "nearest", "faceres"),
        ("fd.evaluator", "evaluator", ""),
        ("fd.faceres", "faceres", ""),
        ("precision.k5", "precision", ""),
        ("coverage.k10", "coverage", ""),
    ]


def test_a_single_attack_whose_top1_is_all_there_is_stays_in_the_overview(run: Any, searched: Any) -> None:
    assert section(run.record) == ""
    assert section(record_of({"none": [{}]})) == ""
    both = searched.with_cells(
        lambda cell: replace(cell, metrics={key: value for key, value in cell.metrics.items() if key.endswith("/top1")})
    )
    assert "gmi attack" in section(both)


def test_a_judge_that_knows_less_than_the_target_is_warned_of() -> None:
    def seed(test: float, real: float, second: float | None) -> dict[str, MetricValue]:
        return {
            "top1": MetricValue(0.1),
            "accuracy_on_real.evaluator": MetricValue(real),
            "accuracy_on_real.second": MetricValue(second, note="" if second else "unresolved"),
            "test_accuracy": MetricValue(test),
        }

    def with_utility(cell: CellRecord) -> CellRecord:
        return replace(
            cell, metrics=cell.metrics | {"utility/test_accuracy": cell.metrics["inversion/gmi/test_accuracy"]}
        )

    record = record_of({"none": [seed(0.9, 0.5, 0.95), seed(0.8, 0.6, None)], "bido": [seed(0.2, 0.5, 0.95)] * 2})
    record = replace(
        record,
        config={"evaluation": {"model": "resnet20", "second": {"model": "strided_cnn"}}},
        cells=tuple(with_utility(cell) for cell in record.cells),
    )
    (weak,) = [warning for warning in overview(record).warnings if "judge" in warning]
    assert weak.startswith(
        "The evaluation model recognizes 55 % of the real images of the attacked classes, the undefended model 85 %"
    )
    text = section(record)
    assert "Evaluation model: resnet20 (52.5 % of the attacked classes&#x27; real images)" in text
    assert "second evaluation model: strided_cnn (95.0 % of" in text


def test_an_imported_judge_is_named_as_such() -> None:
    imported = {"recipe": {"epochs": 0}}
    trained = {"recipe": {"epochs": 3}}

    def text(first: dict[str, Any], second: dict[str, Any]) -> str:
        evaluation = {"model": "facenet112", "fold": "train", **first, "second": {"model": "strided_cnn", **second}}
        return section(replace(record_of({"none": [{"faint": MetricValue(0.1)}]}), config={"evaluation": evaluation}))

    learned, unknown = "The evaluation models learned from the target", "What an imported evaluation model learned from"
    both = text(trained, trained)
    assert "imported" not in both and learned in both
    one = text(imported, trained)
    assert "Evaluation model: facenet112 (imported, not trained here); second evaluation model: strided_cnn." in one
    assert unknown in one and learned in one
    none = text(imported, imported)
    assert unknown in none and learned not in none


def test_hits_fainter_than_any_real_image_are_warned_of() -> None:
    def seed(share: float | None) -> dict[str, MetricValue]:
        return {"top1": MetricValue(0.5), "faint": MetricValue(share, note="" if share is not None else "unresolved")}

    record = record_of({"none": [seed(0.4), seed(0.2)], "bido": [seed(0.05), seed(None)]})
    (warning,) = [warning for warning in overview(record).warnings if "contrast" in warning]
    assert warning.startswith("Of what gmi made and the evaluation model recognizes") and "(none 30 %)" in warning
    assert "faint" in section(record)
    few = record_of({"none": [seed(0.1), seed(0.0)]})
    assert not [warning for warning in overview(few).warnings if "contrast" in warning]


def test_judges_are_named_with_what_they_learned_from(markup: str) -> None:
    assert (
        "Evaluation model: scnn (98.7 % of its validation images); second evaluation model: lenet3; "
        "feature networks: efficientnet_lite0, faceres, inception_v3_2015." in markup
    )
    assert "learned from the target&#x27;s own training images" in markup
    assert "the first 5 training images of each class" in markup


def test_notes_stand_once_with_columns_and_where_they_hold(markup: str) -> None:
    notes = markup.split("<h3>Notes</h3>")[1]
    frechet = "Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance"
    assert f"{frechet}: EfficientNet-Lite0 {DASH} singular covariance: 40 and 500 samples for 1280 features." in notes
    assert markup.count("1280 features") == 1
    record = record_of(
        {
            "none": [{"top1": MetricValue(0.5, note="odd"), "top5": MetricValue(0.6)}],
            "a": [{"top1": MetricValue(0.4), "top5": MetricValue(0.6)}],
        }
    )
    assert f"Recognized as the class: top-1 on none {DASH} odd." in section(record)


def test_flags_of_an_attack_stand_at_its_top1(searched: Any, tables: Callable[[str], Any]) -> None:
    record = searched.with_cells(
        lambda cell: (
            replace(cell, flags=("inversion.clean.kedmi.1: zero <gradients>",))
            if (cell.setting, cell.seed) == ("none", 1)
            else cell
        )
    )
    text = section(record)
    found = tables(text)
    cell = found[3][2][1]
    assert "*" in cell.words
    assert "flag: zero <gradients>" in cell.title
    assert "*" not in found[1][2][1].words
    assert text.count("* Flagged; the tooltip says why.") == 1


def test_attacks_follow_the_experiment(searched: Any) -> None:
    listed = [{"name": "kedmi"}, {"name": "gmi", "as": "vmi"}, {"name": "never run"}]
    record = replace(searched.record, config={"attacks": {"inversion": listed}})
    assert inversion_attacks(record) == ("kedmi", "vmi", "gmi")


def test_everything_from_the_record_is_escaped() -> None:
    bad = "<script>alert(1)</script>"
    record = record_of({bad: [{"top1": MetricValue(0.1, note=bad), "top1.control": MetricValue(0.2)}]})
    config = {"evaluation": {"model": bad, "second": {"model": {"name": bad}}, "extractors": [bad]}}
    text = section(replace(record, config=config))
    assert "<script" not in text
    assert "&lt;script" in text
