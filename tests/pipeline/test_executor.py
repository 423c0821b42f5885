"""What may start, what is tried again, and what is given up."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from oakum.pipeline import executor
from oakum.pipeline.executor import MAX_RETRIES, Ledger, Serial, find_present
from oakum.pipeline.runner import Outcome, run_stage
from oakum.pipeline.stage import Stage, WorkerSettings
from oakum.store import DamagedEntryError, Manifest, Store, StoreError


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, stage: Stage) -> None:
        self.lines.append(f"started {stage.label}")

    def finished(self, stage: Stage, outcome: Outcome) -> None:
        self.lines.append(f"finished {stage.label}")

    def retried(self, stage: Stage, reason: str) -> None:
        self.lines.append(f"retried {stage.label}")

    def failed(self, stage: Stage, error: str) -> None:
        self.lines.append(f"failed {stage.label}: {error}")


def stage(kind: str, label: str, weight: float = 1.0, **inputs: Stage) -> Stage:
    return Stage(kind, {"label": label, "threads": 1}, inputs, {}, "code", label=label, weight=weight)


TRAIN = stage("train", "train", weight=10.0)
PRIOR = stage("prior", "prior", weight=100.0)
ANSWERS = stage("answers", "answers", target=TRAIN)
ATTACK = stage("membership", "attack", target=TRAIN, answers=ANSWERS)
ALL = [TRAIN, PRIOR, ANSWERS, ATTACK]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def publish(store: Store, tmp_path: Path):
    def put(item: Stage, content: bytes = b"payload") -> Manifest:
        folder = tmp_path / "payload"
        folder.mkdir(exist_ok=True)
        (folder / "file").write_bytes(content)
        inputs: dict[str, Any] = {}
        for name, upstream in item.inputs.items():
            manifest = store.manifest(upstream.kind, upstream.key)
            assert manifest is not None
            inputs[name] = {"kind": manifest.kind, "key": manifest.key, "content": manifest.content}
        return store.publish(
            item.kind, item.key, folder, key_document=item.key_document(), label=item.label, summary={},
            provenance={"inputs": inputs},
        )  # fmt: skip

    return put


def ledger(store: Store, **options: Any) -> Ledger:
    return Ledger.of(ALL, store, Log(), **options)


def done(book: Ledger, item: Stage) -> None:
    book.start(item)
    book.complete(item, Outcome(item.kind, item.key, 1.0))


def labels(stages: list[Stage]) -> list[str]:
    return [item.label for item in stages]


def test_the_heaviest_starts_first_and_nobody_before_its_inputs(store: Store) -> None:
    book = ledger(store)
    assert labels(book.ready()) == ["prior", "train"]
    done(book, TRAIN)
    assert labels(book.ready()) == ["prior", "answers"]
    done(book, ANSWERS)
    book.start(PRIOR)
    assert labels(book.ready()) == ["attack"]
    assert not book.finished()


def test_what_is_stored_is_done(store: Store, publish) -> None:
    publish(TRAIN)
    assert labels(ledger(store).ready()) == ["prior", "answers"]


def test_what_was_made_from_other_bytes_is_set_aside(store: Store, publish) -> None:
    publish(TRAIN), publish(ANSWERS), publish(ATTACK)
    everything = {item.key: item for item in ALL}
    assert find_present(everything, store) == {TRAIN.key, ANSWERS.key, ATTACK.key}
    store.set_aside("train", TRAIN.key, "damaged")
    publish(TRAIN, b"other bytes")
    assert find_present(everything, store) == {TRAIN.key}
    assert store.published("answers") == store.published("membership") == set()


def test_the_same_bytes_again_leave_descendants_alone(store: Store, publish) -> None:
    publish(TRAIN), publish(ANSWERS)
    store.set_aside("train", TRAIN.key, "damaged")
    publish(TRAIN)
    assert find_present({item.key: item for item in ALL}, store) == {TRAIN.key, ANSWERS.key}


def test_only_and_skip(store: Store) -> None:
    assert labels(ledger(store, only=("train",)).ready()) == ["train"]
    assert labels(ledger(store, skip=("train",)).ready()) == ["prior"]
    book = ledger(store, only=("train",))
    done(book, TRAIN)
    assert book.finished() and labels(book.skipped()) == ["prior", "answers", "attack"]


def test_nothing_starts_after_its_time(store: Store) -> None:
    book = ledger(store)
    book.stop_at = 0.0
    assert book.ready() == [] and book.finished() and len(book.skipped()) == 4


def test_an_error_of_the_method_is_final_and_others_go_on(store: Store) -> None:
    book = ledger(store)
    book.start(TRAIN)
    book.fail(TRAIN, ValueError("bad"))
    assert book.failures[TRAIN.key].error == "ValueError: bad"
    assert labels(book.ready()) == ["prior"]
    done(book, PRIOR)
    assert book.finished() and labels(book.skipped()) == ["answers", "attack"]


@pytest.mark.parametrize(
    ("error", "lost_worker"), [(StoreError("disk full"), False), (RuntimeError("worker died"), True)]
)
def test_what_may_pass_is_tried_again(store: Store, error: Exception, lost_worker: bool) -> None:
    book = ledger(store)
    for _ in range(MAX_RETRIES):
        book.start(TRAIN)
        book.fail(TRAIN, error, lost_worker=lost_worker)
        assert TRAIN in book.ready() and not book.failures
    book.start(TRAIN)
    book.fail(TRAIN, error, lost_worker=lost_worker)
    assert TRAIN.key in book.failures
    assert isinstance(book.observer, Log)
    assert [line.split()[0] for line in book.observer.lines] == ["started", "retried"] * 2 + ["started", "failed"]


@pytest.mark.parametrize(("content", "stale"), [(b"payload", False), (b"other bytes", True)])
def test_a_damaged_input_is_computed_again(store: Store, publish, content: bytes, stale: bool) -> None:
    publish(TRAIN), publish(ANSWERS)
    book = ledger(store)
    assert labels(book.ready()) == ["prior", "attack"]
    book.start(ATTACK)
    book.fail(ATTACK, DamagedEntryError("train", TRAIN.key, "file", "changed"))
    assert labels(book.ready()) == ["prior", "train"] and store.published("train") == set()
    book.start(TRAIN)
    publish(TRAIN, content)
    book.complete(TRAIN, Outcome("train", TRAIN.key, 1.0))
    assert labels(book.ready()) == ["prior", "answers" if stale else "attack"]


def test_an_entry_that_is_whole_again_is_not_set_aside(store: Store, publish) -> None:
    damaged = publish(TRAIN).attempt
    store.set_aside("train", TRAIN.key, "damaged")
    publish(TRAIN)
    book = ledger(store)
    book.start(ANSWERS)
    book.fail(ANSWERS, DamagedEntryError("train", TRAIN.key, "file", "changed", damaged))
    assert store.published("train") == {TRAIN.key}


def test_damage_of_an_entry_outside_the_plan_is_final_after_some_tries(store: Store) -> None:
    book = ledger(store)
    for _ in range(MAX_RETRIES + 1):
        book.start(TRAIN)
        book.fail(TRAIN, DamagedEntryError("train", "0" * 64, "file", "changed"))
    assert TRAIN.key in book.failures


def test_a_stage_that_somebody_else_published_is_not_run(store: Store, publish, tmp_path: Path) -> None:
    publish(TRAIN)
    outcome = run_stage(TRAIN.task(), WorkerSettings(store.uri, tmp_path))
    assert outcome == Outcome("train", TRAIN.key, 0.0, reused=True)


def test_serial_ends_when_nothing_can_start(store: Store, tmp_path: Path) -> None:
    """The stages here have no configuration that could run: both roots fail, the rest is never started."""
    book = ledger(store)
    Serial().run(book, WorkerSettings(store.uri, tmp_path))
    assert book.failures.keys() == {TRAIN.key, PRIOR.key}
    assert labels(book.skipped()) == ["answers", "attack"]
    assert all("Traceback" in failure.trace or "KeyError" in failure.trace for failure in book.failures.values())


class NoStore:
    def set_aside(self, *_: Any, **__: Any) -> None: ...


def ready_plainly(book: Ledger) -> list[Stage]:
    """Ask every stage of the plan whether it may start."""
    waiting = [
        item
        for key, item in book.stages.items()
        if key not in book.done | book.running | book.failures.keys()
        and (book.asked is None or key in book.asked)
        and all(each.key in book.done for each in item.inputs.values())
    ]
    return sorted(waiting, key=lambda item: -item.weight)


def random_plan(draw: Random, size: int) -> list[Stage]:
    plan: list[Stage] = []
    for number in range(size):
        inputs = {
            f"input{name}": each for name, each in enumerate(draw.sample(plan, min(len(plan), draw.randrange(4))))
        }
        if inputs and draw.random() < 0.2:
            inputs["again"] = inputs["input0"]
        plan.append(stage(draw.choice(["train", "answers"]), str(number), draw.choice([1.0, 1.0, 2.0, 5.0]), **inputs))
    return plan


@pytest.mark.parametrize("seed", range(30))
def test_the_line_is_what_asking_every_stage_gives(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw = Random(seed)
    plan = random_plan(draw, 40)
    monkeypatch.setattr(executor, "find_present", lambda stages, store: {key for key in stages if draw.random() < 0.3})
    only = draw.choice([(), (), ("train",)])
    book = Ledger.of(plan[:20], NoStore(), Log(), only=only)  # type: ignore[arg-type]
    for turn in range(150):
        assert book.ready() == ready_plainly(book)
        if turn == 20:
            book.add(plan[10:])
        started = [item for item in plan if item.key in book.running]
        if (ready := book.ready()) and draw.random() < 0.5:
            book.start(draw.choice(ready))
        elif started:
            item = draw.choice(started)
            damaged = draw.choice(list(item.inputs.values()) or [item])
            if (way := draw.random()) < 0.6:
                book.complete(item, Outcome(item.kind, item.key, 1.0))
            elif way < 0.9:
                book.fail(item, DamagedEntryError(damaged.kind, damaged.key, "file", "changed"))
            else:
                book.fail(item, draw.choice([StoreError("disk full"), ValueError("bad")]))
    assert book.done and (only or len(book.stages) == 40)


def test_a_task_travels_as_plain_data() -> None:
    import pickle

    task = ATTACK.task()
    assert pickle.loads(pickle.dumps(task)) == task
    assert task.key == ATTACK.key and task.inputs["answers"] == ANSWERS.ref
