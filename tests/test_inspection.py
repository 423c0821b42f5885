"""Looking into the store of a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oakum import session
from oakum.inspection import flatten
from oakum.session import Home
from oakum.store import Store


def test_entries_are_listed(finished: Any, oakum: Callable[..., Any]) -> None:
    entries = json.loads(oakum("store", "ls", "--json", home=finished.home).out)
    assert len(entries) == 22 and [entry["created"] for entry in entries] == sorted(e["created"] for e in entries)
    assert all(entry["bytes"] > 0 for entry in entries)
    text = oakum("store", "ls", "prior", home=finished.home).out
    assert "prior wgan_gp" in text and text.splitlines()[-1].startswith("1 entries, ")
    assert oakum("store", "ls", "nothing", home=finished.home).out == "0 entries, 0 bytes\n"


def test_an_entry_is_shown(finished: Any, oakum: Callable[..., Any]) -> None:
    ref = finished.record.cells[0].stages["membership.clean.loss"]
    shown = json.loads(oakum("store", "show", ref.key[:16], home=finished.home).out)
    assert (shown["kind"], shown["key"]) == ("membership", ref.key)
    assert shown["files"].keys() == {"evidence.parquet"}
    provenance = shown["provenance"]
    assert provenance.keys() >= {"code", "commit", "device", "inputs", "package", "seconds", "versions", "workers"}
    assert provenance["inputs"]["target"]["key"] == finished.record.cells[0].stages["target.clean"].key


def test_a_beginning_that_fits_several_is_refused(finished: Any, oakum: Callable[..., Any]) -> None:
    answer = oakum("store", "show", "", home=finished.home)
    assert answer.code == 2 and "22 stored stages begin with ''" in answer.err and "write more of the key" in answer.err


def test_everything_is_verified(finished: Any, oakum: Callable[..., Any]) -> None:
    assert oakum("store", "verify", home=finished.home).out == "22 entries checked, 0 problems\n"
    assert oakum("store", "verify", "prior", home=finished.home).out == "1 entries checked, 0 problems\n"


def test_a_damaged_entry_is_named(copied: Any, oakum: Callable[..., Any]) -> None:
    store = Store.open(copied.home.store_uri)
    (key,) = store.published("prior")
    manifest = store.manifest("prior", key)
    assert manifest is not None
    file = Path(store.uri) / manifest.object_path("critic.safetensors")
    file.unlink()
    answer = oakum("store", "verify", home=copied.home)
    assert answer.code == 3
    assert f"prior {key[:12]} critic.safetensors: it is missing" in answer.out
    assert "sets it aside and computes it again" in answer.out


def test_why_names_the_part_of_the_key(finished_again: Any, oakum: Callable[..., Any]) -> None:
    home, stages = finished_again.first.home, finished_again.second.record.cells[0].stages
    answer = oakum("why", stages["inversion.clean.gmi"].key, home=home)
    assert answer.code == 0 and "nearest: " in answer.out and "gmi none/0" in answer.out
    assert answer.out.splitlines()[2:] == ["  config.attack.restarts: 1 here, 2 there"]
    judge = oakum("why", stages["judge.clean.gmi"].key, home=home).out
    assert "inputs.inversion" in judge and "another input: ask `oakum why` about it" in judge


def test_why_says_that_an_entry_is_alone(finished: Any, oakum: Callable[..., Any]) -> None:
    (key,) = Store.open(finished.home.store_uri).published("prior")
    answer = oakum("why", key[:8], home=finished.home)
    assert answer.out.endswith("no other entry of this kind is stored\n") and f"prior {key[:12]}" in answer.out


@pytest.fixture
def with_leftovers(finished_again: Any, tmp_path: Path) -> Home:
    """A store whose second plan was forgotten: its inversions and judgments are needed by nobody."""
    folder = tmp_path / "home"
    shutil.copytree(finished_again.first.home.folder, folder)
    home = Home(folder, str(folder / "store"))
    Store.open(home.store_uri).delete_document(f"plans/{finished_again.second.record.plan_key}")
    return home


def test_collecting_garbage_shows_before_it_removes(
    with_leftovers: Home, finished: Any, oakum: Callable[..., Any], numbers: Callable[..., Any]
) -> None:
    home = with_leftovers
    store = Store.open(home.store_uri)
    entries = len(store.entries())
    young = json.loads(oakum("store", "gc", "--json", home=home).out)
    assert young["entries"] == []
    shown = oakum("store", "gc", "--min-age-hours", "0", home=home)
    assert shown.code == 0 and "would remove 4 entries" in shown.out and "add --delete" in shown.out
    assert len(store.entries()) == entries
    removed = oakum("store", "gc", "--min-age-hours", "0", "--delete", home=home)
    assert "removed 4 entries" in removed.out and len(store.entries()) == entries - 4 == 22
    assert oakum("store", "verify", home=home).code == 0
    again = session.run(session.RunOptions(finished.file, executor="serial", track=False), home)
    assert again.ran == 0 and numbers(again.record) == numbers(finished.record)


def test_nested_documents_become_paths() -> None:
    assert flatten({"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None}) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": None}
    assert flatten({}) == {}
