"""Brings events from the store's outbox to MLflow, one at a time, each in a form that may be repeated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oakum.faults import fault_point
from oakum.records import CellRecord, RunRecord, SharedRecord
from oakum.store import DamagedEntryError, Manifest, Store, StoreError
from oakum.tracking_destination import Destination
from oakum.tracking_outbox import CellHeader, Event, Ledger, Outbox, Owner, SharedHeader
from oakum.tracking_runs import Runs, flatten, metric_name

# Files of a stage that may go to MLflow: always, and only when the data set is public. Others stay in the store.
_PLAIN_FILES = {"model.safetensors", "config.json", "history.json"}
_PUBLIC_FILES = {
    "evidence.parquet",
    "generator.safetensors",
    "judgments.parquet",
    "reconstructions.safetensors",
    "samples.png",
}
# A report leaves private pictures out by itself; loose pictures and tables of scores are not trusted to.
_REPORT_SUFFIXES = {".html", ".json", ".md", ".txt"}
# What a cell's row repeats of the experiment, beside its defense.
_CELL_CONFIG = ("data", "model", "recipe", "execution")
_NOT_PARAMETERS = {"name", "description", "settings", "seeds", "folds", "attacks"}


class Delivery:
    """A connection to one destination. Used by one thread."""

    def __init__(self, store: Store, destination: Destination) -> None:
        """Connect; a database file is created when it is missing. Raises as `Destination.prepare`."""
        destination.prepare()
        from mlflow.tracking.client import MlflowClient

        self._store = store
        self._outbox = Outbox(store)
        self._destination = destination
        self._ledger = Ledger(store, destination.identity() or destination.uri)
        self._runs = Runs(MlflowClient(tracking_uri=destination.uri), destination)
        self._monitors: dict[str, Any] = {}
        self._experiments: set[str] = set()

    def deliver(self, name: str, current: tuple[str, str] | None = None) -> bool:
        """Deliver the event of that name, note it in the ledger, and take it out of the outbox.

        Args:
            name: of the event's document.
            current: (run key, driver) of the run that this process works on: its runs are marked as the driver's.

        Returns:
            Whether there was such an event; another process may have delivered it.

        Raises:
            ValueError, StoreError, OSError, MlflowException, requests.RequestException: it stays in the outbox.
        """
        with self._destination.lock("deliver"):
            event = self._outbox.get(name)
            if event is None:
                return False
            if current is not None and event.run_key == current[0]:
                event = replace(event, driver=current[1])
            self._ledger.refresh(event.run_key)
            fault_point("tracking.before_delivery")
            self._experiments.add(event.run["name"])
            {"open": self._open, "stage": self._stage, "finish": self._finish}[event.type](event)
            fault_point("tracking.after_delivery")
            self._ledger.add(event)
            self._outbox.remove(name)
        if event.type == "open" and current is not None and event.run_key == current[0]:
            self._watch(event)
        return True

    def forget(self) -> None:
        """Look runs up again before the next event."""
        self._runs.forget()

    def close(self, own: str | None = None) -> None:
        """Stop watching and mark as KILLED what dead drivers left; with `own`, give this driver's runs that status."""
        for run_key in list(self._monitors):
            self._unwatch(run_key)
        self._runs.sweep(sorted(self._experiments), own=own)

    def _watch(self, event: Event) -> None:
        """Log this machine's load to the parent run until the plan ends, unless the user turned that off."""
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in {"false", "0"}:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if event.run_key not in self._monitors:
            parent = self._runs.parent(event.run, event.driver, event.created)
            untyped: Any = SystemMetricsMonitor
            monitor = untyped(parent, resume_logging=True, tracking_uri=self._destination.uri)
            monitor.start()
            self._monitors[event.run_key] = monitor

    def _unwatch(self, run_key: str) -> None:
        monitor = self._monitors.pop(run_key, None)
        if monitor is not None:
            monitor.finish()

    def _open(self, event: Event) -> None:
        header = event.body["header"]
        parent = self._runs.parent(event.run, event.driver, event.created)
        if not self._ledger.is_finished(event.run_key, event.run["plan_key"]):
            self._runs.reopen(parent, event.driver)
        self._runs.sweep([event.run["name"]])
        self._runs.tag(parent, _tags(header["description"], event.run, header["data"], header["code"]))
        self._runs.params(parent, parent_params(header["config"]))
        self._runs.text(parent, pretty(header["config"]), "config.json")
        self._log_data(parent, event.run, header["data"])

    def _stage(self, event: Event) -> None:
        owner, role, stage = _owner(event.body["owner"]), event.body["role"], event.body["stage"]
        manifest = self._store.manifest(stage["kind"], stage["key"])
        created = event.created if manifest is None else _start(manifest)
        run_id = self._runs.child(event.run, owner, event.driver, created)
        self._runs.revive(run_id, event.driver)
        self._runs.params(run_id, _owner_params(owner))
        try:
            if manifest is None:
                raise StoreError("the store does not hold it any more")
            withheld = self._log_payload(run_id, event, role, manifest)
            note = {f"oakum.withheld.{role}": ", ".join(withheld)}
        except (DamagedEntryError, StoreError) as error:
            if manifest is not None and not isinstance(error, DamagedEntryError):
                raise
            note = {f"oakum.missing.{role}": str(error)}
        self._runs.tag(run_id, {f"oakum.stage.{role}": stage["key"], **note})

    def _log_payload(self, run_id: str, event: Event, role: str, manifest: Manifest) -> list[str]:
        """Log a published stage's history, data and files; return the names of the files that were held back."""
        if "history.json" in manifest.files:
            rows = json.loads(self._store.read(manifest, "history.json"))["epochs"]
            target, _, variant = role.partition(".")
            prefix = f"{variant}/" if target == "target" and variant not in {"", "clean"} else ""
            self._runs.history(run_id, rows, prefix, manifest.created)
        if manifest.kind in {"train", "prior"}:
            for fold, digest in sorted(manifest.key_document.get("folds", {}).items()):
                self._runs.dataset(run_id, f"{event.run['data']}/{fold}", str(digest), fold, {"fold": fold})
        allowed = _PLAIN_FILES | _PUBLIC_FILES if event.run["public"] else _PLAIN_FILES
        paths = [self._store.fetch(manifest, name) for name in sorted(allowed & set(manifest.files))]
        self._runs.files(run_id, paths, metric_name(role))
        return sorted(set(manifest.files) - allowed)

    def _finish(self, event: Event) -> None:
        record = RunRecord.from_json(event.body["record"])
        parent = self._runs.parent(event.run, event.driver, event.created)
        for cell in record.cells:
            self._finish_cell(event, record, cell)
        for shared in record.shared:
            self._finish_shared(event, shared)
        self._runs.tag(parent, _tags(record.description, event.run, record.data, record.code))
        told = {"oakum.warnings": "\n".join(record.warnings), "oakum.seconds": json.dumps(record.seconds)}
        self._runs.tag(parent, told)
        chance = {f"chance.{key}": str(value) for key, value in record.chance.items()}
        self._runs.params(parent, parent_params(record.config) | chance)
        self._runs.text(parent, pretty(record.config), "config.json")
        self._runs.text(parent, pretty(_published_record(record)), "record.json")
        self._log_data(parent, event.run, record.data)
        self._log_report(parent, event)
        self._unwatch(event.run_key)
        self._runs.end(parent, "FINISHED", event.created)

    def _finish_cell(self, event: Event, record: RunRecord, cell: CellRecord) -> None:
        found = list(self._store.manifests(cell.stages.values()).values())
        begin = min(map(_start, found), default=event.created)
        end = max((manifest.created for manifest in found), default=event.created)
        owner = CellHeader.of(cell)
        run_id = self._runs.child(event.run, owner, event.driver, begin)
        shared_config = {part: record.config[part] for part in _CELL_CONFIG if part in record.config}
        self._runs.params(run_id, _owner_params(owner) | flatten(shared_config))
        self._runs.values(run_id, cell.metrics, end)
        self._log_data(run_id, event.run, record.data)
        stage_tags = {f"oakum.stage.{role}": stage.key for role, stage in cell.stages.items()}
        self._runs.tag(run_id, {"oakum.flags": "; ".join(cell.flags), **stage_tags, **_code_tags(record.code)})
        if not self._runs.is_finished(run_id):
            self._runs.end(run_id, "FINISHED", end)

    def _finish_shared(self, event: Event, shared: SharedRecord) -> None:
        manifest = self._store.manifest(shared.stage.kind, shared.stage.key)
        begin, end = (_start(manifest), manifest.created) if manifest else (event.created, event.created)
        owner = SharedHeader.of(shared)
        run_id = self._runs.child(event.run, owner, event.driver, begin)
        self._runs.params(run_id, _owner_params(owner))
        self._runs.values(run_id, shared.metrics, end)
        self._runs.tag(run_id, {f"oakum.stage.{shared.role}": shared.stage.key})
        if not self._runs.is_finished(run_id):
            self._runs.end(run_id, "FINISHED", end)

    def _log_data(self, run_id: str, run: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        digest = str(data.get("digest", ""))
        if digest:
            self._runs.dataset(run_id, run["data"], digest, "all", {"folds": data.get("folds", {})})

    def _log_report(self, parent: str, event: Event) -> None:
        """Upload the report's files; those of private data that could hold pictures or scores are named in a tag."""
        withheld, missing, paths = [], [], []
        for path in map(Path, event.body["artifacts"]):
            if not event.run["public"] and path.suffix not in _REPORT_SUFFIXES:
                withheld.append(path.name)
            elif not path.is_file():
                missing.append(str(path))
            else:
                paths.append(path)
        self._runs.files(parent, paths, "report")
        self._runs.tag(
            parent, {"oakum.withheld.report": ", ".join(withheld), "oakum.missing.report": ", ".join(missing)}
        )


def delivery_errors() -> tuple[type[Exception], ...]:
    """Return what `Delivery` raises when an event cannot be delivered. Imports MLflow."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    return (MlflowException, RequestException, StoreError, OSError, ValueError, KeyError, TypeError)


def _owner(data: dict[str, Any]) -> Owner:
    fields = {name: value for name, value in data.items() if name != "level"}
    return CellHeader(**fields) if data["level"] == "cell" else SharedHeader(**fields)


def _start(manifest: Manifest) -> float:
    return manifest.created - float(manifest.provenance.get("seconds") or 0.0)


def _owner_params(owner: Owner) -> dict[str, str]:
    if isinstance(owner, SharedHeader):
        return {"role": owner.role, **flatten(owner.parameters)}
    plain = {name: value for name, value in owner.parameters.items() if name != "name"}
    chosen = {"setting": owner.setting, "seed": str(owner.seed), "defense": owner.defense}
    return flatten(plain, owner.defense) | chosen


def parent_params(config: Mapping[str, Any]) -> dict[str, str]:
    return flatten({name: value for name, value in config.items() if name not in _NOT_PARAMETERS})


def _tags(description: str, run: Mapping[str, Any], data: Mapping[str, Any], code: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mlflow.note.content": description,
        "oakum.plan_key": run["plan_key"],
        "oakum.data.name": run["data"],
        "oakum.data.digest": data.get("digest", ""),
        "oakum.data.public": str(run["public"]).lower(),
        "oakum.data.folds": json.dumps(data.get("folds", {}), sort_keys=True),
        **_code_tags(code),
    }


def _code_tags(code: Mapping[str, Any]) -> dict[str, Any]:
    return {"mlflow.source.git.commit": code.get("commit", ""), **flatten(code, "oakum.code")}


def _published_record(record: RunRecord) -> dict[str, Any]:
    """Return the record without what names people: the classes of a private data set may be their names."""
    plain = record.to_json()
    if record.data.get("public") is not True:
        plain["data"].pop("class_names", None)
    return plain


def pretty(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True)
