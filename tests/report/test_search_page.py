"""Reports of hand-made searches: no number here was measured."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from oakum.records import CellRecord, MetricValue, RunRecord, sha256_hex
from oakum.report import search_figures, search_page, search_terminal
from oakum.report._markup import Markup
from oakum.report._search_protocol import protocol_section
from oakum.report._search_sections import progress_section, trial_section
from oakum.report._search_verdict import verdict_section
from oakum.report._search_view import SearchView, search_view
from oakum.report._search_words import warnings
from oakum.search.objectives import parse_floor, parse_objective
from oakum.search.records import Confirmation, SearchHeader, SearchRecord, TrialRecord

LEAK, UTILITY = "inversion/gmi/top1", "utility/val_accuracy"
BOTH = (f"min {LEAK}", f"max {UTILITY}")
FLOOR = f"{UTILITY} >= none - 0.02"
SPACE: dict[str, Any] = {
    "defense": "bido",
    "defense.lambda_x": {"sampler": "loguniform", "low": 0.01, "high": 0.1},
    "defense.lambda_y": {"sampler": "loguniform", "low": 0.05, "high": 2.5},
    "grid": [{"defense.lambda_x": 0.01, "defense.lambda_y": 0.05}, {"defense.lambda_x": 0.05, "defense.lambda_y": 0.5}],
    "fixed": {"defense.measure": "hsic"},
}
POINT = {"defense.lambda_x": 0.02, "defense.lambda_y": 0.2}
EXPERIMENT: dict[str, Any] = {
    "name": "digits",
    "data": {"name": "mnist5k", "image_size": 16},
    "folds": {"private_classes": [0, 1, 2, 3, 4]},
    "model": "mcnn",
    "seeds": [0, 1, 2],
    "attacks": {"membership": ["loss"], "inversion": [{"name": "gmi", "restarts": 20}, {"name": "kedmi"}]},
    "evaluation": {"model": "scnn", "second": {"model": {"name": "small_cnn", "width": 32}}},
}
TRIAL: dict[str, Any] = {
    **EXPERIMENT,
    "seeds": [1000],
    "folds": {"private_classes": [0, 1, 2, 3, 4], "sealed": ["test"]},
    "attacks": {"membership": [], "inversion": [{"name": "gmi"}], "nonmembers": "val", "identities": 3},
    "evaluation": {"model": "scnn", "second": None},
}


def header(**changes: Any) -> SearchHeader:
    made = SearchHeader(
        name="digits-bido",
        key=sha256_hex(b"search"),
        defense="bido",
        space=SPACE,
        experiment=EXPERIMENT,
        trial=TRIAL,
        objectives=BOTH,
        floors=(FLOOR,),
        seeds=(1000,),
    )
    return replace(made, **changes)


def metrics(leak: float, utility: float, fold: str = "val") -> dict[str, MetricValue]:
    return {
        LEAK: MetricValue(leak, max(0.0, leak - 0.06), min(1.0, leak + 0.06), "low"),
        f"utility/{fold}_accuracy": MetricValue(utility, wants="high"),
        "membership/loss/auc": MetricValue(0.5 + 0.2 * leak, wants="low"),
    }


def truth(point: dict[str, Any]) -> tuple[float, float]:
    """Return the leakage and utility of a made-up defense: stronger leaks less and costs more."""
    strength = np.log10(point["defense.lambda_x"] / 0.01) + 0.6 * np.log10(point["defense.lambda_y"] / 0.05)
    return float(0.74 * np.exp(-0.9 * strength) + 0.05), float(0.965 - 0.004 * strength - 0.018 * strength**3)


def trial(number: int, point: dict[str, Any], made: SearchHeader, origin: str = "tpe", repeats: int = 0) -> TrialRecord:
    """Return a complete trial, judged as the header asks."""
    rng = np.random.default_rng([7, number])
    leak, utility = truth(point)
    seeds = (*made.seeds, *(made.seeds[-1] + 1 + place for place in range(repeats)))
    own = {seed: metrics(leak + 0.02 * rng.normal(), utility + 0.003 * rng.normal()) for seed in seeds}
    base = {seed: metrics(0.79, 0.965) for seed in seeds}
    values = tuple(
        float(np.mean([parse_objective(text).value(own[seed]) for seed in made.seeds])) for text in made.objectives
    )
    violations = tuple(
        float(np.mean([parse_floor(text).violation(own[seed], base[seed]) for seed in made.seeds]))
        for text in made.floors
    )
    return TrialRecord(
        number=number,
        point={"defense.measure": "hsic", **point},
        origin=origin,
        state="complete",
        rung=len(made.rungs),
        metrics=own,
        baseline=base,
        values=values,
        violations=violations,
        latency=140 + 30 * float(rng.random()),
        stage_seconds=118 + 9 * float(rng.random()),
        package="a" * 64,
    )


def trials(made: SearchHeader, count: int = 40) -> tuple[TrialRecord, ...]:
    """Return a search of `count` trials: two of the grid first, one that failed, one that was stopped."""
    rng = np.random.default_rng(3)
    points = [
        {"defense.lambda_x": float(10 ** rng.uniform(-2, -1)), "defense.lambda_y": float(10 ** rng.uniform(-1.3, 0.4))}
        for _ in range(count)
    ]
    points[: len(SPACE["grid"])] = SPACE["grid"][:count]
    found = [
        trial(number, point, made, "grid" if number < 2 else "tpe", repeats=2 if number % 5 == 0 else 0)
        for number, point in enumerate(points)
    ]
    if count > 11:
        error = "train trial: RuntimeError: the loss is not finite in epoch 3"
        found[11] = replace(found[11], state="failed", values=None, violations=(), metrics={}, error=error)
    if count > 17 and made.rungs:
        found[17] = replace(found[17], state="stopped", rung=0)
    return tuple(found)


def confirm(record: SearchRecord, numbers: list[int], seeds: int = 3) -> Confirmation:
    """Return a confirmation of some trials beside `none`: a little worse than the search said."""
    points = {item.number: item.point for item in record.trials}
    cells = []
    for seed in range(seeds):
        rng = np.random.default_rng([13, seed])
        cells.append(CellRecord("none", "none", {}, seed, metrics(0.76 + 0.01 * seed, 0.96, "test"), {}))
        for number in numbers:
            leak, utility = truth(points[number])
            found = metrics(leak + 0.05 + 0.02 * rng.normal(), utility - 0.006 + 0.002 * rng.normal(), "test")
            cells.append(CellRecord(f"trial-{number}", "bido", points[number], seed, found, {}))
    run = RunRecord(
        name="digits-bido-confirmed",
        description="",
        run_key=sha256_hex(b"run"),
        plan_key=sha256_hex(b"confirmation"),
        config={},
        data={},
        chance={LEAK: 0.2},
        cells=tuple(cells),
        shared=(),
    )
    membership = {number: 0.95 - 0.2 * place for place, number in enumerate(numbers)}
    return Confirmation(run.plan_key, {f"trial-{number}": number for number in numbers}, membership, run)


def search(count: int = 40, numbers: list[int] | None = None, **changes: Any) -> SearchRecord:
    made = header(**changes)
    record = SearchRecord(made, trials(made, count))
    return replace(record, confirmation=confirm(record, numbers)) if numbers else record


@pytest.fixture(scope="module")
def plain(read: Callable[[str], Any]) -> Callable[[Markup | None], str]:
    """Return a function from a section to its words."""

    def plain(markup: Markup | None) -> str:
        assert markup is not None
        return str(read(markup).text)

    return plain


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def of(record: SearchRecord, number: int) -> TrialRecord:
    return record.trials[number]


def non_dominated(record: SearchRecord) -> set[int]:
    """Return the front of two objectives, leakage low and utility high, by definition."""
    feasible = [trial for trial in record.complete if not any(trial.violations)]

    def beats(one: TrialRecord, other: TrialRecord) -> bool:
        (leak, utility), (its_leak, its_utility) = one.values or (0, 0), other.values or (0, 0)
        return leak <= its_leak and utility >= its_utility and (leak, utility) != (its_leak, its_utility)

    return {trial.number for trial in feasible if not any(beats(other, trial) for other in feasible)}


@pytest.fixture(scope="module")
def two() -> SearchRecord:
    """Forty trials, two objectives and a floor, three of them confirmed."""
    numbers = sorted(non_dominated(search()))
    return search(numbers=[numbers[0], numbers[2], numbers[-1]], notes=("privacy of the search is not accounted for",))


@pytest.fixture(scope="module")
def one() -> SearchRecord:
    """The same for one objective; the best trial is confirmed, beside another one."""
    record = search(objectives=BOTH[:1])
    best = min((trial for trial in record.complete if trial.is_feasible), key=lambda trial: trial.values or (1.0,))
    return search(numbers=[best.number, 0], objectives=BOTH[:1])


@pytest.fixture(scope="module")
def page(two: SearchRecord) -> str:
    return search_page.render(two)


def test_the_page_is_self_contained_and_its_links_lead_somewhere(page: str, read: Callable[[str], Any]) -> None:
    structure = read(page)
    ids = [attributes["id"] for _, attributes in structure.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for name, attributes in structure.elements:
        assert name not in {"script", "link", "iframe", "object", "base", "form", "img", "image"}
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
        if name == "a":
            assert (attributes["href"] or "").removeprefix("#") in ids
    assert set(re.findall(r"https?://[^\"' <>)]+", page)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    pictures = [attributes for _, attributes in structure.elements if attributes.get("role") == "img"]
    assert len(pictures) == 4
    assert all(attributes.get("aria-label") for attributes in pictures)


def test_sections_stand_in_the_order_of_reading(page: str, read: Callable[[str], Any]) -> None:
    sections = [attributes["id"] for name, attributes in read(page).elements if name == "section"]
    assert sections == ["verdict", "front", "parameters", "progress", "trials", "protocol", "words"]


def test_the_tab_says_that_this_is_a_search(page: str) -> None:
    assert "<title>digits-bido: search report</title>" in page


def test_one_sentence_says_what_was_searched(page: str, read: Callable[[str], Any]) -> None:
    said = (
        "Searched: lambda_x and lambda_y of bido on mnist5k, for low inversion/gmi/top1 and high utility/val_accuracy, "
        "keeping utility/val_accuracy >= none - 0.02: 40 trials, each under seed 1000."
    )
    assert said in read(page).text


def test_everything_from_the_record_is_escaped(read: Callable[[str], Any]) -> None:
    def attack(place: str) -> str:
        return f"</title></style></svg><script>alert('{place}')</script><img src=x onerror=alert(2)>\"'&lt;"

    made = header(
        name=attack("name"),
        defense=attack("defense"),
        notes=(attack("note"),),
        experiment={**EXPERIMENT, "data": {"name": attack("data")}},
        rungs=({attack("rung"): attack("rung value")},),
    )
    points = [
        {f"defense.{attack('path')}": attack("value") if number % 2 else "other", "defense.lambda_x": 0.01 + number}
        for number in range(4)
    ]
    found = [trial(number, POINT, made) for number in range(4)]
    found = [
        replace(each, point=point, origin=attack("origin"), package=f"{attack('package')}{each.number}")
        for each, point in zip(found, points, strict=True)
    ]
    found.append(replace(found[0], number=4, state="failed", values=None, violations=(), error=attack("error")))
    record = SearchRecord(made, tuple(found))
    confirmation = confirm(SearchRecord(made, tuple(replace(each, point=POINT) for each in found)), [1])
    cells = tuple(replace(cell, flags=(attack("flag"),)) for cell in confirmation.record.cells)
    run = replace(confirmation.record, cells=cells, warnings=(attack("warning"),))
    text = search_page.render(replace(record, confirmation=replace(confirmation, record=run)))
    structure = read(text)
    for place in ("name", "defense", "note", "data", "rung", "rung value", "path", "value", "origin", "error", "flag"):
        assert f"<script>alert('{place}')" in structure.text, place
    assert "<script>alert('warning')" in structure.text
    assert "<script" not in text
    assert "<img" not in text
    assert not any("onerror" in attributes for _, attributes in structure.elements)


def rows_by_setting(view: SearchView, tables: Any) -> dict[str, list[str]]:
    """Return the verdict's table as setting -> texts of its cells."""
    (table,) = tables(str(verdict_section(view)).replace("\N{NO-BREAK SPACE}", " "))
    return {row[0].text.split(" lambda_x")[0].strip(): [cell.text for cell in row[1:]] for row in table[2:]}


def test_the_front_stands_with_search_and_confirmed_values_side_by_side(
    two: SearchRecord, tables: Any, plain: Callable[[Markup | None], str]
) -> None:
    view = search_view(two)
    rows = rows_by_setting(view, tables)
    front = non_dominated(two)
    feasible = sum(not any(each.violations) for each in two.complete)
    assert plain(verdict_section(view)).startswith(f"{len(front)} of {feasible} feasible trials are on the front")
    assert set(rows) == {"none undefended", *(f"trial {number}" for number in front)}
    assert two.confirmation is not None
    for number in front:
        cells = rows[f"trial {number}"]
        values = of(two, number).values
        assert values is not None
        assert cells[0].startswith(percent(values[0]))
        assert cells[3].startswith(percent(values[1]))
        if number not in two.confirmation.membership:
            assert cells[1] == cells[4] == "not confirmed"
            assert cells[2] == cells[5] == cells[6] == cells[7] == ""
            continue
        own = [cell for cell in two.confirmation.record.cells if cell.setting == f"trial-{number}"]
        base = [cell for cell in two.confirmation.record.cells if cell.setting == "none"]
        for place, key in ((1, LEAK), (4, "utility/test_accuracy")):
            measured = [float(cell.metrics[key].value or 0) for cell in own]
            assert cells[place].startswith(percent(sum(measured) / 3))
            assert all(f"{100 * value:.1f}" in cells[place] for value in measured)
            minus = [value - float(cell.metrics[key].value or 0) for value, cell in zip(measured, base, strict=True)]
            for difference in (sum(minus) / 3, *minus):
                written = f"{100 * difference:.1f}".replace("-0.0", "0.0").replace("-", "\N{MINUS SIGN}")
                assert written in cells[place + 1]
        assert cells[7].startswith(percent(two.confirmation.membership[number]))
    assert rows["none undefended"][0] == "79.0 %"
    assert rows["none undefended"][1].startswith("77.0 %")


def test_a_confirmed_setting_is_held_against_its_floors_again(two: SearchRecord, tables: Any) -> None:
    """The floor bounds validation accuracy; confirmed, it bounds test accuracy, below `none` of the same seed."""
    assert two.confirmation is not None
    rows = rows_by_setting(search_view(two), tables)
    for number in two.confirmation.membership:
        cells = [cell for cell in two.confirmation.record.cells if cell.setting == f"trial-{number}"]
        missed = [max(0.0, 0.96 - 0.02 - float(cell.metrics["utility/test_accuracy"].value or 0)) for cell in cells]
        said = rows[f"trial {number}"][6]
        if any(missed):
            assert said.startswith(f"missed by {100 * sum(missed) / 3:.1f} points")
            assert f"{sum(amount > 0 for amount in missed)} of 3 seeds" in said
        else:
            assert said == "kept 3 seeds"


def test_repeats_are_shown_and_left_out_of_the_search_value(two: SearchRecord, tables: Any) -> None:
    repeated = next(number for number in sorted(non_dominated(two)) if len(of(two, number).metrics) == 3)
    cell = rows_by_setting(search_view(two), tables)[f"trial {repeated}"][0]
    found = {seed: float(own[LEAK].value or 0) for seed, own in of(two, repeated).metrics.items()}
    assert cell == f"{percent(found[1000])} repeats {100 * found[1001]:.1f}, {100 * found[1002]:.1f}"


def test_one_objective_has_a_best_setting(one: SearchRecord, plain: Callable[[Markup | None], str]) -> None:
    feasible = [trial for trial in one.complete if not any(trial.violations)]
    best = min(feasible, key=lambda trial: trial.values or (1.0,))
    assert best.values is not None
    text = plain(verdict_section(search_view(one)))
    assert text.startswith(f"Trial {best.number} is the best of {len(feasible)} feasible trials: lambda_x ")
    assert one.confirmation is not None
    own = [float(cell.metrics[LEAK].value or 0) for cell in one.confirmation.record.cells
           if cell.setting == f"trial-{best.number}"]  # fmt: skip
    confirmed = percent(sum(own) / 3)
    assert f"{LEAK}: {percent(best.values[0])} in the search, {confirmed} confirmed; lower is better" in text
    assert "lower in all 3 seeds" in text
    assert "Chance to be best 95.0 %" in text
    assert "kept in the search" in text


def test_from_five_seeds_up_a_difference_has_a_t_interval(
    one: SearchRecord, plain: Callable[[Markup | None], str]
) -> None:
    (number, *_) = one.confirmation.membership if one.confirmation else [0]
    text = plain(verdict_section(search_view(replace(one, confirmation=confirm(one, [number], seeds=6)))))
    assert "95 % t interval, 6 seeds" in text


def test_a_masked_setting_is_not_called_better_by_attacks_on_scores(two: SearchRecord, tables: Any) -> None:
    record = search(14, objectives=("min membership/loss/auc",), floors=())
    number = search_view(record).best[0].number
    confirmation = confirm(record, [number])
    plainly = str(verdict_section(search_view(replace(record, confirmation=confirmation))))
    cells = tuple(
        replace(cell, flags=("target.clean: masked output",)) if cell.defense == "bido" else cell
        for cell in confirmation.record.cells
    )
    masked = replace(confirmation, record=replace(confirmation.record, cells=cells))
    assert 'class="good"' in plainly
    assert 'class="good"' not in str(verdict_section(search_view(replace(record, confirmation=masked))))


def test_a_metric_that_the_confirmation_lacks_is_missing_and_no_error(two: SearchRecord, tables: Any) -> None:
    assert two.confirmation is not None
    (number, *_) = two.confirmation.membership

    def without(cell: CellRecord) -> CellRecord:
        gone = "utility/test_accuracy" if cell.seed != 1 else LEAK
        return replace(cell, metrics={key: value for key, value in cell.metrics.items() if key != gone})

    run = replace(two.confirmation.record, cells=tuple(map(without, two.confirmation.record.cells)))
    rows = rows_by_setting(search_view(replace(two, confirmation=replace(two.confirmation, record=run))), tables)
    assert "(2 of 3 seeds)" in rows[f"trial {number}"][1]
    assert "1 of 3 seeds" in rows[f"trial {number}"][4]
    blank = replace(run, cells=tuple(replace(cell, metrics={}) for cell in run.cells))
    rows = rows_by_setting(search_view(replace(two, confirmation=replace(two.confirmation, record=blank))), tables)
    assert rows[f"trial {number}"][1] == rows[f"trial {number}"][4] == "missing"


@pytest.fixture(scope="module")
def grouped() -> SearchRecord:
    """Three confirmed trials of two weight decays; the `none` of the second one is better in all by 0.1."""
    made = header()
    decays = (1e-4, 1e-3, 1e-4)
    found = tuple(trial(number, {**POINT, "recipe.weight_decay": decay}, made) for number, decay in enumerate(decays))
    record = SearchRecord(made, found)
    confirmation = confirm(record, [0, 1, 2])
    own = metrics(0.66, 1.06, "test")
    others = tuple(CellRecord("none-2", "none", {}, seed, own, {}) for seed in range(3))
    run = replace(confirmation.record, cells=(*confirmation.record.cells, *others))
    return replace(record, confirmation=replace(confirmation, record=run, baselines={"trial-1": "none-2"}))


def test_a_trial_of_other_conditions_is_compared_with_the_none_of_its_own(grouped: SearchRecord, tables: Any) -> None:
    view = search_view(grouped)
    leak, bound = view.goals[0], view.bounds[0]
    for trial, none in zip(grouped.trials, ((0.76, 0.77, 0.78), (0.66,) * 3, (0.76, 0.77, 0.78)), strict=True):
        own = view.confirmed_spread(leak, trial).values
        assert list(view.difference(leak, trial).values.values()) == pytest.approx(
            [own[seed] - none[seed] for seed in range(3)]
        )
    assert not any(view.confirmed_violations(bound, grouped.trials[0]).values())
    assert min(view.confirmed_violations(bound, grouped.trials[1]).values()) > 0.05
    rows = [row for row in tables(verdict_section(view))[0] if "none" in row[0].text.split()[:2]]
    assert ["0.001" in row[0].text for row in rows] == [False, True]
    assert [row[2].text.split()[0] for row in rows] == ["77.0", "66.0"]
    text = search_terminal.plain_text(grouped, width=60)
    assert "none: recipe.weight_decay 0.001" in text
    assert any("outside of the defense" in text for text in warnings(view))


def test_a_trial_whose_none_is_lost_has_no_difference(grouped: SearchRecord) -> None:
    confirmation = grouped.confirmation
    assert confirmation is not None
    kept = tuple(cell for cell in confirmation.record.cells if cell.setting != "none-2")
    lost = replace(confirmation, record=replace(confirmation.record, cells=kept))
    view = search_view(replace(grouped, confirmation=lost))
    assert [view.difference(view.goals[0], each).mean is not None for each in grouped.trials] == [True, False, True]
    assert view.confirmed_violations(view.bounds[0], grouped.trials[1]) == {}


def test_nothing_feasible_is_said_and_the_nearest_misses_are_shown(
    tables: Any, plain: Callable[[Markup | None], str]
) -> None:
    record = search(20, floors=("utility/val_accuracy >= 0.985", "membership/loss/auc <= 0.52"))
    view = search_view(record)
    assert plain(verdict_section(view)).startswith("Nothing feasible: no complete trial keeps every floor")
    nearest = sorted(record.complete, key=lambda each: sum(each.violations))[:3]
    rows = rows_by_setting(view, tables)
    assert list(rows)[1:] == [f"trial {each.number}" for each in nearest]
    for each in nearest:
        *_, accuracy, auc = rows[f"trial {each.number}"]
        assert accuracy == f"missed by {100 * each.violations[0]:.1f} points"
        assert auc.endswith(f"missed by {each.violations[1]:.3f}")


STATES: dict[str, tuple[SearchRecord, str, list[str]]] = {
    "no trials": (SearchRecord(header(), ()), "No trial has been asked for yet", ["verdict", "protocol", "words"]),
    "running": (
        SearchRecord(header(), (TrialRecord(0, POINT, "tpe", "running"),)),
        "Unfinished: 1 trial is running",
        ["verdict", "trials", "protocol", "words"],
    ),
    "failed": (
        SearchRecord(header(), tuple(TrialRecord(n, POINT, "tpe", "failed", error="out of\nmemory") for n in (0, 1))),
        "2 trials: out of memory",
        ["verdict", "trials", "protocol", "words"],
    ),
    "one trial": (
        SearchRecord(header(), (trial(0, POINT, header()),)),
        "Trial 0 is best in every objective, of 1 feasible trial",
        ["verdict", "front", "progress", "trials", "protocol", "words"],
    ),
    "twins": (
        SearchRecord(header(), tuple(replace(trial(0, POINT, header()), number=n) for n in (0, 1))),
        "2 of 2 feasible trials are on the front",
        ["verdict", "front", "progress", "trials", "protocol", "words"],
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_unfinished_and_unlucky_searches_have_a_page(state: str, read: Callable[[str], Any]) -> None:
    record, said, sections = STATES[state]
    structure = read(search_page.render(record))
    assert said in structure.text
    assert [attributes["id"] for name, attributes in structure.elements if name == "section"] == sections
    assert "nan" not in structure.text.lower().split()
    assert said in " ".join(search_terminal.plain_text(record, 100).split())


def test_without_a_baseline_values_stand_alone(tables: Any, plain: Callable[[Markup | None], str]) -> None:
    record = search(12, floors=())
    record = replace(record, trials=tuple(replace(each, baseline={}) for each in record.trials))
    view = search_view(record)
    assert not any(row.startswith("none") for row in rows_by_setting(view, tables))
    assert "no seed in common" in plain(verdict_section(view))
    confirmation = confirm(record, [3])
    cells = tuple(cell for cell in confirmation.record.cells if cell.defense != "none")
    lonely = replace(confirmation, record=replace(confirmation.record, cells=cells))
    said = " ".join(warnings(search_view(replace(record, confirmation=lonely))))
    assert "The search measured no undefended model" in said
    assert "The confirmation holds no undefended model" in said


def test_readers_are_warned_of_what_may_mislead(two: SearchRecord, one: SearchRecord) -> None:
    assert warnings(search_view(two)) == []
    trials = tuple(replace(each, package="b" * 64 if each.number > 29 else each.package) for each in two.trials)
    (said,) = warnings(search_view(replace(two, trials=trials)))
    assert "2 versions of the code (aaaaaaaaaaaa: 29 trials, bbbbbbbbbbbb: 10 trials)" in said
    other = replace(one, confirmation=confirm(one, [0]))
    assert any("the best of the search, was not confirmed" in text for text in warnings(search_view(other)))
    assert one.confirmation is not None
    gone = replace(one.confirmation.record, cells=one.confirmation.record.cells[:1])
    lost = replace(one, confirmation=replace(one.confirmation, record=gone))
    assert any("The confirmation holds nothing of trials" in text for text in warnings(search_view(lost)))


def test_without_a_confirmation_the_flattery_is_said(two: SearchRecord, plain: Callable[[Markup | None], str]) -> None:
    text = plain(verdict_section(search_view(replace(two, confirmation=None))))
    assert "Not confirmed. These are the values that settings were chosen by" in text
    assert "Chance to be on the front" not in text


def test_every_trial_is_in_the_table(tables: Any) -> None:
    record = search(20, rungs=({"recipe.epochs": 3},))
    markup = str(trial_section(search_view(record))).replace("\N{NO-BREAK SPACE}", " ")
    (table,) = tables(markup)
    rows = {row[0].text.split()[0]: [cell.text for cell in row] for row in table[1:] if len(row) > 1}
    assert list(rows) == [str(number) for number in range(20)]
    errors = [row[0].text for row in table[1:] if len(row) == 1]
    assert errors == ["train trial: RuntimeError: the loss is not finite in epoch 3"]
    for each in record.trials:
        cells = rows[str(each.number)]
        assert cells[0].split() == [str(each.number), "grid" if each.number < 2 else "tpe"]
        assert cells[1] == f"{each.point['defense.lambda_x']:.4g}"
        if each.values is not None:
            assert cells[3:5] == [percent(value) for value in each.values]
            assert cells[5] == ("kept" if each.is_feasible or not any(each.violations)
                                else f"{100 * each.violations[0]:.1f} points")  # fmt: skip
    assert rows["11"][3:7] == ["\N{EN DASH}"] * 3 + ["failed"]
    assert rows["17"][6] == "stopped at rung 1 of 2"
    assert {rows[str(number)][6] for number in non_dominated(record)} == {"front"}
    assert "lower rung" in markup


def test_long_searches_fold_the_table() -> None:
    made = header()
    many = tuple(replace(trial(0, POINT, made), number=number) for number in range(121))
    assert "<summary>121 trials</summary>" in str(trial_section(search_view(SearchRecord(made, many))))


def test_the_protocol_stands_beside_what_the_confirmation_changed(
    two: SearchRecord, tables: Any, plain: Callable[[Markup | None], str]
) -> None:
    markup = str(protocol_section(search_view(two)))
    table, *_ = tables(markup)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table[1:]}
    assert rows["Seeds"] == ["1000", "0, 1, 2"]
    assert rows["Utility measured on"] == ["val", "test"]
    assert rows["Sealed folds"] == ["test", "opened once"]
    assert rows["Judge of reconstructions"] == ["scnn", 'small_cnn {"width": 32}']
    assert rows["Classes attacked by inversion"] == ["the first 3", "all"]
    assert rows["Attacks"] == ["inversion: gmi", "membership: loss; inversion: gmi, kedmi"]
    text = plain(Markup(markup))
    assert "privacy of the search is not accounted for" in text
    assert "tpe: 38 trials, the paper's grid: 2 trials" in text
    assert two.header.key in text
    rungs = plain(protocol_section(search_view(replace(two, header=header(rungs=({"recipe.epochs": 3},))))))
    assert "rung 1 recipe.epochs 3 rung 2 the experiment itself" in rungs


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    record, out = STATES["no trials"][0], tmp_path / "deep" / "report.html"
    assert search_page.write(record, out) == out
    first = out.read_bytes()
    search_page.write(record, out)
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_every_figure_is_written(one: SearchRecord, tmp_path: Path) -> None:
    written = search_figures.write(one, tmp_path / "figures")
    assert [path.name for path in written] == ["front.png", "parameters.png", "landscape.png", "progress.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert search_figures.write(STATES["no trials"][0], tmp_path / "none") == []


def marks(axis: Any, label: str) -> list[tuple[float, float]]:
    """Return the places of an axis's marks whose legend label begins so."""
    lines = [line for line in axis.get_lines() if str(line.get_label()).startswith(label)]
    return [(float(x), float(y)) for line in lines for x, y in line.get_xydata()]


def test_the_front_figure_holds_all_trials_confirmed_values_and_none(two: SearchRecord) -> None:
    figure = search_figures.front(two)
    assert figure is not None
    (axis,) = figure.axes
    by_state = {
        "on the front": [each for each in two.complete if each.number in non_dominated(two)],
        "sampled (tpe), misses a floor": [each for each in two.complete if not each.is_feasible and each.number > 1],
    }
    for label, expected in by_state.items():
        assert sorted(marks(axis, label)) == sorted(each.values or () for each in expected)
    hollow = next(line for line in axis.get_lines() if "misses a floor" in str(line.get_label()))
    assert hollow.get_markerfacecolor() == "none"
    assert len(marks(axis, "of the paper's grid")) == 2
    assert len(marks(axis, "confirmed")) == 3
    assert np.allclose(marks(axis, "none"), [(0.79, 0.965), (0.77, 0.96)])
    assert "lower is better" in axis.get_xlabel()
    assert "higher is better" in axis.get_ylabel()
    written = {text.get_text() for text in axis.texts}
    assert written == {"none", *(str(number) for number in non_dominated(two))}
    figure.canvas.draw()
    for text in axis.texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("objectives", "floors", "axes"),
    [
        (BOTH, (FLOOR,), [(LEAK, UTILITY)]),
        (tuple(reversed(BOTH)), (), [(LEAK, UTILITY)]),
        ((f"max {UTILITY}",), (f"{LEAK} <= 0.4",), [(LEAK, UTILITY)]),
        (BOTH[:1], (), [(None, LEAK)]),
        ((*BOTH, "min membership/loss/auc"), (), [(LEAK, "membership/loss/auc"), (LEAK, UTILITY)]),
    ],
)
def test_leakage_goes_to_the_right_and_utility_up(
    objectives: tuple[str, ...], floors: tuple[str, ...], axes: list[tuple[str | None, str]]
) -> None:
    pairs = search_figures.front_axes(search_view(SearchRecord(header(objectives=objectives, floors=floors), ())))
    assert [(across.title if across else None, up.title) for across, up in pairs] == axes


def test_hypervolume_grows_to_that_of_the_whole_front(two: SearchRecord, plain: Callable[[Markup | None], str]) -> None:
    view = search_view(two)
    reference = search_figures.reference_point(view)
    values = np.array([each.values for each in two.complete])
    widths = values.max(axis=0) - values.min(axis=0)
    assert reference == pytest.approx([values[:, 0].max() + 0.1 * widths[0], values[:, 1].min() - 0.1 * widths[1]])
    found = search_figures.hypervolumes(view)
    feasible = [each for each in two.complete if each.is_feasible]
    assert list(found) == [each.number for each in feasible]
    assert list(found.values()) == sorted(found.values())
    # The area by hand: slices of leakage, each as high as the best utility up to there.
    places = sorted(each.values or (0.0, 0.0) for each in feasible)
    edges = [leak for leak, _ in places] + [reference[0]]
    heights = [max(utility for _, utility in places[: place + 1]) - reference[1] for place in range(len(places))]
    area = sum(height * (after - before) for height, before, after in zip(heights, edges, edges[1:], strict=False))
    assert list(found.values())[-1] == pytest.approx(area)
    assert f"{percent(reference[0])} and {UTILITY} {percent(reference[1])}" in plain(progress_section(view))


def test_the_best_so_far_never_gets_worse(one: SearchRecord) -> None:
    figure = search_figures.progress(one)
    assert figure is not None
    steps = marks(figure.axes[0], "best so far")
    feasible = [(each.number, (each.values or (0.0,))[0]) for each in one.complete if each.is_feasible]
    assert [y for _, y in steps[:-1]] == [min(value for _, value in feasible[: n + 1]) for n in range(len(feasible))]
    assert steps[-1] == (39.0, min(value for _, value in feasible))


def test_parallel_coordinates_show_every_complete_trial_and_what_is_not_set() -> None:
    made = header()
    points = [
        {"defense.variant": "paper", "defense.alpha": 1.0, "recipe.weight_decay": None},
        {"defense.variant": "released_code", "recipe.weight_decay": 1e-3},
        {"defense.variant": "paper", "defense.alpha": 3.0, "recipe.weight_decay": 1e-4},
    ]
    found = [replace(trial(number, POINT, made), point=point) for number, point in enumerate(points)]
    failed = TrialRecord(3, points[0], "tpe", "failed", error="lost")
    figure = search_figures.parameters(SearchRecord(made, (*found, failed)))
    assert figure is not None
    written = [text.get_text() for text in figure.axes[0].texts]
    assert {"variant", "alpha", "recipe.weight_decay", "paper", "released_code", "1", "3"} <= set(written)
    assert written.count("not set") == 2
    long_lines = [line for line in figure.axes[0].get_lines() if len(np.asarray(line.get_xdata())) == 5]
    assert len(long_lines) == 3
    assert search_figures.parameters(SearchRecord(made, tuple(found[:1]))) is None


def test_a_contour_needs_two_numbers_that_span_a_plane(two: SearchRecord) -> None:
    figure = search_figures.landscape(two)
    assert figure is not None
    assert len(figure.axes) == 4
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    made = header()
    on_a_line = tuple(
        trial(number, {"defense.lambda_x": 0.01 * (number + 1), "defense.lambda_y": 0.05 * (number + 1)}, made)
        for number in range(5)
    )
    scattered = search_figures.landscape(SearchRecord(made, on_a_line))
    assert scattered is not None
    assert len(scattered.axes) == 2
    named = tuple(replace(each, point={**each.point, "defense.variant": f"v{each.number}"}) for each in on_a_line)
    assert search_figures.landscape(SearchRecord(made, named)) is None


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_terminal_keeps_to_its_width_and_to_ascii(two: SearchRecord, one: SearchRecord, width: int) -> None:
    for record in (two, one):
        text = search_terminal.plain_text(record, width)
        assert max(cell_len(line) for line in text.splitlines()) <= width
        assert text.isascii()
        words = " ".join(text.split())
        assert "39 complete, " in words and "1 failed" in words
        assert record.confirmation is not None
        for trial_number in record.confirmation.membership:
            values = of(record, trial_number).values
            assert values is not None
            assert percent(values[0]) in words
            own = [float(cell.metrics[LEAK].value or 0) for cell in record.confirmation.record.cells
                   if cell.setting == f"trial-{trial_number}"]  # fmt: skip
            assert percent(sum(own) / 3) in words
        assert "the loss is not finite" in words


def test_the_terminal_shows_differences_chances_and_floors_where_there_is_room(one: SearchRecord) -> None:
    text = search_terminal.plain_text(one, 160)
    assert re.search(r"Trial \d+ is the best of 14 feasible trials: lambda_x", text)
    assert "95.0 %" in text
    assert "missed" in text
    assert "by 0.2 points" in text
    narrow = " ".join(search_terminal.plain_text(one, 40).split())
    assert f"{LEAK} (lower is better), search:" in narrow
    assert "[red]" in search_terminal.plain_text(replace(one, header=replace(one.header, name="[red]x\x1b[2J")), 80)


def test_a_weighted_sum_is_read_in_the_confirmation_as_well(plain: Callable[[Markup | None], str]) -> None:
    text = f"min 0.5*membership/loss/auc + 0.5*{LEAK}"
    record = search(12, objectives=(text,), floors=())
    best = search_view(record).best[0].number
    record = replace(record, confirmation=confirm(record, [best]))
    assert record.confirmation is not None
    cells = [cell.metrics for cell in record.confirmation.record.cells if cell.setting == f"trial-{best}"]
    sums = [0.5 * float(own["membership/loss/auc"].value or 0) + 0.5 * float(own[LEAK].value or 0) for own in cells]
    assert f"{sum(sums) / 3:.4g}" in plain(verdict_section(search_view(record)))
