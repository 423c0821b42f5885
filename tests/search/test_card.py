"""What is told of a confirmed setting: it is compared with the undefended model of its own conditions."""

from __future__ import annotations

import json

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.search.card import leakage_card, recommended
from oakum.search.records import Confirmation, SearchHeader, SearchLog, SearchRecord
from oakum.store import Store

LEAK, VAL, TEST = "membership/loss/auc", "utility/val_accuracy", "utility/test_accuracy"
HEADER = SearchHeader(
    "quick", "0" * 64, "bido", {}, {}, {}, (f"min {LEAK}",), (f"{VAL} >= none - 0.05",), seeds=(1000,)
)


def cell(setting: str, defense: str, leak: float, accuracy: float) -> CellRecord:
    return CellRecord(setting, defense, {}, 0, {LEAK: MetricValue(leak), TEST: MetricValue(accuracy)}, {})


@pytest.fixture
def record() -> SearchRecord:
    """Trial 3 leaks least and keeps the floor of trial 1's `none`, but not of its own."""
    cells = (
        cell("none", "none", 0.9, 0.80), cell("trial-1", "bido", 0.7, 0.78),
        cell("none-2", "none", 0.8, 0.90), cell("trial-3", "bido", 0.6, 0.79),
    )  # fmt: skip
    run = RunRecord("quick-confirmed", "", "r", "p", {}, {}, {}, cells, ())
    confirmation = Confirmation("p", {"trial-1": 1, "trial-3": 3}, {1: 0.5, 3: 0.9}, run, {"trial-3": "none-2"})
    return SearchRecord(HEADER, (), confirmation)


def test_a_floor_is_relative_to_the_none_of_the_same_conditions(record: SearchRecord) -> None:
    assert recommended(record) == "trial-1"
    card = leakage_card(record, "trial-3")
    assert card["floors"][f"{TEST} >= none - 0.05"]["missed_by"][0] == pytest.approx(0.06)
    assert card["none"][TEST][0]["value"] == 0.90
    assert leakage_card(record, "trial-1")["none"][TEST][0]["value"] == 0.80


@pytest.mark.parametrize(("label", "accuracy"), [("none", 0.80), ("none-2", 0.90)])
def test_an_undefended_model_stands_beside_itself(record: SearchRecord, label: str, accuracy: float) -> None:
    assert leakage_card(record, label)["none"][TEST][0]["value"] == accuracy


def test_baselines_are_stored_and_older_confirmations_have_one(record: SearchRecord, tmp_path: object) -> None:
    store = Store.open(f"{tmp_path}/store")
    log = SearchLog(store, HEADER.key)
    assert record.confirmation is not None
    log.put_confirmation(record.confirmation)
    assert log.confirmation() == record.confirmation
    name = f"searches/{HEADER.key}/confirmation"
    document = store.get_document(name)
    assert document is not None
    del document["baselines"]
    store.put_document(name, json.loads(json.dumps(document)))
    older = log.confirmation()
    assert older is not None and older.baseline_of("trial-3") == "none"
