"""The store on a local folder: addresses, permissions, killed processes, full disks, speed."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from oakum import faults
from oakum._store_arrow import ArrowFiles, open_arrow, without_credentials
from oakum.config import ConfigError
from oakum.records import sha256_hex
from oakum.store import DamagedEntryError, Manifest, Store, StoreError

KEY = sha256_hex(b"a stage")
PACKAGES = Path(__file__).parents[1] / "platform"
PUBLISH = """
import sys
from pathlib import Path
from oakum.store import Store
store = Store.open(sys.argv[1])
manifest = store.publish("train", sys.argv[3], Path(sys.argv[2]), key_document={}, label="", summary={}, provenance={})
print(manifest.attempt)
"""
SAVE = """
import sys
from pathlib import Path
from oakum.store import Store
work = Store.open(sys.argv[1]).work(sys.argv[3])
for step in range(3):
    work.save(step, Path(sys.argv[2]))
"""


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "model").write_bytes(b"weights")
    return folder


def publish(store: Store, folder: Path, key: str = KEY) -> Manifest:
    return store.publish("train", key, folder, key_document={}, label="", summary={}, provenance={})


def python(script: str, *arguments: str | Path, fault: str = "", prefix: tuple[str, ...] = ()) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES), faults.VARIABLE: fault}
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_home_is_private_and_reopens_by_its_uri(tmp_path: Path, payload: Path) -> None:
    store = Store.open(tmp_path / "deep" / "home")
    assert stat.S_IMODE((tmp_path / "deep" / "home").stat().st_mode) == 0o700
    manifest = publish(store, payload)
    shutil.rmtree(tmp_path / "deep")
    publish(store, payload)
    assert stat.S_IMODE((tmp_path / "deep" / "home").stat().st_mode) == 0o700
    for other in (Store.open(store.uri), pickle.loads(pickle.dumps(store)), Store.open(f"file://{store.uri}")):
        assert other.published("train") == {KEY} and other.uri == store.uri
    assert manifest.object_path("model").startswith(f"objects/{KEY}/")


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    Store.open(tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert Store.open("relative").uri == str(tmp_path / "relative")
    assert Store.open("~/store").uri == str(tmp_path / "me" / "store")
    assert Store.open((tmp_path / "a b%20ü").as_uri()).uri == str(tmp_path / "a b%20ü")
    (tmp_path / "file").write_bytes(b"")
    for bad in ("", " ", "a\nb", "a\x00b", "nothing://x/y", "file://host/x", str(tmp_path / "file"), "a" * 10_000):
        with pytest.raises(ConfigError) as caught:
            Store.open(bad)
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()
    with pytest.raises(ConfigError, match="OAKUM_HOME"):
        Store.open(tmp_path / "file" / "below")


def test_a_remote_address_never_shows_its_credentials() -> None:
    assert without_credentials("s3://user:secret@bucket/folder?token=secret") == "s3://bucket/folder"
    with pytest.raises(ConfigError) as caught:
        Store.open("nothing://user:secret@bucket/folder?token=secret")
    assert "secret" not in str(caught.value) and "nothing://bucket/folder" in str(caught.value)


def test_a_pyarrow_address(payload: Path) -> None:
    store = Store(open_arrow("mock:///"), "mock:///")
    manifest = publish(store, payload)
    assert store.published("train") == {KEY} and store.read(manifest, "model") == b"weights"
    store.work(KEY).save(1, payload)
    latest = store.work(KEY).latest()
    assert latest is not None and (latest[1] / "model").read_bytes() == b"weights"


def test_a_compressed_name_is_stored_as_it_is(payload: Path) -> None:
    (payload / "table.csv.gz").write_bytes(b"not really gzip")
    store = Store(open_arrow("mock:///"), "mock:///")
    manifest = publish(store, payload)
    assert manifest.files["table.csv.gz"]["bytes"] == 15
    assert store.read(manifest, "table.csv.gz") == b"not really gzip"


def test_objects_are_read_only_and_handed_out(tmp_path: Path, payload: Path) -> None:
    store = Store.open(tmp_path / "home")
    manifest = publish(store, payload)
    path = store.fetch(manifest, "model")
    assert path == tmp_path / "home" / manifest.object_path("model")
    assert not stat.S_IMODE(path.stat().st_mode) & 0o222


def test_an_object_is_verified_once_per_process(tmp_path: Path, payload: Path) -> None:
    store = Store.open(tmp_path / "home")
    manifest = publish(store, payload)
    path = store.fetch(manifest, "model")
    path.chmod(0o600)
    path.write_bytes(b"WEIGHTS")
    assert store.read(manifest, "model") == b"WEIGHTS" and store.fetch(manifest, "model") == path
    for access in (Store.open(store.uri).read, Store.open(store.uri).fetch):
        with pytest.raises(DamagedEntryError, match="SHA-256"):
            access(manifest, "model")
    path.unlink()
    with pytest.raises(DamagedEntryError, match="missing"):
        store.fetch(manifest, "model")


def test_the_first_writer_wins(tmp_path: Path, payload: Path) -> None:
    first = publish(Store.open(tmp_path / "home"), payload)
    (payload / "model").write_bytes(b"other")
    assert publish(Store.open(tmp_path / "home"), payload) == first


def test_losing_the_race_after_the_payload(tmp_path: Path, payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rival = Store.open(tmp_path / "home"), Store.open(tmp_path / "home")
    winners = []
    link = os.link

    def slow_link(source: str, target: str) -> None:
        monkeypatch.setattr(os, "link", link)
        winners.append(publish(rival, payload))
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    assert publish(store, payload) == winners[0]
    assert [path.name for path in (tmp_path / "home" / "objects" / KEY).iterdir()] == [winners[0].attempt]


def test_a_file_system_without_links(tmp_path: Path, payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: str) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", no_link)
    store = Store.open(tmp_path / "home")
    barrier, attempts = threading.Barrier(6), []

    def run() -> None:
        barrier.wait()
        attempts.append(publish(store, payload).attempt)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest = store.manifest("train", KEY)
    assert manifest is not None and attempts == [manifest.attempt] * 6 and store.verify() == []


def test_publish_from_processes_at_once(tmp_path: Path, payload: Path) -> None:
    processes = [python(PUBLISH, tmp_path / "home", payload, KEY) for _ in range(4)]
    results = [process.communicate(timeout=60) for process in processes]
    store = Store.open(tmp_path / "home")
    manifest = store.manifest("train", KEY)
    assert manifest is not None
    assert results == [(f"{manifest.attempt}\n", "")] * 4
    assert [path.name for path in (tmp_path / "home" / "objects" / KEY).iterdir()] == [manifest.attempt]
    assert store.verify() == []


@pytest.mark.faults
@pytest.mark.parametrize(("fault", "committed"), [("store.after_payload", False), ("store.after_manifest:1", True)])
def test_a_kill_while_publishing(tmp_path: Path, payload: Path, fault: str, committed: bool) -> None:
    process = python(PUBLISH, tmp_path / "home", payload, KEY, fault=fault)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    store = Store.open(tmp_path / "home")
    assert store.published("train") == ({KEY} if committed else set())
    assert (store.manifest("train", KEY) is not None) == committed
    manifest = publish(store, payload)
    assert store.read(manifest, "model") == b"weights" and store.verify() == []
    assert len(store.gc(dry_run=True, min_age_seconds=0).orphans) == (0 if committed else 1)


@pytest.mark.faults
@pytest.mark.parametrize(("fault", "step"), [("store.after_work_payload:3", 1), ("store.after_work_marker:3", 2)])
def test_a_kill_while_saving_work(tmp_path: Path, payload: Path, fault: str, step: int) -> None:
    process = python(SAVE, tmp_path / "home", payload, KEY, fault=fault)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    latest = Store.open(tmp_path / "home").work(KEY).latest()
    assert latest is not None and latest[0] == step
    assert (latest[1] / "model").read_bytes() == b"weights"


@pytest.mark.faults
def test_a_disk_that_is_really_full(tmp_path: Path, payload: Path) -> None:
    (tmp_path / "disk").mkdir()
    (payload / "big").write_bytes(os.urandom(1 << 20))
    script = (
        "import subprocess, sys; subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=512k', 'none', sys.argv[1]], "
        "check=True)\n"
        "import shutil; from pathlib import Path; from oakum.store import Store, StoreError\n"
        "store = Store.open(sys.argv[1] + '/home'); folder = Path(sys.argv[2])\n"
        "documents = dict(key_document={}, label='', summary={}, provenance={})\n"
        "try: store.publish('train', sys.argv[3], folder, **documents)\n"
        "except StoreError as error: print(error)\n"
        "assert store.published('train') == set() and store.verify() == []\n"
        "assert shutil.disk_usage(sys.argv[1]).used < 100_000\n"
        "(folder / 'big').unlink(); store.publish('train', sys.argv[3], folder, **documents)\n"
        "assert store.published('train') == {sys.argv[3]} and store.verify() == []\n"
    )
    can_mount = (
        shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    )
    if not can_mount:
        pytest.skip("this machine lets nobody mount a small disk")
    process = python(script, tmp_path / "disk", payload, KEY, prefix=("unshare", "-rm"))
    output, errors = process.communicate(timeout=60)
    if "CalledProcessError" in errors:
        pytest.skip("this machine lets nobody mount a small disk")
    assert process.returncode == 0, errors
    assert "the disk is full" in output and "oakum store gc" in output and f"{tmp_path}/disk/home/objects" in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written(tmp_path: Path, payload: Path) -> None:
    store = Store.open(tmp_path / "home")
    (tmp_path / "home").chmod(0o500)
    with pytest.raises(StoreError, match="permissions"):
        publish(store, payload)


def test_fsync_flushes_files_manifest_and_folders(
    tmp_path: Path, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    publish(Store.open(tmp_path / "fast"), payload)
    assert calls == []
    publish(Store.open(tmp_path / "safe", fsync=True), payload)
    assert len(calls) == 4
    monkeypatch.setenv("OAKUM_FSYNC", "1")
    publish(Store.open(tmp_path / "safe too"), payload)
    assert len(calls) == 8


def test_errors_survive_pickling() -> None:
    error = DamagedEntryError("train", KEY, "model", "it is missing", "0" * 16)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.attempt, copy.name) == (str(error), "0" * 16, "model")


def test_publishing_is_fast(tmp_path: Path, payload: Path) -> None:
    store = Store.open(tmp_path / "home")
    seconds = []
    for index in range(50):
        start = time.perf_counter()
        publish(store, payload, sha256_hex(b"%d" % index))
        seconds.append(time.perf_counter() - start)
    # The best of 50: what the code costs, whatever else this machine does.
    assert min(seconds) < 0.005
    assert len(store.published("train")) == 50


def test_importing_the_store_is_light() -> None:
    script = (
        "import sys, oakum.store; oakum.store.Store.open(sys.argv[1])\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    process = python(script, "/tmp")
    assert process.communicate(timeout=60) == ("[]\n", "")


def test_fault_points(monkeypatch: pytest.MonkeyPatch) -> None:
    kills: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: kills.append(arguments))
    monkeypatch.setenv(faults.VARIABLE, "here:3")
    for visit in range(3):
        assert kills == [], visit
        faults.fault_point("elsewhere")
        faults.fault_point("here")
    assert kills == [(os.getpid(), signal.SIGKILL)]
    monkeypatch.setenv(faults.VARIABLE, "here:soon")
    with pytest.raises(ValueError):
        faults.fault_point("here")
    monkeypatch.delenv(faults.VARIABLE)
    faults.fault_point("here")


def test_a_copy_that_vanished_is_taken_from_the_store_again(tmp_path: Path) -> None:
    """Of a store in a bucket, a worker reads a copy on its own disk: a cache, which may be cleared at any time."""
    for name in ("payload", "bucket"):
        (tmp_path / name).mkdir()
    (tmp_path / "payload" / "model").write_bytes(b"weights")
    files = ArrowFiles(SubTreeFileSystem(str(tmp_path / "bucket"), LocalFileSystem()), "", "bucket://store")
    store = Store(files, "bucket://store")
    documents: dict[str, Any] = {"key_document": {}, "summary": {}, "provenance": {}}
    manifest = store.publish("train", KEY, tmp_path / "payload", label="", **documents)
    copy = store.fetch(manifest, "model")
    assert store.fetch(manifest, "model") == copy
    copy.unlink()
    assert store.fetch(manifest, "model").read_bytes() == b"weights"
