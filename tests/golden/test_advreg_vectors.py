"""Adversarial regularization against the outputs of RelaxLoss's released code."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose

from oakum.defenses._advreg_surrogate import Surrogate, attack_inputs, label_vectors, surrogate_loss
from oakum.defenses.advreg import SURROGATE, AdvReg
from oakum.models.base import Classifier, InputShape
from oakum.training.state import Batch, TrainState

RTOL, ATOL = 1e-5, 1e-6
NAMES = {
    "image": {"scores.0.weight": "w1", "scores.0.bias": "b1", "output.weight": "w2", "output.bias": "b2"},
    "nonimage": {
        f"{ours}.{part}": f"{theirs}_{part}"
        for ours, theirs in {
            "scores.0": "features_0",
            "scores.2": "features_2",
            "labels.0": "labels_0",
            "head.0": "combine_0",
            "output": "combine_2",
        }.items()
        for part in ("weight", "bias")
    },
}


class Given(Classifier):
    """Answers with the samples that it is given."""

    def logits_and_taps(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return x.flatten(1), []


def state_of(case) -> tuple[AdvReg, TrainState]:
    """Return the defense in the form of the released code, quirk included, with the file's surrogate."""
    is_image = case.groups["kind"] == "image"
    classes = case.at("member_logits").shape[1]
    config = AdvReg.Config(alpha=float(case.at("alpha")), variant="relaxloss", freeze_hidden=is_image, warmup_epochs=0)
    defense = AdvReg(config)
    model = Given(Given.Config(), InputShape((1, 1, classes) if is_image else (classes,)), classes)
    model.scale = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = defense.prepare(TrainState(model, optimizer, classes, seed=0))
    state.extras[SURROGATE].load_state_dict(
        {ours: case.tensor(f"{case.name}/attack/{theirs}") for ours, theirs in NAMES[case.groups["kind"]].items()}
    )
    return defense, state


def inputs_of(case, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    return (case.tensor(f"{case.name}/{side}_{name}") for name in ("logits", "y"))


def check_inputs(case, surrogate: Surrogate) -> None:
    logits, y = inputs_of(case, "member")
    assert (attack_inputs(logits, surrogate.form.inputs).numpy() == case.at("attack_input_x")).all()
    signed = surrogate.form.has_signed_labels
    assert (label_vectors(y, logits.shape[1], signed=signed).numpy() == case.at("attack_input_y")).all()


def check_surrogate_step(case, surrogate: Surrogate) -> None:
    trained = sum(parameter.numel() for parameter in surrogate.parameters() if parameter.requires_grad)
    assert trained == case.at("registered_params")
    odds = {side: surrogate(*inputs_of(case, side)) for side in ("member", "nonmember")}
    for side, value in odds.items():
        expected = case.at(f"attack_output_{side}")[:, 0]
        assert_allclose(value.sigmoid().detach(), expected, rtol=RTOL, atol=ATOL)
    right = torch.cat([odds["member"] > 0, odds["nonmember"] <= 0])
    assert_allclose(100 * right.double().mean(), case.at("attack_acc_percent"))
    loss = surrogate_loss(odds["member"], odds["nonmember"], surrogate.form.loss)
    assert_allclose(loss.item(), case.at("attack_mse"), rtol=RTOL)
    loss.backward()
    for ours, theirs in NAMES[case.groups["kind"]].items():
        name = f"attack_grad/{ {'w2': 'last_layer_weight', 'b2': 'last_layer_bias'}.get(theirs, theirs) }"
        gradient = surrogate.get_parameter(ours).grad
        if gradient is None:
            assert f"{case.name}/{name}" not in case
        else:
            assert_allclose(gradient, case.at(name), rtol=RTOL, atol=ATOL)


def check_target_step(case, defense: AdvReg, state: TrainState) -> None:
    logits, y = inputs_of(case, "member")
    x = logits.view(-1, *state.model.input_shape.dims).requires_grad_(True)
    loss = defense.loss(state, Batch(x, y, torch.arange(len(y))))
    loss.backward()
    assert_allclose(loss.item(), case.at("target_loss"), rtol=RTOL)
    assert_allclose(x.grad.flatten(1), case.at("target_grad"), rtol=RTOL, atol=ATOL)


def check_advreg(case) -> None:
    defense, state = state_of(case)
    surrogate = state.extras[SURROGATE]
    assert {np.dtype("float32")} == {case.at(f"{side}_logits").dtype for side in ("member", "nonmember")}
    check_inputs(case, surrogate)
    check_target_step(case, defense, state)
    assert all(parameter.grad is None for parameter in surrogate.parameters())
    check_surrogate_step(case, surrogate)


OWNS = r"advreg/"
RULES = [(r"(?P<case>advreg/(?P<kind>image|nonimage))/.*", check_advreg)]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
