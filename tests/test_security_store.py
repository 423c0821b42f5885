"""A store that was damaged or forged: what is read is what was written, or refused; nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oakum import session
from oakum.pipeline.collect import collect
from oakum.records import canonical_json, sha256_hex
from oakum.session import RunOptions
from oakum.session_home import Home
from oakum.store import DamagedEntryError, Manifest, Store, StoreError

CASES = 300
KEY = sha256_hex(b"a stage")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def short_copy(finished_short: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the short run to be damaged; every test leaves it as it was."""
    folder = tmp_path_factory.mktemp("damaged") / "home"
    shutil.copytree(finished_short.home.folder, folder, ignore=shutil.ignore_patterns("mlflow"))
    return replace(finished_short, home=Home(folder, str(folder / "store")))


class Original:
    """A whole store: its files, and what its readers return."""

    def __init__(self, home: Home) -> None:
        self.uri = home.store_uri
        self.root = Path(home.store_uri)
        store = Store.open(self.uri)
        self.files = {path: path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()}
        self.manifests = {(entry.kind, entry.key): entry for entry in store.entries()}
        self.payloads = {
            (entry.key, name): store.read(entry, name) for entry in self.manifests.values() for name in entry.files
        }
        self.documents = {name: store.get_document(name) for name in store.list_documents()}

    def put(self, path: Path, data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def restore(self) -> None:
        shutil.rmtree(self.root / "damaged", ignore_errors=True)
        for path, data in self.files.items():
            if not path.exists() or path.read_bytes() != data:
                self.put(path, data)

    def check_entries(self) -> int:
        """Read every entry; each is the original or refused. Return how many are refused."""
        store, refused = Store.open(self.uri), 0
        for (kind, key), original in self.manifests.items():
            manifest = store.manifest(kind, key)
            assert manifest is None or manifest == original
            refused += manifest is None
            for name in manifest.files if manifest else ():
                try:
                    assert store.read(original, name) == self.payloads[key, name]
                except DamagedEntryError:
                    refused += 1
        return refused

    def check_documents(self) -> int:
        """Read every document; each is the original or refused. Return how many are refused."""
        store, refused = Store.open(self.uri), 0
        for name, original in self.documents.items():
            try:
                assert store.get_document(name) == original
            except StoreError:
                refused += 1
        return refused


@pytest.fixture
def original(short_copy: Any) -> Iterator[Original]:
    whole = Original(short_copy.home)
    assert {path.relative_to(whole.root).parts[0] for path in whole.files} == {"documents", "manifests", "objects"}
    yield whole
    whole.restore()


def damage(data: bytes, others: list[bytes], draw: random.Random, trap: bytes) -> bytes:
    """Return other bytes than `data`."""
    place = draw.randrange(len(data))
    length = draw.randint(1, 64)
    forms: list[Callable[[], bytes]] = [
        lambda: data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :],
        lambda: data[:place] + draw.randbytes(length) + data[place + length :],
        lambda: data[:place] + draw.randbytes(length) + data[place:],
        lambda: data[:place] + data[place + length :],
        lambda: data[:place],
        lambda: data[:place] + b"0" * length + data[place + length :],
        lambda: data + draw.randbytes(length),
        lambda: draw.choice(others),
        lambda: draw.choice([b"", b"{}", b"null", b"[" * 100_000, b'{"a":' * 20_000, b"1" * 5_000, b"\xff\xfe", trap]),
    ]
    while (changed := draw.choice(forms)()) == data:
        place = draw.randrange(len(data))
    return changed


def test_damaged_files_of_a_store_are_refused_and_never_believed(original: Original, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "executed"))
    everything = list(original.files.values())
    refused = 0
    for case in range(CASES):
        draw = random.Random(case)
        path = draw.choice(list(original.files))
        bad = damage(original.files[path], everything, draw, trap)
        original.put(path, bad)
        found = original.check_entries() + original.check_documents()
        assert found > 0 or path.is_relative_to(original.root / "objects"), (case, path)
        refused += found
        original.restore()
    assert refused > CASES * 0.8
    assert not (tmp_path / "executed").exists()


def test_commands_over_a_damaged_store_raise_nothing_but_our_own_errors(
    original: Original, short_copy: Any, tmp_path: Path
) -> None:
    trap = pickle.dumps(Trap(tmp_path / "executed"))
    (plan,) = (document for name, document in original.documents.items() if name.startswith("plans/"))
    (request,) = (name.removeprefix("requests/") for name in original.documents if name.startswith("requests/"))
    assert plan is not None
    commands: list[Callable[[Store], Any]] = [
        lambda store: session.find_finished(request, store),
        lambda store: collect(plan["skeleton"], store),
        lambda store: store.entries(),
        lambda store: store.verify(),
        lambda store: store.gc(dry_run=True, min_age_seconds=0),
        lambda store: store.usage(),
    ]
    raised = 0
    for case in range(60):
        draw = random.Random(1000 + case)
        path = draw.choice([path for path in original.files if "objects" not in path.relative_to(original.root).parts])
        original.put(path, damage(original.files[path], list(original.files.values()), draw, trap))
        for command in commands:
            try:
                command(Store.open(original.uri))
            except StoreError:
                raised += 1
        original.restore()
    assert raised > 0
    assert not (tmp_path / "executed").exists()


def published(root: Path) -> tuple[Store, Manifest]:
    store = Store.open(root / "store")
    payload = root / "payload"
    payload.mkdir()
    (payload / "model").write_bytes(b"weights")
    return store, store.publish("train", KEY, payload, key_document={}, label="", summary={}, provenance={})


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../../outside": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/hostname": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"model": {"bytes": "1", "sha256": "0" * 64}}},
        {"files": {"model": {"bytes": 1, "sha256": 1}}},
        {"files": {"model": {"bytes": 1}}},
        {"files": {"model": []}},
        {"files": []},
        {"attempt": "../../../../up"},
        {"attempt": 1},
        {"key": "0" * 64},
        {"kind": "answers"},
        {"label": 1},
        {"summary": None},
        {"provenance": []},
        {"key_document": "x"},
        {"created": "yesterday"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_forged_manifest_with_a_right_checksum_is_set_aside(change: dict[str, Any], tmp_path: Path) -> None:
    store, manifest = published(tmp_path)
    forged = {**manifest.to_json(), **change}
    data = canonical_json({**forged, "check": sha256_hex(canonical_json(forged))})
    (tmp_path / "store" / "manifests" / "train" / f"{KEY}.json").write_bytes(data)
    assert Store.open(store.uri).manifest("train", KEY) is None
    assert store.published("train") == set() and len(list((tmp_path / "store" / "damaged" / "train").iterdir())) == 1


def test_a_payload_that_points_out_of_the_store_is_refused(tmp_path: Path) -> None:
    store, manifest = published(tmp_path)
    (tmp_path / "outside").write_bytes(b"a secret")
    path = tmp_path / "store" / manifest.object_path("model")
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    for access in (Store.open(store.uri).read, Store.open(store.uri).fetch):
        with pytest.raises(DamagedEntryError):
            access(manifest, "model")


@pytest.mark.parametrize(
    "raw",
    [b"{}", b'{"name": "mine", "skeleton": {}}', b'{"check":"%s","document":{}}' % (b"0" * 64), None],
    ids=["empty", "without a checksum", "with another checksum", "of another place"],
)
def test_a_document_that_is_not_the_one_written_there_is_refused(raw: bytes | None, tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.put_document("plans/first", {"name": "first"})
    store.put_document("plans/second", {"name": "second"})
    first, second = (tmp_path / "documents" / "plans" / f"{name}.json" for name in ("first", "second"))
    first.write_bytes(second.read_bytes() if raw is None else raw)
    with pytest.raises(StoreError, match=r"first\.json is damaged .*checksum.*: remove that file and run again"):
        store.get_document("plans/first")
    assert store.get_document("plans/second") == {"name": "second"}


def test_damaged_checkpoints_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    store = Store.open(tmp_path / "store")
    work = store.work(KEY)
    for step in (1, 2):
        (folder / "state").write_bytes(b"state %d" % step)
        work.save(step, folder)
    place = tmp_path / "store" / "work" / KEY
    files = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    trap = pickle.dumps(Trap(tmp_path / "executed"))
    seen = set()
    for case in range(100):
        draw = random.Random(case)
        path = draw.choice(list(files))
        path.chmod(0o600)
        path.write_bytes(damage(files[path], list(files.values()), draw, trap))
        latest = Store.open(store.uri).work(KEY).latest()
        assert latest is not None and (latest[1] / "state").read_bytes() == b"state %d" % latest[0]
        seen.add(latest[0])
        path.write_bytes(files[path])
    assert seen == {1, 2}
    forged = {"step": 2, "files": {"../../../../../outside": {"bytes": 0, "sha256": sha256_hex(b"")}}}
    for document in (forged, {"step": 2}, {"step": 2, "files": []}, {"step": 2, "files": {"state": 1}}):
        check = sha256_hex(canonical_json(document))
        newest = max(path for path in files if path.suffix == ".json")
        newest.write_bytes(canonical_json({**document, "check": check}))
        latest = Store.open(store.uri).work(KEY).latest()
        assert latest is not None and latest[0] == 1
    assert not (tmp_path / "executed").exists() and not list(tmp_path.glob("**/outside"))


def test_a_pickle_in_a_stored_model_fails_the_stage_and_is_not_executed(
    short_copy: Any, original: Original, tmp_path: Path
) -> None:
    (train,) = (entry for (kind, _), entry in original.manifests.items() if kind == "train")
    evil = pickle.dumps(Trap(tmp_path / "executed"))
    fact = {"bytes": len(evil), "sha256": sha256_hex(evil)}
    forged = replace(train, files={**train.files, "model.safetensors": fact})
    original.put(original.root / train.object_path("model.safetensors"), evil)
    original.put(original.root / "manifests" / "train" / f"{train.key}.json", forged.to_bytes())
    for kind, key in original.manifests:
        if kind != "train":
            (original.root / "manifests" / kind / f"{key}.json").unlink()
    options = RunOptions(short_copy.file, executor="serial", track=False, quiet=True)
    result = session.run(options, short_copy.home)
    assert [failure.stage.kind for failure in result.failures] == ["answers"]
    assert "CheckpointError" in result.failures[0].error and "no whole safetensors file" in result.failures[0].error
    assert not (tmp_path / "executed").exists()
