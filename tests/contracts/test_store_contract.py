"""What every store promises, on a local folder and on an object store without rename, at every failing call."""

from __future__ import annotations

import errno
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.fs import FileSelector, FileSystemHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from oakum import _store_index
from oakum import store as store_module
from oakum._store_arrow import ArrowFiles
from oakum.config import ConfigError
from oakum.records import StageRef, sha256_hex
from oakum.store import DamagedEntryError, Manifest, Store, StoreError

KEY = sha256_hex(b"a stage")
OTHER = sha256_hex(b"another stage")
FILES = {"model.safetensors": b"\x00weights" * 1000, "config.json": b"{}", "figures/one.png": b"\x89PNG"}
OS_CALLS = ("open", "write", "close", "link", "replace", "unlink", "makedirs", "rmdir", "fchmod", "listdir", "scandir")


@dataclass
class Faults:
    """Makes the `at`-th counted call fail, before or after its effect; `lasting` makes all later ones fail too."""

    at: int | None = None
    after: bool = False
    lasting: bool = False
    code: int = errno.ENOSPC
    count: int = 0
    fired: bool = False

    def call(self, action: Callable[[], Any]) -> Any:
        index, self.count = self.count, self.count + 1
        if self.at is None or not (index == self.at or (self.lasting and index > self.at)):
            return action()
        self.fired = True
        if self.after and type(result := action()).__name__ == "ScandirIterator":
            result.close()
        raise OSError(self.code, os.strerror(self.code))

    @contextmanager
    def armed(self, at: int, *, after: bool = False, lasting: bool = False, code: int = errno.ENOSPC) -> Iterator[None]:
        self.at, self.after, self.lasting, self.code = at, after, lasting, code
        self.count, self.fired = 0, False
        try:
            yield
        finally:
            self.at = None


class ObjectStream:
    """A stream of an object store: what was written shows at a close without an error before, or never."""

    def __init__(self, faults: Faults, stream: Any, commit: Callable[[bytes], None] | None) -> None:
        self.faults, self.stream, self.commit = faults, stream, commit
        self.closed = self.broken = False

    def readable(self) -> bool:
        return self.commit is None

    def writable(self) -> bool:
        return self.commit is not None

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def tell(self) -> int:
        return int(self.stream.tell())

    def read(self, size: int = -1) -> bytes:
        return bytes(self.faults.call(lambda: self.stream.read(size)))

    def write(self, data: Any) -> int:
        try:
            return int(self.faults.call(lambda: self.stream.write(bytes(data))))
        except OSError:
            self.broken = True
            raise

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        commit = self.commit
        if commit is not None and not self.broken:
            self.faults.call(lambda: commit(self.stream.getvalue()))


class ObjectStore(FileSystemHandler):
    """A handler around a local folder with an object store's manners: no rename, whole puts, every call may fail."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.inner = SubTreeFileSystem(str(folder), LocalFileSystem())
        self.folder, self.faults = folder, faults

    def get_type_name(self) -> str:
        return "object-store"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.faults.call(lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: Any) -> Any:
        copy = FileSelector(selector.base_dir, selector.allow_not_found, selector.recursive)
        return self.faults.call(lambda: self.inner.get_file_info(copy))

    def create_dir(self, path: str, recursive: bool) -> None:
        self.faults.call(lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self.faults.call(lambda: self.inner.delete_dir(path))

    def delete_file(self, path: str) -> None:
        self.faults.call(lambda: self.inner.delete_file(path))

    def move(self, source: str, target: str) -> None:
        raise NotImplementedError("an object store cannot rename")

    def open_input_stream(self, path: str) -> Any:
        stream = io.BytesIO(self.faults.call(lambda: (self.folder / path).read_bytes()))
        return pyarrow.PythonFile(ObjectStream(self.faults, stream, None), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        def commit(data: bytes) -> None:
            # An object store shows a put whole, also when two come at once.
            with tempfile.NamedTemporaryFile(dir=self.folder.parent, delete=False) as whole:
                whole.write(data)
            os.replace(whole.name, self.folder / path)

        if not (self.folder / path).parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return self.faults.call(lambda: pyarrow.PythonFile(ObjectStream(self.faults, io.BytesIO(), commit), mode="w"))

    def _never(self, *_: Any) -> Any:
        raise NotImplementedError("the store has no use for this")

    copy_file = open_append_stream = open_input_file = delete_dir_contents = delete_root_dir_contents = _never


@dataclass
class Place:
    """One kind of store: `store(folder)` opens a store whose calls fail as `faults` says."""

    name: str
    faults: Faults
    store: Callable[[Path], Store]


@pytest.fixture(params=["local", "object store"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    faults = Faults()
    if request.param == "local":
        for name in OS_CALLS:
            real = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *args, _real=real, **kwargs: faults.call(lambda: _real(*args, **kwargs))
            )
        return Place("local", faults, Store.open)

    def open_store(folder: Path) -> Store:
        folder.mkdir(exist_ok=True)
        return Store(ArrowFiles(PyFileSystem(ObjectStore(folder, faults)), "", "object-store:/"), "object-store:/")

    return Place("object store", faults, open_store)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def publish(store: Store, folder: Path, kind: str = "train", key: str = KEY, **changes: Any) -> Manifest:
    documents: dict[str, Any] = {"key_document": {"seed": 1}, "label": "none, seed 0", "summary": {"accuracy": 0.5}}
    return store.publish(kind, key, folder, **{**documents, "provenance": {"inputs": {}}, **changes})


def assert_whole(store: Store, manifest: Manifest) -> None:
    assert store.manifest(manifest.kind, manifest.key) == manifest
    assert {name: store.read(manifest, name) for name in manifest.files} == FILES
    assert store.verify() == []


def object_file(root: Path, manifest: Manifest, name: str) -> Path:
    return root / "objects" / manifest.key / manifest.attempt / name


FAULTS = [
    pytest.param({"after": False, "lasting": False}, id="one call fails"),
    pytest.param({"after": True, "lasting": False}, id="one answer is lost"),
    pytest.param({"after": False, "lasting": True}, id="all later calls fail"),
]


def test_publish_and_read_back(place: Place, payload: Path, tmp_path: Path) -> None:
    store = place.store(tmp_path / "store")
    assert store.published("train") == set() and store.manifest("train", KEY) is None and store.entries() == []
    manifest = publish(store, payload, summary={"pair": (1, 2), "text": "ä"})
    assert manifest.summary == {"pair": [1, 2], "text": "ä"}
    assert manifest.files["config.json"] == {"bytes": 2, "sha256": sha256_hex(b"{}")}
    reader = place.store(tmp_path / "store")
    assert reader.published("train") == {KEY} and reader.published("answers") == set()
    assert_whole(reader, manifest)
    assert reader.entries() == [manifest]
    assert reader.usage() == {"train": sum(map(len, FILES.values()))}
    fetched = reader.fetch(manifest, "figures/one.png")
    assert fetched.read_bytes() == FILES["figures/one.png"]
    assert reader.fetch(manifest, "figures/one.png") == fetched
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert {path.relative_to(payload).as_posix() for path in payload.rglob("*") if path.is_file()} == set(FILES)
    with pytest.raises(KeyError, match=r"config\.json"):
        reader.read(manifest, "nothing")


def test_content_depends_on_the_bytes_alone(place: Place, payload: Path, tmp_path: Path) -> None:
    first = publish(place.store(tmp_path / "one"), payload)
    second = publish(place.store(tmp_path / "two"), payload, key=OTHER, label="other")
    assert first.content == second.content and first.attempt != second.attempt
    (payload / "config.json").write_bytes(b"[]")
    assert publish(place.store(tmp_path / "three"), payload).content != first.content


def test_an_entry_without_files_is_an_entry(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    store = place.store(tmp_path / "store")
    manifest = publish(store, tmp_path / "empty")
    assert manifest.files == {} and store.manifest("train", KEY) == manifest and store.verify() == []


@pytest.mark.parametrize("fault", FAULTS)
def test_publish_survives_a_failure_at_every_call(
    place: Place, payload: Path, tmp_path: Path, fault: dict[str, bool]
) -> None:
    for at in range(500):
        root = tmp_path / f"store{at}"
        store = place.store(root)
        with place.faults.armed(at, **fault):
            try:
                publish(store, payload)
            except StoreError as error:
                assert "disk is full" in str(error)
                assert str(tmp_path) in str(error) or "object-store:" in str(error)
                failed = True
            else:
                failed = False
        reader = place.store(root)
        if KEY in reader.published("train"):
            manifest = reader.manifest("train", KEY)
            assert manifest is not None
            assert_whole(reader, manifest)
        else:
            assert failed
            assert reader.manifest("train", KEY) is None and reader.entries() == []
        assert_whole(reader, publish(store, payload))
        if not place.faults.fired:
            assert at > 5
            return
    raise AssertionError("publishing never ended")


def test_a_failing_read_is_no_damage(place: Place, payload: Path, tmp_path: Path) -> None:
    manifest = publish(place.store(tmp_path / "store"), payload)
    for at in range(100):
        store = place.store(tmp_path / "store")
        with place.faults.armed(at, code=errno.EIO):
            try:
                assert store.manifest("train", KEY) == manifest
                assert store.read(manifest, "config.json") == b"{}"
                assert store.fetch(manifest, "config.json").read_bytes() == b"{}"
                assert store.published("train") == {KEY}
                assert store.entries() == [manifest]
            except DamagedEntryError as error:
                raise AssertionError("an input error was taken for damage") from error
            except StoreError as error:
                assert "reached" in str(error)
        assert_whole(place.store(tmp_path / "store"), manifest)
        if not place.faults.fired:
            return
    raise AssertionError("reading never ended")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut"),
        pytest.param(lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), id="changed"),
    ],
)
def test_a_damaged_payload(place: Place, payload: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    root = tmp_path / "store"
    manifest = publish(place.store(root), payload)
    path = object_file(root, manifest, "model.safetensors")
    path.chmod(0o600)
    damage(path)
    store = place.store(root)
    assert store.read(manifest, "config.json") == b"{}"
    assert [(problem.kind, problem.key, problem.name) for problem in store.verify()] == [
        ("train", KEY, "model.safetensors")
    ]
    for access in (store.read, store.fetch):
        with pytest.raises(DamagedEntryError) as caught:
            access(manifest, "model.safetensors")
        assert (caught.value.kind, caught.value.key, caught.value.name) == ("train", KEY, "model.safetensors")
    store.set_aside("train", KEY, str(caught.value), attempt="0" * 16)
    assert store.published("train") == {KEY}
    store.set_aside("train", KEY, str(caught.value), attempt=caught.value.attempt)
    assert store.published("train") == set() and store.manifest("train", KEY) is None
    (record,) = (root / "damaged" / "train").iterdir()
    assert "model.safetensors is damaged" in json.loads(record.read_bytes())["reason"]
    store.set_aside("train", KEY, "again")
    again = publish(store, payload)
    assert again.attempt != manifest.attempt
    assert_whole(store, again)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[: len(raw) // 2], id="cut"),
        pytest.param(lambda raw: raw.replace(b'"accuracy":0.5', b'"accuracy":0.9'), id="changed"),
        pytest.param(lambda raw: b"\xff\x00", id="not text"),
        pytest.param(lambda raw: b"[1]", id="not an object"),
        pytest.param(lambda raw: raw.replace(KEY.encode(), OTHER.encode()), id="of another entry"),
        pytest.param(lambda raw: b"[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_manifest_is_set_aside(
    place: Place, payload: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    publish(store, payload)
    path = root / "manifests" / "train" / f"{KEY}.json"
    path.write_bytes(damage(path.read_bytes()))
    assert [(problem.key, problem.name) for problem in store.verify()] == [(KEY, "manifest")]
    assert store.manifest("train", KEY) is None
    assert store.published("train") == set() and store.entries() == []
    assert len(list((root / "damaged" / "train").iterdir())) == 1
    assert_whole(store, publish(store, payload))
    path.write_bytes(damage(path.read_bytes()))
    assert_whole(store, publish(store, payload))


def test_a_manifest_of_a_later_oakum_stays(place: Place, payload: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    publish(store, payload)
    path = root / "manifests" / "train" / f"{KEY}.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema": 99, "news": 1}))
    with pytest.raises(StoreError, match="upgrade oakum"):
        store.manifest("train", KEY)
    assert path.exists()


@pytest.mark.parametrize("few", [0, 100])
def test_many_manifests_at_once(
    place: Place, payload: Path, tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether few are asked for, or so many that an object store is asked for an index."""
    monkeypatch.setattr(store_module, "FEW", few)
    monkeypatch.setattr(_store_index, "FEW", few)
    root = tmp_path / "store"
    store = place.store(root)
    published = {
        StageRef(kind, key): publish(store, payload, kind=kind, key=key)
        for kind in ("train", "answers")
        for key in (KEY, OTHER)
    }
    missing, damaged = StageRef("train", sha256_hex(b"missing")), StageRef("answers", sha256_hex(b"damaged"))
    publish(store, payload, kind=damaged.kind, key=damaged.key)
    age(root, 60)
    path = root / "manifests" / damaged.kind / f"{damaged.key}.json"
    path.write_bytes(path.read_bytes()[:-5])
    wanted = [missing, *reversed(published), damaged]
    for reader in (store, place.store(root), place.store(root)):
        found = reader.manifests(iter(wanted))
        assert found == published and list(found) == list(reversed(published))
        assert not path.exists()
    assert store.manifests([]) == {} and store.manifests([missing]) == {}
    assert (root / "index" / "train").exists() == (few == 0 and place.name == "object store")
    store.set_aside("train", KEY, "a test")
    again = publish(store, payload, label="again")
    for reader in (store, place.store(root)):
        assert reader.manifests(published) == {**published, StageRef("train", KEY): again}
    for index in (root / "index").glob("*"):
        index.write_bytes(index.read_bytes()[:-5])
    assert place.store(root).manifests(published) == {**published, StageRef("train", KEY): again}


@pytest.mark.parametrize("fault", FAULTS)
def test_set_aside_survives_a_failure_at_every_call(
    place: Place, payload: Path, tmp_path: Path, fault: dict[str, bool]
) -> None:
    for at in range(100):
        store = place.store(tmp_path / f"store{at}")
        manifest = publish(store, payload)
        with place.faults.armed(at, **fault), suppress(StoreError):
            store.set_aside("train", KEY, "a test")
        if store.published("train"):
            assert_whole(store, manifest)
        store.set_aside("train", KEY, "a test")
        assert store.published("train") == set()
        if not place.faults.fired:
            return
    raise AssertionError("setting aside never ended")


@pytest.mark.parametrize("fault", FAULTS)
def test_documents_survive_a_failure_at_every_call(place: Place, tmp_path: Path, fault: dict[str, bool]) -> None:
    for at in range(100):
        store = place.store(tmp_path / f"store{at}")
        store.put_document("plans/one", {"version": 1})
        with place.faults.armed(at, **fault), suppress(StoreError):
            store.put_document("plans/one", {"version": 2})
            store.put_document("fresh/folder/two", {"version": 2})
        fired = place.faults.fired
        assert store.get_document("plans/one") in ({"version": 1}, {"version": 2})
        assert store.get_document("fresh/folder/two") in (None, {"version": 2})
        assert set(store.list_documents()) <= {"plans/one", "fresh/folder/two"}
        store.put_document("plans/one", {"version": 3})
        assert store.get_document("plans/one") == {"version": 3}
        if not fired:
            return
    raise AssertionError("writing documents never ended")


def test_documents(place: Place, tmp_path: Path) -> None:
    store = place.store(tmp_path / "store")
    assert store.list_documents() == [] and store.list_documents("plans") == []
    assert store.get_document("plans/a") is None
    for name in ("plans/b", "plans/a", "plans2/c", "pins/my best model (ä)", "outbox/run/1.json"):
        store.put_document(name, {"name": name})
    assert store.list_documents("plans") == store.list_documents("plans/") == ["plans/a", "plans/b"]
    assert store.list_documents("outbox/run") == ["outbox/run/1.json"]
    assert len(store.list_documents()) == 5
    assert store.get_document("pins/my best model (ä)") == {"name": "pins/my best model (ä)"}
    store.delete_document("plans/a")
    store.delete_document("plans/a")
    assert store.list_documents("plans") == ["plans/b"]
    (tmp_path / "store" / "documents" / "plans" / "b.json").write_bytes(b'{"na')
    with pytest.raises(StoreError, match="damaged"):
        store.get_document("plans/b")
    with pytest.raises(ValueError, match="JSON"):
        store.put_document("plans/c", {"value": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        store.put_document("plans/c", {"value": object()})


def checkpoint(folder: Path, step: int) -> Path:
    (folder / "rng").mkdir(parents=True, exist_ok=True)
    (folder / "model").write_bytes(b"model %d" % step)
    (folder / "rng" / "python").write_bytes(b"state %d" % step)
    return folder


def assert_latest(store: Store, step: int) -> None:
    latest = store.work(KEY).latest()
    assert latest is not None and latest[0] == step
    assert (latest[1] / "model").read_bytes() == b"model %d" % step
    assert (latest[1] / "rng" / "python").read_bytes() == b"state %d" % step


def markers(root: Path) -> list[Path]:
    return sorted((root / "work").glob("*/*/*.json"), key=lambda path: path.name)


def test_work_keeps_the_two_newest(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    work = store.work(KEY)
    assert work.latest() is None
    for step in (0, 1, 2, 10, 10):
        work.save(step, checkpoint(tmp_path / "state", step))
        assert_latest(store, step)
    assert [path.name[:12] for path in markers(root)] == ["000000000002", "000000000010"]
    folders = [path for path in (root / "work" / KEY).glob("*/*") if path.is_dir() and any(path.rglob("*"))]
    assert len(folders) == 2
    assert store.work(OTHER).latest() is None
    work.clear()
    assert store.work(KEY).latest() is None and markers(root) == []
    work.save(3, checkpoint(tmp_path / "state", 3))
    assert_latest(store, 3)


def test_work_of_two_attempts(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    first, second = store.work(KEY), store.work(KEY)
    for step in (1, 2, 3):
        first.save(step, checkpoint(tmp_path / "state", step))
    second.save(2, checkpoint(tmp_path / "state", 2))
    assert_latest(store, 3)
    second.save(4, checkpoint(tmp_path / "state", 4))
    assert_latest(store, 4)
    second.save(5, checkpoint(tmp_path / "state", 5))
    assert [path.name[:12] for path in markers(root)] == ["000000000004", "000000000005"]
    first.save(4, checkpoint(tmp_path / "state", 4))
    assert_latest(store, 5)


def test_damaged_work_is_skipped(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    work = store.work(KEY)
    for step in (1, 2):
        work.save(step, checkpoint(tmp_path / "state", step))
    newest = markers(root)[-1]
    model = newest.with_suffix("") / "model"
    model.chmod(0o600)
    model.write_bytes(b"model 3")
    assert_latest(store, 1)
    markers(root)[0].write_bytes(b"{}")
    assert store.work(KEY).latest() is None


def test_work_killed_between_payload_and_marker(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    for step in (1, 2):
        store.work(KEY).save(step, checkpoint(tmp_path / "state", step))
    markers(root)[-1].unlink()
    assert_latest(place.store(root), 1)
    markers(root)[-1].unlink()
    assert place.store(root).work(KEY).latest() is None
    store.work(KEY).clear()
    assert not [path for path in (root / "work").rglob("*") if path.is_file()]


@pytest.mark.parametrize("fault", FAULTS)
def test_work_survives_a_failure_at_every_call(place: Place, tmp_path: Path, fault: dict[str, bool]) -> None:
    for at in range(500):
        store = place.store(tmp_path / f"store{at}")
        work = store.work(KEY)
        for step in (1, 2):
            work.save(step, checkpoint(tmp_path / "state", step))
        checkpoint(tmp_path / "state", 3)
        with place.faults.armed(at, **fault):
            try:
                work.save(3, tmp_path / "state")
                failed = False
            except StoreError:
                failed = True
        fired = place.faults.fired
        latest = store.work(KEY).latest()
        assert latest is not None and latest[0] in ((2, 3) if failed else (3,))
        assert_latest(store, latest[0])
        work.save(3, tmp_path / "state")
        assert_latest(store, 3)
        work.clear()
        assert store.work(KEY).latest() is None
        if not fired:
            return
    raise AssertionError("saving never ended")


def age(root: Path, seconds: float) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            facts = path.stat()
            os.utime(path, (facts.st_atime - seconds, facts.st_mtime - seconds))


def stored_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def fill(store: Store, payload: Path, root: Path) -> dict[str, str]:
    """Publish a plan's stage with its input, a pinned one, and garbage of every sort."""
    keys = {name: sha256_hex(name.encode()) for name in ("input", "planned", "pinned", "model", "event", "unneeded")}
    source = publish(store, payload, key=keys["input"])
    inputs = {"target": {"kind": "train", "key": source.key, "content": source.content}}
    publish(store, payload, kind="answers", key=keys["planned"], provenance={"inputs": inputs})
    for name in ("pinned", "model", "event", "unneeded"):
        publish(store, payload, kind="answers", key=keys[name])
    store.put_document(
        "plans/p", {"stages": [{"kind": "answers", "key": keys["planned"]}, {"kind": "x", "key": OTHER}]}
    )
    store.put_document("pins/p", {"kind": "answers", "key": keys["pinned"]})
    store.put_document("models/m", {"versions": [{"kind": "answers", "key": keys["model"]}]})
    store.put_document("outbox/r/1", {"kind": "answers", "key": keys["event"]})
    for key in (keys["planned"], OTHER, KEY):
        store.work(key).save(1, payload)
    orphan = root / "objects" / KEY / ("0" * 16) / "model"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"orphan")
    (root / "manifests" / "train" / f".{'0' * 16}.tmp").write_bytes(b"half")
    return keys


def test_gc(place: Place, payload: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    keys = fill(store, payload, root)
    young = store.gc(dry_run=False, min_age_seconds=3600)
    assert (young.entries, young.orphans, young.work, young.temporaries) == ((), (), (), 0) and young.kept == 6
    age(root, 7200)
    before = stored_files(root)
    report = store.gc(min_age_seconds=3600)
    assert stored_files(root) == before and report.dry_run
    assert [(ref.kind, ref.key) for ref in report.entries] == [("answers", keys["unneeded"])]
    assert report.orphans == (f"{KEY}/{'0' * 16}",) and report.work == tuple(sorted((keys["planned"], KEY)))
    assert report.temporaries == 1 and report.kept == 5
    size = sum(map(len, FILES.values()))
    assert report.usage == {"answers": 4 * size, "train": size} and report.bytes > 3 * size
    done = store.gc(dry_run=False, min_age_seconds=3600)
    assert (done.entries, done.orphans, done.work, done.bytes) == (
        report.entries,
        report.orphans,
        report.work,
        report.bytes,
    )
    assert {manifest.key for manifest in store.entries()} == set(keys.values()) - {keys["unneeded"]}
    assert store.verify() == [] and not (root / "objects" / keys["unneeded"]).joinpath("model.safetensors").exists()
    assert store.work(OTHER).latest() is not None and store.work(KEY).latest() is None
    rest = store.gc(dry_run=False, min_age_seconds=0)
    assert (rest.entries, rest.orphans, rest.work, rest.temporaries, rest.bytes) == ((), (), (), 0, 0)


def test_gc_survives_failures(place: Place, payload: Path, tmp_path: Path) -> None:
    # Every fourth call: a collection makes hundreds, and each turn fills a store of its own.
    for at in range(0, 1000, 4):
        root = tmp_path / f"store{at}"
        store = place.store(root)
        keys = fill(store, payload, root)
        with place.faults.armed(at, code=errno.EIO), suppress(StoreError):
            store.gc(dry_run=False, min_age_seconds=0)
        fired = place.faults.fired
        assert {manifest.key for manifest in store.entries()} >= set(keys.values()) - {keys["unneeded"]}
        assert store.verify() == []
        assert store.work(OTHER).latest() is not None
        store.gc(dry_run=False, min_age_seconds=0)
        assert len(store.entries()) == 5
        if not fired:
            return
    raise AssertionError("collecting never ended")


def test_gc_refuses_when_a_root_is_damaged(place: Place, payload: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = place.store(root)
    fill(store, payload, root)
    (root / "documents" / "plans" / "p.json").write_bytes(b'{"stages": [')
    with pytest.raises(StoreError, match="damaged"):
        store.gc(dry_run=False, min_age_seconds=0)
    assert len(store.entries()) == 6


def test_verify_names_stale_descendants(place: Place, payload: Path, tmp_path: Path) -> None:
    store = place.store(tmp_path / "store")
    source = publish(store, payload)
    inputs = {"target": {"kind": "train", "key": KEY, "content": source.content}}
    publish(store, payload, kind="answers", key=OTHER, provenance={"inputs": inputs})
    assert store.verify() == []
    store.set_aside("train", KEY, "a test")
    (payload / "config.json").write_bytes(b"[]")
    publish(store, payload)
    for problems in (store.verify(), store.verify("answers"), store.verify("answers", OTHER)):
        assert [(problem.kind, problem.key) for problem in problems] == [("answers", OTHER)]
        assert "stale" in problems[0].why
    assert store.verify("train") == [] and store.verify(key=KEY) == []


def test_publish_from_many_threads(place: Place, tmp_path: Path) -> None:
    def publish_one(index: int) -> Manifest:
        folder = tmp_path / f"payload{index}"
        folder.mkdir()
        (folder / "who").write_bytes(b"%d" % index)
        return publish(store, folder)

    for turn in range(5):
        store = place.store(tmp_path / f"store{turn}")
        with ThreadPoolExecutor(8) as pool:
            manifests = list(pool.map(publish_one, range(turn * 8, turn * 8 + 8)))
        final = store.manifest("train", KEY)
        assert final in manifests and store.verify() == []
        if place.name == "local":
            assert set(map(lambda manifest: manifest.attempt, manifests)) == {final.attempt}
            assert [path.name for path in (tmp_path / f"store{turn}" / "objects" / KEY).iterdir()] == [final.attempt]


BAD_NAMES = ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "x\x00", "x\n", "\x1b[31m", "a\\b", ".x"]
BAD_NAMES += [" a", "a ", "\u202eabc", "\u2028", "\ud800", "a" * 10_000, "a" * 201, "/".join(["a" * 100] * 7)]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name)[:30])
def test_bad_names_are_refused(place: Place, payload: Path, tmp_path: Path, name: str) -> None:
    store = place.store(tmp_path / "store")
    calls: list[Callable[[], object]] = [
        lambda: store.put_document(name, {}),
        lambda: store.get_document(name),
        lambda: store.delete_document(name),
        lambda: store.published(name),
        lambda: store.manifest(name, KEY),
        lambda: store.manifest("train", name),
        lambda: publish(store, payload, kind=name),
        lambda: publish(store, payload, key=name),
        lambda: store.set_aside(name, KEY, "x"),
        lambda: store.work(name),
        lambda: store.verify(name),
    ]
    for call in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and payload not in path.parents]


@pytest.mark.parametrize("key", [KEY.upper(), KEY[:-1], KEY + "0", KEY[:-1] + "g", KEY + "\n"])
def test_keys_are_lowercase_sha256(place: Place, tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="64 lowercase hex digits"):
        place.store(tmp_path / "store").manifest("train", key)


def test_what_cannot_be_published(place: Place, payload: Path, tmp_path: Path) -> None:
    store = place.store(tmp_path / "store")
    for bad in ({"accuracy": float("nan")}, {"accuracy": object()}, {"text": "\ud800"}):
        with pytest.raises(ValueError, match="JSON"):
            publish(store, payload, summary=bad)
    with pytest.raises(ValueError, match="not a folder"):
        publish(store, tmp_path / "missing")
    (payload / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="link"):
        publish(store, payload)
    (payload / "link").unlink()
    os.mkfifo(payload / "pipe")
    with pytest.raises(ValueError, match="plain"):
        publish(store, payload)
    (payload / "pipe").unlink()
    (payload / "new\nline").write_bytes(b"")
    with pytest.raises(ConfigError, match="control"):
        publish(store, payload)
    assert store.entries() == [] and not (tmp_path / "store" / "objects").exists()


def test_a_manifest_cannot_lead_out_of_its_entry(place: Place, payload: Path, tmp_path: Path) -> None:
    store = place.store(tmp_path / "store")
    manifest = publish(store, payload)
    fact = manifest.files["config.json"]
    for changes in ({"files": {"../../secret": fact}}, {"attempt": "../../../../etc"}, {"files": {"a": {"bytes": -1}}}):
        with pytest.raises(ValueError):
            Manifest.from_json({**manifest.to_json(), **changes})
