"""Two drivers of one search: refused while the first lives, taken over when it is dead, no wait when it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum import session_search, session_search_driver
from oakum.config import ConfigError
from oakum.search.records import SearchHeader, SearchLog
from oakum.session_home import Home
from oakum.session_search_driver import SoleDriver
from oakum.session_search_request import SearchOptions
from oakum.store import Store

HEADER = SearchHeader("mine", "0" * 64, "bido", {}, {}, {}, ("min membership/loss/auc",), (), (1000,))
DOCUMENT = f"searches/{HEADER.key}/driver"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_search_driver, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(session_search_driver, "WATCH_SECONDS", 2.0)
    monkeypatch.setattr(session_search_driver, "_LOOK_SECONDS", 0.05)


@pytest.fixture
def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("watched a driver that had ended")

    monkeypatch.setattr(time, "sleep", sleep)


def leave_behind(store: Store, beat: int = 7) -> None:
    """Write what a driver that was killed leaves."""
    store.put_document(DOCUMENT, {"driver": "other/1/2", "token": "t", "beat": beat, "ended": False})


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_driver_is_refused_while_the_first_lives(store: Store) -> None:
    with SoleDriver(store, HEADER) as first:
        with pytest.raises(ConfigError, match=r"search 'mine' is being run by another driver.*wait for its end"):
            SoleDriver(store, HEADER).__enter__()
        time.sleep(0.1)
        first.check()


def test_a_driver_that_ended_is_followed_at_once(store: Store, no_watch: None) -> None:
    for _ in range(3):
        with SoleDriver(store, HEADER):
            pass
    with pytest.raises(KeyboardInterrupt), SoleDriver(store, HEADER):
        raise KeyboardInterrupt
    with SoleDriver(store, HEADER):
        pass


def test_a_dead_driver_is_followed_after_its_count_stood_still(store: Store) -> None:
    leave_behind(store)
    began = time.monotonic()
    with SoleDriver(store, HEADER) as driver:
        assert time.monotonic() - began >= session_search_driver.WATCH_SECONDS
        driver.check()
        until(lambda: (store.get_document(DOCUMENT) or {})["beat"] > 2)
    document = store.get_document(DOCUMENT)
    assert document is not None and document["ended"] and document["driver"] != "other/1/2"


def test_a_driver_that_was_taken_over_ends_and_leaves_the_search_to_the_other(store: Store) -> None:
    def lost(driver: SoleDriver) -> bool:
        try:
            driver.check()
        except ConfigError as error:
            return "taken over by another driver (other/1/2)" in str(error)
        return False

    with SoleDriver(store, HEADER) as driver:
        # A beat that was under way may write once more.
        def other_writes() -> bool:
            leave_behind(store)
            return lost(driver)

        until(other_writes)
    assert (store.get_document(DOCUMENT) or {})["ended"] is False


def test_a_search_whose_driver_lives_is_left_alone(
    home: Home, short: dict[str, Any], write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tmp_path / "relaxloss.yaml"
    space.write_text(yaml.safe_dump({"defense.alpha": {"sampler": "uniform", "low": 0.2, "high": 1.4}}))
    options = SearchOptions(
        write(short), space, ("min membership/loss/auc",), trials=1, sampler="random", executor="serial", confirm=0,
        repeats=0, track=False,
    )  # fmt: skip
    monkeypatch.setattr(session_search, "write_search_report", lambda record, home: home.report("short"))
    store = Store.open(home.store_uri)

    def second(*_: object) -> None:
        (name,) = store.list_documents("search_names")
        log = SearchLog.named(store, name.removeprefix("search_names/"))
        with pytest.raises(ConfigError, match="another driver"):
            session_search.search(options, home)
        assert log.trials() == ()
        raise KeyboardInterrupt

    monkeypatch.setattr(session_search, "TrialBoard", second)
    with pytest.raises(KeyboardInterrupt):
        session_search.search(options, home)
