"""What makes numbers suspicious, gathered from all cells: one entry for each kind of flag, with its places."""

from __future__ import annotations

import re
from dataclasses import dataclass

from oakum.records import CellRecord

MASKED = "masked output"
UNMASKED_WEIGHTS = "acts on the weights, which the mask does not cover"
VANILLA_SHADOW = " (vanilla shadow)"
_ROLE = re.compile(r"([\w-]+(?:\.[\w-]+)+): (.*)", re.DOTALL)
# Of an attack that runs in several tasks, the last part is the task's number.
_INVERSION_ROLE = re.compile(r"(inversion\.clean|judge\.clean|prior\.clean|prior\.control|control)\.([\w-]+)(?:\.\d+)?")
_MOST_NAMED_PLACES = 6


@dataclass(frozen=True)
class Place:
    """Where a flag was raised: a setting, a stage of it ("" for the whole cell), and seeds; all of them if None."""

    setting: str
    stage: str
    seeds: tuple[int, ...] | None


@dataclass(frozen=True)
class Flag:
    """One kind of flag and every place where it was raised, in order of settings."""

    text: str
    places: tuple[Place, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings with this flag, each once."""
        return tuple(dict.fromkeys(place.setting for place in self.places))

    @property
    def line(self) -> str:
        """The flag with every place."""
        return f"{self.text}: {'; '.join(self.listed)}"

    @property
    def listed(self) -> tuple[str, ...]:
        """One text for each setting: its stages and, where not all, the seeds."""
        return tuple(f"{setting}{_stages(self.places, setting)}" for setting in self.settings)

    @property
    def counted(self) -> str:
        """The flag with the number of its places."""
        stages = len(dict.fromkeys(place.stage for place in self.places if place.stage))
        counts = [f"{len(self.settings)} {'setting' if len(self.settings) == 1 else 'settings'}"]
        counts += [f"{stages} {'attack' if stages == 1 else 'attacks'}"] if stages else []
        return f"{self.text}: {', '.join(counts)}"

    @property
    def has_many_places(self) -> bool:
        """Whether the line is too long to be read in passing."""
        return len(self.places) > _MOST_NAMED_PLACES


def split_flag(flag: str) -> tuple[str, str]:
    """Return the role and the text of a cell's flag; the role is "" where the flag is of the whole cell."""
    found = _ROLE.fullmatch(flag)
    return (found.group(1), found.group(2)) if found else ("", flag)


def is_mask_note(flag: str) -> bool:
    """Return whether a flag says that the setting masks its output: a fact, and no reason for distrust."""
    return split_flag(flag)[1] in (MASKED, UNMASKED_WEIGHTS)


def attack_flags(cell: CellRecord, attack: str) -> tuple[str, ...]:
    """Return the texts of the flags that the membership attack raised on the model without canaries."""
    pairs = (split_flag(flag) for flag in cell.flags if not is_mask_note(flag))
    return tuple(text for role, text in pairs if role == f"membership.clean.{attack}")


def inversion_flags(cell: CellRecord, attack: str) -> tuple[str, ...]:
    """Return the texts of the flags that the stages of an inversion attack on the setting raised, each once."""
    pairs = (split_flag(flag) for flag in cell.flags if not is_mask_note(flag))
    return tuple(dict.fromkeys(text for role, text in pairs if _inversion_stage(role) == attack))


def gather(cells: list[CellRecord]) -> tuple[Flag, ...]:
    """Return the flags of all cells but those of masks, in order of first appearance."""
    raised: dict[str, dict[tuple[str, str], list[int]]] = {}
    for cell in cells:
        for flag in cell.flags:
            if not is_mask_note(flag):
                role, text = split_flag(flag)
                seeds = raised.setdefault(text, {}).setdefault((cell.setting, _stage(role)), [])
                seeds += [] if cell.seed in seeds else [cell.seed]
    every = {cell.setting: {other.seed for other in cells if other.setting == cell.setting} for cell in cells}
    return tuple(
        Flag(
            text,
            tuple(
                Place(setting, stage, None if set(seeds) == every[setting] else tuple(seeds))
                for (setting, stage), seeds in places.items()
            ),
        )
        for text, places in raised.items()
    )


def seeds_text(seeds: list[int]) -> str:
    """Return `seed 0` or `seeds 0, 1, 2`."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(str(seed) for seed in seeds)}"


def _stage(role: str) -> str:
    """Return the attack of a role, or the role itself where it is none's."""
    inversion = _inversion_stage(role)
    if inversion:
        return inversion
    part, _, rest = role.partition(".")
    target, _, attack = rest.partition(".")
    if part != "membership":
        return role
    return attack if target == "clean" else f"{attack} on canaries"


def _inversion_stage(role: str) -> str:
    """Return the inversion attack of a role, "" where it is none's; what the control does is told apart."""
    found = _INVERSION_ROLE.fullmatch(role)
    if found is None:
        return ""
    part, attack = found.groups()
    return f"{attack} on the control" if part.endswith("control") else attack


def _stages(places: tuple[Place, ...], setting: str) -> str:
    own = [place for place in places if place.setting == setting]
    seeds = {place.stage: f" ({seeds_text(list(place.seeds))})" if place.seeds is not None else "" for place in own}
    whole = seeds.pop("", "")
    listed = ", ".join(f"{stage}{text}" for stage, text in seeds.items())
    return f"{whole}: {listed}" if listed else whole
