"""The runs of one search in MLflow: one for the search, below it its trials and confirmed settings, and its model.

Runs are found by their tags, as those of experiments are. They carry no driver's tag: they belong to no process, and no
sweep ends them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.search.records import SearchHeader
from oakum.tracking_destination import Destination
from oakum.tracking_runs import Runs

if TYPE_CHECKING:
    from mlflow.tracking.client import MlflowClient

ALIAS = "recommended"


class SearchRuns(Runs):
    """The runs of one search. Every method may be repeated and changes nothing the second time."""

    def __init__(self, client: MlflowClient, destination: Destination, header: SearchHeader) -> None:
        super().__init__(client, destination)
        self._header = header
        self._run = {"name": f"search: {header.name}", "run_key": header.key}
        # A registered model's name may hold neither of them.
        self._model = re.sub(r"[/:]", "-", header.name)

    def search(self, created: float | None = None) -> str:
        """Return the id of the search's run, created on first use; `created` in Unix seconds, default now."""
        tags = {"mlflow.runName": f"{self._header.name} {self._header.key[:8]}"}
        return self._ensure(self._run, ("search", ""), created or time.time(), tags)

    def below(self, level: str, owner: str, title: str, created: float) -> str:
        """Return the id of a run below the search's, created on first use."""
        tags = {"mlflow.parentRunId": self.search(), "mlflow.runName": title}
        return self._ensure(self._run, (level, owner), created, tags)

    def started(self, run_id: str) -> float:
        """Return when a run began, in Unix seconds."""
        return float(self._client.get_run(run_id).info.start_time) / 1000

    def retag(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags, and take away those that are empty."""
        had = self._client.get_run(run_id).data.tags
        for key in [key for key, value in tags.items() if value in (None, "") and key in had]:
            self._write("delete_tag", run_id, key)
        self.tag(run_id, tags)

    def settle(self, run_id: str, status: str, seconds: float) -> None:
        """Give a run a status and, unless it is RUNNING, the time of its end (Unix seconds)."""
        info = self._client.get_run(run_id).info
        end = max(int(seconds * 1000), info.start_time)
        if status == "RUNNING" and info.status != status:
            self._write("update_run", run_id, status=status)
        elif status != "RUNNING" and (info.status, info.end_time) != (status, end):
            self._write("set_terminated", run_id, status, end)

    def put_report(self, path: Path) -> None:
        self._write("log_artifact", self.search(), str(path), "report")

    def put_model(self, run_id: str, files: Iterable[Path], texts: Mapping[str, str]) -> None:
        """Put a model into a run's artifacts and make it the recommended version of the registered model."""
        for path in files:
            self._write("log_artifact", run_id, str(path), "model")
        for name, text in texts.items():
            self.text(run_id, text, f"model/{name}")
        if self._registered() is None:
            self._write("create_registered_model", self._model, {"oakum.search.key": self._header.key})
        found = self._client.search_model_versions(f"run_id = '{run_id}'")
        version = next((each.version for each in found if each.name == self._model), None)
        if version is None:
            source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
            version = self._write("create_model_version", self._model, source, run_id).version
        self._write("set_registered_model_alias", self._model, ALIAS, version)

    def recommend_none(self) -> None:
        """Take the alias away from what an earlier confirmation recommended."""
        registered = self._registered()
        if registered is not None and ALIAS in registered.aliases:
            self._write("delete_registered_model_alias", self._model, ALIAS)

    def _registered(self) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(self._model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
