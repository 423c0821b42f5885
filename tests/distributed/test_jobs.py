"""`ray job submit` as docs/jobs.md has it: the uploaded code runs, on one node, on two, and when nodes come or go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum import session
from oakum.pipeline import fingerprint
from oakum.records import RunRecord
from oakum.search.records import SearchLog, search_names
from oakum.session import RunOptions
from oakum.session_home import Home
from oakum.session_search import search
from oakum.session_search_request import SearchOptions
from oakum.store import Store

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


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
    assert store.verify() == []


class DemandSeenError(Exception):
    """Ends a run that waits for GPUs which never come."""


def test_gpu_nodes_that_are_away_while_idle_are_asked_for(
    own_ray: None,
    own_environment: pytest.MonkeyPatch,
    home: Home,
    short: dict[str, Any],
    write: Callable[[dict[str, Any]], Path],
) -> None:
    """Twelve trainings with a GPU each on a Ray without: its autoscaler would start all that cluster.yaml allows."""
    import ray
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    from oakum.distributed.on_ray import OnRay

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    most, types = config["max_workers"], config["available_node_types"]
    asked: list[dict[str, float]] = []

    def wait_for_demand(references: list[Any], **_: Any) -> None:
        """Read what Ray's autoscaler reads, until all that was submitted is there."""
        assert len(references) == 2 * most
        deadline = time.monotonic() + 60
        while len(asked) < len(references) and time.monotonic() < deadline:
            time.sleep(0.2)
            pending = get_cluster_resource_state(ray._private.worker.global_worker.gcs_client).pending_resource_requests
            asked[:] = [dict(each.request.resources_bundle) for each in pending for _ in range(each.count)]
        for reference in references:
            ray.cancel(reference)
        raise DemandSeenError

    class Kept(OnRay):
        def close(self) -> None:
            pass

    own_environment.setattr(session, "_start_executor", lambda options: Kept(max_cpus=34, max_gpus=most))
    own_environment.setattr(ray, "wait", wait_for_demand)
    short |= {"execution": {"gpus": 1}, "seeds": list(range(12))}
    with pytest.raises(DemandSeenError):
        session.run(RunOptions(write(short), track=False, quiet=True), home)
    assert asked == [{"CPU": 1.0, "GPU": 1.0}] * (2 * most)
    started, waiting = get_nodes_for(
        types, {"head": 1}, "head", most, asked, partial(_default_utilization_scorer, node_availability_summary=None)
    )
    assert started == {"gpu": most} and len(waiting) == most


def trials_of(store: Store) -> Any:
    return SearchLog.named(store, "short-relaxloss").trials()
