"""What a run would take on other machines: `oakum plan --simulate`. Nothing is run.

Durations come from stages in the store that are like the planned ones, as long as they took on the machines that ran
them; the plan is replayed on simulated nodes (`pipeline/simulation.py`). Requests to the store and to MLflow are
estimated by `session_traffic.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from oakum.config import ConfigError
from oakum.pipeline.simulation import Delays, Nodes, Simulation, simulate
from oakum.records import canonical_json
from oakum.session import STAGE_KINDS, RunOptions, make_plan, read_request, request_digest
from oakum.session_home import Home
from oakum.session_traffic import MLFLOW_CALLS_PER_SECOND, store_traffic, tracking_traffic
from oakum.store import Manifest, Store

if TYPE_CHECKING:
    from oakum.pipeline.stage import Stage

__all__ = ["Delays", "Nodes", "SimulationRequest", "simulate_experiment"]

_SHOWN_OF_PATH = 5
_GIVEN = "--seconds"


@dataclass(frozen=True)
class SimulationRequest:
    """Where the plan is to run, and what is assumed.

    Attributes:
        seconds: `<kind>` or `<kind>/<method>` -> seconds of a stage; goes before what is recorded.
        from_scratch: stages that are stored are run, too.
        calls_per_second: what MLflow takes from one thread.
    """

    nodes: Nodes
    seconds: Mapping[str, float] = field(default_factory=dict)
    from_scratch: bool = False
    delays: Delays = field(default_factory=Delays)
    calls_per_second: float = MLFLOW_CALLS_PER_SECOND


@dataclass(frozen=True)
class Estimate:
    """What a stage will take.

    Attributes:
        basis: what is known of it: see `Experience`.
        seconds: of the stage alone (a median).
        bytes, files: of its payload (medians), or None.
        devices, workers: what the seconds were measured with.
    """

    basis: str
    seconds: float
    bytes: int | None = None
    files: int | None = None
    devices: frozenset[str] = frozenset()
    workers: frozenset[int] = frozenset()


class Experience:
    """What stored stages tell of planned ones.

    A stage is known by its own record, else by those with its configuration and other seeds, else by those of its
    method (defense, attack or prior), else by those of its kind.
    """

    LIKENESS = ("its own record", "same settings, other seeds", "same method", "same kind")

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._found: dict[tuple[str, ...], list[Manifest]] = defaultdict(list)
        self._known: dict[tuple[str, ...], Estimate] = {}
        for manifest in manifests:
            if "seconds" in manifest.provenance:
                for name in _names(manifest.kind, manifest.key, manifest.key_document["config"]):
                    self._found[name].append(manifest)

    def of(self, stage: Stage) -> Estimate | None:
        """Return what the nearest stored stages took; None when no stage of the kind is stored."""
        for likeness, name in zip(self.LIKENESS, _names(stage.kind, stage.key, stage.config), strict=True):
            if name in self._found:
                if name not in self._known:
                    self._known[name] = _estimate(likeness, self._found[name])
                return self._known[name]
        return None


def _names(kind: str, key: str, config: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return what stages are compared by, the nearest likeness first."""
    settings = canonical_json({name: value for name, value in config.items() if name not in {"seed", "rows"}})
    return (kind, "key", key), (kind, "settings", settings.decode()), (kind, "method", method_of(config)), (kind,)


def _estimate(basis: str, manifests: list[Manifest]) -> Estimate:
    made = [manifest.provenance for manifest in manifests]
    return Estimate(
        basis,
        seconds=median(float(each["seconds"]) for each in made),
        bytes=round(median(sum(fact["bytes"] for fact in manifest.files.values()) for manifest in manifests)),
        files=round(median(len(manifest.files) for manifest in manifests)),
        devices=frozenset(str(each.get("device", "cpu")).partition(":")[0] for each in made),
        workers=frozenset(int(each.get("workers", 1)) for each in made),
    )


def method_of(config: Mapping[str, Any]) -> str:
    """Return the name of the attack, defense or prior in a stage's configuration, or ""."""
    named: Any = next((config[part] for part in ("attack", "defense", "prior") if part in config), {})
    return str(named.get("name", "")) if isinstance(named, Mapping) else ""


def simulate_experiment(options: RunOptions, request: SimulationRequest, home: Home) -> dict[str, Any]:
    """Plan an experiment and return, as plain JSON, what running it would take.

    Raises:
        ConfigError: as `run` does; also a kind of stage whose duration is not known, or a stage that fits no node.
    """
    from oakum.pipeline.executor import find_present

    unknown = sorted({name.partition("/")[0] for name in request.seconds} - STAGE_KINDS)
    if unknown:
        raise ConfigError(
            f"--seconds {unknown[0]}: there is no such kind of stage; kinds: {', '.join(sorted(STAGE_KINDS))}"
        )
    store = Store.open(home.store_uri)
    data = read_request(options)
    request_digest(data, options.file.name, home)
    plan = make_plan(data, options.file.name, home, None)
    stages = {stage.key: stage for stage in plan.stages()}
    done = set() if request.from_scratch else find_present(stages, store)
    todo = [stage for stage in stages.values() if stage.key not in done]
    estimates = _estimates(todo, Experience(store.entries()), request.seconds)
    seconds = {key: estimate.seconds for key, estimate in estimates.items()}
    found = simulate(stages.values(), seconds, request.nodes, done, request.delays)
    tracking = tracking_traffic(plan, seconds.keys(), request.calls_per_second)
    sizes = {key: (estimate.files, estimate.bytes) for key, estimate in estimates.items()}
    bounds = found.bounds()
    return {
        "name": plan.experiment.file.name,
        "nodes": vars(request.nodes),
        "delays": vars(request.delays),
        "stages": len(stages),
        "stored": len(stages) - len(todo),
        "makespan_seconds": found.makespan,
        "cpu_hours": found.cpu_seconds / 3600,
        "gpu_hours": found.gpu_seconds / 3600,
        **_utilization(found),
        "critical_path": _critical_path(found, seconds),
        "kinds": _by_kind(todo, seconds),
        "durations": dict(Counter(estimate.basis for estimate in estimates.values())),
        "notes": _notes(todo, estimates),
        "store": store_traffic(stages, seconds, sizes, options.checkpoint_seconds, tracking["events"]),
        "tracking": {**tracking, "keeps_up": tracking["seconds"] <= found.makespan},
        "bounds": {**bounds, "tracking": tracking["seconds"]},
        "stages_bound_by": max(bounds, key=lambda name: bounds[name]) if todo else None,
    }


def _estimates(todo: Iterable[Stage], experience: Experience, given: Mapping[str, float]) -> dict[str, Estimate]:
    """Return what each stage will take, by key.

    Raises:
        ConfigError: nothing is known of some kinds, or something was given that fits no stage.
    """
    estimates: dict[str, Estimate] = {}
    unknown: set[str] = set()
    unused = set(given)
    for stage in todo:
        names = (f"{stage.kind}/{method_of(stage.config)}", stage.kind)
        unused -= set(names)
        named = next((given[name] for name in names if name in given), None)
        known = experience.of(stage)
        if named is not None:
            estimates[stage.key] = replace(
                known or Estimate(_GIVEN, 0.0), basis=_GIVEN, seconds=named, devices=frozenset(), workers=frozenset()
            )
        elif known is not None:
            estimates[stage.key] = known
        else:
            unknown.add(stage.kind)
    if unused:
        raise ConfigError(f"--seconds {min(unused)}: no stage that is to run is of that kind and method")
    if unknown:
        kinds = sorted(unknown)
        raise ConfigError(
            f"no duration is known for stages of kind {', '.join(kinds)}: none is stored. Run some first, or say "
            + "--seconds "
            + " ".join(f"{kind}=SECONDS" for kind in kinds)
        )
    return estimates


def _utilization(found: Simulation) -> dict[str, Any]:
    makespan, capacity = found.makespan, found.nodes.capacity()
    cpus, gpus = found.busy()

    def mean(used: float, there: float) -> float:
        return used / (there * makespan) if there and makespan else 0.0

    return {
        "busy_cpus": {"mean": mean(found.cpu_seconds, capacity.cpus), "by_tenth": cpus},
        "busy_gpus": {"mean": mean(found.gpu_seconds, capacity.gpus), "by_tenth": gpus},
    }


def _critical_path(found: Simulation, seconds: Mapping[str, float]) -> dict[str, Any]:
    longest = sorted(found.critical_path, key=lambda stage: -seconds[stage.key])[:_SHOWN_OF_PATH]
    return {
        "seconds": found.critical_seconds,
        "stages": len(found.critical_path),
        "longest": [{"kind": each.kind, "label": each.label, "seconds": seconds[each.key]} for each in longest],
    }


def _by_kind(todo: Iterable[Stage], seconds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    rows: dict[str, list[float]] = defaultdict(list)
    for stage in todo:
        rows[stage.kind].append(seconds[stage.key])
    return {
        kind: {"stages": len(row), "seconds": sum(row), "median_seconds": median(row)} for kind, row in rows.items()
    }


def _notes(todo: Iterable[Stage], estimates: Mapping[str, Estimate]) -> list[str]:
    """Say where seconds were measured on something else than what is planned."""
    notes: set[str] = set()
    for stage in todo:
        estimate = estimates[stage.key]
        device = "cuda" if stage.resources.gpus else "cpu"
        if others := estimate.devices - {device}:
            notes.add(f"{stage.kind}: seconds were measured on {', '.join(sorted(others))}, the plan asks for {device}")
        if counts := estimate.workers - {stage.resources.workers}:
            measured = ", ".join(str(count) for count in sorted(counts))
            planned = stage.resources.workers
            notes.add(f"{stage.kind}: seconds were measured with {measured} workers, the plan asks for {planned}")
    return sorted(notes)
