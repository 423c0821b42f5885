"""Records survive JSON unchanged, and keys are hashed from one form of it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oakum.records import (
    CellRecord,
    MetricValue,
    RunRecord,
    SharedRecord,
    StageRef,
    canonical_json,
    finite,
    sha256_hex,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def record(**changes: Any) -> RunRecord:
    metrics = {
        "membership/loss/auc": MetricValue(0.61, 0.55, 0.67, wants="low"),
        "membership/loss/tpr_at_fpr_0.01": MetricValue(None, wants="low", note="unresolved: 80 non-members"),
        "utility/test_accuracy": MetricValue(0.0, wants="high"),
    }
    cell = CellRecord(
        setting="bido 0.05",
        defense="bido",
        parameters={"alpha": 0.05, "layers": [1, 2], "schedule": None},
        seed=0,
        metrics=metrics,
        stages={"target.clean": StageRef("train", "a" * 64)},
        flags=("inverted signal",),
    )
    shared = SharedRecord(role="prior", stage=StageRef("prior", "b" * 64), parameters={}, metrics=metrics)
    defaults: dict[str, Any] = {
        "name": "quickstart",
        "description": "",
        "run_key": "r",
        "plan_key": "p",
        "config": {"seeds": [0, 1]},
        "data": {"name": "digits", "public": True},
        "chance": {"membership/loss/auc": 0.5},
        "cells": (cell,),
        "shared": (shared,),
        "warnings": ("short training",),
        "seconds": {"train": 1.5},
    }
    return RunRecord(**{**defaults, **changes})


def test_a_run_record_survives_json() -> None:
    original = record()
    assert RunRecord.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_an_empty_record_survives_json() -> None:
    original = record(cells=(), shared=(), warnings=(), seconds={})
    assert RunRecord.from_json(original.to_json()) == original


def test_a_record_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema 2"):
        RunRecord.from_json({**record().to_json(), "schema": 2})
    with pytest.raises(ValueError, match="None"):
        RunRecord.from_json({})


def test_nan_never_reaches_a_file() -> None:
    cell = dataclasses.replace(record().cells[0], metrics={"utility/test_accuracy": MetricValue(math.nan)})
    with pytest.raises(ValueError, match="JSON"):
        record(cells=(cell,)).to_json()
    assert finite(math.nan) is None
    assert finite(-math.inf) is None
    assert finite(0.0) == 0.0


@given(
    st.builds(
        MetricValue,
        st.none() | FINITE,
        st.none() | FINITE,
        st.none() | FINITE,
        st.sampled_from(["low", "high", "none"]),
        st.text(max_size=5),
    )
)
def test_metric_values_survive_json_and_always_say_their_value(value: MetricValue) -> None:
    plain = value.to_json()
    assert "value" in plain
    assert MetricValue.from_json(plain) == value


@given(PLAIN)
def test_canonical_json_is_json_and_the_same_for_equal_data(data: Any) -> None:
    assert json.loads(canonical_json(data)) == data
    assert canonical_json(json.loads(json.dumps(data))) == canonical_json(data)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert canonical_json({"a": (1, 2)}) == canonical_json({"a": [1, 2]})
    assert canonical_json({"a": 1}) != canonical_json({"a": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.nan)


def test_sha256_is_the_standard_one() -> None:
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
