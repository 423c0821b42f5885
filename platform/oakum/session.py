"""One run of an experiment: from a YAML file to the table, the report and the tracked runs.

A run whose plan was made before by the same code and whose stages are all stored ends here without importing torch,
Ray or MLflow: the request's digest leads to the stored plan.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.config import ConfigError, apply_overrides, read_yaml, validate
from oakum.datasets.base import ensure_prepared
from oakum.pipeline.collect import collect, skeleton, stage_refs
from oakum.pipeline.fingerprint import package_digest
from oakum.progress import Progress, code_facts
from oakum.records import RunRecord, canonical_json, sha256_hex
from oakum.store import DamagedEntryError, Store
from oakum.tracking import RunHeader, Tracker, TrackingStatus

if TYPE_CHECKING:
    from oakum.pipeline.executor import Executor, Failure
    from oakum.pipeline.plan import Plan


STAGE_KINDS = frozenset({"train", "answers", "membership", "prior", "inversion", "judge"})
_GANG_START_SECONDS = 25.0
# How long a run waits for MLflow at its end, and when it was stopped; what is left is delivered by the next run.
_DELIVERY_SECONDS = 60.0
_STOP_SECONDS = 3.0


@dataclass(frozen=True)
class Home:
    """Where everything of a user lies.

    Attributes:
        folder: `$OAKUM_HOME`, else a per-user data folder; never the current directory.
        store_uri: `$OAKUM_STORE` (a folder or an s3:// or gs:// address), else `<folder>/store`.
    """

    folder: Path
    store_uri: str

    @classmethod
    def of_environment(cls) -> Home:
        """Return the home that the environment names; its folder is created for its owner alone (0700)."""
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        folder = Path(os.environ.get("OAKUM_HOME") or Path(data) / "oakum").expanduser().absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create {folder}: {error.strerror}; set OAKUM_HOME to a folder that you may write"
            ) from error
        return cls(folder, os.environ.get("OAKUM_STORE") or str(folder / "store"))

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def report(self, name: str) -> Path:
        """Return the path of an experiment's HTML report."""
        return self.folder / "reports" / name / "report.html"


@dataclass(frozen=True)
class RunOptions:
    """What the command line asks of a run."""

    file: Path
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] | None = None
    executor: str = "ray"
    max_cpus: float | None = None
    max_gpus: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    max_hours: float | None = None
    track: bool = True
    checkpoint_seconds: float = 20.0
    quiet: bool = False


@dataclass
class RunResult:
    """What a run came to.

    Attributes:
        record: the numbers; stages that are missing leave gaps.
        failures: stages that failed for good.
        skipped: labels of stages that never started.
        report: the HTML report, or None when nothing could be reported.
    """

    record: RunRecord
    report: Path | None
    failures: list[Failure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    tracking: TrackingStatus | None = None
    ran: int = 0


def read_request(options: RunOptions) -> dict[str, Any]:
    """Return the experiment as plain data, with `--set` and `--seeds` applied.

    Raises:
        ConfigError: the file cannot be read or an override does not fit it.
    """
    data = apply_overrides(read_yaml(options.file), options.overrides)
    if options.seeds is not None:
        data["seeds"] = options.seeds
    return data


def request_digest(data: dict[str, Any], where: str, home: Home) -> str:
    """Return the digest of everything that a plan follows from: the request, the code, and the data's manifest.

    Raises:
        ConfigError: the request names no data set, or one that is not prepared.
    """
    prepared = ensure_prepared(_data_name(data, where), home.data)
    return sha256_hex(canonical_json({"request": data, "code": package_digest(), "data": prepared.digest}))


def _data_name(data: dict[str, Any], where: str) -> str:
    named = data.get("data")
    name = named.get("name") if isinstance(named, dict) else None
    if isinstance(name, str):
        return name
    from oakum.pipeline.experiment import resolve_experiment

    return resolve_experiment(data, where).file.data.name


def find_finished(digest: str, store: Store) -> RunRecord | None:
    """Return the record of a plan that is known and whose stages are all stored and not stale; None otherwise."""
    from oakum.pipeline.executor import stale_input

    request = store.get_document(f"requests/{digest}")
    plan = store.get_document(f"plans/{request['plan']}") if request else None
    if plan is None:
        return None
    refs = stage_refs(plan["skeleton"])
    published = {kind: store.published(kind) for kind in {ref.kind for ref in refs}}
    if any(ref.key not in published[ref.kind] for ref in refs):
        return None
    held = {ref.key: manifest for ref in refs if (manifest := store.manifest(ref.kind, ref.key)) is not None}
    if len(held) < len(refs) or any(stale_input(manifest, held) for manifest in held.values()):
        return None
    return collect(plan["skeleton"], store)


def run(options: RunOptions, home: Home) -> RunResult:
    """Run an experiment to its end, or find that it is stored.

    Raises:
        ConfigError: the experiment, its data or the machine do not fit; nothing was started.
    """
    clock = _Clock()
    store = Store.open(home.store_uri)
    data = read_request(options)
    digest = request_digest(data, options.file.name, home)
    finished = find_finished(digest, store)
    if finished is not None:
        try:
            return _already_done(finished, options, home, store)
        except DamagedEntryError as error:
            Progress.say(f"{error}; it was set aside and is computed again")
    _check_file(data, options.file.name)
    with _tracker(options, store, home) as tracker, _executor(options) as starting:
        with clock.phase("plan"):
            plan = make_plan(data, options.file.name, home, store, digest)
        with clock.phase("start"):
            starting.ready()
        return _execute(plan, starting, options, home, store, tracker, clock)


def _check_file(data: dict[str, Any], where: str) -> None:
    """Find what can be found wrong without the methods: a misspelt key must not wait for Ray and torch to start."""
    from oakum.pipeline.experiment import ExperimentFile

    validate(ExperimentFile, data, where)


def make_plan(data: dict[str, Any], where: str, home: Home, store: Store | None, digest: str = "") -> Plan:
    """Validate the request against its methods and return the plan; with a store, also note it there.

    Raises:
        ConfigError: what does not fit, with its place in the file.
    """
    from oakum.pipeline.experiment import resolve_experiment
    from oakum.pipeline.plan import build_plan

    experiment = resolve_experiment(data, where)
    plan = build_plan(experiment, home.data, where)
    if store is not None:
        stages = [{"kind": stage.kind, "key": stage.key} for stage in plan.stages()]
        document = {"name": experiment.file.name, "stages": stages, "skeleton": skeleton(plan, code_facts())}
        store.put_document(f"plans/{plan.plan_key}", document)
        store.put_document(f"requests/{digest}", {"plan": plan.plan_key})
    return plan


def _execute(
    plan: Plan,
    starting: _StartingExecutor,
    options: RunOptions,
    home: Home,
    store: Store,
    tracker: Tracker | None,
    clock: _Clock,
) -> RunResult:
    from oakum.pipeline.executor import Ledger
    from oakum.pipeline.stage import WorkerSettings

    document = skeleton(plan, code_facts())
    if tracker is not None:
        tracker.open_run(RunHeader.of(RunRecord.from_json(document)))
    progress = Progress(plan, store, tracker, quiet=options.quiet)
    ledger = Ledger.of(plan.stages(), store, progress, only=options.only, skip=options.skip)
    if options.max_hours is not None:
        ledger.stop_at = time.monotonic() + 3600 * options.max_hours
    progress.begin(ledger)
    settings = WorkerSettings(store.uri, home.data, options.checkpoint_seconds, commit=code_facts().get("commit") or "")
    ran = len(ledger.stages) - len(ledger.done)
    with clock.phase("stages"):
        starting.ready().run(ledger, settings)
    starting.end()
    progress.end()
    record = collect({**document, "seconds": {**clock.seconds, **progress.seconds_by_kind()}}, store)
    failures = list(ledger.failures.values())
    skipped = [stage.label for stage in ledger.skipped()]
    with clock.phase("report"):
        report = write_report(record, home, store)
    if tracker is not None and not failures and not skipped:
        tracker.finish(record, _tracked_files(report))
    return RunResult(record, report, failures, skipped, ran=ran)


def _already_done(record: RunRecord, options: RunOptions, home: Home, store: Store) -> RunResult:
    """Return the stored result; the report is written again only when it is missing, and tracking is completed."""
    report = home.report(record.name)
    if not report.is_file() or record.plan_key[:16] not in report.read_text(encoding="utf-8"):
        report = write_report(record, home, store)
    result = RunResult(record, report)
    if options.track:
        tracker = Tracker(store, home.folder)
        tracker.open_run(RunHeader.of(record))
        tracker.finish(record, _tracked_files(report))
        result.tracking = tracker.close()
    return result


def write_report(record: RunRecord, home: Home, store: Store) -> Path:
    """Write the HTML report and the figures, and return the report's path.

    Raises:
        DamagedEntryError: a payload is damaged; its entry was set aside, so that the next run computes it again.
    """
    from oakum.report import figures, html

    out = home.report(record.name)
    pictures = real_images(record, home)
    try:
        figures.write(record, store, out.parent / "figures", pictures, formats=("png",))
        return html.write(record, store, out, pictures)
    except DamagedEntryError as error:
        store.set_aside(error.kind, error.key, str(error), attempt=error.attempt)
        raise


def real_images(record: RunRecord, home: Home, count: int = 4) -> dict[int, Any]:
    """Return up to `count` training images of each of the target's classes; none of data that is not public.

    The images are (n, C, H, W) float in [0, 1], by class index, from the first seed's training fold.
    """
    if record.data["public"] is not True or len(record.data["input_shape"]) != 3:
        return {}
    from oakum.pipeline.folds import LoadedFolds, Selection

    config = record.config
    folds = LoadedFolds(
        Selection(
            data=config["data"]["name"],
            image_size=config["data"]["image_size"],
            folds=config["folds"],
            experiment_seed=config["experiment_seed"],
            seed_index=0,
        ),
        home.data,
    )
    rows = folds.require("train")
    index = folds.class_index(rows)
    samples = folds.samples
    return {
        label: samples.x[rows[index == label][:count]] / samples.max_value
        for label in range(len(folds.private_classes))
    }


def _tracked_files(report: Path | None) -> list[Path]:
    if report is None:
        return []
    return [report, *sorted((report.parent / "figures").glob("*.png"))]


@contextmanager
def _tracker(options: RunOptions, store: Store, home: Home) -> Iterator[Tracker | None]:
    """Deliver to MLflow while the run goes on; what cannot be delivered waits in the store."""
    if not options.track:
        yield None
        return
    tracker = Tracker(store, home.folder)
    tracker.start()
    seconds = _DELIVERY_SECONDS
    try:
        yield tracker
    except KeyboardInterrupt:
        seconds = _STOP_SECONDS
        raise
    finally:
        status = tracker.close(seconds)
        if status.warning:
            Progress.say(status.warning)


class _StartingExecutor:
    """An executor that starts while the plan is made."""

    def __init__(self, options: RunOptions) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="oakum-start")
        self._future = self._pool.submit(_start_executor, options)
        self._ending = False

    def ready(self) -> Executor:
        return self._future.result()

    def end(self) -> None:
        """Begin to end the executor, in the thread that started it: Ray's processes die with that thread."""
        if not self._ending:
            self._ending = True
            self._pool.submit(self._close_started)

    def close(self) -> None:
        """End the executor and wait for that."""
        self.end()
        self._pool.shutdown(wait=True)

    def interrupt(self) -> None:
        """End the executor now; one that is still starting is left to end with this process."""
        self.end()
        self._pool.shutdown(wait=self._future.done())

    def _close_started(self) -> None:
        if self._future.exception() is None:
            self._future.result().close()


@contextmanager
def _executor(options: RunOptions) -> Iterator[_StartingExecutor]:
    starting = _StartingExecutor(options)
    try:
        yield starting
    except KeyboardInterrupt:
        starting.interrupt()
        raise
    except BaseException:
        starting.close()
        raise
    starting.close()


def _start_executor(options: RunOptions) -> Executor:
    if options.executor == "serial":
        from oakum.pipeline.executor import Serial

        return Serial()
    from oakum.distributed.cluster import configure_environment

    configure_environment()
    from oakum.distributed.on_ray import OnRay

    return OnRay(options.max_cpus, options.max_gpus)


class _Clock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - started


def check(options: RunOptions, home: Home) -> dict[str, Any]:
    """Return what a run would do: the resolved experiment, its stages by kind, and what is stored.

    Raises:
        ConfigError: as `run` does.
    """
    from oakum.pipeline.executor import find_present

    store = Store.open(home.store_uri)
    data = read_request(options)
    request_digest(data, options.file.name, home)
    plan = make_plan(data, options.file.name, home, None)
    stages = {stage.key: stage for stage in plan.stages()}
    present = find_present(stages, store)
    known = _mean_seconds(store, {stage.kind for stage in stages.values()})
    kinds: dict[str, dict[str, Any]] = {}
    for key, stage in stages.items():
        row = kinds.setdefault(stage.kind, {"stages": 0, "stored": 0, "seconds": 0.0})
        row["stages"] += 1
        row["stored"] += key in present
        if key not in present:
            row["seconds"] = (
                None if stage.kind not in known or row["seconds"] is None else row["seconds"] + known[stage.kind]
            )
    return {
        "name": plan.experiment.file.name,
        "experiment": plan.experiment.document(),
        "cells": len(plan.cells),
        "kinds": kinds,
        "warnings": list(plan.warnings) + _gang_warnings(plan, known),
        "plan_key": plan.plan_key,
        "run_key": plan.run_key,
    }


def _mean_seconds(store: Store, kinds: set[str]) -> dict[str, float]:
    """Return the mean seconds of stored stages by kind: the only basis that an estimate has."""
    seconds: dict[str, list[float]] = {}
    for entry in store.entries():
        if entry.kind in kinds and "seconds" in entry.provenance:
            seconds.setdefault(entry.kind, []).append(float(entry.provenance["seconds"]))
    return {kind: sum(values) / len(values) for kind, values in seconds.items()}


def _gang_warnings(plan: Plan, known: dict[str, float]) -> list[str]:
    workers = plan.experiment.file.execution.workers
    if workers > 1 and known.get("train", _GANG_START_SECONDS) < 10 * _GANG_START_SECONDS:
        return [
            f"execution.workers is {workers}: starting Ray Train takes about {_GANG_START_SECONDS:.0f} s for each "
            "training, which pays only for trainings of several minutes"
        ]
    return []


def describe_check(summary: dict[str, Any]) -> str:
    """Return the text form of `check`'s result."""
    import yaml

    lines = [
        f"{summary['name']}: {summary['cells']} cells",
        "",
        yaml.safe_dump(summary["experiment"], sort_keys=False).rstrip(),
        "",
    ]
    lines.append(f"{'kind':<12}{'stages':>8}{'stored':>8}   estimate (CPU seconds to run)")
    for kind, row in summary["kinds"].items():
        estimate = "unknown: none stored yet" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(f"{kind:<12}{row['stages']:>8}{row['stored']:>8}   {estimate}")
    lines += [f"warning: {text}" for text in summary["warnings"]]
    return "\n".join(lines) + "\n"


def report_again(run: str, home: Home) -> tuple[RunRecord, Path]:
    """Write a report again; `run` is an experiment's name (its latest plan) or the beginning of a plan key.

    Raises:
        ConfigError: no plan of that name or key.
    """
    store = Store.open(home.store_uri)
    found = []
    for name in store.list_documents("plans"):
        document = store.get_document(name)
        if document is not None and (document["name"] == run or name.removeprefix("plans/").startswith(run)):
            found.append(collect(document["skeleton"], store))
    if not found:
        raise ConfigError(f"no plan is called {run!r} or has a key that begins so; run an experiment first")
    record = max(found, key=lambda each: _latest(each, store))
    return record, write_report(record, home, store)


def _latest(record: RunRecord, store: Store) -> float:
    manifests = [store.manifest(item.kind, item.key) for cell in record.cells for item in cell.stages.values()]
    return max((manifest.created for manifest in manifests if manifest is not None), default=0.0)
