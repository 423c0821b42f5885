"""`ray job submit` as docs/jobs.md has it: the uploaded code runs, on one node and on two, and when a node is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum.pipeline import fingerprint
from oakum.records import RunRecord
from oakum.search.records import SearchLog, search_names
from oakum.session import Home
from oakum.session_search import SearchOptions, search
from oakum.store import Store

pytestmark = pytest.mark.ray


def test_a_job_runs_the_uploaded_code_on_one_node_and_on_two(
    cluster: Any,
    checkout: Path,
    make_home: Callable[[str], Home],
    finished: Any,
    numbers: Callable[[RunRecord], Any],
    record_of: Callable[[Home, str], RunRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = []
    for nodes in (1, 2):
        if nodes == 2:
            cluster.add_node()
            with (checkout / "platform" / "oakum" / "__init__.py").open("a") as file:
                file.write("# changed in this copy alone\n")
        home = make_home(f"on-{nodes}")
        printed = cluster.submit(checkout, home, "run.py", "jobs/experiments/tiny.yaml")
        assert "succeeded" in printed
        assert numbers(record_of(home, "tiny")) == numbers(finished.record)
        entries = Store.open(home.store_uri).entries()
        assert len(entries) == 22
        monkeypatch.setattr(fingerprint, "PACKAGE_FOLDER", checkout / "platform" / "oakum")
        digests.append(fingerprint.package_digest())
        assert {entry.provenance["package"] for entry in entries} == {digests[-1]}
    assert digests[0] != digests[1]
    assert cluster.unpacked_packages(1), "the second node never got the code"


def test_nobody_submits_without_the_token(cluster: Any) -> None:
    assert cluster.answer("/api/jobs/") == 401
    assert cluster.answer("/api/jobs/", "0" * 64) in (401, 403)
    assert cluster.answer("/api/jobs/", cluster.environment["RAY_AUTH_TOKEN"]) == 200


@pytest.mark.slow
@pytest.mark.faults(row="a node lost and another added")
def test_a_search_as_a_job_outlives_a_node(
    cluster: Any, checkout: Path, make_home: Callable[[str], Home], short: dict[str, Any]
) -> None:
    home, undisturbed = make_home("lost-node"), make_home("undisturbed")
    short["recipe"]["epochs"] = 40
    file, space = checkout / "jobs" / "experiments" / "short.yaml", checkout / "jobs" / "space.yaml"
    file.write_text(yaml.safe_dump(short, sort_keys=False))
    space.write_text(
        yaml.safe_dump({"defense": "relaxloss", "defense.alpha": {"sampler": "uniform", "low": 0.2, "high": 1.4}})
    )
    leak, trials = "min membership/loss/auc", 6
    options = SearchOptions(file, space, (leak,), trials=trials, sampler="random", confirm=0, repeats=0, track=False)
    expected = search(replace(options, executor="serial"), undisturbed).record
    cluster.have_nodes(2)
    job = cluster.start_job(
        checkout, home, "search.py", "jobs/experiments/short.yaml", "jobs/space.yaml", f"--objective={leak}",
        f"--trials={trials}", "--sampler=random", "--confirm=0",
    )  # fmt: skip
    store = Store.open(home.store_uri)
    deadline = time.monotonic() + 180
    while not search_names(store) or not any(trial.state == "complete" for trial in trials_of(store)):
        assert job.poll() is None and time.monotonic() < deadline, job.printed()
        time.sleep(0.1)
    kept = [trial for trial in trials_of(store) if trial.state == "complete"]
    assert len(kept) < trials, "the search was over before the node could be lost"
    cluster.lose_node()
    cluster.have_nodes(2)
    assert job.wait(300) == 0, job.printed()
    found = trials_of(store)
    assert [(each.number, each.point, each.state, each.values) for each in found] == [
        (each.number, each.point, each.state, each.values) for each in expected.trials
    ]
    assert [found[each.number] for each in kept] == kept


def trials_of(store: Store) -> Any:
    return SearchLog.named(store, "short-relaxloss").trials()
