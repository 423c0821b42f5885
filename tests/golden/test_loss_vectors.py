"""Confidence penalty, label smoothing and distillation against the released code's outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.testing import assert_allclose

from oakum.defenses.confidence_penalty import confidence_penalty
from oakum.defenses.distillation import distillation
from oakum.defenses.label_smoothing import smoothed_cross_entropy


def check(case, losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Compare the mean of per-sample losses of (logits, y) and its gradient with the stored ones."""
    inputs = case.groups["inputs"]
    logits = case.tensor(f"{inputs}/logits").requires_grad_(True)
    loss = losses(logits, case.tensor(f"{inputs}/y")).mean()
    loss.backward()
    assert_allclose(loss.item(), case.at("loss"), rtol=1e-9)
    assert_allclose(logits.grad, case.at("grad"), rtol=1e-9, atol=1e-15)


def check_confidence_penalty(case) -> None:
    check(case, lambda logits, y: confidence_penalty(logits, y, alpha=float(case.groups["strength"])))


def check_label_smoothing(case) -> None:
    check(case, lambda logits, y: smoothed_cross_entropy(logits, y, epsilon=float(case.groups["strength"])))


def check_distillation(case) -> None:
    teacher = case.tensor(f"{case.groups['inputs']}/teacher_logits")
    check(
        case,
        lambda logits, y: distillation(
            logits,
            y,
            teacher,
            alpha=float(case.groups["strength"]),
            temperature=float(case.groups["temperature"]),
            variant="released_code" if case.groups["form"] == "ref" else "paper",
        ),
    )


_INPUTS = r"(?P<inputs>losses/B\d+C\d+)"
_NUMBER = r"[\d.]+"
OWNS = r"losses/"
RULES = [
    (r"losses/B\d+C\d+/(logits|y|teacher_logits)", None),
    (rf"(?P<case>{_INPUTS}/confidence_penalty/alpha(?P<strength>{_NUMBER}))/(loss|grad)", check_confidence_penalty),
    (rf"(?P<case>{_INPUTS}/label_smoothing/eps(?P<strength>{_NUMBER}))/(loss|grad)", check_label_smoothing),
    (
        rf"(?P<case>{_INPUTS}/distillation_(?P<form>ref|batchmean)/"
        rf"alpha(?P<strength>{_NUMBER})T(?P<temperature>{_NUMBER}))/(loss|grad)",
        check_distillation,
    ),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
