"""Preparing: whole or not at all, whatever happens, and one at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oakum.datasets import base
from oakum.datasets._publish import publish_folder
from oakum.datasets.base import DataError
from oakum.registry import UnknownMethodError

PLATFORM = Path(base.__file__).resolve().parents[2]
STEPS = ["reading digits", "writing digits", "writing the manifest of digits", "publishing digits"]


def left_overs(data_home: Path) -> set[str]:
    return {path.name for path in data_home.iterdir()} - {".digits.lock"}


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_prepare_twice_does_nothing_the_second_time(data_home: Path, digits_csv: Path) -> None:
    first = base.prepare("digits", data_home, digits_csv)
    messages: list[str] = []
    second = base.prepare("digits", data_home, digits_csv, progress=lambda message, fraction: messages.append(message))
    assert first == second
    assert messages == []
    assert base.verify("digits", data_home) == first


def test_force_prepares_again(data_home: Path, digits_csv: Path) -> None:
    first = base.prepare("digits", data_home, digits_csv)
    second = base.prepare("digits", data_home, digits_csv, force=True)
    assert second.digest == first.digest
    assert second.prepared_at > first.prepared_at
    assert left_overs(data_home) == {"digits"}


def test_every_step_is_reported(data_home: Path, digits_csv: Path) -> None:
    messages: list[str] = []
    base.prepare("digits", data_home, digits_csv, progress=lambda message, fraction: messages.append(message))
    assert messages == STEPS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("step", STEPS)
def test_failure_at_any_step_leaves_nothing(data_home: Path, digits_csv: Path, step: str, error: BaseException) -> None:
    def fail(message: str, fraction: float | None) -> None:
        if message == step:
            raise error

    expected = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        base.prepare("digits", data_home, digits_csv, progress=fail)
    assert left_overs(data_home) == set()
    with pytest.raises(DataError, match="oakum data prepare digits"):
        base.open_prepared("digits", data_home)


@pytest.mark.parametrize("step", STEPS)
def test_failure_at_any_step_keeps_what_was_prepared(data_home: Path, digits_csv: Path, step: str) -> None:
    before = base.prepare("digits", data_home, digits_csv)

    def fail(message: str, fraction: float | None) -> None:
        if message == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base.prepare("digits", data_home, digits_csv, force=True, progress=fail)
    assert base.verify("digits", data_home) == before
    assert left_overs(data_home) == {"digits"}


def test_failing_rename_puts_the_earlier_form_back(tmp_path: Path) -> None:
    work, target = tmp_path / "work", tmp_path / "digits"
    work.mkdir()
    target.mkdir()
    (target / "mark").touch()
    with pytest.raises(FileNotFoundError):
        publish_folder(work, target)
    assert (target / "mark").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from oakum.datasets import base
home, source, step = sys.argv[1:]
def progress(message, fraction):
    if message == step:
        os.kill(os.getpid(), signal.SIGKILL)
base.prepare("digits", Path(home), Path(source), force=True, progress=progress)
"""


@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("had_earlier", [False, True])
def test_kill_leaves_nothing_half_made(data_home: Path, digits_csv: Path, step: str, had_earlier: bool) -> None:
    before = base.prepare("digits", data_home, digits_csv) if had_earlier else None
    process = run_python(KILLED, str(data_home), str(digits_csv), step)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    if before is None:
        with pytest.raises(DataError, match="is not prepared; run: oakum data prepare digits"):
            base.load_samples("digits", data_home)
    else:
        assert base.verify("digits", data_home) == before
    base.prepare("digits", data_home, digits_csv)
    base.verify("digits", data_home)
    assert left_overs(data_home) == {"digits"}


def test_killed_between_the_two_renames_is_put_right(data_home: Path, digits_csv: Path) -> None:
    before = base.prepare("digits", data_home, digits_csv)
    stale = data_home / ".digits.preparing-x"
    stale.mkdir()
    (data_home / "digits").rename(stale / "replaced")
    assert base.prepare("digits", data_home, digits_csv) == before
    assert left_overs(data_home) == {"digits"}


SMALL_FILES_ONLY = """
import resource, sys
from pathlib import Path
from oakum.datasets import base
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    base.prepare("digits", Path(sys.argv[1]), Path(sys.argv[2]))
except base.DataError as error:
    print(error)
"""


@pytest.mark.faults
def test_write_that_fails_names_the_place(data_home: Path, digits_csv: Path) -> None:
    output, errors = run_python(SMALL_FILES_ONLY, str(data_home), str(digits_csv)).communicate(timeout=60)
    assert "cannot prepare digits" in output, errors
    assert "OAKUM_HOME" in output
    assert left_overs(data_home) == set()


CONCURRENT = """
import sys
from pathlib import Path
from oakum.datasets import base
home, source = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
messages = []
print(base.prepare("digits", Path(home), Path(source), progress=lambda m, f: messages.append(m)).prepared_at)
base.verify("digits", Path(home))
print("built" if "publishing digits" in messages else "found")
"""


@pytest.mark.faults
def test_two_processes_take_turns(data_home: Path, digits_csv: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    command = [sys.executable, "-c", CONCURRENT, str(data_home), str(digits_csv)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    times = {output.split()[0] for output, _ in results}
    assert len(times) == 1
    assert sorted(output.split()[1] for output, _ in results) == ["built", "found"]
    assert left_overs(data_home) == {"digits"}


def test_missing_source_and_unknown_names(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        base.prepare("digits", data_home, tmp_path / "nowhere")
    with pytest.raises(UnknownMethodError, match="did you mean 'digits'"):
        base.prepare("digitz", data_home)
    with pytest.raises(UnknownMethodError):
        base.open_prepared("digitz", data_home)


def test_only_embedded_data_is_prepared_by_itself(data_home: Path) -> None:
    assert base.ensure_prepared("digits", data_home).rows == 1797
    assert base.ensure_prepared("digits", data_home).rows == 1797
    with pytest.raises(DataError, match="run: oakum data prepare mnist"):
        base.ensure_prepared("mnist", data_home)


def test_list_shows_prepared_and_damaged(data_home: Path, digits_csv: Path) -> None:
    assert {entry.name: entry.prepared for entry in base.list_data(data_home)}["digits"] is None
    prepared = base.prepare("digits", data_home, digits_csv)
    entries = {entry.name: entry for entry in base.list_data(data_home)}
    assert entries["digits"].prepared == prepared
    assert entries["digits"].problem == ""
    (data_home / "digits" / "manifest.json").write_text("{")
    entry = {entry.name: entry for entry in base.list_data(data_home)}["digits"]
    assert entry.prepared is None
    assert "oakum data prepare digits --force" in entry.problem


def test_package_with_other_content_is_refused(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oakum.datasets.digits.Digits.official_digest", "0" * 64)
    with pytest.raises(DataError, match=r"0000.*--source"):
        base.prepare("digits", data_home)
    assert left_overs(data_home) == set()


def test_folder_of_data_is_private(data_home: Path, digits_csv: Path) -> None:
    base.prepare("digits", data_home, digits_csv)
    assert data_home.stat().st_mode & 0o077 == 0
