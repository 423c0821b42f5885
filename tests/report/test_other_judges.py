"""A change in inversion top-1 is called one only where every judge sees it."""

from __future__ import annotations

import pytest

from oakum.records import CellRecord, MetricValue, RunRecord
from oakum.report._overview import overview
from oakum.report._verdict import Verdict, verdicts
from oakum.report.terminal import plain_text, summary

# Judge -> its top-1 of `none` and of `a`, in each seed; "" is the evaluation model.
Judged = dict[str, tuple[list[float | None], list[float | None]]]
LOWER: tuple[list[float | None], list[float | None]] = ([0.30, 0.31], [0.10, 0.11])
UNSETTLED: tuple[list[float | None], list[float | None]] = ([0.30, 0.31], [0.28, 0.33])
HIGHER: tuple[list[float | None], list[float | None]] = ([0.30, 0.31], [0.34, 0.36])


def record_of(judged: Judged) -> RunRecord:
    cells = []
    for index, label in enumerate(("none", "a")):
        for seed in range(2):
            metrics = {}
            for judge, values in judged.items():
                value = values[index][seed]
                metrics[f"inversion/gmi/top1{judge and '.'}{judge}"] = MetricValue(
                    value, note="not attacked" if value is None else ""
                )
            cells.append(CellRecord(label, "none" if label == "none" else "x", {}, seed, metrics, {}))
    return RunRecord("n", "", "k", "p", {}, {}, {}, tuple(cells), ())


def verdict_of(judged: Judged) -> Verdict:
    baseline, found = verdicts(overview(record_of(judged)))
    assert "confirmed" not in baseline.findings[0].sentence
    return found


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"second": LOWER, "faceres": LOWER},
        # Pictures of the public fold and the search's first guesses are floors, not the attack's work.
        {"control": HIGHER, "unoptimized": HIGHER, "second": LOWER, "second.control": HIGHER},
        # Who has judged no pair of a seed has not contradicted.
        {"second": ([None, None], [0.3, 0.3]), "faceres": ([0.1, None], [None, 0.1])},
    ],
)
def test_what_nobody_contradicts_is_a_change(others: Judged) -> None:
    found = verdict_of({"": LOWER, **others})
    (finding,) = found.findings
    assert found.headline == "Leaks less through class pictures"
    assert (finding.chip, finding.tone) == ("lower in both seeds", "good")
    assert "confirmed" not in finding.sentence


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"second": UNSETTLED}, "Not confirmed by the second evaluation model (30.5 % to 30.5 %)."),
        ({"second": LOWER, "faceres": HIGHER}, "Not confirmed by faceres (30.5 % to 35.0 %)."),
        (
            {"second": HIGHER, "faceres": ([0.3, 0.3], [0.3, 0.3])},
            "Not confirmed by the second evaluation model (30.5 % to 35.0 %) and faceres (30.0 % to 30.0 %).",
        ),
        # One seed is no confirmation of two.
        ({"second": ([0.3, None], [0.1, 0.1])}, "Not confirmed by the second evaluation model (30.0 % to 10.0 %)."),
    ],
)
def test_what_a_judge_does_not_see_is_disputed(others: Judged, sentence: str) -> None:
    found = verdict_of({"": LOWER, **others})
    (finding,) = found.findings
    assert found.headline == "The judges of class pictures do not agree"
    assert (finding.chip, finding.tone) == ("lower in both seeds", "neutral")
    assert finding.sentence.replace("\N{NO-BREAK SPACE}", " ").endswith(sentence)


def test_terminal_and_json_warn_of_it() -> None:
    disputed, agreed = (record_of({"": LOWER, "second": second}) for second in (HIGHER, LOWER))
    warning = (
        "a: the change in class pictures that the evaluation model sees is not confirmed by the second evaluation "
        "model (30.5\N{NO-BREAK SPACE}% to 35.0\N{NO-BREAK SPACE}%)."
    )
    assert warning in summary(disputed)["warnings"]
    assert "is not confirmed by the second" in " ".join(plain_text(disputed).split())
    assert not any("confirmed" in text for text in summary(agreed)["warnings"])


def test_a_rise_is_disputed_too() -> None:
    assert verdict_of({"": HIGHER, "second": HIGHER}).headline == "Leaks more through class pictures"
    assert verdict_of({"": HIGHER, "second": LOWER}).headline == "The judges of class pictures do not agree"


def test_a_change_that_the_evaluation_model_does_not_settle_has_nothing_to_confirm() -> None:
    found = verdict_of({"": UNSETTLED, "second": LOWER})
    assert found.headline == "No consistent change for class pictures"
    assert "confirmed" not in found.findings[0].sentence


def test_one_seed_settles_nothing_for_any_judge() -> None:
    values: Judged = {"": ([0.3, None], [0.1, None]), "second": ([0.3, None], [0.4, None])}
    found = verdict_of(values)
    assert found.headline == "One seed only: the differences below may be noise"
    assert "confirmed" not in found.findings[0].sentence
