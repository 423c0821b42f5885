"""What ten thousand stages cost the driver: the plan, the look into the store, the scheduling, a simulation.

A real plan (8x8 digits, many settings and seeds) of more than `--stages` stages is made; the first `--stages` of them
are published with tiny payloads in a temporary folder, the rest is still to be run. Nothing is trained. Requests are
counted on the same files through `pyarrow.fs`, as a store in a bucket is read, and each takes `--latency` longer; a
listing counts as one request for each 1,000 names, a read as one for each MiB. Seconds are wall and CPU seconds of this
process.

    python benchmarks/scale.py --out benchmarks/results/scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from oakum._store_arrow import ArrowFiles
from oakum._store_files import Item
from oakum._store_index import MARGIN_SECONDS
from oakum.datasets.base import prepare
from oakum.pipeline.admission import admit
from oakum.pipeline.collect import collect, skeleton
from oakum.pipeline.executor import Ledger, find_present
from oakum.pipeline.runner import Outcome
from oakum.pipeline.simulation import Delays, Nodes, simulate
from oakum.pipeline.stage import Stage
from oakum.records import sha256_hex
from oakum.session import make_plan
from oakum.session_home import Home
from oakum.store import Manifest, Store
from oakum.tracking_outbox import Event
from oakum.tracking_outbox import Ledger as Delivered

if TYPE_CHECKING:
    from oakum.pipeline.plan import Plan

PAGE = 1000
STAGES_OF_A_CELL = 6
SETTINGS = 17
AIM_SECONDS = 10.0
SECONDS_OF = {"train": 60.0, "answers": 2.0, "membership": 1.0}
Result = dict[str, Any]


class Quiet:
    """An observer that says nothing."""

    def started(self, stage: Stage) -> None: ...

    def finished(self, stage: Stage, outcome: Outcome) -> None: ...

    def retried(self, stage: Stage, reason: str) -> None: ...

    def failed(self, stage: Stage, error: str) -> None: ...


class CountedFiles(ArrowFiles):
    """The files of a bucket's store, which count what a bucket would be asked, and wait as long as it would take."""

    def __init__(self, folder: Path, latency: float) -> None:
        super().__init__(SubTreeFileSystem(str(folder), LocalFileSystem()), "", "counted://store")
        self.requests: Counter[str] = Counter()
        self._latency = latency
        self._lock = threading.Lock()

    def chunks(self, path: str) -> Iterator[bytes]:
        self._count("reads")
        for index, chunk in enumerate(super().chunks(path)):
            if index:
                self._count("reads")
            yield chunk

    def put(self, path: str, data: bytes) -> None:
        self._count("writes")
        super().put(path, data)

    def names(self, folder: str) -> list[str]:
        return self._paged(super().names(folder))

    def listing(self, folder: str) -> list[Item]:
        return self._paged(super().listing(folder))

    def delete(self, path: str) -> None:
        self._count("deletes")
        super().delete(path)

    def delete_tree(self, folder: str) -> None:
        self._count("deletes")
        super().delete_tree(folder)

    def _paged(self, found: list[Any]) -> list[Any]:
        self._count("listings", max(1, -(-len(found) // PAGE)))
        return found

    def _count(self, action: str, requests: int = 1) -> None:
        with self._lock:
            self.requests[action] += requests
        time.sleep(requests * self._latency)


class Clock:
    """Wall and CPU seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def measure(self, name: str, times: int = 1) -> Iterator[None]:
        """Note the seconds of each of so many equal actions."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        self.seconds[name] = {each: round(value / times, 6) for each, value in taken.items()}
        print(json.dumps({name: self.seconds[name]}), file=sys.stderr, flush=True)


def request(stages: int) -> dict[str, Any]:
    """Return an experiment with a tenth more stages than asked for, as parsed YAML."""
    alphas = [round(0.1 * (index + 1), 1) for index in range(SETTINGS - 1)]
    seeds = -(-stages * 11 // 10 // (SETTINGS * STAGES_OF_A_CELL)) + 1
    return {
        "name": "scale",
        "data": {"name": "digits"},
        "folds": {
            "private_classes": [0, 1, 2, 3, 4],
            "rules": [{"from": {"classes": [0, 1, 2, 3, 4]}, "take": {"train": 100, "test": 120, "val": 40}}],
        },
        "model": {"name": "small_cnn", "width": 4},
        "recipe": {"epochs": 3, "batch_size": 16},
        "settings": {
            "none": "none",
            **{f"relaxloss-{alpha}": {"name": "relaxloss", "alpha": alpha} for alpha in alphas},
        },
        "seeds": list(range(seeds)),
        "attacks": {"membership": ["loss", "entropy", "confidence", "modified_entropy"]},
    }


def publish(stages: list[Stage], store: Store, folder: Path) -> None:
    """Publish stages, inputs before their users, each with a payload of one small file."""
    folder.mkdir()
    contents: dict[str, Manifest] = {}
    for stage in stages:
        (folder / "payload.json").write_text(json.dumps({"label": stage.label}))
        inputs = {name: contents[each.key] for name, each in stage.inputs.items()}
        contents[stage.key] = store.publish(
            stage.kind,
            stage.key,
            folder,
            key_document=stage.key_document(),
            label=stage.label,
            summary={"metrics": {"auc": {"value": 0.5, "low": 0.4, "high": 0.6, "wants": "low"}}},
            provenance={
                "seconds": SECONDS_OF[stage.kind],
                "inputs": {
                    name: {"kind": each.kind, "key": each.key, "content": each.content} for name, each in inputs.items()
                },
            },
        )


def to_the_ready_list(data: dict[str, Any], home: Home, stages: int, clock: Clock) -> tuple[Plan, Ledger]:
    """Do what a run does from the parsed YAML to its first stage.

    The first stages of the plan are published in between. The plan's time holds the import of torch, as in any fresh
    process.
    """
    store = Store.open(home.store_uri)
    with clock.measure("plan"):
        plan = make_plan(data, "scale.yaml", home, None)
    with clock.measure("publish_one_stage", stages):
        publish(list(plan.stages())[:stages], store, home.folder / "payload")
    with clock.measure("ledger"):
        ledger = Ledger.of(plan.stages(), store, Quiet())
    with clock.measure("ready_list"):
        ready = ledger.ready()
    assert len(ledger.done) == stages and ready, "the published stages were not found"
    return plan, ledger


def count_requests(plan: Plan, ledger: Ledger, home: Home, clock: Clock, latency: float) -> Result:
    """Return the requests of three looks into the store by three processes, as a bucket would be asked.

    The first look finds no index, the second and the collection of the numbers find the one that it wrote.
    """
    document = skeleton(plan, {})
    # Younger manifests are not copied.
    time.sleep(MARGIN_SECONDS + 1.0)
    looks: dict[str, Callable[[Store], object]] = {
        "first_look_into_a_bucket": lambda store: find_present(ledger.stages, store),
        "next_look_into_a_bucket": lambda store: find_present(ledger.stages, store),
        "collect_from_a_bucket": lambda store: collect(document, store),
    }
    counted: Result = {}
    for name, look in looks.items():
        files = CountedFiles(Path(home.store_uri), latency)
        with clock.measure(name):
            found = look(Store(files, "counted://store"))
        assert not isinstance(found, set) or found == ledger.done
        counted[name] = {**files.requests, "all": sum(files.requests.values())}
    return counted


def schedule(ledger: Ledger, clock: Clock, cpus: int) -> None:
    """Measure what the driver's loop asks itself for every stage that ends: what is ready, what is admitted."""
    nothing_done = Ledger(ledger.stages, ledger.store, Quiet())
    stages = list(ledger.stages.values())
    with clock.measure("ready_of_all", 10):
        for _ in range(10):
            nothing_done.ready()
    with clock.measure("choose_start_and_settle_one_stage", 1000):
        for _ in range(1000):
            first = nothing_done.ready()[0]
            nothing_done.start(first)
            nothing_done.complete(first, Outcome(first.kind, first.key, 0.0))
    capacity = Nodes(cpus // 16, 16).capacity()
    with clock.measure("admit_to_a_full_cluster", 10):
        for _ in range(10):
            assert not admit(stages[2 * cpus :], stages[: 2 * cpus], capacity)


def replay(plan: Plan, clock: Clock, cpus: int) -> Result:
    """Simulate the whole plan from scratch."""
    stages = list(plan.stages())
    seconds = {stage.key: SECONDS_OF[stage.kind] for stage in stages}
    with clock.measure("simulate"):
        found = simulate(stages, seconds, Nodes(cpus // 16, 16), delays=Delays(stage=0.01))
    return {"cpus": cpus, "runs": len(found.runs), "makespan_seconds": found.makespan, "bounds": found.bounds()}


def deliver(store: Store, events: int, clock: Clock) -> None:
    """Measure how the ledger of delivered events, which is rewritten for each, takes one more."""
    run_key, delivered = sha256_hex(b"scale"), Delivered(store, "scale")
    ids = sorted(sha256_hex(str(index).encode())[:32] for index in range(events))
    folder = sha256_hex(b"scale")[:16]
    store.put_document(f"delivered/{folder}/{run_key}", {"schema": 1, "events": ids, "finished": []})
    run = {"name": "scale", "run_key": run_key, "plan_key": run_key, "data": "digits", "public": True}
    with clock.measure("note_one_delivered_event", 20):
        for index in range(20):
            delivered.refresh(run_key)
            delivered.add(Event("stage", run, {}, f"{index:032d}", "driver", 0.0))
    document = store.get_document(f"delivered/{folder}/{run_key}")
    assert document is not None and len(document["events"]) == events + 20


def machine() -> Result:
    """Return the processor's name and number, how busy it is, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), "pyarrow": version("pyarrow"), "oakum": version("oakum")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stages", type=int, default=10_000, help="stages that are published")
    parser.add_argument("--cpus", type=int, default=1024, help="CPUs of the simulated cluster, 16 on each node")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds that a bucket takes for a request")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before, clock = machine(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), f"{folder}/store")
        prepare("digits", home.data)
        data = request(options.stages)
        plan, ledger = to_the_ready_list(data, home, options.stages, clock)
        requests = count_requests(plan, ledger, home, clock, options.latency)
        schedule(ledger, clock, options.cpus)
        simulated = replay(plan, clock, options.cpus)
        deliver(ledger.store, options.stages, clock)
    start = [clock.seconds[name] for name in ("plan", "ledger", "ready_list")]
    to_start = {each: sum(part[each] for part in start) for each in ("wall", "cpu")}
    allowed = options.stages // PAGE + 50
    card = {
        "benchmark": "scale",
        "published": options.stages,
        "planned": len(ledger.stages),
        **before,
        "seconds": clock.seconds,
        "from_yaml_to_the_ready_list": {**to_start, "aim": AIM_SECONDS, "reached": to_start["wall"] < AIM_SECONDS},
        "bucket": {
            "seconds_of_a_request": options.latency,
            "requests": requests,
            "aim": allowed,
            "reached": requests["next_look_into_a_bucket"]["all"] <= allowed,
        },
        "simulation": {**simulated, "stages_per_cpu_second": simulated["runs"] / clock.seconds["simulate"]["cpu"]},
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
