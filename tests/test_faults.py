"""Whatever stops a run, the same command goes on and finds the same numbers, and MLflow holds each of them once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum import faults
from oakum.records import RunRecord
from oakum.session import Home
from oakum.store import Store

pytestmark = pytest.mark.faults

KILLED = -signal.SIGKILL
POINTS = [
    "train.before_first_checkpoint",
    "train.between_epochs",
    "store.after_work_payload",
    "store.after_work_marker",
    "stage.before_publish",
    "store.after_payload",
    "store.after_manifest",
    "tracking.before_delivery",
    "tracking.after_delivery",
    "tracking.after_delivery:3",
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(
    point: str,
    make_home: Callable[..., Home],
    short: dict[str, Any],
    write: Callable[..., Path],
    start: Callable[..., Any],
    record_of: Callable[..., RunRecord],
    numbers: Callable[..., Any],
    tracked: Callable[..., Any],
) -> None:
    arguments = ["run", write(short), "--executor", "serial", "--checkpoint-seconds", "0"]
    t = time.time()
    homes = {name: make_home(name) for name in ("undisturbed", "killed")}
    print(time.time() - t)
    a = start(*arguments, home=homes["undisturbed"], OAKUM_FAULT="")
    assert a.answer().code == 0
    print(time.time() - t)
    assert start(*arguments, home=homes["killed"], **{faults.VARIABLE: point}).answer().code == KILLED
    print(time.time() - t)
    assert start(*arguments, home=homes["killed"]).answer().code == 0
    print(time.time() - t)
    assert numbers(record_of(homes["killed"], "short")) == numbers(record_of(homes["undisturbed"], "short"))
    assert tracked(homes["killed"]) == tracked(homes["undisturbed"])
    print(tracked(homes["killed"]))
    Store, os, signal
