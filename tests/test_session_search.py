"""Searches as a whole, in this process: what a trial measures, what is kept, what goes on, what is confirmed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oakum import faults, session, session_search, session_trials
from oakum.config import ConfigError
from oakum.report import search_page, search_terminal
from oakum.search.card import leakage_card
from oakum.search.population import lineage
from oakum.search.records import SearchLog, SearchRecord, TrialRecord
from oakum.session import Home
from oakum.session_search import SearchResult, nearest_misses, search
from oakum.session_search_request import SearchOptions
from oakum.session_trials import SharedStageError
from oakum.store import Store

SPACE = {"defense.alpha": {"sampler": "uniform", "low": 0.2, "high": 1.4}, "grid": [{"defense.alpha": 0.5}]}
LEAK = "min membership/loss/auc"
USEFUL = "utility/val_accuracy >= 0.05"
# Three generations of two members, each of one epoch.
BY_POPULATION: dict[str, Any] = {"sampler": "population", "population": 2, "trials": 6}


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return written(tmp_path, SPACE)


def written(folder: Path, data: dict[str, Any], name: str = "relaxloss") -> Path:
    file = folder / f"{name}_space.yaml"
    file.write_text(yaml.safe_dump({"defense": name, **data}, sort_keys=False))
    return file


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes longer than these searches; one test has the report drawn."""
    if request.node.name != "test_trials_are_recorded_and_a_search_goes_on":
        monkeypatch.setattr(session_search, "write_search_report", lambda record, home: home.report(record.header.name))


@pytest.fixture
def run(home: Home, short: dict[str, Any], write: Callable[..., Path], space: Path) -> Callable[..., SearchResult]:
    """Search the short experiment in this process."""

    def run_search(**changes: Any) -> SearchResult:
        options = SearchOptions(
            file=changes.pop("file", None) or write(short), space=space, objectives=(LEAK,), floors=(USEFUL,),
            trials=3, executor="serial", sampler="random", confirm=0, repeats=0, track=False,
        )  # fmt: skip
        return search(replace(options, **changes), home)

    return run_search


def numbers(record: SearchRecord) -> list[Any]:
    """Everything of the trials that does not depend on the clock."""
    return [
        (trial.number, trial.point, trial.state, trial.values, trial.violations, trial.stages)
        for trial in record.trials
    ]


def test_trials_are_recorded_and_a_search_goes_on(run: Callable[..., SearchResult], home: Home) -> None:
    first = run(grid_first=True)
    assert [trial.state for trial in first.record.trials] == ["complete"] * 3 and first.new_trials == 3
    assert [trial.origin for trial in first.record.trials] == ["grid", "random", "random"]
    assert first.report.is_file()
    for trial in first.record.trials:
        (metrics,) = trial.metrics.values()
        assert trial.metrics.keys() == trial.baseline.keys() == {1000}
        assert trial.values == (metrics["membership/loss/auc"].value,)
        assert not any("test_" in key for key in metrics), "a trial has seen the test fold"
        assert 0.0 <= trial.stage_seconds <= trial.latency
    again = run(grid_first=True)
    assert again.new_trials == 0 and numbers(again.record) == numbers(first.record)
    more = run(grid_first=True, trials=2, more=True)
    assert more.new_trials == 2 and numbers(more.record)[:3] == numbers(first.record)
    assert SearchLog.named(Store.open(home.store_uri), "short-relaxloss").record().trials == more.record.trials


def test_five_at_once_are_the_five_of_two_times(
    run: Callable[..., SearchResult], make_home: Callable[..., Home]
) -> None:
    run(trials=2)
    assert numbers(run(trials=5).record) == numbers(run(trials=5, name="whole").record)


def test_stages_of_a_search_survive_garbage_collection(run: Callable[..., SearchResult], home: Home) -> None:
    record = run().record
    store = Store.open(home.store_uri)
    assert not store.gc(dry_run=False, min_age_seconds=0).entries
    assert all(store.manifest(ref.kind, ref.key) for trial in record.trials for ref in trial.stages)


def test_confirmation_has_fresh_seeds_test_folds_and_probabilities(
    run: Callable[..., SearchResult], home: Home
) -> None:
    result = run(confirm=1, repeats=1)
    confirmation = result.record.confirmation
    assert confirmation is not None and not result.failures
    assert sum(confirmation.membership.values()) == pytest.approx(1.0, abs=0.35)
    ((label, number),) = confirmation.settings.items()
    assert label == f"trial-{number}"
    assert {(cell.setting, cell.seed) for cell in confirmation.record.cells} == {("none", 0), (label, 0)}
    assert all("utility/test_accuracy" in cell.metrics for cell in confirmation.record.cells)
    repeated = [trial for trial in result.record.trials if set(trial.metrics) == {1000, 1001}]
    assert len(repeated) == len(confirmation.membership) >= 1
    assert home.report("short-relaxloss-confirmed").is_file()
    assert run(confirm=1, repeats=1).record.confirmation == confirmation


def test_settings_that_change_more_than_the_defense_are_confirmed_beside_a_none_of_their_own(
    run: Callable[..., SearchResult], home: Home, tmp_path: Path
) -> None:
    epochs = {"recipe.epochs": {"sampler": "choice", "values": [1, 2]}}
    space = written(tmp_path, {"grid": [{"defense.alpha": 0.5, "recipe.epochs": epoch} for epoch in (1, 2)], **epochs})
    result = run(space=space, sampler="grid", trials=2, confirm=2)
    confirmation = result.record.confirmation
    assert confirmation is not None and not result.failures
    assert confirmation.baselines == {"trial-1": "none-2"}
    trained = {}
    for cell in confirmation.record.cells:
        manifest = Store.open(home.store_uri).manifest("train", cell.stages["target.clean"].key)
        assert manifest is not None
        trained[cell.setting] = manifest.key_document["config"]["recipe"]["epochs"]
    assert trained == {"none": 1, "trial-0": 1, "none-2": 2, "trial-1": 2}
    assert home.report("short-relaxloss-confirmed-2").is_file()


def test_no_row_that_scored_a_trial_against_members_scores_the_confirmation(
    run: Callable[..., SearchResult], home: Home
) -> None:
    from oakum.pipeline.folds import Selection, plan_folds

    record = run(trials=1).record

    def folds(data: dict[str, Any], seed: int) -> Any:
        return plan_folds(Selection("digits", None, data["folds"], 0, seed), home.data).rows

    trial, confirming = folds(record.header.trial, 1000), folds(record.header.trial, 0)
    seen = {int(row) for fold in ("train", "val") for row in trial[fold]}
    assert set(trial["test"].tolist()) == set(confirming["test"].tolist()) and not seen & set(
        confirming["test"].tolist()
    )
    assert set(trial["train"].tolist()) != set(confirming["train"].tolist())


def test_no_canary_that_scored_a_trial_scores_the_confirmation(
    run: Callable[..., SearchResult], home: Home, short: dict[str, Any], write: Callable[..., Path]
) -> None:
    from oakum.pipeline.experiment import resolve_experiment
    from oakum.pipeline.folds import Selection, plan_folds
    from oakum.search.protocol import confirmation_experiment

    file = write({**short, "canaries": {"fold": "canary"}})
    record = run(file=file, objectives=("min canary/loss/auc",), trials=1).record
    assert [trial.state for trial in record.trials] == ["complete"]
    header = record.header
    confirmation = confirmation_experiment(header.experiment, "c", {"x": {"name": "none"}}, trial=header.trial)

    def candidates(data: dict[str, Any], seed: int) -> set[int]:
        canaries = resolve_experiment(data, "").file.canaries
        assert canaries is not None
        selection = Selection("digits", None, data["folds"], 0, seed, canaries.fold, canaries.part)
        return set(plan_folds(selection, home.data).canaries.rows.tolist())

    seen = set().union(*(candidates(header.trial, seed) for seed in (1000, 1001)))
    assert len(seen) == 30 and not any(seen & candidates(confirmation, seed) for seed in range(3))


def test_rungs_stop_trials_that_are_not_among_the_better_third(run: Callable[..., SearchResult]) -> None:
    record = run(trials=7, rungs=({"recipe.epochs": 1},)).record
    states = [trial.state for trial in record.trials]
    assert states[0] == "complete" and "stopped" in states and states.count("complete") < 6
    for trial in record.trials:
        assert trial.rung == (1 if trial.state == "complete" else 0)
        assert len(trial.lower) == trial.rung


def test_a_point_that_fails_is_recorded_and_ends_nothing(run: Callable[..., SearchResult], tmp_path: Path) -> None:
    space = written(
        tmp_path,
        {
            "fixed": {"recipe.drop_last": True},
            "recipe.batch_size": {"sampler": "choice", "values": [4096, 16]},
            **SPACE,
        },
    )
    trials = run(space=space, trials=6).record.trials
    failed = [trial for trial in trials if trial.state == "failed"]
    assert failed and len(failed) < 6
    assert all("drop_last" in trial.error and trial.point["recipe.batch_size"] == 4096 for trial in failed)


def test_a_metric_that_no_stage_yields_fails_every_trial_and_says_what_there_is(
    run: Callable[..., SearchResult],
) -> None:
    record = run(objectives=("min membership/loss/acu",), trials=2).record
    assert [trial.state for trial in record.trials] == ["failed"] * 2
    assert "no stage yields 'membership/loss/acu'" in record.trials[0].error
    assert "membership/loss/auc" in record.trials[0].error


def test_nothing_feasible_shows_the_nearest(run: Callable[..., SearchResult]) -> None:
    result = run(floors=("utility/val_accuracy >= 2.0",), confirm=1)
    nearest = nearest_misses(result.record)
    assert result.record.confirmation is None
    assert [sum(trial.violations) for trial in nearest] == sorted(
        sum(trial.violations) for trial in result.record.trials
    )


def test_two_searches_of_one_name_are_refused(run: Callable[..., SearchResult]) -> None:
    run(trials=1)
    with pytest.raises(ConfigError, match=r"another search is called 'short-relaxloss': it has other floors.*--name"):
        run(trials=1, floors=())
    run(trials=1, floors=(), name="another")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ()}, "say what to search for"),
        ({"objectives": ("min inversion/gmi/top1",)}, "no inversion attack 'gmi'"),
        ({"trials": 0}, "--trials must be 1 or more"),
        ({"sampler": "annealing"}, "unknown sampler 'annealing'"),
        ({"seeds_per_trial": 0}, "--seeds-per-trial"),
        ({"confirm": -1}, "--confirm must be 0 or more"),
        ({"rungs": ({"seeds": [1000]},)}, "seeds may not be changed"),
        ({"rungs": ({"recipe.epoch": 1},)}, r"recipe\.epoch.*epochs"),
        ({"population": 4}, "add --sampler population"),
        ({**BY_POPULATION, "trials": 5}, "5 is not two or more generations of 2 members; write 4 or 6"),
        ({**BY_POPULATION, "trials": 8}, "4 generations do not fit into 3 epochs"),
        ({**BY_POPULATION, "rungs": ({"recipe.epochs": 1},)}, "rungs and a population.*remove --rung"),
        ({**BY_POPULATION, "grid_first": True}, "remove --grid-first"),
        ({**BY_POPULATION, "more": True}, "set when it begins"),
        ({**BY_POPULATION, "objectives": (LEAK, f"max {USEFUL.split()[0]}")}, "by one objective"),
        ({**BY_POPULATION, "overrides": ["recipe.stop_after=2"]}, "remove recipe.stop_after"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_run(
    changes: dict[str, Any], message: str, run: Callable[..., SearchResult], home: Home
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**changes)
    assert not Store.open(home.store_uri).published("train")


@pytest.mark.parametrize(
    ("path", "parameter", "message"),
    [
        ("recipe.epoch", {"sampler": "integer", "low": 1, "high": 3}, r"recipe\.epoch.*epochs"),
        ("recipe.epochs", {"sampler": "integer", "low": -1, "high": 30}, r"recipe\.epochs: .*\(got -1\)"),
        ("model.nowhere.deep", {"sampler": "choice", "values": [1]}, r"model\.nowhere"),
    ],
)
def test_paths_and_bounds_outside_of_the_experiment_are_refused(
    path: str, parameter: dict[str, Any], message: str, run: Callable[..., SearchResult], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(space=written(tmp_path, {path: parameter, **SPACE}))


@pytest.mark.faults
def test_killed_after_a_trial_the_same_command_goes_on(
    home: Home,
    make_home: Callable[..., Home],
    short: dict[str, Any],
    write: Callable[..., Path],
    space: Path,
    start: Callable[..., Any],
) -> None:
    command = [
        "search", write(short), space, "--objective", LEAK, "--trials", 3, "--sampler", "tpe", "--confirm", 0,
        "--executor", "serial", "--no-tracking", "--json",
    ]  # fmt: skip
    killed = start(*command, home=home, **{faults.VARIABLE: "search.after_trial:2"}).answer()
    assert killed.code == -signal.SIGKILL, killed.err
    log = SearchLog.named(Store.open(home.store_uri), "short-relaxloss")
    kept = [trial for trial in log.trials() if trial.state == "complete"]
    assert len(kept) == 2
    resumed, undisturbed = (start(*command, home=each).answer() for each in (home, make_home("other")))
    assert resumed.code == undisturbed.code == 0, resumed.err
    assert "3 trials: 2 stored, 1 to run" in resumed.err
    found, expected = (json.loads(answer.out)["trials"] for answer in (resumed, undisturbed))
    assert [(trial["point"], trial["values"]) for trial in found] == [
        (trial["point"], trial["values"]) for trial in expected
    ]
    assert found[0]["latency"] == kept[0].latency


def test_a_trial_that_was_running_when_the_driver_died_is_run_first(
    run: Callable[..., SearchResult], home: Home
) -> None:
    first = run(trials=2)
    log = SearchLog(Store.open(home.store_uri), first.record.header.key)
    whole = first.record.trials[1]
    log.put_trial(TrialRecord(1, whole.point, whole.origin, "running"))
    again = run(trials=2)
    assert again.new_trials == 1 and numbers(again.record) == numbers(first.record)


@pytest.mark.parametrize("command", ["search", "run"])
def test_what_libraries_print_does_not_mix_with_results(
    command: str, home: Home, oakum: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, space: Path
) -> None:
    def noisy(*_: object) -> None:
        print("(raylet) WARNING")
        raise ConfigError("enough")

    monkeypatch.setattr(session_search, "search", noisy)
    monkeypatch.setattr(session, "run", noisy)
    answer = oakum(command, "any.yaml", *([space] if command == "search" else []), "--json", home=home)
    assert (answer.code, answer.out) == (2, "") and "(raylet) WARNING" in answer.err


def test_a_number_that_a_dead_driver_asked_for_and_never_recorded_is_asked_again(
    run: Callable[..., SearchResult], home: Home
) -> None:
    first = run(trials=3)
    store = Store.open(home.store_uri)
    store.delete_document(f"searches/{first.record.header.key}/trials/000001")
    assert numbers(run(trials=3).record) == numbers(first.record)


def test_a_repeat_that_fails_leaves_the_trial_as_it_was(
    run: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(trials=2)
    plan = session_trials.plan_trial

    def fail_repeats(*arguments: Any, **named: Any) -> Any:
        if arguments[-1] != (1000,):
            raise RuntimeError("no such luck")
        return plan(*arguments, **named)

    monkeypatch.setattr(session_trials, "plan_trial", fail_repeats)
    again = run(trials=2, confirm=1, repeats=1)
    assert numbers(again.record) == numbers(first.record) and again.record.confirmation is not None
    assert "trial 0 was not repeated: RuntimeError: no such luck" in capsys.readouterr().err


def test_a_stage_that_all_trials_need_ends_the_search_and_no_trial(
    run: Callable[..., SearchResult], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oakum.pipeline.stages import answers

    def fail(context: Any) -> None:
        raise MemoryError("too small")

    with monkeypatch.context() as patch, pytest.raises(SharedStageError, match=r"answers none/1000.*too small"):
        patch.setattr(answers, "run", fail)
        run(trials=2)
    log = SearchLog.named(Store.open(home.store_uri), "short-relaxloss")
    assert {trial.state for trial in log.trials()} == {"running"}
    assert [trial.state for trial in run(trials=2).record.trials] == ["complete"] * 2


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"attacks.nonmembers": "test"}, "attacks.nonmembers may not be changed"),
        ({"folds.sealed": []}, "folds.sealed may not be changed"),
        ({"seeds": [0]}, "seeds may not be changed"),
        ({"attacks.membership.0": "entropy"}, "attacks.membership.0 may not be searched"),
    ],
)
def test_a_space_may_not_undo_the_honest_selection(
    fixed: dict[str, Any], message: str, run: Callable[..., SearchResult], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(space=written(tmp_path, {"fixed": fixed, **SPACE}))


def test_what_the_confirmation_could_not_run_is_refused_before_the_first_trial(
    run: Callable[..., SearchResult], home: Home
) -> None:
    with pytest.raises(ConfigError, match="name"):
        run(confirm=1, name="a" * 95)
    assert not Store.open(home.store_uri).published("train")


def trained(home: Home, trial: TrialRecord, defense: str) -> list[str]:
    """Return the keys of a trial's trainings with a defense, in their order."""
    store = Store.open(home.store_uri)
    manifests = [store.manifest(ref.kind, ref.key) for ref in trial.stages if ref.kind == "train"]
    return [each.key for each in manifests if each and each.key_document["config"]["defense"]["name"] == defense]


def test_a_population_trains_nothing_twice_and_confirms_a_schedule(
    run: Callable[..., SearchResult], home: Home
) -> None:
    result = run(**BY_POPULATION, confirm=1)
    trials = result.record.trials
    assert [trial.state for trial in trials] == ["stopped"] * 4 + ["complete"] * 2
    assert result.record.header.generations == (1, 2, 3)
    for better, worse in ((0, 1), (2, 3)):
        if (trials[better].values or ()) > (trials[worse].values or ()):
            better, worse = worse, better
        # The worse one of two is the worst quarter: it left its own training for the other's.
        heirs = [trial for trial in trials if trial.parent == better]
        assert len(heirs) == 2 and not [trial for trial in trials if trial.parent == worse]
        assert [heir.point == trials[better].point for heir in heirs] in ([True, False], [False, True])
    for trial in trials:
        own = trained(home, trial, "relaxloss")
        assert len(own) == trial.number // 2 + 1
        if trial.parent is not None:
            assert own[:-1] == trained(home, trials[trial.parent], "relaxloss")
    every = {key for trial in trials for key in trained(home, trial, "relaxloss")}
    assert len(every) == len(trials), "a prefix was trained again"
    assert [trained(home, trial, "none") for trial in trials[:4]] == [[]] * 4
    assert result.record.confirmation is not None and not result.failures
    ((label, number),) = result.record.confirmation.settings.items()
    assert trials[number].state == "complete"
    (cell,) = (cell for cell in result.record.confirmation.record.cells if cell.setting == label)
    points = [each.point["defense.alpha"] for each in lineage(trials[number], dict(enumerate(trials)))]
    assert cell.parameters["alpha"] == points[0]
    changes = {str(epoch): {"alpha": points[epoch]} for epoch in (1, 2) if points[epoch] != points[epoch - 1]}
    assert changes and json.loads(json.dumps(cell.parameters["schedule"])) == changes
    assert leakage_card(result.record, label)["defense"]["schedule"] == cell.parameters["schedule"]
    page = search_page.render(result.record)
    assert "generation 2 of 3" in page and f"from epoch {min(changes)} alpha" in page
    assert "from epoch" in search_terminal.plain_text(result.record)


@pytest.mark.faults
def test_a_population_that_was_killed_goes_on_as_if_nothing_had_happened(
    run: Callable[..., SearchResult],
    home: Home,
    make_home: Callable[..., Home],
    short: dict[str, Any],
    write: Callable[..., Path],
    space: Path,
    start: Callable[..., Any],
) -> None:
    command = [
        "search", write(short), space, "--objective", LEAK, "--keep", USEFUL, "--trials", 6, "--sampler", "population",
        "--population", 2, "--confirm", 0, "--repeats", 0, "--executor", "serial", "--no-tracking", "--json",
    ]  # fmt: skip
    other = make_home("other")
    killed = start(*command, home=other, **{faults.VARIABLE: "search.after_trial:3"}).answer()
    assert killed.code == -signal.SIGKILL, killed.err
    resumed = start(*command, home=other).answer()
    assert resumed.code == 0 and "6 trials: 3 stored, 3 to run" in resumed.err, resumed.err
    expected = run(**BY_POPULATION)
    found = SearchLog.named(Store.open(other.store_uri), "short-relaxloss").record()
    assert numbers(found) == numbers(expected.record)
    assert [trial.parent for trial in found.trials] == [trial.parent for trial in expected.record.trials]
