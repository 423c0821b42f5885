"""Every membership attack against every setting: the numbers of the large tables, without any markup."""

from __future__ import annotations

from dataclasses import dataclass

from oakum.records import RunRecord
from oakum.report._flags import attack_flags
from oakum.report._overview import BASELINE, VANILLA_SUFFIX, Overview, Setting, Unit, metric_keys, unit_of
from oakum.report.statistics import Spread, spread

INVERTED_AUC = 0.45
# What counts as flattered by the vanilla shadow, in shares: so near chance with it, so far above without.
NEAR_CHANCE = 0.01
ABOVE_CHANCE = 0.02
_ROUNDING = 1e-12
# By definition guessing finds as large a share of members as of non-members.
_TPR = "tpr_at_fpr_"


@dataclass(frozen=True)
class Entry:
    """One attack against one setting.

    Attributes:
        matched: over the seeds, with the shadow that was trained like the target; or without any shadow.
        vanilla: the same with a shadow that was trained without defense; None where no shadow decides anything.
        flags: the flags of the attack's stages, without repetitions.
    """

    matched: Spread
    vanilla: Spread | None
    flags: tuple[str, ...]

    def is_flattered(self, chance: float) -> bool:
        """Whether the vanilla shadow shows guessing where the matched one finds a leak.

        The vanilla mean is within `NEAR_CHANCE` of chance and the matched mean at least `ABOVE_CHANCE` above it; every
        seed that has both is higher with the matched shadow, and its interval over records, where there is one, lies
        above chance.
        """
        if self.vanilla is None or self.vanilla.mean is None or self.matched.mean is None:
            return False
        both = self.matched.values.keys() & self.vanilla.values.keys()
        return (
            abs(self.vanilla.mean - chance) <= NEAR_CHANCE + _ROUNDING
            and self.matched.mean >= chance + ABOVE_CHANCE - _ROUNDING
            and bool(both)
            and all(self.matched.values[seed] > self.vanilla.values[seed] for seed in both)
            and all(low > chance for low, _ in self.matched.intervals.values())
        )

    @property
    def is_inverted(self) -> bool:
        """Whether an AUC is so far below one half that the signal is there with the wrong sign."""
        return self.matched.mean is not None and self.matched.mean < INVERTED_AUC


@dataclass(frozen=True)
class Matrix:
    """One quantity of every attack against every setting.

    Attributes:
        metric: the last part of the metric keys, such as `auc`.
        unit: how its numbers are written.
        chance: what an attack that guesses reaches.
        attacks: those with this metric, in the order of the experiment.
        paired: those among them whose figure depends on the shadow model.
        entries: (setting label, attack) -> entry; an attack that did not meet a setting has no entry.
    """

    metric: str
    unit: Unit
    chance: float | None
    attacks: tuple[str, ...]
    paired: frozenset[str]
    entries: dict[tuple[str, str], Entry]

    @property
    def largest(self) -> float | None:
        """The largest mean, or None without any."""
        means = (entry.matched.mean for entry in self.entries.values())
        return max((mean for mean in means if mean is not None), default=None)

    def strongest(self, setting: Setting) -> str | None:
        """Return the attack with the largest mean; resolved on more seeds comes before larger."""
        found: dict[str, tuple[int, float]] = {}
        for attack in self.attacks:
            entry = self.entries.get((setting.label, attack))
            if entry is not None and entry.matched.mean is not None:
                found[attack] = (len(entry.matched.values), entry.matched.mean)
        return max(found, key=found.__getitem__, default=None)

    def flattered(self, view: Overview) -> dict[str, list[str]]:
        """Return label -> attacks that look like guessing with the vanilla shadow alone, where there are any."""
        found = {
            setting.label: [attack for attack in self.attacks if self.is_flattered(setting, attack)]
            for setting in defended(view)
        }
        return {label: attacks for label, attacks in found.items() if attacks}

    def is_flattered(self, setting: Setting, attack: str) -> bool:
        """Return whether a balanced accuracy looks like guessing with the vanilla shadow alone; see `Entry`."""
        entry = self.entries.get((setting.label, attack))
        is_accuracy = self.metric.startswith("balanced_accuracy")
        return is_accuracy and entry is not None and self.chance is not None and entry.is_flattered(self.chance)


def defended(view: Overview) -> list[Setting]:
    """Return the settings that train with a defense."""
    return [setting for setting in view.settings if setting.defense != BASELINE]


def membership_attacks(record: RunRecord) -> tuple[str, ...]:
    """Return the membership attacks with a metric, in the order of the experiment's file, others behind."""
    measured = dict.fromkeys(key.split("/")[1] for key in metric_keys(record) if key.startswith("membership/"))
    listed = (record.config.get("attacks") or {}).get("membership") or []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in listed]
    return tuple(dict.fromkeys([*(name for name in names if name in measured), *measured]))


def matrix(record: RunRecord, view: Overview, metric: str) -> Matrix | None:
    """Return the matrix of `metric`, or None where no attack has it."""
    entries: dict[tuple[str, str], Entry] = {}
    for attack in membership_attacks(record):
        key = f"membership/{attack}/{metric}"
        for setting in view.settings:
            matched = spread(setting.cells, key)
            if matched.state != "absent":
                vanilla = spread(setting.cells, f"{key}{VANILLA_SUFFIX}")
                shown = vanilla if vanilla.state != "absent" else None
                entries[setting.label, attack] = Entry(matched, shown, _flags(setting, attack))
    if not entries:
        return None
    attacks = tuple(attack for attack in membership_attacks(record) if any(own == attack for _, own in entries))
    rate = float(metric.removeprefix(_TPR)) if metric.startswith(_TPR) else None
    levels = {record.chance.get(f"membership/{attack}/{metric}", rate) for attack in attacks}
    return Matrix(
        metric=metric,
        unit=unit_of(metric),
        chance=levels.pop() if len(levels) == 1 else None,
        attacks=attacks,
        paired=frozenset(attack for attack in attacks if _depends_on_shadow(attack, metric, record, entries)),
        entries=entries,
    )


def _depends_on_shadow(attack: str, metric: str, record: RunRecord, entries: dict[tuple[str, str], Entry]) -> bool:
    """Scores that are fitted to a shadow have an AUC for each, fitted thresholds an accuracy for each class too."""
    if not any(entry.vanilla for (_, own), entry in entries.items() if own == attack):
        return False
    if not metric.startswith("balanced_accuracy"):
        return True
    signs = {f"membership/{attack}/auc{VANILLA_SUFFIX}", f"membership/{attack}/balanced_accuracy_per_class"}
    return any(sign in cell.metrics for cell in record.cells for sign in signs)


def _flags(setting: Setting, attack: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(flag for cell in setting.cells for flag in attack_flags(cell, attack)))
