"""One run of an experiment: from a YAML file to the table, the report and the tracked runs.

A run whose plan was made before by the same code and whose stages are all stored ends here without importing torch,
Ray or MLflow: the request's digest leads to the stored plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.config import apply_overrides, read_yaml, require_plain, validate
from oakum.datasets.base import ensure_prepared
from oakum.pipeline.collect import collect, fill, skeleton, stage_refs
from oakum.pipeline.fingerprint import package_digest
from oakum.progress import Progress, code_facts
from oakum.records import RunRecord, canonical_json, sha256_hex
from oakum.session_home import Home
from oakum.session_report import tracked_files, write_report
from oakum.store import DamagedEntryError, Store
from oakum.tracking import RunHeader, Tracker, TrackingStatus
from oakum.weights import list_weights, weights_folder

if TYPE_CHECKING:
    from oakum.pipeline.executor import Executor, Failure
    from oakum.pipeline.plan import Plan


STAGE_KINDS = frozenset({"train", "snapshot", "answers", "gradients", "membership", "prior", "inversion", "judge"})
STAGE_PARTS = frozenset({"target", "shadow", "attack", "evaluation", "prior"})
# How long a run waits for MLflow at its end, and when it was stopped; what is left is delivered by the next run.
_DELIVERY_SECONDS = 60.0
_STOP_SECONDS = 3.0


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
    require_plain(data, options.file.name)
    if options.seeds is not None:
        data["seeds"] = options.seeds
    return data


def request_digest(data: dict[str, Any], where: str, home: Home) -> str:
    """Return the digest of what a plan follows from: the request, the code, the data's manifest, and weights at hand.

    Raises:
        ConfigError: the request names no data set, or one that is not prepared.
    """
    prepared = ensure_prepared(_data_name(data, where), home.data)
    weights = {entry.name: entry.file.sha256 for entry in list_weights(weights_folder(home.data)) if entry.file}
    parts = {"request": data, "code": package_digest(), "data": prepared.digest, "weights": weights}
    return sha256_hex(canonical_json(parts))


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
    stored = store.manifests(refs)
    held = {ref.key: manifest for ref, manifest in stored.items()}
    if len(held) < len(refs) or any(stale_input(manifest, held) for manifest in held.values()):
        return None
    return fill(plan["skeleton"], stored)


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
    with _tracker(options, store, home) as tracker, open_executor(options) as starting:
        with clock.phase("plan"):
            plan = make_plan(data, options.file.name, home, store, digest)
        with clock.phase("start"):
            starting.ready()
        return _execute(plan, starting, options, home, store, tracker, clock)


def _check_file(data: dict[str, Any], where: str) -> None:
    """Find what can be found wrong without the methods: a misspelled key must not wait for Ray and torch to start."""
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
    starting: StartingExecutor,
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
        tracker.finish(record, tracked_files(report))
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
        tracker.finish(record, tracked_files(report))
        result.tracking = tracker.close()
    return result


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


class StartingExecutor:
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
def open_executor(options: RunOptions) -> Iterator[StartingExecutor]:
    starting = StartingExecutor(options)
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
