"""Ray Tune over a search's trials: it decides when to ask for the next setting, the executor runs what trials need.

A trial is a client that asks for no CPU: it hands its number to a desk, an actor, and waits there for the result. The
driver takes what lies at the desk, adds the trial's stages to the executor's ledger and answers at the desk. So Tune
and Ray Train never compete for CPUs, a stage that was ever computed is not computed again, and nothing that Tune writes
is needed to go on with a search.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# A fraction of a CPU would keep a stage that needs a whole one from every node on which a client waits.
_CLIENT_RESOURCES = {"cpu": 0, "memory": 1}
_DESK_CPUS = 0
_POLL_SECONDS = 0.2
_CLIENT_RESTARTS = 5


class TuneTrials:
    """Ray Tune in a thread of this process.

    Args:
        ask: returns the number of the next trial, or None where there is none now; called in Tune's thread.
        is_over: whether `ask` will never again return a number; asked after it returned none.
        count: trials that may be asked for at most.
        concurrency: trials at a time.
    """

    def __init__(
        self, ask: Callable[[], int | None], is_over: Callable[[], bool], count: int, concurrency: int
    ) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # On the driver's node: the desk is lost only when the driver is.
        self._desk: Any = ray.remote(num_cpus=_DESK_CPUS, scheduling_strategy=here)(_Desk).remote()
        self._asker = _Asker(ask, is_over)
        self._count = count
        self._concurrency = concurrency
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="oakum-tune", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[int]:
        """Return the numbers of the trials that were handed in since the last call."""
        found: list[int] = ray.get(self._desk.take.remote())
        return found

    def answer(self, number: int, result: dict[str, Any]) -> None:
        """Give a trial its result: plain numbers and text."""
        ray.get(self._desk.answer.remote(number, result))

    def is_over(self) -> bool:
        """Whether Tune has ended.

        Raises whatever ended Tune early.
        """
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def _run(self) -> None:
        try:
            self._fit()
        except BaseException as error:
            # Raised again in the driver's thread, by `is_over`.
            self._error = error

    def _fit(self) -> None:
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        scratch = Path(tempfile.mkdtemp(prefix="oakum-tune-"))
        try:
            found = tune.Tuner(
                tune.with_resources(tune.with_parameters(_Client, desk=self._desk), _CLIENT_RESOURCES),
                tune_config=tune.TuneConfig(
                    search_alg=self._asker,
                    num_samples=self._count,
                    max_concurrent_trials=self._concurrency,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    storage_path=str(scratch),
                    name="search",
                    verbose=0,
                    # A client that is lost with its node starts again; the trial's stages are not its own.
                    failure_config=tune.FailureConfig(max_failures=_CLIENT_RESTARTS),
                ),
            ).fit()
            if found.num_errors:
                raise found.errors[0]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class _Desk:
    """Where trials and driver meet."""

    def __init__(self) -> None:
        self._handed_in: list[int] = []
        self._results: dict[int, dict[str, Any]] = {}

    def hand_in(self, number: int) -> None:
        self._handed_in.append(number)

    def take(self) -> list[int]:
        taken, self._handed_in = self._handed_in, []
        return taken

    def answer(self, number: int, result: dict[str, Any]) -> None:
        self._results[number] = result

    def result(self, number: int) -> dict[str, Any] | None:
        return self._results.get(number)


class _Client(tune.Trainable):  # type: ignore[misc]  # Ray is not followed by mypy
    """One trial: hands its number in and waits. Its process is used again for the next trial."""

    def setup(self, config: dict[str, Any], desk: Any = None) -> None:
        self._desk = desk
        self._number = int(config["number"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._number = int(new_config["number"])
        return True

    def step(self) -> dict[str, Any]:
        ray.get(self._desk.hand_in.remote(self._number))
        while (result := ray.get(self._desk.result.remote(self._number))) is None:
            time.sleep(_POLL_SECONDS)
        return {**result, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: the search's truth is in the store."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""


class _Asker(Searcher):  # type: ignore[misc]  # Ray is not followed by mypy
    """Tune's side of asking; results reach the sampler through the store's records, not through Tune."""

    def __init__(self, ask: Callable[[], int | None], is_over: Callable[[], bool]) -> None:
        super().__init__(metric=None, mode=None)
        self._ask = ask
        self._is_over = is_over

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's number, that there is none any more, or None: ask again later."""
        number = self._ask()
        if number is not None:
            return {"number": number}
        return Searcher.FINISHED if self._is_over() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: see the class."""

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune expects."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
