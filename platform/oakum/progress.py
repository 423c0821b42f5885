"""What a user sees while stages run, and what the tracker is told of them."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

from oakum import __version__
from oakum.pipeline.fingerprint import package_digest
from oakum.registry import PACKAGE_FOLDER
from oakum.store import Store
from oakum.tracking import CellHeader, SharedHeader, Tracker

if TYPE_CHECKING:
    from oakum.pipeline.executor import Ledger
    from oakum.pipeline.plan import Plan
    from oakum.pipeline.runner import Outcome
    from oakum.pipeline.stage import Stage

_LINE_SECONDS = 5.0


@cache
def code_facts() -> dict[str, Any]:
    """Return what identifies the running code: version, commit where there is a checkout, digest of the package."""
    return {
        "oakum": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "platform")),
        "package": package_digest(),
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(PACKAGE_FOLDER), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


class Progress:
    """Observer of the ledger: lines on standard error, events for the tracker.

    On a terminal the latest line is rewritten in place; elsewhere one line is written every few seconds.
    """

    def __init__(self, plan: Plan, store: Store, tracker: Tracker | None, *, quiet: bool = False) -> None:
        self._store = store
        self._tracker = tracker
        self._run_key = plan.run_key
        self._owners = _owners(plan)
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._ledger: Ledger | None = None
        self._began = time.monotonic()
        self._first_done = 0
        self._last_line = 0.0
        self._seconds: dict[str, float] = defaultdict(float)

    def begin(self, ledger: Ledger) -> None:
        """Say what there is to do; stages that are stored already are reported to the tracker."""
        self._ledger = ledger
        self._began = time.monotonic()
        self._first_done = len(ledger.done)
        todo = len(ledger.stages) - len(ledger.done)
        if not self._quiet:
            self.say(f"{len(ledger.stages)} stages: {len(ledger.done)} stored, {todo} to run")

    def end(self) -> None:
        if self._live and not self._quiet:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

    def started(self, stage: Stage) -> None:
        self._show(stage.label)

    def finished(self, stage: Stage, outcome: Outcome) -> None:
        self._seconds[stage.kind] += outcome.seconds
        self._show(f"{stage.label}: {outcome.seconds:.1f} s")
        if self._tracker is None:
            return
        manifest = self._store.manifest(stage.kind, stage.key)
        for owner, role in self._owners.get(stage.key, ()) if manifest is not None else ():
            assert manifest is not None
            self._tracker.stage_finished(self._run_key, owner, role, manifest)

    def retried(self, stage: Stage, reason: str) -> None:
        self.say(f"again: {stage.label} ({reason})")

    def failed(self, stage: Stage, error: str) -> None:
        self.say(f"FAILED: {stage.label}: {error}")

    def seconds_by_kind(self) -> dict[str, float]:
        """Return the summed seconds of the stages that ran, by kind."""
        return {f"kind/{kind}": seconds for kind, seconds in sorted(self._seconds.items())}

    @staticmethod
    def say(text: str) -> None:
        """Write a line to standard error, over a live line if there is one."""
        start = "\r\x1b[2K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}{text}\n")
        sys.stderr.flush()

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if self._quiet or self._ledger is None or (not self._live and now - self._last_line < _LINE_SECONDS):
            return
        self._last_line = now
        done, total = len(self._ledger.done), len(self._ledger.stages)
        line = f"[{done}/{total}] {now - self._began:4.0f} s  {text}"
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{line[:100]}")
            sys.stderr.flush()
        else:
            self.say(line)


def _owners(plan: Plan) -> dict[str, list[tuple[CellHeader | SharedHeader, str]]]:
    """Return, for every stage key, the tracked runs that it belongs to and its role there."""
    owners: dict[str, list[tuple[CellHeader | SharedHeader, str]]] = defaultdict(list)
    for cell in plan.cells:
        parameters = cell.method.config.model_dump(mode="json")
        header = CellHeader(setting=cell.setting, seed=cell.seed, defense=cell.method.name, parameters=parameters)
        for role, stage in cell.stages.items():
            owners[stage.key].append((header, role))
    for role, stage in plan.shared.items():
        owners[stage.key].append((SharedHeader(role=role, parameters=dict(stage.config)), role))
    return owners
