"""MLflow runs, found by tag: one for a plan, below it one for every cell and every shared stage."""

from __future__ import annotations

import getpass
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from oakum.faults import fault_point
from oakum.records import MetricValue, sha256_hex
from oakum.tracking_destination import Destination
from oakum.tracking_outbox import Owner, is_dead, this_driver

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking.client import MlflowClient

_NAME = "mlflow.runName"
RUN_KEY, LEVEL, OWNER, DRIVER = "oakum.run_key", "oakum.level", "oakum.owner", "oakum.driver"
_BATCH = 100
_METRIC_BATCH = 500
_PAGE = 500
_VALUE_CHARACTERS = 4000
_NAME_CHARACTERS = 250


class Runs:
    """Writes to the runs of one destination. Every method may be repeated and changes nothing the second time."""

    def __init__(self, client: MlflowClient, destination: Destination) -> None:
        self._client = client
        self._destination = destination
        self._experiments: dict[str, str] = {}
        self._known: dict[str, dict[tuple[str, str], str]] = {}

    def forget(self) -> None:
        """Look everything up again: somebody may have deleted runs."""
        self._experiments.clear()
        self._known.clear()

    def parent(self, run: Mapping[str, Any], driver: str, created: float) -> str:
        """Return the id of a plan's run, created on first use; `run` as in `Event.run`, `created` in Unix seconds."""
        tags = {_NAME: f"{run['name']} {run['run_key'][:8]}", DRIVER: driver}
        return self._ensure(run, ("run", ""), created, tags)

    def child(self, run: Mapping[str, Any], owner: Owner, driver: str, created: float) -> str:
        """Return the id of the run of a cell or a shared stage, created below its parent on first use."""
        tags = {"mlflow.parentRunId": self.parent(run, driver, created), DRIVER: driver}
        if owner.level == "cell":
            tags[_NAME] = f"{owner.setting}, seed {owner.seed}"
            tags |= {"oakum.cell": owner.owner, "oakum.defense": owner.defense}
        else:
            tags |= {_NAME: owner.role, "oakum.role": owner.role}
        return self._ensure(run, (owner.level, owner.owner), created, tags)

    def revive(self, run_id: str, driver: str) -> None:
        """Mark a run as worked on by `driver`, unless it is finished."""
        run = self._client.get_run(run_id)
        if run.info.status == "FINISHED":
            return
        if run.data.tags.get(DRIVER) != driver:
            self.tag(run_id, {DRIVER: driver})
        if run.info.status != "RUNNING":
            self._write("update_run", run_id, status="RUNNING")

    def reopen(self, run_id: str, driver: str) -> None:
        """Mark a run as worked on by `driver`, even when it was finished before."""
        self.tag(run_id, {DRIVER: driver})
        self._write("update_run", run_id, status="RUNNING")

    def end(self, run_id: str, status: str, seconds: float) -> None:
        """Give a run its last status and the time of its end (Unix seconds)."""
        self._write("set_terminated", run_id, status, int(seconds * 1000))

    def is_finished(self, run_id: str) -> bool:
        return bool(self._client.get_run(run_id).info.status == "FINISHED")

    def sweep(self, names: Iterable[str], *, own: str | None = None) -> None:
        """Mark as KILLED what claims to run but whose driver ended on this machine; with `own`, this driver's as that.

        `names` are those of the experiments to look through.
        """
        for name in names:
            for run in self._search(self._experiment(name), "attributes.status = 'RUNNING'"):
                driver = run.data.tags.get(DRIVER, "")
                if driver and driver == this_driver():
                    if own is not None:
                        self._write("set_terminated", run.info.run_id, own)
                elif is_dead(driver):
                    self._write("set_terminated", run.info.run_id, "KILLED")

    def tag(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags; empty values are left out."""
        from mlflow.entities import RunTag

        entities = [
            RunTag(_plain_name(key), str(value)[:_VALUE_CHARACTERS])
            for key, value in tags.items()
            if value not in (None, "")
        ]
        for start in range(0, len(entities), _BATCH):
            self._write("log_batch", run_id, tags=entities[start : start + _BATCH])

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters that the run has not yet. MLflow's parameters never change: other values become a tag."""
        from mlflow.entities import Param

        had = self._client.get_run(run_id).data.params
        wanted = {_plain_name(key): value[:_VALUE_CHARACTERS] for key, value in params.items()}
        fresh = [Param(key, value) for key, value in wanted.items() if key not in had]
        for start in range(0, len(fresh), _BATCH):
            self._write("log_batch", run_id, params=fresh[start : start + _BATCH])
        changed = {key: value for key, value in wanted.items() if had.get(key, value) != value}
        if changed:
            self.tag(run_id, {"oakum.changed_params": json.dumps(changed, sort_keys=True)})

    def history(self, run_id: str, rows: Iterable[Mapping[str, Any]], prefix: str, published: float) -> None:
        """Log one point a row under the row's own step and time, so that a repetition adds nothing."""
        from mlflow.entities import Metric

        points: list[Metric] = []
        for index, row in enumerate(rows):
            step = int(row.get("epoch", row.get("step", index)))
            stamp = int(float(row.get("finished", published)) * 1000)
            points += [
                Metric(metric_name(prefix + key), float(value), stamp, step)
                for key, value in row.items()
                if key not in {"epoch", "step", "finished"} and _is_finite(value)
            ]
        for start in range(0, len(points), _METRIC_BATCH):
            self._write("log_batch", run_id, metrics=points[start : start + _METRIC_BATCH])

    def values(self, run_id: str, metrics: Mapping[str, MetricValue], seconds: float) -> None:
        """Log the final numbers of a run that differ from what it shows; unresolved ones are listed in a tag."""
        from mlflow.entities import Metric

        numbers: dict[str, float] = {}
        for key, metric in metrics.items():
            ends = {key: metric.value, f"{key}/low": metric.low, f"{key}/high": metric.high}
            numbers |= {metric_name(name): value for name, value in ends.items() if _is_finite(value)}
        had = self._client.get_run(run_id).data.metrics
        stamp = int(seconds * 1000)
        fresh = [Metric(name, value, stamp, 0) for name, value in numbers.items() if had.get(name) != value]
        for start in range(0, len(fresh), _METRIC_BATCH):
            self._write("log_batch", run_id, metrics=fresh[start : start + _METRIC_BATCH])
        unresolved = ", ".join(key for key, metric in metrics.items() if metric.value is None)
        self.tag(run_id, {"oakum.unresolved": unresolved})

    def dataset(self, run_id: str, name: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """Log which data a run read: MLflow keeps 36 characters of the digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": f"oakum://{name}"})
        dataset = Dataset(name, digest[:36], "oakum", source, profile=json.dumps({**profile, "digest": digest}))
        self._write("log_inputs", run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def files(self, run_id: str, paths: Iterable[Path], folder: str) -> None:
        """Upload files into a folder, but for those that are there by name and size."""
        wanted = {path.name: path for path in paths}
        there = self._client.list_artifacts(run_id, folder) if wanted else []
        sizes = {Path(item.path).name: item.file_size for item in there}
        for name, path in wanted.items():
            if sizes.get(name) != path.stat().st_size:
                self._write("log_artifact", run_id, str(path), folder)

    def text(self, run_id: str, text: str, name: str) -> None:
        """Upload a text as a file; it replaces an earlier one."""
        self._write("log_text", run_id, text, name)

    def _ensure(self, run: Mapping[str, Any], place: tuple[str, str], created: float, tags: dict[str, str]) -> str:
        known = self._known.setdefault(run["run_key"], {})
        if place not in known:
            experiment = self._experiment(run["name"])
            known.update(self._places(experiment, run["run_key"]))
            if place not in known:
                level, owner = place
                tags = {RUN_KEY: run["run_key"], LEVEL: level, OWNER: owner, **_origin(), **tags}
                tags[_NAME] = tags[_NAME][:_NAME_CHARACTERS]
                made = self._write("create_run", experiment, int(created * 1000), tags).info.run_id
                # Another machine may have created the same run: all choose the same one of them.
                known[place] = self._places(experiment, run["run_key"]).get(place, made)
                if known[place] != made:
                    self._write("delete_run", made)
        return known[place]

    def _places(self, experiment: str, run_key: str) -> dict[tuple[str, str], str]:
        """Return {(level, owner): run id}; of runs that stand for the same, the one that started first."""
        found = self._search(experiment, f"tags.`{RUN_KEY}` = '{run_key}'")
        found.sort(key=lambda run: (run.info.start_time, run.info.run_id), reverse=True)
        return {(run.data.tags.get(LEVEL, ""), run.data.tags.get(OWNER, "")): run.info.run_id for run in found}

    def _search(self, experiment: str, condition: str) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment], condition, max_results=_PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    identity = self._write("create_experiment", name, self._artifact_location(name))
                except MlflowException:
                    found = self._client.get_experiment_by_name(name)
                    if found is None:
                        raise
            if found is not None:
                identity = found.experiment_id
                if found.lifecycle_stage != "active":
                    raise ValueError(
                        f"the MLflow experiment {name!r} was deleted: restore it with "
                        f"`mlflow experiments restore --experiment-id {identity}`, or name this experiment otherwise"
                    )
            self._experiments[name] = identity
        return self._experiments[name]

    def _artifact_location(self, name: str) -> str | None:
        root = self._destination.artifacts
        if root is None:
            return None
        return str(root / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:60]}-{sha256_hex(name.encode())[:8]}")

    def _write(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call one writing method of the client; a fault test may end the process after it."""
        result = getattr(self._client, method)(*arguments, **named)
        fault_point("tracking.after_write")
        return result


def metric_name(key: str) -> str:
    """Return `key` in the characters that MLflow allows in a metric's name; long keys that differ stay apart."""
    parts = [part for part in re.sub(r"[^\w\-.:/ ]", "_", key, flags=re.ASCII).split("/") if part.strip(".")]
    name = "/".join(parts) or "metric"
    if len(name) <= _NAME_CHARACTERS:
        return name
    digest = sha256_hex(key.encode(errors="replace"))[:16]
    return f"{name[: _NAME_CHARACTERS - 17]}-{digest}"


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested plain data as dotted keys with plain values: numbers as numbers, lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        elif isinstance(value, list | tuple):
            flat[name] = json.dumps(value)
        elif value is not None:
            flat[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def _plain_name(key: str) -> str:
    return metric_name(key.replace("/", "_"))


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _origin() -> dict[str, str]:
    """Return the tags that say who made a run, for MLflow's own columns."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "oakum", "mlflow.source.type": "LOCAL"}
