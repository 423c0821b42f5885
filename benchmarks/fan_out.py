"""What the executor on Ray costs, and how busy it keeps what it has.

Parts, each measured in this one process and the workers that it starts:

- starts: Ray itself, a worker's first stage, a stage in a warm worker, an actor, gangs of Ray Train.
- task: an empty stage in this process, as a task without oakum, and through the executor, one at a time.
- stages: empty stages with a manifest each a second, without tracking and with it (SQLite).
- state: a model's 50 MB through Ray's object store, and out of a store in a folder as stages read them.
- throughput: two Ray workers against two bare processes, both attacking the same model (GMI, some classes a stage), in
  turn; all images must be equal. And one worker against two, on both sides.
- trace: a plan of pauses on eight simulated nodes with one CPU each: who was busy when.

    python benchmarks/fan_out.py --out benchmarks/results/fan_out.json --trace benchmarks/results/fan_out_trace.json
    python benchmarks/fan_out.py --short --parts starts task
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from scale import Quiet, machine

from oakum.datasets.base import prepare
from oakum.distributed.cluster import configure_environment, start_ray, stop_ray
from oakum.pipeline.executor import Ledger, Observer, Serial
from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.simulation import Nodes, simulate
from oakum.pipeline.stage import Resources, Stage, StageTask, WorkerSettings
from oakum.records import sha256_hex
from oakum.session import make_plan
from oakum.session_home import Home
from oakum.store import Store
from oakum.tracking import CellHeader, RunHeader, Tracker

if TYPE_CHECKING:
    from oakum.distributed.on_ray import OnRay
    from oakum.pipeline.context import StageContext

Result = dict[str, Any]
WORKERS = 2
NODES = 8
STAGES_OF_A_CELL = 6
CHART_WIDTH = 96
PAUSE_OF = {"train": 3.0, "answers": 0.6, "membership": 0.4}
AIMS = {"ratio_to_bare": 0.9, "empty_stages_per_second": 100.0}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: pairs of the throughput, and repetitions of small things.
        work_seconds: of one side of a pair, about.
        iterations: of each attack in a pair.
        empty, tracked: empty stages without and with tracking.
        state_mb: megabytes of the state that is moved.
        gangs: numbers of workers of Ray Train's gangs.
        nodes: of the trace.
        cells: of the trace's plan, four stages each.
        pause: the trace's pauses are so many times `PAUSE_OF`.
    """

    rounds: int
    work_seconds: float
    iterations: int
    empty: int
    tracked: int
    state_mb: int
    gangs: tuple[int, ...]
    nodes: int
    cells: int
    pause: float


FULL = Size(5, 15.0, 200, 1000, 300, 50, (1, 2), NODES, 48, 1.0)
SHORT = Size(1, 1.0, 20, 40, 12, 5, (), 2, 3, 0.2)


# --- Kinds of stages of this benchmark, and the executor that knows them ---------------------------------------------


def run_with_own_kinds(task: StageTask, settings: WorkerSettings) -> Outcome:
    """Run a stage of oakum's or of this file's kinds: what Ray's workers are given."""
    show_own_kinds()
    return run_stage(task, settings)


def show_own_kinds() -> None:
    """Put `empty` and `pause` where a worker looks for the kinds of stages."""
    for kind, function in {"empty": run_empty, "pause": run_pause}.items():
        module = ModuleType(f"oakum.pipeline.stages.{kind}")
        module.__dict__["run"] = function
        sys.modules.setdefault(module.__name__, module)


def run_empty(context: StageContext) -> Result:
    """Do nothing: the manifest is all there is."""
    return {"metrics": {}}


def run_pause(context: StageContext) -> Result:
    """Hold a CPU of Ray's for a while, and note the node."""
    import ray

    context.notes["node"] = ray.get_runtime_context().get_node_id()
    time.sleep(context.task.config["seconds"])
    return {"metrics": {}}


def empty_stages(count: int, name: str) -> list[Stage]:
    return [Stage("empty", {"name": name, "number": i, "threads": 1}, {}, {}, "", label="empty") for i in range(count)]


def own_executor() -> OnRay:
    """Return oakum's executor, whose workers know this file's kinds of stages too."""
    import ray

    from oakum.distributed.on_ray import OnRay

    class WithOwnKinds(OnRay):
        def __init__(self) -> None:
            super().__init__()
            self._task = ray.remote(max_retries=0)(run_with_own_kinds)

    return WithOwnKinds()


@dataclass(frozen=True)
class Place:
    """A store and the data, in a temporary folder."""

    folder: Path

    @property
    def settings(self) -> WorkerSettings:
        return WorkerSettings(str(self.folder / "store"), self.folder / "data")

    @property
    def store(self) -> Store:
        return Store.open(self.settings.store_uri)


def run_all(executor: OnRay | Serial, stages: Sequence[Stage], place: Place, observer: Observer | None = None) -> float:
    """Run stages and return the wall seconds from the ready ledger to the last manifest."""
    ledger = Ledger.of(stages, place.store, observer or Quiet())
    started = time.perf_counter()
    executor.run(ledger, place.settings)
    taken = time.perf_counter() - started
    problems = [failure.trace for failure in ledger.failures.values()]
    assert not problems and len(ledger.done) == len(stages), problems[:1]
    return taken


@contextmanager
def timed(seconds: Result, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 4)


def median_of(count: int, measure: Callable[[int], float]) -> float:
    return round(statistics.median(measure(index) for index in range(count)), 6)


def say(name: str, result: Any) -> None:
    print(json.dumps({name: result}), file=sys.stderr, flush=True)


# --- Starts and overheads -------------------------------------------------------------------------------------------


def measure_starts(executor: OnRay, folder: Path, size: Size, before: Result) -> Result:
    """Return the seconds until each kind of worker is there; the workers must be cold when this is called."""
    import ray

    found: Result = dict(before)
    place = Place(folder / "starts")
    # One for each worker, side by side: both import torch and the stages.
    found["first_stage_of_two_workers"] = run_all(executor, empty_stages(WORKERS, "first"), place)
    found["warm_stage"] = median_of(
        4 * size.rounds, lambda index: run_all(executor, empty_stages(1, f"warm {index}"), place)
    )
    actor = ray.remote(num_cpus=0)(Greeter)
    found["actor"] = median_of(size.rounds, lambda _: _wall(lambda: ray.get(actor.remote().greet.remote())))
    for workers in size.gangs:
        found[f"gang_of_{workers}"] = start_gang(folder / f"gang{workers}", workers)
    return found


class Greeter:
    """The smallest actor."""

    def greet(self) -> str:
        return "here"


def start_gang(folder: Path, workers: int) -> Result:
    """Train a tiny model with Ray Train and return what went by before its first line, and in all."""
    import ray

    from oakum.distributed.data_parallel import run_gang

    place = Place(folder)
    (train,) = [stage for stage in attack_plan(folder, iterations=1) if stage.label == "train none/0 clean"]
    task = replace(train, resources=Resources(workers=workers)).task()
    began = time.time()
    ray.get(ray.remote(num_cpus=0)(run_gang).remote(task, place.settings))
    wall = time.time() - began
    manifest = place.store.manifest(train.kind, train.key)
    assert manifest is not None and manifest.provenance["workers"] == workers
    own = manifest.provenance["seconds"]
    return {"until_first_line": manifest.provenance["started"] - began, "stage": own, "in_all": wall}


def measure_task(executor: OnRay, folder: Path, size: Size) -> Result:
    """Return the seconds that one empty stage takes, warm and alone, with more and more around it."""
    import ray

    place, rounds = Place(folder / "task"), 10 * size.rounds
    show_own_kinds()
    nothing = ray.remote(_nothing)
    run_all(executor, empty_stages(4 * WORKERS, "warm-up"), place)
    inline = empty_stages(rounds, "inline")
    run_stage(empty_stages(1, "imports")[0].task(), place.settings)
    return {
        "in_this_process": median_of(
            rounds, lambda index: _wall(lambda: run_stage(inline[index].task(), place.settings))
        ),
        "ray_task_that_does_nothing": median_of(rounds, lambda _: _wall(lambda: ray.get(nothing.remote()))),
        "through_the_executor": median_of(
            rounds, lambda index: run_all(executor, empty_stages(1, f"alone {index}"), place)
        ),
    }


def _nothing() -> None: ...


def _wall(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


# --- Empty stages a second ------------------------------------------------------------------------------------------


class Tracked(Quiet):
    """An observer that reports empty stages to the tracker, some for each cell, as a run does."""

    def __init__(self, tracker: Tracker, header: RunHeader, store: Store) -> None:
        self._tracker = tracker
        self._header = header
        self._store = store

    def finished(self, stage: Stage, outcome: Outcome) -> None:
        manifest = self._store.manifest(stage.kind, stage.key)
        assert manifest is not None
        cell, role = divmod(stage.config["number"], STAGES_OF_A_CELL)
        owner = CellHeader("empty", cell, "none", {})
        self._tracker.stage_finished(self._header.run_key, owner, f"membership.clean.{role}", manifest)


def measure_stages(executor: OnRay, folder: Path, size: Size) -> Result:
    """Return empty stages a second through the executor, each with a manifest of its own."""
    place = Place(folder / "stages")
    run_all(executor, empty_stages(4 * WORKERS, "warm-up"), place)
    off = [run_all(executor, empty_stages(size.empty, f"off {index}"), place) for index in range(min(3, size.rounds))]
    rate = size.empty / statistics.median(off)
    return {
        "tracking_off": {
            "stages": size.empty,
            "seconds": off,
            "stages_per_second": rate,
            "aim": AIMS["empty_stages_per_second"],
            "reached": rate >= AIMS["empty_stages_per_second"],
        },
        "tracking_on": track_empty_stages(executor, folder / "tracked", size.tracked),
    }


def track_empty_stages(executor: OnRay, folder: Path, count: int) -> Result:
    """Run empty stages while a thread tells MLflow of them; MLflow's import and its database come before the clock."""
    os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    place = Place(folder)
    folder.mkdir()
    started = time.perf_counter()
    sample = _opened(place, "database")
    assert not sample[0].close(600).pending
    database = time.perf_counter() - started
    tracker, header = _opened(place, "measured")
    time.sleep(1.0)
    began = time.perf_counter()
    taken = run_all(executor, empty_stages(count, "tracked"), place, Tracked(tracker, header, place.store))
    status = tracker.close(600)
    everything = time.perf_counter() - began
    assert not status.pending and status.delivered >= count, status
    return {
        "stages": count,
        "seconds": taken,
        "stages_per_second": count / taken,
        "until_all_events_are_delivered": everything,
        "events_per_second": status.delivered / everything,
        "first_import_and_database": database,
    }


def _opened(place: Place, name: str) -> tuple[Tracker, RunHeader]:
    key = sha256_hex(name.encode())
    header = RunHeader(name, "", key, key, {}, {"name": "digits"})
    tracker = Tracker(place.store, place.folder, f"sqlite:///{place.folder}/mlflow.db")
    tracker.start()
    tracker.open_run(header)
    return tracker, header


# --- States ---------------------------------------------------------------------------------------------------------


def measure_state(folder: Path, size: Size) -> Result:
    """Return MB/s of ways by which a model's state reaches a worker that then holds a copy it may write to."""
    import ray
    import torch
    from safetensors.torch import save_file

    arrays = {
        f"layer{index}": np.random.default_rng(index).standard_normal(size.state_mb * 25_000, dtype=np.float32)
        for index in range(10)
    }
    mb = sum(array.nbytes for array in arrays.values()) / 1e6
    place = Place(folder / "state")
    payload = place.folder / "payload"
    payload.mkdir(parents=True)
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, payload / "model.safetensors")
    key = sha256_hex(b"state")
    published = _wall(
        lambda: place.store.publish(
            "train", key, payload, key_document={}, label="state", summary={}, provenance={"seconds": 1.0}
        )
    )
    by_object, by_store = ray.remote(_take_object), ray.remote(_take_from_store)
    ray.get([by_object.remote([ray.put(arrays)]), by_store.remote(place.settings.store_uri, key)])
    seconds: dict[str, list[float]] = {"put": [], "object_store": [], "store": []}
    for _ in range(size.rounds):
        started = time.perf_counter()
        reference = ray.put(arrays)
        seconds["put"].append(time.perf_counter() - started)
        taken, digest = ray.get(by_object.remote([reference]))
        from_store, same = ray.get(by_store.remote(place.settings.store_uri, key))
        assert digest == same
        seconds["object_store"].append(taken)
        seconds["store"].append(from_store)
    rates = {name: round(mb / statistics.median(values), 1) for name, values in seconds.items()}
    return {
        "megabytes": mb,
        "put_once": rates["put"],
        "get_and_copy_in_a_worker": rates["object_store"],
        "fetch_verify_and_load_in_a_worker": rates["store"],
        "publish": round(mb / published, 1),
        "task_bytes": task_bytes(folder / "size"),
    }


def _take_object(references: list[Any]) -> tuple[float, str]:
    """Get a state, which Ray maps for reading only, and copy it as `load_state_dict` would."""
    import hashlib

    import ray

    started = time.perf_counter()
    own = {name: np.array(value) for name, value in ray.get(references[0]).items()}
    taken = time.perf_counter() - started
    return taken, hashlib.sha256(b"".join(own[name].tobytes() for name in sorted(own))).hexdigest()


def _take_from_store(uri: str, key: str) -> tuple[float, str]:
    """Read a state as a stage does: a fresh store, the manifest, every byte verified, then tensors."""
    import hashlib

    from safetensors.torch import load_file

    started = time.perf_counter()
    store = Store.open(uri)
    manifest = store.manifest("train", key)
    assert manifest is not None
    own = load_file(store.fetch(manifest, "model.safetensors"))
    taken = time.perf_counter() - started
    return taken, hashlib.sha256(b"".join(own[name].numpy().tobytes() for name in sorted(own))).hexdigest()


def task_bytes(folder: Path) -> int:
    """Return the bytes of the largest task of a plan: all that Ray carries to a worker."""
    from ray import cloudpickle

    settings = Place(folder).settings
    return max(len(cloudpickle.dumps((stage.task(), settings))) for stage in attack_plan(folder, iterations=1))


# --- Throughput -----------------------------------------------------------------------------------------------------


def attack_plan(folder: Path, iterations: int) -> list[Stage]:
    """Return a real plan: a small network on 8x8 digits, a prior, and GMI on one class a stage."""
    digits = [0, 1, 2, 3, 4]
    data = {
        "name": "fan_out",
        "data": {"name": "digits"},
        "folds": {
            "private_classes": digits,
            "rules": [
                {"from": {"classes": digits}, "take": {"evaluation": 100, "train": 200, "test": 120, "val": 40}},
                {"from": {"classes": [5, 6, 7, 8, 9]}, "take": {"evaluation": 100, "public": 200}},
            ],
        },
        "model": {"name": "small_cnn", "width": 8},
        "recipe": {"learning_rate": 1e-2, "epochs": 3, "batch_size": 16},
        "settings": {"none": "none"},
        "seeds": [0],
        "evaluation": {"model": {"name": "strided_cnn", "width": 2, "hidden": 8}, "recipe": {"epochs": 1}},
        "priors": {"wgan_gp": {"method": {"width": 8, "latent_size": 16, "critic_updates": 20, "batch_size": 16}}},
        "attacks": {
            "inversion": [{"name": "gmi", "iterations": iterations, "restarts": 8}],
            "classes_per_task": 1,
        },
    }
    home = Home(folder, f"{folder}/store")
    prepare("digits", home.data)
    return list(make_plan(data, "fan_out.yaml", home, None).stages())


def measure_throughput(executor: OnRay, folder: Path, size: Size) -> Result:
    """Return pairs of the same attacks by bare processes and by Ray's workers, and one worker against two."""
    seed = Place(folder / "attacks")
    plan = attack_plan(seed.folder, size.iterations)
    template = next(stage for stage in plan if stage.kind == "inversion")
    run_all(Serial(), list(template.inputs.values()), seed)
    context = multiprocessing.get_context("spawn")
    with context.Pool(WORKERS) as pool, context.Pool(1) as alone:
        few = chunks(template, 2 * WORKERS)
        expected = dict(pool.map(attack_plainly, jobs_of(few, seed), chunksize=1))
        one = _wall(lambda: alone.map(attack_plainly, jobs_of(few, seed), chunksize=1))
        one = _wall(lambda: alone.map(attack_plainly, jobs_of(few, seed), chunksize=1)) / len(few)
        assert expected == attack_on_ray(executor, few, seed, folder / "warm-up")[1]
        stages = chunks(template, max(2 * WORKERS, round(WORKERS * size.work_seconds / one)))
        pairs = []
        for index in range(size.rounds):
            started = time.perf_counter()
            expected = dict(pool.map(attack_plainly, jobs_of(stages, seed), chunksize=1))
            bare = time.perf_counter() - started
            on_ray, found = attack_on_ray(executor, stages, seed, folder / f"round{index}")
            assert found == expected and len(found) == len(stages), "the images differ"
            pairs.append({"bare_seconds": bare, "ray_seconds": on_ray, "ratio": bare / on_ray})
            say("pair", pairs[-1])
        half = stages[: len(stages) // WORKERS]
        bare_alone = _wall(lambda: alone.map(attack_plainly, jobs_of(half, seed), chunksize=1))
        # Two CPUs each: one at a time. What a stage asks for is not in its key, nor in what it does.
        wide = [replace(stage, resources=Resources(cpus=WORKERS)) for stage in half]
        ray_alone, found = attack_on_ray(executor, wide, seed, folder / "alone")
        assert all(expected[name] == digest for name, digest in found.items())
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    middle = {side: statistics.median(pair[f"{side}_seconds"] for pair in pairs) for side in ("bare", "ray")}
    return {
        "stages": len(stages),
        "seconds_of_one": one,
        "pairs": pairs,
        "median_ratio": ratio,
        "aim": AIMS["ratio_to_bare"],
        "reached": ratio >= AIMS["ratio_to_bare"],
        "stages_per_second": {
            "bare": {"1": len(half) / bare_alone, "2": len(stages) / middle["bare"]},
            "ray": {"1": len(half) / ray_alone, "2": len(stages) / middle["ray"]},
        },
        "from_one_to_two": {
            "bare": len(stages) / middle["bare"] / (len(half) / bare_alone),
            "ray": len(stages) / middle["ray"] / (len(half) / ray_alone),
        },
    }


def chunks(template: Stage, count: int) -> list[Stage]:
    """Return so many attacks on one class each, all different."""
    return [
        replace(
            template, config={**template.config, "classes": [number % 5], "seed": number}, label=f"gmi chunk {number}"
        )
        for number in range(count)
    ]


def attack_on_ray(executor: OnRay, stages: Sequence[Stage], seed: Place, folder: Path) -> tuple[float, dict[str, str]]:
    """Return (seconds, label -> digest of the images) in a fresh copy of the store with model and prior."""
    place = Place(folder)
    shutil.copytree(seed.folder / "store", folder / "store")
    (folder / "data").symlink_to(seed.folder / "data")
    inputs = list(stages[0].inputs.values())
    seconds = run_all(executor, [*inputs, *stages], place)
    return seconds, {stage.label: _digest_of(place.store, stage) for stage in stages}


def _digest_of(store: Store, stage: Stage) -> str:
    from safetensors.torch import load_file

    manifest = store.manifest(stage.kind, stage.key)
    assert manifest is not None
    tensors = load_file(store.fetch(manifest, "reconstructions.safetensors"))
    return sha256_hex(b"".join(tensors[name].numpy().tobytes() for name in ("images", "unoptimized")))


def jobs_of(stages: Sequence[Stage], seed: Place) -> list[Result]:
    """Return the attacks as plain data: configurations, and the files of the networks."""
    files, configs = {}, {}
    for name, stage in stages[0].inputs.items():
        manifest = seed.store.manifest(stage.kind, stage.key)
        assert manifest is not None
        configs[name] = dict(stage.config)
        files[name] = {file: str(seed.store.fetch(manifest, file)) for file in manifest.files}
    networks = json.dumps({"configs": configs, "files": files})
    return [{"label": stage.label, "config": dict(stage.config), "networks": networks} for stage in stages]


def attack_plainly(job: Result) -> tuple[str, str]:
    """Attack as a script would, with networks that stay loaded: no store, no stages; returns (label, digest)."""
    import torch

    from oakum.attacks.access import Knowledge, Target
    from oakum.models.priors.base import images_of
    from oakum.pipeline.context import build_method
    from oakum.seeding import derive_seed, torch_generator

    config = job["config"]
    torch.set_num_threads(config["threads"])
    module, networks, latent_size = _networks(job["networks"])
    cls, options = build_method("attacks.inversion", config["attack"])
    attack = cls(options)
    knowledge = Knowledge(
        seed=config["seed"],
        generator=networks["generator"],
        critic=networks.get("critic"),
        networks=networks,
        latent_size=latent_size,
    )
    target = Target(lambda: module, attack.access, config["num_classes"])
    images = attack.reconstruct(target, torch.tensor(config["classes"]), knowledge)
    stream = torch_generator(derive_seed(config["seed"], "unoptimized"))
    unoptimized = images_of(networks["generator"], torch.randn(256, latent_size, generator=stream))
    return job["label"], sha256_hex(b"".join(_bytes_of(each) for each in (images, unoptimized)))


def _bytes_of(images: Any) -> bytes:
    import torch

    data: bytes = (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes()
    return data


@cache
def _networks(description: str) -> tuple[Any, dict[str, Any], int]:
    """Return the classifier, the prior's networks and their latent size, once in each process."""
    from safetensors.torch import load_file

    from oakum.models.base import InputShape
    from oakum.pipeline.context import build_method, build_network

    found = json.loads(description)
    module = build_network(found["configs"]["target"])
    module.load_state_dict(load_file(found["files"]["target"]["model.safetensors"]))
    config = found["configs"]["prior"]
    cls, options = build_method("priors", config["prior"])
    networks = cls(options, InputShape(tuple(config["input_shape"])), config.get("num_classes", 0)).build()
    for name, network in networks.items():
        network.load_state_dict(load_file(found["files"]["prior"][f"{name}.safetensors"]))
        network.eval().requires_grad_(False)
    return module.eval().requires_grad_(False), networks, options.latent_size


# --- Trace ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A stage that held a node's only CPU, in seconds from the first start."""

    node: int
    start: float
    end: float
    label: str


class Ends(Quiet):
    """An observer that keeps what each stage took."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def finished(self, stage: Stage, outcome: Outcome) -> None:
        self.outcomes[stage.key] = outcome


def measure_trace(folder: Path, size: Size) -> tuple[Result, list[Span]]:
    """Run a plan of pauses on simulated nodes with one CPU each; return what came of it, and who ran when."""
    place = Place(folder / "trace")
    stages = pauses(place.folder, size)
    with local_nodes(size.nodes) as seconds_to_start:
        executor = own_executor()
        # One for each node, side by side: every worker imports torch before the clock runs.
        warm = [Stage("pause", {"seconds": 1.0, "number": i, "threads": 1}, {}, {}, "") for i in range(2 * size.nodes)]
        run_all(executor, warm, place)
        ends = Ends()
        wall = run_all(executor, stages, place, ends)
        executor.close()
    spans = spans_of(stages, ends, place.store)
    dry = max(span.start for span in spans)
    makespan = max(span.end for span in spans)
    seconds = {stage.key: stage.config["seconds"] for stage in stages}
    simulated = simulate(stages, seconds, Nodes(size.nodes, 1))
    return {
        "nodes": size.nodes,
        "nodes_used": len({span.node for span in spans}),
        "stages": len(spans),
        "start_of_the_nodes": seconds_to_start,
        "wall": wall,
        "first_start_to_last_end": makespan,
        "simulated": simulated.makespan,
        "critical_path": simulated.critical_seconds,
        "last_start": dry,
        "busy_until_the_last_start": busy_share(spans, size.nodes, dry),
        "busy_until_the_last_end": busy_share(spans, size.nodes, makespan),
        "chart": chart(spans, size.nodes, makespan),
    }, spans


def pauses(folder: Path, size: Size) -> list[Stage]:
    """Return a real plan in which every stage is a pause: trainings of 2 to 4 seconds, answers and attacks of less."""
    digits = [0, 1, 2, 3, 4]
    data = {
        "name": "trace",
        "data": {"name": "digits"},
        "folds": {
            "private_classes": digits,
            "rules": [{"from": {"classes": digits}, "take": {"train": 100, "test": 120, "val": 40}}],
        },
        "model": {"name": "small_cnn", "width": 4},
        "recipe": {"epochs": 3, "batch_size": 16},
        "settings": {"none": "none"},
        "seeds": list(range(size.cells)),
        "attacks": {"membership": ["loss", "entropy"]},
    }
    home = Home(folder, f"{folder}/store")
    prepare("digits", home.data)
    made: dict[str, Stage] = {}
    for number, stage in enumerate(make_plan(data, "trace.yaml", home, None).stages()):
        seconds = PAUSE_OF[stage.kind] * size.pause * (2 + number % 3) / 3
        made[stage.key] = Stage(
            "pause",
            {"seconds": seconds, "number": number, "threads": 1},
            {name: made[each.key] for name, each in stage.inputs.items()},
            {},
            "",
            label=stage.label,
            weight=stage.weight,
        )
    return list(made.values())


@contextmanager
def local_nodes(count: int) -> Iterator[float]:
    """Start nodes with one CPU each on this machine, name them in `RAY_ADDRESS`, and end them; yields the seconds."""
    from ray.cluster_utils import Cluster

    # Not the usual folder, whose newest session others may look up; and the paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="oakum-ray-", ignore_cleanup_errors=True) as sessions:
        started = time.perf_counter()
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False, temp_dir=sessions)
            for _ in range(count - 1):
                cluster.add_node(num_cpus=1)
            os.environ["RAY_ADDRESS"] = cluster.address
            yield time.perf_counter() - started
        finally:
            os.environ.pop("RAY_ADDRESS", None)
            stop_ray()
            cluster.shutdown()


def spans_of(stages: Sequence[Stage], ends: Ends, store: Store) -> list[Span]:
    """Return who ran when, by start; nodes are numbered in the order in which they were first used."""
    rows = []
    for stage in stages:
        manifest = store.manifest(stage.kind, stage.key)
        assert manifest is not None
        start = manifest.provenance["started"]
        rows.append((start, start + ends.outcomes[stage.key].seconds, manifest.provenance["node"], stage.label))
    rows.sort()
    first, numbers = rows[0][0], list(dict.fromkeys(node for _, _, node, _ in rows))
    return [Span(numbers.index(node), start - first, end - first, label) for start, end, node, label in rows]


def busy_share(spans: Sequence[Span], nodes: int, until: float) -> float:
    """Return the share of all nodes' time from the first start to `until` in which a stage ran."""
    return sum(max(0.0, min(span.end, until) - span.start) for span in spans) / (nodes * until)


def chart(spans: Sequence[Span], nodes: int, until: float) -> list[str]:
    """Return a line for each node: `T` where it trains, `a` for answers, `m` for attacks, `.` where it is idle."""
    letters = {"train": "T", "answers": "a"}
    lines = [["."] * CHART_WIDTH for _ in range(nodes)]
    for span in spans:
        letter = letters.get(span.label.split()[0], "m")
        for column in range(CHART_WIDTH):
            middle = (column + 0.5) / CHART_WIDTH * until
            if span.start <= middle < span.end:
                lines[span.node][column] = letter
    return ["".join(line) for line in lines]


# --- All ------------------------------------------------------------------------------------------------------------

PARTS = ("starts", "task", "stages", "state", "throughput", "trace")


def measure(parts: Sequence[str], size: Size, folder: Path) -> tuple[Result, list[Span]]:
    """Return the results by part, in the order of `PARTS`: the starts come first, while workers are cold."""
    results: Result = {}
    spans: list[Span] = []
    before: Result = {}
    # Ray reads these when it is imported. A token of our own: others' clusters and files stay out of it.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        os.environ.pop(name, None)
    configure_environment()
    if set(parts) - {"trace"}:
        with timed(before, "import_ray"):
            import ray  # noqa: F401
        with timed(before, "ray"):
            start_ray(cpus=WORKERS)
        executor = own_executor()
        try:
            measured: dict[str, Callable[[], Result]] = {
                "starts": lambda: measure_starts(executor, folder, size, before),
                "task": lambda: measure_task(executor, folder, size),
                "stages": lambda: measure_stages(executor, folder, size),
                "state": lambda: measure_state(folder, size),
                "throughput": lambda: measure_throughput(executor, folder, size),
            }
            for part in [part for part in measured if part in parts]:
                results[part] = measured[part]()
                say(part, results[part])
        finally:
            executor.close()
    if "trace" in parts:
        results["trace"], spans = measure_trace(folder, size)
        say("trace", {name: value for name, value in results["trace"].items() if name != "chart"})
    return results, spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--short", action="store_true", help="shows in a minute or two that it works; its figures mean nothing"
    )
    parser.add_argument("--out", type=Path, help="where the card goes")
    parser.add_argument("--trace", type=Path, help="where the trace goes: node, start, end and label of each stage")
    options = parser.parse_args()
    before, size = machine(), SHORT if options.short else FULL
    with tempfile.TemporaryDirectory() as folder:
        results, spans = measure(options.parts, size, Path(folder))
    card = {"benchmark": "fan_out", "short": options.short, **before, **results}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(card, indent=2) + "\n")
    if options.trace and spans:
        rows = [json.dumps([span.node, round(span.start, 3), round(span.end, 3), span.label]) for span in spans]
        options.trace.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
