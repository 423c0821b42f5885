"""One driver at a time for a search: two would give the same numbers to different trials.

A driver counts up in a document of the store for as long as it lives, and says there when it ends. Whoever comes next
and finds that no end was said watches the count by its own clock: a count that stands still belongs to a driver that is
dead. No two machines' clocks are compared, and a process on another machine need not be asked.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any, Self

from oakum.config import ConfigError
from oakum.progress import Progress
from oakum.search.records import SearchHeader
from oakum.store import Store, StoreError
from oakum.tracking_outbox import this_driver

BEAT_SECONDS = 1.0
# Several beats: one that is late, on a busy machine or a slow store, is no death.
WATCH_SECONDS = 6.0
_LOOK_SECONDS = 0.25


class SoleDriver:
    """Holds a search for this process, from `__enter__` to `__exit__`."""

    def __init__(self, store: Store, header: SearchHeader) -> None:
        self._store = store
        self._header = header
        self._document = f"searches/{header.key}/driver"
        self._own: dict[str, Any] = {"driver": this_driver(), "token": secrets.token_hex(8), "beat": 0, "ended": False}
        self._ends = threading.Event()
        self._lost_to: str | None = None
        self._thread = threading.Thread(target=self._beat, name="oakum-search-driver", daemon=True)

    def __enter__(self) -> Self:
        """Take the search; wait a few seconds where the driver before it did not say that it ended.

        Raises:
            ConfigError: another driver is at work.
        """
        self._watch_predecessor()
        self._store.put_document(self._document, self._own)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        if self._is_held():
            self._store.put_document(self._document, {**self._own, "ended": True})

    def check(self) -> None:
        """Make sure that no other driver took the search, as happens to one that stood still for long.

        Raises:
            ConfigError: another one did; nothing more may be recorded here.
        """
        if self._lost_to is not None:
            raise ConfigError(
                f"search {self._header.name!r} was taken over by another driver ({self._lost_to}), because this one "
                "gave no sign of life; this one ends, and its finished trials are kept"
            )

    def _watch_predecessor(self) -> None:
        first = self._store.get_document(self._document)
        if first is None or first["ended"]:
            return
        Progress.say(
            f"the last driver of this search ({first['driver']}) did not say that it ended; watching for "
            f"{WATCH_SECONDS:.0f} s whether it lives"
        )
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            found = self._store.get_document(self._document)
            if found is None or found["ended"]:
                return
            if found != first:
                raise ConfigError(
                    f"search {self._header.name!r} is being run by another driver ({found['driver']}, "
                    "host/process/start); wait for its end or stop it, then give the same command again"
                )

    def _beat(self) -> None:
        while not self._ends.wait(BEAT_SECONDS):
            try:
                if not self._is_held():
                    return
                self._own["beat"] += 1
                self._store.put_document(self._document, self._own)
            except StoreError as error:
                # A beat may be missed; whoever records a trial in a store that is away hears of it there.
                Progress.say(f"no sign of life could be written: {error}")

    def _is_held(self) -> bool:
        """Whether the document is still this driver's; notes whose it is otherwise."""
        found = self._store.get_document(self._document)
        if found is not None and found["token"] != self._own["token"]:
            self._lost_to = found["driver"]
        return self._lost_to is None
