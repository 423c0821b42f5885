"""A plan on simulated machines: makespans that a hand can compute, and what `oakum plan` says of an experiment."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from oakum.cli_plan import add_plan, run_plan
from oakum.config import ConfigError
from oakum.pipeline.admission import LOOKAHEAD, ClusterCapacity, admit, total
from oakum.pipeline.executor import Ledger, Serial, find_present
from oakum.pipeline.simulation import Delays, Nodes, Run, Simulation, simulate
from oakum.pipeline.stage import Resources, Stage, WorkerSettings
from oakum.session import Home, RunOptions, make_plan, read_request
from oakum.session_traffic import requests_of, tracking_traffic
from oakum.store import Store

ONE, GANG = Resources(), Resources(cpus=2, workers=2)


def stage(label: str, *inputs: Stage, resources: Resources = ONE, weight: float = 1.0, kind: str = "train") -> Stage:
    named = {str(index): each for index, each in enumerate(inputs)}
    return Stage(kind, {"label": label}, named, {}, "", resources=resources, label=label, weight=weight)


def replay(stages: list[Stage], nodes: Nodes, seconds: float = 1.0, **options: Any) -> Simulation:
    return simulate(stages, {each.key: seconds for each in stages}, nodes, **options)


def times(found: Simulation) -> dict[str, tuple[float, float]]:
    return {run.stage.label: (run.start, run.end) for run in found.runs}


FAN = [stage(str(index)) for index in range(16)]


@pytest.mark.parametrize(("count", "makespan"), [(1, 16.0), (2, 8.0), (3, 6.0), (8, 2.0), (64, 1.0)])
def test_a_fan_of_equal_stages_is_divided_among_the_nodes(count: int, makespan: float) -> None:
    found = replay(FAN, Nodes(count, 1))
    assert found.makespan == makespan and found.cpu_seconds == 16.0
    assert found.bounds() == {"critical path": 1.0, "CPUs": 16.0 / count, "GPUs": 0.0, "scheduler": 0.0}


def test_a_chain_gains_nothing_from_nodes() -> None:
    first = stage("first")
    second = stage("second", first)
    third = stage("third", second)
    other = stage("other")
    seconds = {first.key: 2.0, second.key: 3.0, third.key: 4.0, other.key: 5.0}
    found = simulate([first, second, third, other], seconds, Nodes(8, 4))
    assert times(found) == {"first": (0, 2), "other": (0, 5), "second": (2, 5), "third": (5, 9)}
    assert (found.makespan, found.critical_seconds) == (9.0, 9.0)
    assert [each.label for each in found.critical_path] == ["first", "second", "third"]


def test_the_heavier_stage_is_submitted_first_and_equals_in_the_order_of_the_plan() -> None:
    light, heavy, equal = stage("light"), stage("heavy", weight=5.0), stage("equal")
    assert list(times(replay([light, heavy, equal], Nodes(1, 1)))) == ["heavy", "light", "equal"]


def test_what_was_submitted_ahead_keeps_its_turn() -> None:
    """On one CPU two stages are submitted: a heavy one that becomes ready later waits for the second."""
    root = stage("root", weight=9.0)
    heavy = stage("heavy", root, weight=8.0)
    lights = [stage(f"light {index}") for index in range(2)]
    assert list(times(replay([root, heavy, *lights], Nodes(1, 1)))) == ["root", "light 0", "heavy", "light 1"]


def test_the_driver_serves_one_stage_at_a_time() -> None:
    found = replay(FAN[:5], Nodes(8, 1), delays=Delays(stage=1.0))
    assert [run.start for run in found.runs] == [1, 2, 3, 4, 5] and found.makespan == 6.0
    assert found.bounds()["scheduler"] == 5.0
    first, second = stage("first"), stage("a", stage("first"))
    chain = replay([first, second], Nodes(1, 1), delays=Delays(stage=0.5))
    assert chain.makespan == chain.critical_seconds == 3.0


def test_a_gang_waits_for_the_cpus_of_two_nodes() -> None:
    busy = [stage(f"busy {index}", weight=9.0) for index in range(2)]
    gang = stage("gang", resources=GANG, weight=5.0)
    small = stage("small")
    seconds = {**{each.key: 3.0 for each in busy}, gang.key: 10.0, small.key: 1.0}
    found = simulate([*busy, gang, small], seconds, Nodes(2, 2), delays=Delays(gang=5.0))
    assert times(found) == {"busy 0": (0, 3), "busy 1": (0, 3), "gang": (3, 18), "small": (18, 19)}
    assert found.cpu_seconds == 2 * 3 + 4 * 15 + 1
    room = simulate([*busy, gang, small], seconds, Nodes(2, 4), delays=Delays(gang=5.0))
    assert times(room)["gang"] == (0, 15), "two CPUs are free on the first node, four on the second"


def test_gpus_limit_what_asks_for_them_and_nothing_else() -> None:
    on_gpu = [stage(f"gpu {index}", resources=Resources(gpus=1), weight=9.0) for index in range(6)]
    on_cpu = [stage(f"cpu {index}") for index in range(6)]
    found = replay([*on_gpu, *on_cpu], Nodes(2, 4, 1), seconds=2.0)
    assert found.makespan == 6.0 and found.gpu_seconds == 12.0
    assert found.bounds()["GPUs"] == 6.0 and found.bounds()["CPUs"] == 3.0
    assert max(end for label, (_, end) in times(found).items() if label.startswith("cpu")) == 2.0
    assert found.busy()[1] == pytest.approx([1.0] * 10)


@pytest.mark.parametrize(("gpus", "makespan"), [(0.5, 1.0), (0.6, 2.0), (1.0, 2.0), (2.0, 4.0), (0.1, 1.0)])
def test_parts_of_a_gpu_lie_on_one_device(gpus: float, makespan: float) -> None:
    shares = [stage(str(index), resources=Resources(gpus=gpus)) for index in range(4)]
    assert replay(shares, Nodes(1, 16, 2)).makespan == makespan


def test_ten_tenths_of_a_gpu_fit_and_the_eleventh_waits() -> None:
    shares = [stage(str(index), resources=Resources(gpus=0.1)) for index in range(11)]
    assert Counter(run.start for run in replay(shares, Nodes(1, 16, 1)).runs) == {0.0: 10, 1.0: 1}


def test_what_is_done_is_not_run_and_holds_nothing_up() -> None:
    root = stage("root")
    users = [stage(f"user {index}", root) for index in range(4)]
    found = simulate([root, *users], {each.key: 1.0 for each in users}, Nodes(2, 1), done={root.key})
    assert found.makespan == 2.0 and len(found.runs) == 4
    nothing = simulate([root], {}, Nodes(2, 1), done={root.key})
    assert (nothing.makespan, nothing.runs, nothing.critical_path) == (0.0, (), ())
    assert nothing.busy() == ([0.0] * 10, [0.0] * 10)


@pytest.mark.parametrize(
    ("resources", "nodes", "said"),
    [
        (Resources(cpus=3), Nodes(4, 2), "asks for 3 CPUs, but the largest node has 2; .*, or simulate larger nodes"),
        (Resources(gpus=1), Nodes(4, 2), "asks for a GPU, but the cluster has none"),
        (Resources(workers=9), Nodes(4, 2), "asks for 9 workers .* has 8 CPUs"),
        # Nine of ten CPUs, but three workers with three CPUs each do not fit on two nodes with five.
        (Resources(cpus=3, workers=3), Nodes(2, 5), "asks for 3 workers .* nodes have room for 2 of them"),
    ],
)
def test_what_can_never_run_is_named(resources: Resources, nodes: Nodes, said: str) -> None:
    with pytest.raises(ConfigError, match=f"stage 'big' {said}"):
        replay([stage("small"), stage("big", resources=resources)], nodes)


def test_utilization_is_the_work_spread_over_time() -> None:
    found = replay(FAN[:3], Nodes(2, 1))
    assert found.busy()[0] == pytest.approx([1.0] * 5 + [0.5] * 5)
    assert found.busy(1) == ([0.75], [0.0])


def _random_plan(rng: random.Random) -> list[Stage]:
    shapes = [ONE, ONE, Resources(cpus=2), Resources(gpus=1), Resources(gpus=0.3), GANG]
    plan: list[Stage] = []
    for index in range(40):
        inputs = rng.sample(plan, k=min(len(plan), rng.choice([0, 0, 1, 2])))
        weight = rng.choice([1.0, 5.0, 10.0])
        plan.append(stage(str(index), *inputs, resources=rng.choice(shapes), weight=weight))
    return plan


@pytest.mark.parametrize("seed", range(12))
def test_no_schedule_breaks_the_rules(seed: int) -> None:
    rng = random.Random(seed)
    plan, nodes = _random_plan(rng), Nodes(3, 4, 1)
    seconds = {each.key: rng.choice([0.0, 0.5, 1.0, 7.3]) for each in plan}
    found = simulate(plan, seconds, nodes, delays=Delays(stage=rng.choice([0.0, 0.05]), gang=0.25))
    runs = {run.stage.key: run for run in found.runs}
    assert len(found.runs) == len(runs) == len(plan)
    for run in found.runs:
        gang = 0.25 if run.stage.resources.workers > 1 else 0.0
        assert run.end - run.start == pytest.approx(seconds[run.stage.key] + gang)
        assert all(runs[each.key].end <= run.start for each in run.stage.inputs.values())
    for moment in {run.start for run in found.runs}:
        cpus, gpus = _used(found.runs, moment)
        assert cpus <= 12 and gpus <= 3 + 1e-9
    assert all(found.makespan >= bound - 1e-9 for bound in found.bounds().values())
    by_part = [sum(part) * found.makespan / 7 for part in found.busy(7)]
    assert by_part == pytest.approx([found.cpu_seconds / 12, found.gpu_seconds / 3])


def _used(runs: Iterable[Run], moment: float) -> tuple[float, float]:
    used = [total(run.stage.resources) for run in runs if run.start <= moment < run.end]
    return sum(cpus for cpus, _ in used), sum(gpus for _, gpus in used)


def admit_plainly(ready: list[Stage], submitted: list[Stage], found: ClusterCapacity) -> list[Stage]:
    """The rule as it is said: everything is summed again for every stage."""
    others, admitted = list(submitted), []
    for each in ready:
        is_gang = each.resources.workers > 1
        is_exact = is_gang or any(other.resources.workers > 1 for other in others)
        totals = [total(other.resources) for other in [*others, each]]
        factor = 1 if is_exact else LOOKAHEAD
        fits = (
            sum(cpus for cpus, _ in totals) <= factor * found.cpus
            and sum(gpus for _, gpus in totals) <= factor * found.gpus
        )
        if not others or fits:
            others.append(each)
            admitted.append(each)
        elif is_gang:
            break
    return admitted


def test_admission_in_linear_time_is_the_plain_rule() -> None:
    rng = random.Random(0)
    shapes = [Resources(cpus=c, gpus=g, workers=w) for c in (1, 2, 5) for g in (0, 0.5, 1) for w in (1, 1, 3)]
    admitted = 0
    for _ in range(1500):
        plan = [stage(str(index), resources=rng.choice(shapes)) for index in range(rng.randrange(12))]
        cut = rng.randrange(len(plan) + 1)
        found = Nodes(rng.randrange(1, 5), rng.randrange(1, 9), rng.randrange(3)).capacity()
        expected = admit_plainly(plan[cut:], plan[:cut], found)
        assert admit(plan[cut:], plan[:cut], found) == expected
        admitted += len(expected)
    assert admitted > 500


def test_ten_thousand_stages() -> None:
    plan: list[Stage] = []
    for cell in range(1000):
        model = stage(f"train {cell}", weight=10.0)
        answers = stage(f"answers {cell}", model, kind="answers")
        attacks = [stage(f"attack {cell} {index}", model, answers, kind="membership") for index in range(8)]
        plan += [model, answers, *attacks]
    taken = {"train": 60.0, "answers": 1.0, "membership": 0.5}
    seconds = {each.key: taken[each.kind] for each in plan}
    found = simulate(plan, seconds, Nodes(8, 16), delays=Delays(stage=0.01))
    assert Counter(run.stage.kind for run in found.runs) == {"train": 1000, "answers": 1000, "membership": 8000}
    assert found.cpu_seconds == pytest.approx(1000 * 65.0)
    assert found.bounds()["CPUs"] <= found.makespan <= found.bounds()["CPUs"] + found.critical_seconds + 100
    assert found.critical_seconds == pytest.approx(61.53)
    assert all(before.start <= after.start for before, after in pairwise(found.runs))


# From here on: the command.


@pytest.fixture
def bare(tmp_path: Path, prepared_digits: Path) -> Home:
    """A home with data and an empty store."""
    home = Home(tmp_path / "home", str(tmp_path / "home" / "store"))
    shutil.copytree(prepared_digits, home.data)
    return home


@pytest.fixture
def plan_command(
    own_environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bare: Home
) -> Callable[..., str]:
    """Give `oakum plan` in the bare home and return what it prints."""

    def command(*arguments: object) -> str:
        own_environment.setenv("OAKUM_HOME", str(bare.folder))
        parser = argparse.ArgumentParser()
        add_plan(parser.add_subparsers())
        capsys.readouterr()
        assert run_plan(parser.parse_args(["plan", *(str(argument) for argument in arguments)])) == 0
        return capsys.readouterr().out

    return command


def planned(file: Path, home: Home, seeds: list[int]) -> Any:
    return make_plan(read_request(RunOptions(file, seeds=seeds)), file.name, home, None)


def keep(home: Home, stages: Iterable[Stage], seconds: float, **provenance: Any) -> None:
    """Publish stages that took so many seconds, each with a payload of 1,000 bytes in one file."""
    folder = home.folder / "payload"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_bytes(bytes(1000))
    store = Store.open(home.store_uri)
    for each in stages:
        store.publish(
            each.kind, each.key, folder, key_document=each.key_document(), label=each.label, summary={},
            provenance={"seconds": seconds, **provenance},
        )  # fmt: skip


@pytest.fixture
def file(short: dict[str, Any], write: Callable[[dict[str, Any]], Path]) -> Path:
    """An experiment of three stages a seed, one after the other: train, answers, membership."""
    return write(short)


GIVEN = ("--seconds", "train=60", "answers=20", "membership=10")


def test_given_seconds_make_a_plan_of_what_was_never_run(plan_command: Callable[..., str], file: Path) -> None:
    said = plan_command(file, "--seeds", "0-3", "--simulate", 2, "--cpus-per-node", 1, "--delay", 0, *GIVEN)
    assert "short on 2 nodes of 1 CPU and 0 GPUs\n12 stages: 0 stored, 12 to run\n" in said
    assert "makespan       3 min 00 s\n" in said and "0.1 CPU hours, 0 GPU hours" in said
    assert "critical path  90.0 s, 3 stages, the longest:\n         60.0 s  train none/" in said
    assert "CPUs  100  100  100  100  100  100  100  100  100  100   mean 100" in said and "GPUs  " not in said
    assert "train              4       240.0     60.00\n" in said
    assert "durations are known: 12 by --seconds" in said
    assert "12 entries, 0.0 MB (and 12 entries of unknown size)\n         about " in said
    assert "keeps up" in said and said.endswith("bound by: CPUs\n")
    slow = plan_command(file, "--simulate", 1, "--mlflow-rate", 0.1, *GIVEN)
    assert "falls behind" in slow and slow.endswith(", then by tracking\n")


def test_as_json(plan_command: Callable[..., str], file: Path) -> None:
    found = json.loads(
        plan_command(
            file, "--simulate", 1, "--cpus-per-node", 4, "--delay", 0.5, "--gpus-per-node", 1, "--json", *GIVEN
        )
    )
    assert found["makespan_seconds"] == found["critical_path"]["seconds"] == 91.5
    assert found["nodes"] == {"count": 1, "cpus": 4, "gpus": 1} and found["delays"] == {"stage": 0.5, "gang": 30.0}
    assert found["cpu_hours"] == pytest.approx(90 / 3600) and found["gpu_hours"] == 0.0
    assert found["busy_cpus"]["mean"] == pytest.approx(90 / 91.5 / 4)
    assert found["busy_gpus"] == {"mean": 0.0, "by_tenth": [0.0] * 10}
    assert [each["label"] for each in found["critical_path"]["longest"]] == [
        "train none/0 clean", "answers none/0 clean", "loss none/0 clean",
    ]  # fmt: skip
    assert found["kinds"]["answers"] == {"stages": 1, "seconds": 20.0, "median_seconds": 20.0}
    assert found["stages_bound_by"] == "critical path" and found["bounds"]["scheduler"] == 1.5
    assert found["tracking"]["keeps_up"]


def test_durations_come_from_what_is_most_alike(plan_command: Callable[..., str], bare: Home, file: Path) -> None:
    train, answers, membership = planned(file, bare, [0]).stages()
    keep(bare, [train], 7.0)
    keep(bare, [answers], 2.0)
    keep(bare, [membership], 1.0, device="cuda:0")
    command = (file, "--seeds", "0-1", "--simulate", 1, "--cpus-per-node", 8, "--delay", 0, "--json")
    found = json.loads(plan_command(*command))
    assert (found["stages"], found["stored"], found["makespan_seconds"]) == (6, 3, 10.0)
    assert found["durations"] == {"same settings, other seeds": 3}
    assert found["notes"] == ["membership: seconds were measured on cuda, the plan asks for cpu"]
    assert (found["store"]["entries"], found["store"]["bytes"]) == (3, 3000)
    again = json.loads(plan_command(*command, "--from-scratch"))
    assert again["stored"] == 0 and again["durations"] == {"its own record": 3, "same settings, other seeds": 3}
    other = json.loads(plan_command(*command, "--set", "recipe.epochs=9"))
    assert other["stored"] == 0 and other["durations"]["same method"] == 2
    given = json.loads(plan_command(*command, "--seconds", "train/none=100"))
    assert given["makespan_seconds"] == 103.0 and given["durations"]["--seconds"] == 1
    assert given["store"]["bytes"] == 3000, "what is given are seconds alone"


def test_nothing_to_do(plan_command: Callable[..., str], bare: Home, file: Path) -> None:
    keep(bare, planned(file, bare, [0]).stages(), 1.0)
    said = plan_command(file, "--simulate", 3, "--cpus-per-node", 1)
    assert "3 stages: 3 stored, 0 to run\nnothing to do; --from-scratch" in said
    found = json.loads(plan_command(file, "--simulate", 3, "--json"))
    assert found["makespan_seconds"] == 0.0 and found["stages_bound_by"] is None and found["tracking"]["writes"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (),
            "no duration is known for stages of kind answers, membership, train: none is stored. .* --seconds answers=",
        ),
        (("--seconds", "train=1"), "of kind answers, membership: none is stored"),
        (("--seconds", "trian=1"), "--seconds trian: there is no such kind of stage; kinds: answers, gradients"),
        (("--seconds", "train"), "--seconds train: write KIND=SECONDS, such as train=60"),
        (("--seconds", "train=-1"), "--seconds train=-1: write KIND=SECONDS"),
        (("--seconds", "train=nan"), "--seconds train=nan: write KIND=SECONDS"),
        ((*GIVEN, "train/bido=2"), "--seconds train/bido: no stage that is to run is of that kind and method"),
        ((*GIVEN, "prior=2"), "--seconds prior: no stage that is to run"),
        ((*GIVEN, "--set", "execution.threads=9"), "asks for 9 CPUs, but the largest node has 4; .* larger nodes"),
        ((*GIVEN, "--set", "execution.gpus=1"), "asks for a GPU, but the cluster has none"),
    ],
)
def test_wrong_requests_say_what_to_do(
    plan_command: Callable[..., str], file: Path, arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_command(file, "--simulate", 2, "--cpus-per-node", 4, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: --simulate"),
        (("--simulate", "0"), "'0': write a whole number of at least 1"),
        (("--simulate", "1", "--cpus-per-node", "1.5"), "'1.5': write a whole number"),
        (("--simulate", "1", "--delay", "-1"), "must not be negative"),
        (("--simulate", "1", "--mlflow-rate", "0"), "must be more than 0"),
    ],
)
def test_wrong_options(
    plan_command: Callable[..., str], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan_command("x.yaml", *arguments)
    assert said in capsys.readouterr().err


class Counted:
    """File operations of a store that count."""

    def __init__(self, files: Any) -> None:
        self.calls = 0
        self._files = files

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if name in {"is_local", "place", "local_path"}:
            return found

        def call(*arguments: Any) -> Any:
            self.calls += 1
            return found(*arguments)

        return call


class Silent:
    def started(self, stage: Stage) -> None: ...

    def finished(self, stage: Stage, outcome: Any) -> None: ...

    def retried(self, stage: Stage, reason: str) -> None: ...

    def failed(self, stage: Stage, error: str) -> None: ...


def test_the_requests_of_a_stage_are_about_those_that_it_makes(
    bare: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(file, bare, [0])
    plain = Store.open(bare.store_uri)
    opened: list[Counted] = []

    def open_counted(uri: str) -> Store:
        opened.append(Counted(plain._files))
        return Store(opened[-1], uri)

    monkeypatch.setattr(Store, "open", open_counted)
    ledger = Ledger.of(plan.stages(), plain, Silent())
    Serial().run(ledger, WorkerSettings(bare.store_uri, bare.data))
    assert not ledger.failures
    made = [counted.calls for counted in opened]
    files = {"train": 3, "answers": 1, "membership": 1}
    expected = [requests_of(each, files[each.kind], 0.0, 20.0) for each in plan.stages()]
    # A local store looks once more before it publishes.
    assert [calls - 1 for calls in made] == pytest.approx(expected, abs=2)
    assert len(find_present(ledger.stages, plain)) == 3


def test_mlflow_is_asked_as_often_as_in_a_real_run(
    tiny: dict[str, Any], write: Callable[[dict[str, Any]], Path], bare: Home
) -> None:
    """A tracked run of this experiment made 115 writes and 109 reads (docs/scale.md says how they were counted)."""
    plan = planned(write(tiny), bare, [0])
    traffic = tracking_traffic(plan, {each.key for each in plan.stages()}, calls_per_second=10.0)
    assert (traffic["events"], traffic["runs"], traffic["writes"], traffic["reads"]) == (22, 4, 115, 108)
    assert traffic["seconds"] == pytest.approx(22.3)
