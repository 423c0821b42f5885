"""Delivery of a search to MLflow while it runs."""

from __future__ import annotations

import threading
from pathlib import Path

from oakum.session_home import Home
from oakum.store import Store


class SearchDelivery:
    """Delivers a search to MLflow in a thread; what cannot be delivered is delivered by `oakum sync`.

    Attributes:
        warning: what went wrong at the end, or None.
    """

    def __init__(self, enabled: bool, store: Store, home: Home, key: str) -> None:
        self._enabled = enabled
        self._arguments = (store, home.folder, key)
        self._wakes = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._serve, name="oakum-search-tracking", daemon=True)
        self.warning: str | None = None

    def __enter__(self) -> SearchDelivery:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._wakes.set()

    def wake(self) -> None:
        """Say that there is something new."""
        self._wakes.set()

    def finish(self, report: Path) -> None:
        """Deliver everything, with the report and its figures, and note what went wrong."""
        if not self._enabled:
            return
        from oakum.tracking_search import deliver_search

        self._ends = True
        self._wakes.set()
        self._thread.join()
        figures = sorted((report.parent / "figures").glob("*.png"))
        self.warning = deliver_search(*self._arguments, artifacts=[report, *figures]).warning

    def _serve(self) -> None:
        from oakum.tracking_search import deliver_search

        while not self._ends:
            self._wakes.wait()
            self._wakes.clear()
            if not self._ends:
                deliver_search(*self._arguments)
