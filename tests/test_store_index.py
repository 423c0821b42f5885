"""The index of manifests on object stores: the same answers as without it, at the price of a listing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from oakum import _store_index
from oakum import store as store_module
from oakum._store_files import FileFact, Item, store_clock
from oakum._store_index import FEW, PARALLEL, Copy, pack, unpack
from oakum._store_names import StoreError
from oakum.config import ConfigError
from oakum.pipeline.executor import find_present, stale_input
from oakum.pipeline.stage import Stage
from oakum.records import StageRef, sha256_hex
from oakum.store import Manifest, Store

PAGE = 1000


class Bucket:
    """The files of an object store in memory: times are whole seconds, requests are counted and may fail."""

    is_local = False

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.now = 1000.0
        self.requests: Counter[str] = Counter()
        self.fails: Callable[[str, str], bool] = lambda action, path: False
        self.slow = 0.0
        self.reading = self.most_reading = 0
        self._lock = threading.Lock()

    def place(self, path: str) -> str:
        return f"bucket://{path}"

    def local_path(self, path: str) -> Path | None:
        return None

    def chunks(self, path: str) -> Iterator[bytes]:
        self._ask("read", path)
        with self._lock:
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        time.sleep(self.slow)
        with self._lock:
            self.reading -= 1
        if path not in self.objects:
            raise FileNotFoundError(path)
        yield self.objects[path][0]

    def put(self, path: str, data: bytes) -> None:
        self._ask("write", path)
        self.objects[path] = (data, float(int(self.now)))

    def put_first(self, path: str, data: bytes) -> bool:
        self.put(path, data)
        return True

    def add(self, path: str, source: Path) -> FileFact:
        data = source.read_bytes()
        self.put(path, data)
        return FileFact(len(data), sha256_hex(data))

    def names(self, folder: str) -> list[str]:
        return [item.path.rpartition("/")[2] for item in self.listing(folder) if item.bytes]

    def listing(self, folder: str) -> list[Item]:
        found = [path for path in list(self.objects) if path.startswith(f"{folder}/")]
        self._ask("list", folder, max(1, -(-len(found) // PAGE)))
        return [Item(path, len(self.objects[path][0]), self.objects[path][1]) for path in found]

    def delete(self, path: str) -> None:
        self._ask("delete", path)
        self.objects.pop(path, None)

    def delete_tree(self, folder: str) -> None:
        self._ask("delete", folder)
        for path in [path for path in self.objects if path.startswith(f"{folder}/")]:
            del self.objects[path]

    def store(self) -> Store:
        """Return the bucket's store as another process opens it."""
        return Store(self, "bucket://")

    def copy(self) -> Bucket:
        other = Bucket()
        other.objects, other.now = dict(self.objects), self.now
        return other

    def manifests(self) -> set[str]:
        return {path for path in self.objects if path.startswith("manifests/")}

    def _ask(self, action: str, path: str, requests: int = 1) -> None:
        with self._lock:
            self.requests[action] += requests
            fails = self.fails(action, path)
        if fails:
            raise StoreError(f"{path}: check that the store can be reached")


def stage(kind: str, label: object, **inputs: Stage) -> Stage:
    return Stage(kind, {"label": str(label), "threads": 1}, inputs, {}, "code", label=str(label))


def plan_of(cells: int) -> dict[str, Stage]:
    """Return three stages for each cell, inputs before their users."""
    stages: list[Stage] = []
    for cell in range(cells):
        train = stage("train", cell)
        answers = stage("answers", cell, target=train)
        stages += [train, answers, stage("membership", cell, target=train, answers=answers)]
    return {each.key: each for each in stages}


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Manifest | None]:
    def put(to: Store, each: Stage, content: bytes = b"payload") -> Manifest | None:
        """Publish a stage as a worker does, from the inputs that are there; not at all where one is missing."""
        (tmp_path / "payload").mkdir(exist_ok=True)
        (tmp_path / "payload" / "file").write_bytes(content)
        inputs: dict[str, Any] = {}
        for name, upstream in each.inputs.items():
            manifest = to.manifest(upstream.kind, upstream.key)
            if manifest is None:
                return None
            inputs[name] = {"kind": manifest.kind, "key": manifest.key, "content": manifest.content}
        return to.publish(
            each.kind, each.key, tmp_path / "payload", key_document=each.key_document(), label=each.label, summary={},
            provenance={"inputs": inputs},
        )  # fmt: skip

    return put


def find_plainly(stages: dict[str, Stage], one_by_one: Store) -> dict[str, Manifest]:
    """The look into the store as it is defined: every manifest that is there is read, in the plan's order."""
    published = {each.kind: one_by_one.published(each.kind) for each in stages.values()}
    present: dict[str, Manifest] = {}
    for key, each in stages.items():
        manifest = one_by_one.manifest(each.kind, key) if key in published[each.kind] else None
        if manifest is None:
            continue
        stale = stale_input(manifest, present)
        if stale is None:
            present[key] = manifest
        else:
            one_by_one.set_aside(each.kind, key, f"made from other bytes of its input {stale!r}")
    return present


def require_equal(stages: dict[str, Stage], bucket: Bucket, found_by: Store) -> None:
    """Require that a store finds what reading every manifest finds, and sets the same ones aside."""
    plain = bucket.copy()
    expected = find_plainly(stages, plain.store())
    assert find_present(stages, found_by) == set(expected)
    assert bucket.manifests() == plain.manifests()
    refs = [each.ref for each in stages.values()]
    assert found_by.manifests(refs) == {stages[key].ref: manifest for key, manifest in expected.items()}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is used from the third manifest on, so that few stages exercise it."""
    monkeypatch.setattr(_store_index, "FEW", 2)
    monkeypatch.setattr(store_module, "FEW", 2)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("seed", range(25))
def test_the_same_answers_as_without_an_index(bucket: Bucket, publish: Callable[..., Any], seed: int) -> None:
    draw, stages = Random(seed), plan_of(5)
    drivers, older = [bucket.store(), bucket.store()], dict[str, bytes]()
    kept = 0
    for _ in range(60):
        each, driver = draw.choice(list(stages.values())), draw.choice(drivers)
        bucket.now += draw.choice([0.0, 0.0, 0.4, 1.0, 5.0])
        manifest, index = f"manifests/{each.kind}/{each.key}.json", f"index/{each.kind}"
        action = draw.choice(["publish"] * 8 + ["look"] * 6 + ["set aside", "delete", "damage", "restart"] + ["index"])
        if action == "publish":
            publish(driver, each, draw.choice([b"payload", b"payload", b"others"]))
        elif action == "look":
            require_equal(stages, bucket, driver)
        elif action == "set aside":
            driver.set_aside(each.kind, each.key, "a test")
        elif action == "delete":
            bucket.delete(manifest)
        elif action == "damage" and manifest in bucket.objects:
            raw = bucket.objects[manifest][0]
            bucket.put(manifest, draw.choice([raw[:-9], raw.replace(b"payload", b"PAYLOAD"), b"", b"\xff" * len(raw)]))
        elif action == "restart":
            drivers[drivers.index(driver)] = bucket.store()
        elif index in bucket.objects:
            now = bucket.objects[index][0]
            bucket.put(index, draw.choice([b"", b"not an index", now[: len(now) // 2], older.get(index, now)]))
            older[index] = now
        kept += any(path.startswith("index/") for path in bucket.objects)
    for driver in (*drivers, bucket.store()):
        require_equal(stages, bucket, driver)
    assert kept, "no index was written"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("seed", range(5))
def test_requests_that_fail_at_random(bucket: Bucket, publish: Callable[..., Any], seed: int) -> None:
    draw, stages, answered = Random(seed), plan_of(4), 0
    for each in stages.values():
        publish(bucket.store(), each)
    expected = find_plainly(stages, bucket.copy().store()).keys()
    for _ in range(60):
        bucket.now += 1.0
        bucket.fails = lambda action, path: draw.random() < 0.03
        try:
            assert find_present(stages, bucket.store()) == expected
            answered += 1
        except StoreError as error:
            assert "manifests/" in str(error), "the index's own requests may fail"
        bucket.fails = lambda action, path: False
    assert 0 < answered < 60
    require_equal(stages, bucket, bucket.store())


@pytest.mark.parametrize("cells", [3, 40, 334])
def test_a_look_costs_a_listing(bucket: Bucket, publish: Callable[..., Any], cells: int) -> None:
    stages = plan_of(cells)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += 10.0
    first, again = bucket.store(), bucket.store()
    bucket.requests.clear()
    assert len(find_present(stages, first)) == len(stages)
    assert bucket.requests["read"] >= len(stages)
    allowed = len(stages) // PAGE + 50
    for driver in (again, first):
        for ask in (lambda: find_present(stages, driver), lambda: driver.entries()):  # noqa: B023
            bucket.requests.clear()
            assert len(ask()) == len(stages)
            assert sum(bucket.requests.values()) <= allowed, bucket.requests
    if len(stages) > FEW:
        # What was added meanwhile is read, and the index is written again only for many.
        for extra in (stage("train", "one more"), stage("train", "another")):
            publish(first, extra)
            stages[extra.key] = extra
        bucket.requests.clear()
        assert len(find_present(stages, bucket.store())) == len(stages)
        assert bucket.requests["read"] == 3 + 2 and bucket.requests["write"] == 0


def test_reads_are_made_side_by_side(bucket: Bucket, publish: Callable[..., Any]) -> None:
    stages = plan_of(20)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.slow, bucket.most_reading = 0.002, 0
    assert len(find_present(stages, bucket.store())) == 60
    assert 4 < bucket.most_reading <= PARALLEL


def rewrite(bucket: Bucket, manifest: Manifest) -> Manifest:
    """Put another attempt of the same size in a manifest's place."""
    other = Manifest.from_json({**manifest.to_json(), "attempt": manifest.attempt[::-1]})
    assert len(other.to_bytes()) == len(manifest.to_bytes()) and other != manifest
    bucket.put(f"manifests/{manifest.kind}/{manifest.key}.json", other.to_bytes())
    return other


@pytest.mark.parametrize("age", [0.0, 0.9, 1.9, 2.0, 60.0])
def test_what_is_overwritten_within_a_second_is_read_again(
    bucket: Bucket, publish: Callable[..., Any], age: float
) -> None:
    """Time and size of a young file do not tell two attempts apart: it must not be copied."""
    stages = plan_of(20)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += age
    driver, refs = bucket.store(), [each.ref for each in stages.values()]
    found = driver.manifests(refs)
    assert bool([path for path in bucket.objects if path.startswith("index/")]) == (age >= 2.0)
    for ref in refs[:2]:
        found[ref] = rewrite(bucket, found[ref])
    assert driver.manifests(refs) == bucket.store().manifests(refs) == found


def test_a_manifest_that_is_overwritten_after_the_listing(
    bucket: Bucket, publish: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = plan_of(20)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += 10.0
    first = next(iter(stages.values()))

    def overwrite_after_the_listing(files: Any) -> float | None:
        monkeypatch.setattr(_store_index, "store_clock", store_clock)
        found = bucket.store().manifest(first.kind, first.key)
        assert found is not None
        rewrite(bucket, found)
        return store_clock(files)

    monkeypatch.setattr(_store_index, "store_clock", overwrite_after_the_listing)
    driver = bucket.store()
    assert find_present(stages, driver) == stages.keys()
    require_equal(stages, bucket, driver)
    require_equal(stages, bucket, bucket.store())


def test_two_drivers_write_the_index_at_once(bucket: Bucket, publish: Callable[..., Any]) -> None:
    stages = plan_of(40)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += 10.0
    plans = [dict(list(stages.items())[part::2]) for part in range(2)]
    barrier, found = threading.Barrier(2), dict[int, set[str]]()

    def look(number: int) -> None:
        barrier.wait()
        found[number] = find_present(plans[number], bucket.store())

    threads = [threading.Thread(target=look, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: set(plan) for number, plan in enumerate(plans)}
    require_equal(stages, bucket, bucket.store())
    require_equal(stages, bucket, bucket.store())


def test_a_store_that_cannot_be_written_is_read(bucket: Bucket, publish: Callable[..., Any]) -> None:
    stages = plan_of(20)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += 10.0
    bucket.fails = lambda action, path: action == "write"
    require_equal(stages, bucket, bucket.store())
    assert not any(path.startswith("index/") for path in bucket.objects)


def test_gc_and_verify_know_no_index(bucket: Bucket, publish: Callable[..., Any]) -> None:
    stages = plan_of(20)
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += 10.0
    require_equal(stages, bucket, bucket.store())
    indexes = {path: data for path, (data, _) in bucket.objects.items() if path.startswith("index/")}
    assert indexes.keys() == {"index/train", "index/answers", "index/membership"}
    needed = list(stages.values())[:3]
    bucket.store().put_document("plans/p", {"stages": [{"kind": each.kind, "key": each.key} for each in needed]})
    bucket.now += 7200.0
    without = bucket.copy()
    for path in indexes:
        del without.objects[path]
        bucket.put(path, b"damaged")
    assert bucket.store().verify() == []
    report = bucket.store().gc(dry_run=False, min_age_seconds=3600.0)
    assert report == without.store().gc(dry_run=False, min_age_seconds=3600.0) and len(report.entries) == 57
    for path, data in indexes.items():
        bucket.put(path, data)
    require_equal(stages, bucket, bucket.store())
    assert find_present(stages, bucket.store()) == {each.key for each in needed}


def test_copies_of_what_is_gone_are_dropped(bucket: Bucket, publish: Callable[..., Any]) -> None:
    stages = plan_of(40)
    first, second = (dict(list(stages.items())[part::2]) for part in range(2))
    for each in stages.values():
        publish(bucket.store(), each)
    bucket.now += 10.0
    assert find_present(first, bucket.store()) == first.keys()
    gone = next(each for each in first.values() if each.kind == "train")
    bucket.store().set_aside("train", gone.key, "a test")
    assert find_present(second, bucket.store()) == second.keys()
    held = unpack(bucket.objects["index/train"][0])
    assert held.keys() == {each.key for each in stages.values() if each.kind == "train"} - {gone.key}


def test_an_index_file(bucket: Bucket) -> None:
    copies = {sha256_hex(b"%d" % index): Copy(1.0 + index, b'{"text":"\xc3\xa4"}') for index in range(3)}
    assert unpack(pack(copies)) == copies and unpack(pack({})) == {}
    data = pack(copies)
    for damaged in (b"", b"{}", data[:-1], data[:20], data[:30] + bytes([data[30] ^ 1]) + data[31:]):
        with pytest.raises(ValueError, match="not an index"):
            unpack(damaged)


@pytest.mark.parametrize("cells", [2, 15])
def test_a_local_store_has_no_index(tmp_path: Path, publish: Callable[..., Any], cells: int) -> None:
    local, stages = Store.open(tmp_path / "store"), plan_of(cells)
    for each in list(stages.values())[:-1]:
        publish(local, each)
    refs = [each.ref for each in stages.values()]
    expected = {ref: local.manifest(ref.kind, ref.key) for ref in refs[:-1]}
    assert local.manifests(refs) == expected and list(local.manifests(iter(refs))) == refs[:-1]
    damaged = tmp_path / "store" / "manifests" / refs[0].kind / f"{refs[0].key}.json"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert local.manifests(refs).keys() == expected.keys() - {refs[0]} and not damaged.exists()
    assert not (tmp_path / "store" / "index").exists()


def test_a_ref_that_cannot_be_stored_is_refused(bucket: Bucket) -> None:
    with pytest.raises(ConfigError, match="not a stage key"):
        bucket.store().manifests([StageRef("train", "x")])
    assert not bucket.requests
