from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oakum.pipeline.collect import collect, skeleton, stage_refs
from oakum.pipeline.experiment import resolve_experiment
from oakum.pipeline.plan import Plan, build_plan
from oakum.records import RunRecord
from oakum.store import Store


@pytest.fixture
def plan(tiny: dict[str, Any], prepared_digits: Path) -> Plan:
    return build_plan(resolve_experiment(tiny, "tiny.yaml"), prepared_digits)


def test_a_skeleton_is_a_record_without_numbers(plan: Plan, tmp_path: Path) -> None:
    document = skeleton(plan, {"commit": "abc"})
    assert RunRecord.from_json(document).to_json() == document
    record = collect(document, Store.open(tmp_path / "store"))
    assert record.plan_key == plan.plan_key and record.code == {"commit": "abc"}
    assert all(value.value == 0 for cell in record.cells for value in cell.metrics.values())
    assert {name for cell in record.cells for name in cell.metrics} == {"cost/train_seconds", "cost/attack_seconds"}


def test_every_stage_is_named_once(plan: Plan) -> None:
    refs = stage_refs(skeleton(plan, {}))
    assert sorted(ref.key for ref in refs) == sorted(stage.key for stage in plan.stages())


def test_a_finished_run_has_every_number(finished: Any) -> None:
    for cell in finished.record.cells:
        assert cell.metrics.keys() >= {
            "utility/test_accuracy", "utility/val_accuracy", "utility/train_accuracy", "canary/test_accuracy",
            "canary/accuracy_cost", "canary/loss/auc", "canary/entropy/auc", "membership/loss/auc",
            "membership/loss/tpr_at_fpr_0.01", "membership/entropy/auc", "inversion/gmi/top1",
            "inversion/gmi/knn2.evaluator", "cost/train_seconds", "cost/attack_seconds",
        }  # fmt: skip
        cost = cell.metrics["utility/test_accuracy"].value - cell.metrics["canary/test_accuracy"].value
        assert cell.metrics["canary/accuracy_cost"].value == pytest.approx(cost)
        assert cell.metrics["membership/loss/tpr_at_fpr_0.01"].value is None
        assert "needs" in cell.metrics["membership/loss/tpr_at_fpr_0.01"].note
        assert cell.metrics["cost/train_seconds"].value > 0
    assert {item.role for item in finished.record.shared} == {"evaluation", "prior.wgan_gp"}


def test_numbers_are_those_of_the_manifests(finished: Any) -> None:
    store = Store.open(finished.home.store_uri)
    cell = finished.record.cells[0]
    ref = cell.stages["membership.canary.entropy"]
    manifest = store.manifest(ref.kind, ref.key)
    assert manifest is not None
    assert cell.metrics["canary/entropy/auc"].to_json() == manifest.summary["metrics"]["auc"]


def test_chance_levels(finished: Any) -> None:
    chance = finished.record.chance
    assert chance["utility/test_accuracy"] == 0.2 and chance["inversion/gmi/top1"] == 0.1
    assert chance["membership/loss/auc"] == chance["canary/entropy/auc"] == 0.5


def test_stages_that_are_not_there_leave_gaps(copied: Any, numbers: Any) -> None:
    store = Store.open(copied.home.store_uri)
    cell = copied.record.cells[0]
    store.set_aside("judge", cell.stages["judge.clean.gmi"].key, "a test")
    again = collect(copied.record.to_json(), store)
    gone = numbers(copied.record).keys() - numbers(again).keys()
    assert gone == {key for key in numbers(copied.record) if key[:2] == (cell.setting, "0") and "inversion/" in key[2]}
