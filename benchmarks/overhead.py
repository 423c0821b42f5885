"""What Ray, the store and MLflow add to the same trainings in a plain pool of processes.

Both sides train every target of an experiment with the same code, thread count and number of processes, in turn, on
this machine; the weights of both must be equal bit for bit. The plain side knows no store, no Ray and no MLflow: it
builds the model and runs the loop. What `oakum run` needs before its first stage starts (imports, Ray, the plan) is
measured apart, as the fixed start.

    python benchmarks/overhead.py jobs/experiments/quickstart.yaml --rounds 3 --out benchmarks/results/overhead.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from oakum.datasets.base import ensure_prepared
from oakum.pipeline.context import build_defense
from oakum.pipeline.folds import LoadedFolds, Selection
from oakum.records import sha256_hex
from oakum.session import Home, RunOptions, make_plan, read_request
from oakum.store import Store

WORKERS = 2


def train_plainly(task: dict[str, Any]) -> tuple[str, str]:
    """Train one target as a script would: no store, no checkpoints; returns (key, digest of its weights)."""
    import torch

    from oakum.config import validate
    from oakum.pipeline.training import initial_state
    from oakum.training.loop import TrainingLoop
    from oakum.training.recipe import Recipe

    config = task["config"]
    torch.set_num_threads(config["threads"])
    folds = LoadedFolds(Selection(**task["selection"]), Path(task["data_home"]))
    recipe = validate(Recipe, config["recipe"], "recipe")
    defense = build_defense(config["defense"])
    state = defense.prepare(initial_state(config, recipe, torch.device("cpu")))
    val = folds.labeled("val", config["labels"]) if "val" in task["folds"] else None
    loop = TrainingLoop(train=folds.labeled(config["train_fold"], config["labels"]), val=val, recipe=recipe)
    return task["key"], digest(defense.fit(state, loop).state_dict())


def digest(state: dict[str, Any]) -> str:
    """Return a digest of a state dict's names and bytes."""
    return sha256_hex(b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state)))


def run_plain(tasks: list[dict[str, Any]]) -> tuple[float, dict[str, str]]:
    """Return (wall seconds of the work, key -> digest) of a pool whose processes have imported everything."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(WORKERS) as pool:
        pool.map(_import_everything, range(WORKERS), chunksize=1)
        started = time.monotonic()
        results = pool.map(train_plainly, tasks, chunksize=1)
        return time.monotonic() - started, dict(results)


def _import_everything(_: int) -> int:
    import oakum.pipeline.training

    time.sleep(0.5)
    return len(oakum.pipeline.training.__name__)


def run_oakum(
    file: Path, seeds: int, home: Path, tasks: list[dict[str, Any]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return (seconds by phase, key -> digest) of `oakum run --only train` in a fresh home."""
    environment = {**os.environ, "OAKUM_HOME": str(home)}
    command = [
        sys.executable,
        "-m",
        "oakum",
        "run",
        str(file),
        "--seeds",
        f"0-{seeds - 1}",
        "--only",
        "train",
        "--json",
    ]
    started = time.monotonic()
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wall = time.monotonic() - started
    stages = json.loads(answer.stdout)["seconds"]["stages"]
    store = Store.open(home / "store")
    digests = {}
    for task in tasks:
        manifest = store.manifest("train", task["key"])
        assert manifest is not None
        digests[task["key"]] = digest(load_file(store.fetch(manifest, "model.safetensors")))
    return {"stages": stages, "before_and_after": wall - stages}, digests


def plan_tasks(file: Path, seeds: int, home: Home) -> list[dict[str, Any]]:
    """Return the trainings of an experiment as plain data."""
    request = read_request(RunOptions(file=file, seeds=list(range(seeds))))
    ensure_prepared(request["data"]["name"], home.data)
    plan = make_plan(request, file.name, home, None)
    tasks = [stage.task() for stage in plan.stages() if stage.kind == "train"]
    return [
        {
            "key": task.key,
            "config": task.config,
            "folds": task.folds,
            "selection": task.selection,
            "data_home": str(home.data),
        }
        for task in tasks
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: how long the experiment is")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            home = Home(Path(folder), f"{folder}/store")
            tasks = plan_tasks(options.file, options.seeds, home)
            plain, expected = run_plain(tasks)
            phases, found = run_oakum(options.file, options.seeds, Path(folder), tasks)
        assert expected == found, "oakum's weights differ from the plain loop's"
        rounds.append({"plain_seconds": plain, **phases, "ratio": phases["stages"] / plain})
        print(json.dumps(rounds[-1]), flush=True)
    card = {
        "benchmark": "overhead",
        "experiment": options.file.name,
        "seeds": options.seeds,
        "trainings": len(tasks),
        "processes": WORKERS,
        "median_ratio": statistics.median(each["ratio"] for each in rounds),
        "median_fixed_seconds": statistics.median(each["before_and_after"] for each in rounds),
        "rounds": rounds,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
