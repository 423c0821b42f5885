"""The release gate: every rule by hand-made cells, and the command over hand-made documents in a store."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from oakum import cli_gate
from oakum.config import ConfigError
from oakum.records import CellRecord, MetricValue, RunRecord, StageRef, sha256_hex
from oakum.search.gate import Bound, judge, parse_bound
from oakum.search.records import Confirmation, SearchHeader, SearchLog, TrialRecord
from oakum.store import Store

PACKAGES = Path(__file__).parents[2] / "platform"
LEAK = "membership/loss/tpr_at_fpr_0.01"
USEFUL = "utility/test_accuracy"
AT_MOST = Bound(LEAK, "max", 0.05)
AT_LEAST = Bound(USEFUL, "min", 0.9)
ROLES = {"answers.clean": "answers", "membership.clean.loss": "membership"}


def cell(seed: int = 0, flags: tuple[str, ...] = (), **metrics: MetricValue) -> CellRecord:
    keys = {"leak": LEAK, "useful": USEFUL}
    return CellRecord(
        "relaxloss", "relaxloss", {}, seed, {keys.get(name, name): value for name, value in metrics.items()}, {}, flags
    )


def leaks(*ends: float, **options: Any) -> list[CellRecord]:
    """Cells of one seed each whose interval ends there."""
    return [cell(seed, leak=MetricValue(end - 0.01, end - 0.02, end), **options) for seed, end in enumerate(ends)]


# --- bounds as text


def test_bounds_are_read() -> None:
    assert parse_bound("membership/loss/auc <= .6", "max") == Bound("membership/loss/auc", "max", 0.6)
    assert parse_bound("utility/test_accuracy>=9e-1", "min") == Bound(USEFUL, "min", 0.9)


@pytest.mark.parametrize(
    ("text", "side", "advice"),
    [
        ("membership/loss/auc>=0.6", "max", "write KEY<=NUMBER, for example: --max 'membership/"),
        ("utility/test_accuracy<=0.9", "min", "write KEY>=NUMBER, for example: --min 'utility/"),
        ("utility/test_accuracy >= none - 0.01", "min", "write KEY>=NUMBER"),
        ("membership/loss/auc<=1e999", "max", "write KEY<=NUMBER"),
        ("membership/loss/auc<=low", "max", "write KEY<=NUMBER"),
        ("auc<=0.6", "max", "write KEY<=NUMBER"),
        ("", "min", "write KEY>=NUMBER"),
    ],
)
def test_a_wrong_bound_says_what_to_write(text: str, side: Any, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bound(text, side)
    assert str(caught.value).startswith(f"--{side} {text!r}: ") and advice in str(caught.value)


# --- rules


def test_an_upper_bound_meets_the_largest_upper_end() -> None:
    passed = judge(AT_MOST, leaks(0.03, 0.05, 0.02))
    assert passed.passed and passed.end == 0.05 and passed.value == pytest.approx(0.07 / 3)
    assert passed.reason == "0.05 (upper end, seed 1) <= 0.05"
    failed = judge(AT_MOST, leaks(0.03, 0.04, 0.081))
    assert not failed.passed and failed.reason == "0.081 (upper end, seed 2) > 0.05"


def test_a_lower_bound_meets_the_smallest_lower_end() -> None:
    cells = [cell(0, useful=MetricValue(0.95, 0.93, 0.97)), cell(4, useful=MetricValue(0.94, 0.88, 0.99))]
    verdict = judge(AT_LEAST, cells)
    assert not verdict.passed and verdict.reason == "0.88 (lower end, seed 4) < 0.9"
    assert judge(replace(AT_LEAST, limit=0.88), cells).reason == "0.88 (lower end, seed 4) >= 0.88"


def test_a_value_outside_its_own_interval_counts() -> None:
    verdict = judge(AT_MOST, [cell(leak=MetricValue(0.06, 0.01, 0.04))])
    assert not verdict.passed and verdict.reason == "0.06 (value, seed 0) > 0.05"


def test_seeds_without_an_interval_are_their_range() -> None:
    values = [cell(seed, leak=MetricValue(value)) for seed, value in enumerate((0.02, 0.04))]
    assert judge(AT_MOST, values).reason == "0.04 (value, seed 1) <= 0.05"
    mixed = [*values, cell(2, leak=MetricValue(0.03, 0.01, 0.07))]
    assert judge(AT_MOST, mixed).reason == "0.07 (upper end, seed 2) > 0.05"


def test_one_seed_without_an_interval_is_unresolved() -> None:
    verdict = judge(AT_MOST, [cell(leak=MetricValue(0.01))])
    assert not verdict.passed and (verdict.value, verdict.end) == (0.01, None)
    assert verdict.reason == "unresolved: 0.01 of one seed, without an interval; run more seeds"
    assert judge(AT_MOST, [cell(leak=MetricValue(0.01, 0.0, 0.02))]).passed


def test_a_metric_that_any_seed_lacks_fails() -> None:
    cells = [*leaks(0.01, 0.02), cell(2), cell(3)]
    verdict = judge(AT_MOST, cells)
    assert not verdict.passed and (verdict.value, verdict.end) == (None, None)
    assert verdict.reason == f"metric '{LEAK}' was not measured (seeds 2, 3)"


@pytest.mark.parametrize(
    "bad", [MetricValue(None, note="unresolved: needs 1,000 non-members"), MetricValue(float("nan"))]
)
def test_a_metric_that_any_seed_leaves_unresolved_fails(bad: MetricValue) -> None:
    verdict = judge(AT_MOST, [*leaks(0.01, 0.02), cell(2, leak=bad)])
    assert not verdict.passed and verdict.end is None
    assert verdict.reason == f"metric '{LEAK}' has no value: {bad.note or 'not finite'} (seed 2)"


@pytest.mark.parametrize("high", [float("nan"), float("inf")])
def test_an_interval_without_a_finite_end_fails(high: float) -> None:
    verdict = judge(AT_MOST, [*leaks(0.01), cell(1, leak=MetricValue(0.01, 0.0, high))])
    assert not verdict.passed and verdict.reason == f"metric '{LEAK}' has an interval that is not finite (seed 1)"


@pytest.mark.parametrize(
    ("flag", "fails"),
    [
        ("membership.clean.loss: inverted signal", [LEAK, "membership/loss/auc.vanilla_shadow"]),
        ("membership.clean.loss: one class predicted (vanilla shadow)", ["membership/loss/auc.vanilla_shadow"]),
        ("membership.clean.nn: constant scores", []),
        ("membership.canary.loss: constant scores", ["canary/loss/auc"]),
        ("judge.clean.gmi: odd", ["inversion/gmi/top1"]),
        ("inversion.clean.gmi.3: odd", ["inversion/gmi/top1"]),
        (
            "target.clean: odd",
            [LEAK, "membership/loss/auc.vanilla_shadow", "canary/loss/auc", "inversion/gmi/top1", USEFUL],
        ),
        ("odd", [LEAK, "membership/loss/auc.vanilla_shadow", "canary/loss/auc", "inversion/gmi/top1", USEFUL]),
        ("membership.clean.loss: acts on the weights, which the mask does not cover", []),
    ],
)
def test_a_flag_fails_what_was_measured_under_it(flag: str, fails: list[str]) -> None:
    keys = [LEAK, "membership/loss/auc.vanilla_shadow", "canary/loss/auc", "inversion/gmi/top1", USEFUL]
    metrics = {key: MetricValue(0.5, 0.4, 0.6) for key in keys}
    cells = [replace(cell(seed, (flag,)), metrics=metrics) for seed in (0, 1)]
    failing = {key: judge(Bound(key, "max", 1.0), cells) for key in keys}
    assert [key for key in keys if not failing[key].passed] == fails
    for key in fails:
        assert failing[key].reason == f"0.6 (upper end, seed 0) <= 1; flagged: {flag} (seeds 0, 1)"


def test_doubts_fail_every_bound() -> None:
    verdict = judge(AT_MOST, leaks(0.01, 0.02), ["2 stages are missing"])
    assert not verdict.passed and verdict.reason == "0.02 (upper end, seed 1) <= 0.05; 2 stages are missing"
    assert judge(AT_MOST, [], ["not confirmed"]).reason == "not confirmed"
    assert not judge(AT_MOST, []).passed


@pytest.mark.parametrize(
    ("key", "passes"),
    [("utility/val_accuracy", False), ("inversion/gmi/retrieval_top1", True), ("utility/test_accuracy", True)],
)
def test_a_metric_of_the_validation_fold_fails(key: str, passes: bool) -> None:
    verdict = judge(Bound(key, "min", 0.1), [replace(cell(), metrics={key: MetricValue(0.9, 0.8, 1.0)})])
    assert verdict.passed is passes
    assert ("validation fold" in verdict.reason) is not passes


# --- the command


@dataclass
class Fabric:
    """A home whose documents and manifests are made by hand."""

    store: Store
    payload: Path

    def record(self, name: str, settings: tuple[str, ...], *, high: float = 0.03, seeds: int = 2) -> RunRecord:
        """A record with one leak and one accuracy a cell; stages are named after their content."""
        cells = [
            CellRecord(
                setting,
                "none" if setting == "none" else "relaxloss",
                {},
                seed,
                {LEAK: MetricValue(high / 2, 0.0, high), USEFUL: MetricValue(0.95, 0.92, 0.97)},
                {
                    role: StageRef(kind, sha256_hex(f"{name} {setting} {seed} {role} {high}".encode()))
                    for role, kind in ROLES.items()
                },
            )
            for seed in range(seeds)
            for setting in settings
        ]
        key = sha256_hex(f"{name} {settings} {high}".encode())
        return RunRecord(name, "", key, key, {}, {}, {}, tuple(cells), ())

    def publish(self, record: RunRecord, nonmembers: str = "test", without: tuple[str, ...] = ()) -> None:
        """Store the stages of a record."""
        for each in record.cells:
            attack = {"tpr_at_fpr_0.01": each.metrics[LEAK].to_json()}
            answers = {"test_accuracy": each.metrics[USEFUL].to_json()}
            for role, ref in each.stages.items():
                if role in without:
                    continue
                config = {"nonmembers": nonmembers} if ref.kind == "membership" else {}
                self.store.publish(
                    ref.kind,
                    ref.key,
                    self.payload,
                    key_document={"config": config},
                    label=role,
                    summary={"metrics": attack if ref.kind == "membership" else answers},
                    provenance=self._provenance(each, ref),
                )

    def run(self, record: RunRecord, **options: Any) -> None:
        """Store a run as `session.run` does: the plan without numbers, and its stages."""
        bare = replace(record, cells=tuple(replace(each, metrics={}) for each in record.cells))
        document = {"name": record.name, "stages": [], "skeleton": bare.to_json()}
        self.store.put_document(f"plans/{record.plan_key}", document)
        self.publish(record, **options)

    def search(
        self,
        name: str,
        trials: int = 3,
        confirmed: dict[str, int] | None = None,
        objectives: tuple[str, ...] = (f"min {LEAK}",),
        **options: Any,
    ) -> SearchLog:
        header = SearchHeader(name, sha256_hex(name.encode()), "relaxloss", {}, {}, {}, objectives, (), (0,))
        log = SearchLog.open(self.store, header)
        for number in range(trials):
            log.put_trial(TrialRecord(number, {}, "grid", "complete"))
        if confirmed is not None:
            record = self.record(f"{name}-confirmed", ("none", *confirmed), **options)
            self.publish(record)
            log.put_confirmation(Confirmation(record.plan_key, confirmed, {}, record))
        return log

    def _provenance(self, each: CellRecord, ref: StageRef) -> dict[str, Any]:
        answers = self.store.manifest("answers", each.stages["answers.clean"].key)
        if ref.kind == "answers" or answers is None:
            return {}
        return {"inputs": {"answers": {"kind": "answers", "key": answers.key, "content": answers.content}}}


@pytest.fixture
def fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fabric:
    monkeypatch.setenv("OAKUM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OAKUM_STORE", raising=False)
    payload = tmp_path / "payload"
    payload.mkdir()
    (payload / "numbers").write_bytes(b"numbers")
    return Fabric(Store.open(tmp_path / "home" / "store"), payload)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def gate(fabric: Fabric, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Parse and give the command."""
    parser = argparse.ArgumentParser()
    cli_gate.add_gate(parser.add_subparsers())

    def command(*arguments: str) -> Said:
        options = parser.parse_args(["gate", *arguments])
        assert options.command == "gate"
        capsys.readouterr()
        return Said(cli_gate.gate(options), *capsys.readouterr())

    return command


KEPT = ("--max", f"{LEAK}<=0.05", "--min", f"{USEFUL}>=0.9")


def test_a_confirmed_setting_passes(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.search("faces", confirmed={"best": 2})
    for model in ("faces", "faces:best", "faces:trial-2"):
        assert gate(model, *KEPT) == Said(
            0,
            f"PASS  {LEAK}: 0.03 (upper end, seed 0) <= 0.05\n"
            f"PASS  {USEFUL}: 0.92 (lower end, seed 0) >= 0.9\n"
            "gate passed: faces:best: all bounds kept (2)\n",
            "",
        )


def test_a_bound_that_is_broken_fails(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.search("faces", confirmed={"best": 2}, high=0.081)
    said = gate("faces", *KEPT)
    assert said.code == cli_gate.EXIT_FAILED_GATE == 4
    assert said.out.splitlines() == [
        f"FAIL  {LEAK}: 0.081 (upper end, seed 0) > 0.05",
        f"PASS  {USEFUL}: 0.92 (lower end, seed 0) >= 0.9",
        "gate failed: faces:best: 1 of 2 bounds failed",
    ]


def test_json_is_one_object(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.search("faces", confirmed={"best": 2}, high=0.081)
    said = gate("faces", *KEPT, "--json")
    assert said.code == 4
    assert json.loads(said.out) == {
        "model": "faces",
        "setting": "best",
        "passed": False,
        "bounds": [
            {
                "key": LEAK,
                "limit": 0.05,
                "side": "max",
                "value": 0.0405,
                "end": 0.081,
                "passed": False,
                "reason": "0.081 (upper end, seed 0) > 0.05",
            },
            {
                "key": USEFUL,
                "limit": 0.9,
                "side": "min",
                "value": 0.95,
                "end": 0.92,
                "passed": True,
                "reason": "0.92 (lower end, seed 0) >= 0.9",
            },
        ],
    }


def test_without_a_setting_the_recommended_one_is_meant(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.search("faces", confirmed={"private": 0, "useful": 2}, objectives=(f"min {LEAK}",))
    assert gate("faces", *KEPT).err == "oakum: private is what search 'faces' recommends\n"


def test_several_confirmed_settings_of_a_front_must_be_told_apart(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.search("faces", confirmed={"private": 0, "useful": 2}, objectives=(f"min {LEAK}", f"max {USEFUL}"))
    with pytest.raises(ConfigError, match="Write faces:SETTING with one of: private, useful"):
        gate("faces", *KEPT)
    assert gate("faces:useful", *KEPT).code == 0


def test_what_was_not_confirmed_fails(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.search("faces", confirmed={"best": 2})
    said = gate("faces:trial-1", "--json", *KEPT)
    assert said.code == 4
    (leak, useful) = json.loads(said.out)["bounds"]
    assert leak["reason"] == useful["reason"] == "trial-1 was not confirmed: it was measured on validation folds alone"
    assert leak["value"] is leak["end"] is None
    fabric.search("voices")
    for model, shown in (("voices", "voices"), ("voices:trial-0", "voices:trial-0")):
        said = gate(model, *KEPT)
        assert said.code == 4 and f"gate failed: {shown}: 2 of 2 bounds failed" in said.out
        assert said.out.count("was not confirmed") == 2


@pytest.mark.parametrize("setting", ["trial-3", "other", "none"])
def test_an_unknown_setting_of_a_search_is_a_bad_request(
    fabric: Fabric, gate: Callable[..., Said], setting: str
) -> None:
    fabric.search("faces", confirmed={"best": 2})
    with pytest.raises(ConfigError, match=f"'{setting}'; confirmed: best; or write faces:trial-N for one of its 3"):
        gate(f"faces:{setting}", *KEPT)


def test_a_run_passes(fabric: Fabric, gate: Callable[..., Said]) -> None:
    record = fabric.record("quick", ("none", "relaxloss"))
    fabric.run(record)
    for model in ("quick", "quick:relaxloss", f"{record.plan_key[:8]}:relaxloss"):
        assert gate(model, *KEPT).code == 0
    assert gate("quick:none", *KEPT).out.endswith("gate passed: quick:none: all bounds kept (2)\n")
    with pytest.raises(ConfigError, match="run 'quick' has no setting 'bido'; its settings: none, relaxloss"):
        gate("quick:bido", *KEPT)


def test_the_latest_plan_of_a_run_is_judged_and_named(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.run(fabric.record("quick", ("relaxloss",), high=0.01))
    later = fabric.record("quick", ("relaxloss",), high=0.09)
    fabric.run(later)
    said = gate("quick", *KEPT)
    assert said.code == 4 and "0.09 (upper end" in said.out
    assert said.err == f"oakum: 2 plans are called 'quick'; this is the latest, {later.plan_key[:12]}\n"


def test_a_search_comes_before_a_run_of_its_name(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.run(fabric.record("faces", ("relaxloss",), high=0.09))
    fabric.search("faces", confirmed={"best": 2})
    assert gate("faces", *KEPT).code == 0


def test_a_run_against_validation_points_fails(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.run(fabric.record("quick", ("relaxloss",)), nonmembers="val")
    said = gate("quick", *KEPT)
    assert said.code == 4
    assert said.out.count("not confirmed: attacks took non-members from val, not from test") == 2


def test_missing_stages_fail_every_bound(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.run(fabric.record("quick", ("relaxloss",)), without=("membership.clean.loss",))
    leak, useful, _ = gate("quick", *KEPT).out.splitlines()
    missing = "2 stages are missing, such as membership.clean.loss of seed 0; run it to its end"
    assert leak == f"FAIL  {LEAK}: {missing}; metric '{LEAK}' was not measured (seeds 0, 1)"
    assert useful == f"FAIL  {USEFUL}: 0.92 (lower end, seed 0) >= 0.9; {missing}"


def test_stages_of_other_inputs_than_those_stored_fail(fabric: Fabric, gate: Callable[..., Said]) -> None:
    record = fabric.record("quick", ("relaxloss",), seeds=1)
    fabric.run(record)
    fabric.store.set_aside("answers", record.cells[0].stages["answers.clean"].key, "damaged")
    (fabric.payload / "numbers").write_bytes(b"other numbers")
    fabric.publish(record, without=("membership.clean.loss",))
    said = gate("quick", *KEPT)
    assert said.code == 4
    assert said.out.count("1 stages are out of date, such as membership.clean.loss of seed 0; run it again") == 2


def test_a_bad_request_is_refused(fabric: Fabric, gate: Callable[..., Said]) -> None:
    fabric.run(fabric.record("quick", ("none", "relaxloss", "bido")))
    fabric.search("faces")
    with pytest.raises(ConfigError, match="no search or run is called 'quack'; searches: faces; runs: quick"):
        gate("quack", *KEPT)
    with pytest.raises(ConfigError, match="with one of: none, relaxloss, bido"):
        gate("quick", *KEPT)
    with pytest.raises(ConfigError, match="a gate needs a bound: add --max KEY<=NUMBER or --min KEY>=NUMBER"):
        gate("quick")
    with pytest.raises(ConfigError, match="write KEY<=NUMBER"):
        gate("quick:relaxloss", "--max", f"{USEFUL}>=0.9")


def test_the_gate_needs_no_heavy_package(fabric: Fabric) -> None:
    fabric.search("faces", confirmed={"best": 2})
    code = f"""
import sys
from oakum.session_gate import run_gate
from oakum.session_home import Home
assert run_gate("faces", ["{LEAK}<=0.05"], [], Home.of_environment()).passed
print(sorted({{"torch", "ray", "mlflow", "pyarrow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGES, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_masked_scores_pass_only_when_labels_alone_do() -> None:
    alone = "membership/label_only/tpr_at_fpr_0.01"

    def masked(high: float | None) -> list[CellRecord]:
        by_label = {} if high is None else {alone: MetricValue(high - 0.01, high - 0.02, high)}
        return [cell(0, ("masked output",), leak=MetricValue(0.0, 0.0, 0.01), **by_label)]

    assert judge(AT_MOST, masked(0.04)).passed
    leaking = judge(AT_MOST, masked(0.3))
    assert not leaking.passed and leaking.reason == (
        "0.01 (upper end, seed 0) <= 0.05; "
        "its scores are masked, and by its labels alone: 0.3 (upper end, seed 0) > 0.05"
    )
    assert not judge(AT_MOST, masked(None)).passed
