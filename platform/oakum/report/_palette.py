"""One color and one mark per setting, the same in every figure, table and theme.

The hues are those of Okabe and Ito (safe for the common color deficiencies), darkened on light paper and lightened
on dark so that each has a contrast of at least 3:1; marks differ as well, so nothing rests on color alone. The baseline
is neutral.
"""

from __future__ import annotations

from dataclasses import dataclass

from oakum.report._numbers import short_labels
from oakum.report._overview import Overview, Setting


@dataclass(frozen=True)
class Ink:
    """A color on light and on dark paper, and the CSS variable that switches between them."""

    variable: str
    light: str
    dark: str


TEXT = Ink("ink", "#1c2128", "#e6e9ee")
MUTED = Ink("muted", "#59616d", "#9aa3b0")
GRID = Ink("grid", "#dfe2e7", "#30363f")
PAPER = Ink("paper", "#fffffe", "#15181d")
SHADE = Ink("shade", "#f1f2f5", "#1f242b")

BASELINE_INK = Ink("s-base", "#4b535f", "#b9c1cc")
SETTING_INKS = (
    Ink("s-0", "#0069a8", "#5ab2f0"),
    Ink("s-1", "#c8500b", "#f28a4b"),
    Ink("s-2", "#00805c", "#3cc39a"),
    Ink("s-3", "#b8438f", "#f58ad0"),
    Ink("s-4", "#6e5200", "#f2d16b"),
    Ink("s-5", "#3d9bd1", "#a5dcfa"),
    Ink("s-6", "#4f2a96", "#8f74e8"),
)
ALL_INKS = (TEXT, MUTED, GRID, PAPER, SHADE, BASELINE_INK, *SETTING_INKS)

# Matplotlib's letters; eight marks against seven colors repeat together only after 56 settings.
MARKS = ("s", "^", "D", "v", "P", "X", "<", ">")
BASELINE_MARK = "o"


@dataclass(frozen=True)
class Look:
    """How a setting is drawn: its color, its mark, and a label short enough for a figure."""

    ink: Ink
    mark: str
    label: str


def looks(view: Overview) -> dict[str, Look]:
    """Return setting label -> look. The baseline is a neutral disc; the others follow their place in the record."""
    found: dict[str, Look] = {}
    short = short_labels([setting.label for setting in view.settings])
    others: list[Setting] = [setting for setting in view.settings if setting != view.baseline]
    if view.baseline is not None:
        found[view.baseline.label] = Look(BASELINE_INK, BASELINE_MARK, short[view.baseline.label])
    for place, setting in enumerate(others):
        ink, mark = SETTING_INKS[place % len(SETTING_INKS)], MARKS[place % len(MARKS)]
        found[setting.label] = Look(ink, mark, short[setting.label])
    return found
