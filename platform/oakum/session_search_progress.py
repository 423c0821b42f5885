"""What a user sees while a search runs: a live table on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from oakum.progress import Progress
from oakum.search.card import front_numbers
from oakum.search.records import SearchHeader, TrialRecord
from oakum.search.space import DEFENSE

if TYPE_CHECKING:
    from oakum.session_trials import TrialBoard

_SHOWN_TRIALS = 12


class SearchProgress:
    """Shows the trials that ended, the front so far, the best so far and the time that is left."""

    def __init__(self, board: TrialBoard, total: int) -> None:
        self._board = board
        self._total = total
        self._began = time.monotonic()
        self._ended_here = 0
        self._live: Any = None

    def __enter__(self) -> Self:
        known = sum(record.state != "running" for record in self._board.records.values())
        Progress.say(f"{self._total} trials: {known} stored, {max(0, self._total - known)} to run")
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self._table(), console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def ended(self, record: TrialRecord) -> None:
        """Show a trial that ended."""
        self._ended_here += 1
        if self._live is None:
            Progress.say(f"{self._line(record)}; {self._summary()}")
        else:
            self._live.update(self._table(), refresh=True)

    def _line(self, record: TrialRecord) -> str:
        header = self._board.header
        return f"trial {record.number}: {self._parameters(record)}: {describe(record, header, header.objectives)}"

    def _parameters(self, record: TrialRecord) -> str:
        """Return what differs between trials."""
        fixed = self._board.header.space.get("fixed", {})
        return " ".join(
            f"{path.removeprefix(DEFENSE)}={short(value)}" for path, value in record.point.items() if path not in fixed
        )

    def _summary(self) -> str:
        ended = [record for record in self._board.records.values() if record.state != "running"]
        parts = [f"{len(ended)}/{self._total}"]
        best = self._front()
        if best and len(self._board.objectives) == 1:
            parts.append(f"best {short((best[0].values or (0.0,))[0])} (trial {best[0].number})")
        elif best:
            parts.append(f"front {', '.join(str(record.number) for record in best)}")
        else:
            parts.append("nothing complete yet" if self._board.header.population else "nothing feasible yet")
        parts.append(f"about {_duration(self._left(len(ended)))} left")
        return ", ".join(parts)

    def _left(self, ended: int) -> float:
        if not self._ended_here:
            return 0.0
        return (time.monotonic() - self._began) / self._ended_here * max(0, self._total - ended)

    def _front(self) -> list[TrialRecord]:
        records = self._board.records
        return [records[number] for number in sorted(front_numbers(self._board.objectives, records.values()))]

    def _table(self) -> Any:
        from rich.table import Table

        front = {record.number for record in self._front()}
        table = Table(title=self._summary(), title_justify="left")
        for name in ("trial", "parameters", *self._board.header.objectives, "state"):
            table.add_column(name)
        ended = [record for record in self._board.records.values() if record.state != "running"]
        shown = [record for record in ended if record.number in front]
        shown += [record for record in ended[-_SHOWN_TRIALS:] if record.number not in front]
        for record in sorted(shown, key=lambda each: each.number):
            values = [short(value) for value in record.values or ()] or [""] * len(self._board.objectives)
            state = "front" if record.number in front else describe(record, self._board.header)
            table.add_row(str(record.number), self._parameters(record), *values, state)
        return table


def describe(record: TrialRecord, header: SearchHeader, objectives: tuple[str, ...] = ()) -> str:
    """Return a trial's result in a few words, with the values of `objectives`."""
    if record.state == "failed":
        return f"failed: {record.error}"
    values = ", ".join(
        f"{text.split(' ', 1)[1]} {short(value)}" for text, value in zip(objectives, record.values or (), strict=False)
    )
    if record.state == "stopped" and header.population:
        generation = header.generation_of(record.number)
        return f"{values} after {header.generations[generation]} epochs, generation {generation + 1}".strip()
    if record.state == "stopped":
        return f"{values} stopped at rung {record.rung + 1}".strip()
    missed = sum(record.violations)
    return f"{values} misses a floor by {short(missed)}".strip() if missed else values or "complete"


def short(value: Any) -> str:
    """Return a value with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
