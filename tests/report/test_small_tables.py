from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._overview import overview
from oakum.report._palette import looks
from oakum.report._small_tables import loss_section, privacy_section


def losses(record: RunRecord) -> str:
    view = overview(record)
    return str(loss_section(record, view, looks(view)))


def privacy(record: RunRecord) -> str:
    view = overview(record)
    return str(privacy_section(record, view, looks(view)))


def rows(table: list[list[Any]], heads: int) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table[heads:]}


def test_losses_of_members_and_non_members(wide: Any, tables: Callable[[str], Any]) -> None:
    (table,) = tables(losses(wide.record))
    assert [cell.text for cell in table[0]] == [
        "Setting",
        "Members (train fold)",
        "Non-members (test fold)",
        "AUC of the loss attack",
    ]
    assert [cell.text for cell in table[1]] == ["mean", "variance"] * 2
    found = rows(table, 2)
    assert len(found) == 18
    assert found["none"][:2] == ["0.00017", "1.5e\N{MINUS SIGN}8"]
    for label, cells in found.items():
        own = [cell.metrics for cell in wide.record.cells if cell.setting == label]
        test = [metrics["utility/test_loss_mean"].value for metrics in own]
        assert cells[2] == f"{sum(test) / 3:.3f} {min(test):.3f}\N{EN DASH}{max(test):.3f}"
        auc = [metrics["membership/loss/auc"].value for metrics in own]
        assert cells[4].startswith(f"{sum(auc) / 3:.3f}")


def test_losses_name_the_fold_that_non_members_came_from(wide: Any, tables: Callable[[str], Any]) -> None:
    def validated(cell: CellRecord) -> CellRecord:
        return replace(
            cell, metrics={key.replace("test_loss", "val_loss"): value for key, value in cell.metrics.items()}
        )

    record = replace(wide.with_cells(validated), config={"attacks": {"nonmembers": "val"}})
    (table,) = tables(losses(record))
    assert table[0][2].text == "Non-members (val fold)"
    assert rows(table, 2)["none"][2].startswith("1.1")


def test_losses_that_were_not_measured_or_are_infinite(wide: Any, tables: Callable[[str], Any]) -> None:
    def without(cell: CellRecord) -> CellRecord:
        kept = {key: value for key, value in cell.metrics.items() if "loss_" not in key and "/loss/" not in key}
        return replace(cell, metrics=kept)

    assert losses(wide.with_cells(without)) == "None"

    def infinite(cell: CellRecord) -> CellRecord:
        note = "unresolved: a loss is infinite"
        return replace(cell, metrics=cell.metrics | {"utility/train_loss_mean": MetricValue(None, note=note)})

    (table,) = tables(losses(wide.with_cells(infinite)))
    assert rows(table, 2)["none"][0] == "unresolved"


def test_guarantees_stand_with_their_notes(wide: Any, tables: Callable[[str], Any]) -> None:
    (table,) = tables(privacy(wide.record))
    assert [cell.text for cell in table[0]] == [
        *("Setting", "epsilon", "delta", "noise multiplier", "What the bound says")
    ]
    note = "add/remove neighbors, Poisson sampling"
    assert rows(table, 1) == {
        "dpsgd epsilon=8": ["7.99", "1e\N{MINUS SIGN}5", "0.71", f"{note}, prv accountant"],
        "dpsgd epsilon=100": ["99.8", "1e\N{MINUS SIGN}5", "0.71", f"{note}, prv accountant"],
        "dpsgd high utility": [
            "no finite bound",
            "1e\N{MINUS SIGN}5",
            "0.01",
            f"{note}, no finite bound: there is too little noise",
        ],
    }


def test_without_guarantees_there_is_no_section(wide: Any) -> None:
    record = replace(wide.record, cells=tuple(cell for cell in wide.record.cells if cell.defense != "dpsgd"))
    assert privacy(record) == "None"
