from __future__ import annotations

import pytest

from oakum.records import CellRecord
from oakum.report._flags import attack_flags, gather, inversion_flags, is_mask_note, split_flag


def cell(setting: str, seed: int, *flags: str) -> CellRecord:
    return CellRecord(setting, "x", {}, seed, {}, {}, flags)


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("membership.clean.loss: inverted signal", ("membership.clean.loss", "inverted signal")),
        ("membership.clean.my-attack: a: b", ("membership.clean.my-attack", "a: b")),
        ("inverted signal: membership/entropy AUC 0.44", ("", "inverted signal: membership/entropy AUC 0.44")),
        ("constant scores", ("", "constant scores")),
    ],
)
def test_a_role_is_told_from_a_text(flag: str, parts: tuple[str, str]) -> None:
    assert split_flag(flag) == parts


def test_one_kind_of_flag_is_one_entry_with_its_places() -> None:
    flags = gather(
        [
            cell("a", 0, "membership.clean.loss: constant scores", "membership.clean.nn: constant scores"),
            cell("a", 1, "membership.clean.loss: constant scores"),
            cell("b", 0, "membership.canary.loss: constant scores", "answers.clean: odd", "odd"),
        ]
    )
    assert [flag.line for flag in flags] == [
        "constant scores: a: loss, nn (seed 0); b: loss on canaries",
        "odd: b: answers.clean",
    ]
    assert flags[0].counted == "constant scores: 2 settings, 3 attacks"
    assert not flags[0].has_many_places


def test_a_flag_of_the_whole_cell_names_setting_and_seeds() -> None:
    (flag,) = gather([cell("a", 0, "odd"), cell("a", 1), cell("a", 2, "odd")])
    assert flag.line == "odd: a (seeds 0, 2)"
    assert flag.counted == "odd: 1 setting"


def test_many_places_are_counted() -> None:
    cells = [cell(f"setting {place}", 0, "membership.clean.loss: constant scores") for place in range(7)]
    (flag,) = gather(cells)
    assert flag.has_many_places
    assert flag.counted == "constant scores: 7 settings, 1 attack"
    assert len(flag.listed) == 7


def test_a_mask_is_no_reason_for_distrust() -> None:
    note = "membership.clean.grad_x_l1: acts on the weights, which the mask does not cover"
    masked = cell("a", 0, note, "membership.clean.grad_x_l1: zero gradients", "masked output")
    assert is_mask_note(note) and is_mask_note("masked output")
    assert not is_mask_note("membership.clean.grad_x_l1: zero gradients")
    assert [flag.text for flag in gather([masked])] == ["zero gradients"]
    assert attack_flags(masked, "grad_x_l1") == ("zero gradients",)
    assert attack_flags(masked, "grad_x") == ()


def test_tasks_of_one_inversion_attack_are_one_place_and_the_control_is_another() -> None:
    roles = ["inversion.clean.gmi.0", "inversion.clean.gmi.1", "judge.clean.gmi", "prior.clean.gmi"]
    controls = ["control.gmi.0", "control.gmi.1", "prior.control.gmi"]
    noisy = cell(
        "a", 0, *(f"{role}: odd" for role in [*roles, *controls, "control_target.clean", "inversion.clean.kedmi"])
    )
    (flag,) = gather([noisy, cell("a", 1)])
    assert flag.line == (
        "odd: a: gmi (seed 0), gmi on the control (seed 0), control_target.clean (seed 0), kedmi (seed 0)"
    )
    assert flag.counted == "odd: 1 setting, 4 attacks"
    assert inversion_flags(noisy, "gmi") == ("odd",)
    assert inversion_flags(noisy, "model") == inversion_flags(noisy, "gm") == ()
    assert inversion_flags(cell("a", 0, "control.gmi: odd"), "gmi") == ()
