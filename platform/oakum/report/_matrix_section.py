"""The large tables of the HTML report: every attack against every defense, the way papers print them."""

from __future__ import annotations

from oakum.records import RunRecord
from oakum.report._evidence import EvidenceStore, attack_access
from oakum.report._flags import VANILLA_SHADOW
from oakum.report._markup import Markup, folded, join, tag
from oakum.report._matrix import (
    ABOVE_CHANCE,
    INVERTED_AUC,
    NEAR_CHANCE,
    Entry,
    Matrix,
    defended,
    matrix,
)
from oakum.report._numbers import number
from oakum.report._overview import Overview, Setting, metric_keys, rate_text, shared_rate
from oakum.report._palette import Look
from oakum.report._phrases import listed
from oakum.report._tables import baseline_first, figure_cell, first_class, matrix_table, row_head
from oakum.report.statistics import Spread, spread

Looks = dict[str, Look]

_GROUPS = {
    "scores": "Black box: scores",
    "weights": "White box: weights",
    "label": "Label only",
    "": "Access not recorded",
}
_UTILITY = (
    ("utility/test_accuracy", "test top-1"),
    ("utility/val_accuracy", "val top-1"),
    ("utility/train_accuracy", "train top-1"),
    ("utility/test_top5_accuracy", "test top-5"),
)
_DARKEST = 36
# A table whose largest mean is nearer to chance than this share of the way to certainty is not shaded in full.
_LEAST_SCALE = 0.1
_UNBROKEN = 10
_FLATTERED, _INVERTED, _FLAGGED = "\N{DAGGER}", "\N{DOUBLE DAGGER}", "*"


def matrix_section(record: RunRecord, view: Overview, styles: Looks, store: EvidenceStore) -> Markup | None:
    """Return a table for each quantity, or None where no attack on membership has more to say than the overview."""
    auc = matrix(record, view, "auc")
    if auc is None or len(auc.attacks) < 2:
        return None
    access = attack_access(record, store)

    def table(values: Matrix) -> Markup:
        return _table(values, record, view, styles, access)

    parts: list[Markup | None] = [tag("h3", "AUC"), tag("p", _auc_note(auc)), table(auc)]
    balanced = matrix(record, view, "balanced_accuracy")
    if balanced is not None:
        parts += [tag("h3", "Balanced accuracy, %"), tag("p", _balanced_note(balanced)), table(balanced)]
        parts.append(_flattered(balanced, view))
        by_class = matrix(record, view, "balanced_accuracy_per_class")
        if by_class is not None:
            title = "Balanced accuracy with a threshold for each class, %"
            parts.append(folded(title, table(by_class), _flattered(by_class, view)))
    rate = shared_rate(metric_keys(record), view.settings, "membership")
    rates = matrix(record, view, f"tpr_at_fpr_{rate}") if rate else None
    if rate and rates is not None:
        parts += [tag("h3", f"TPR at {rate_text(rate)} FPR, %"), tag("p", _rate_note(rates, rate)), table(rates)]
    return join(tag("h2", "Every attack against every defense"), tag("p", _lead(view), class_="lead"), *parts)


def _lead(view: Overview) -> str:
    text = (
        "Means over seeds, their range in small print; each cell's tooltip has every seed. The framed number is the "
        "strongest attack of its row; the shade is the distance from chance, on a scale of the table's own. "
    )
    masked = [setting for setting in view.settings if setting.is_masked]
    if masked:
        text += (
            "A masked setting hides its scores when it is queried; attacks with the weights are not stopped by that "
            "and act on the model without the mask, so its white-box columns show what the training alone protects. "
        )
    if any(not setting.is_ranked for setting in masked):
        text += "Without a label-only attack, which a mask cannot mislead, a masked setting is shown but not ranked. "
    return text.rstrip()


def _auc_note(values: Matrix) -> str:
    fitted = [attack for attack in values.attacks if attack in values.paired]
    text = "The chance that a random member gets a higher score than a random non-member"
    text += f"; chance is {number(values.chance, 'score')}. " if values.chance is not None else ". "
    text += "The scores rank records without a threshold, so no shadow model is used"
    if fitted:
        text += f", but for {listed(fitted)}, whose scores are fitted to one: trained like the target (matched) or "
        text += "without any defense (vanilla)"
    return f"{text}."


def _balanced_note(values: Matrix) -> str:
    text = "Mean of the shares of members and of non-members that are told correctly"
    text += f"; chance is {number(values.chance, 'percent')}. " if values.chance is not None else ". "
    if not values.paired:
        return f"{text}The thresholds belong to the attacks; no shadow model is used."
    text += (
        "What decides comes from a shadow model of the adversary: matched, trained with the target's own defense, or "
        "vanilla (small), trained without any. The matched figure is the one to judge by, since an adversary who knows "
        "the defense can train with it."
    )
    fixed = [attack for attack in values.attacks if attack not in values.paired]
    return f"{text} The thresholds of {listed(fixed)} need no shadow." if fixed else text


def _rate_note(values: Matrix, rate: str) -> str:
    is_resolved = not any(entry.matched.unresolved for entry in values.entries.values())
    which = "the lowest" if is_resolved else "the largest rate asked for, since there is no"
    return (
        f"Share of members that are found while at most {rate_text(rate)} of the non-members are accused: {which} rate "
        f"that every attack on every setting resolves. An attack that guesses finds {rate_text(rate)}."
    )


def _flattered(values: Matrix, view: Overview) -> Markup | None:
    """Return the line that counts the settings which look safe to an adversary with the wrong shadow alone."""
    settings = defended(view)
    if not values.paired or not settings:
        return None
    found = values.flattered(view)
    rule = (
        f"within {100 * NEAR_CHANCE:g} point of chance with the vanilla shadow, but at least {100 * ABOVE_CHANCE:g} "
        "points above it with the matched one, which in every seed is higher and has an interval that leaves chance out"
    )
    count = f"{len(found)} of {len(settings)} defended {'setting' if len(settings) == 1 else 'settings'}"
    if not found:
        return tag("p", f"{count} have an attack that is {rule}.", class_="footnote")
    names = "; ".join(f"{label} ({len(attacks)} of {len(values.attacks)} attacks)" for label, attacks in found.items())
    return tag(
        "p",
        tag("strong", f"{_FLATTERED} The vanilla shadow flatters {count}: "),
        f"an attack is {rule}. {names}.",
        class_="footnote",
    )


def _table(values: Matrix, record: RunRecord, view: Overview, styles: Looks, access: dict[str, str]) -> Markup:
    columns = [(key, title) for key, title in _UTILITY if any(key in cell.metrics for cell in record.cells)]
    if len({key for key, _ in columns} & {"utility/test_accuracy", "utility/val_accuracy"}) == 2:
        columns = [(key, title) for key, title in columns if key != "utility/val_accuracy"]
    groups = _grouped(values, access)
    used: set[str] = set()
    rows = []
    for setting in baseline_first(view):
        cells = [
            figure_cell(spread(setting.cells, key), key, [first_class(place)]) for place, (key, _) in enumerate(columns)
        ]
        for attacks in groups.values():
            for place, attack in enumerate(attacks):
                cells += _attack_cells(values, setting, attack, used, is_first=place == 0)
        class_ = "baseline" if setting == view.baseline else None
        rows.append(tag("tr", row_head(setting, styles, _remark(setting)), *cells, class_=class_))
    return join(matrix_table(_head(values, groups, [title for _, title in columns]), rows), _footnotes(used))


def _grouped(values: Matrix, access: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {name: [] for name in _GROUPS}
    for attack in values.attacks:
        known = access.get(attack, "")
        groups[known if known in _GROUPS else ""].append(attack)
    return {name: attacks for name, attacks in groups.items() if attacks}


def _head(values: Matrix, groups: dict[str, list[str]], utility: list[str]) -> Markup:
    """Return three rows: groups, attacks, shadows."""
    top = [tag("th", "Setting", class_="text", scope="col", rowspan=3)]
    names, shadows = [], []
    if utility:
        top.append(tag("th", "Accuracy, %", class_="group first", scope="colgroup", colspan=len(utility)))
        names = [
            tag("th", title, scope="col", rowspan=2, class_=first_class(place)) for place, title in enumerate(utility)
        ]
    for group, attacks in groups.items():
        width = sum(2 if attack in values.paired else 1 for attack in attacks)
        top.append(tag("th", _GROUPS[group], class_="group first", scope="colgroup", colspan=width))
        for place, attack in enumerate(attacks):
            is_paired = attack in values.paired
            parts = [join(part) for part in attack.split("_")]
            name = (Markup("_<wbr>") if len(attack) > _UNBROKEN else Markup("_")).join(parts)
            scope = "colgroup" if is_paired else "col"
            names.append(
                tag("th", Markup(name), scope=scope, colspan=2 if is_paired else None, class_=first_class(place))
            )
            if is_paired:
                shadows.append(tag("th", tag("small", "matched"), scope="col", class_=first_class(place)))
                shadows.append(tag("th", tag("small", "vanilla"), scope="col", class_="vanilla"))
            else:
                shadows.append(tag("th", tag("small", "no shadow"), scope="col", class_=first_class(place)))
    return join(tag("tr", *top), tag("tr", *names), tag("tr", *shadows))


def _attack_cells(values: Matrix, setting: Setting, attack: str, used: set[str], *, is_first: bool) -> list[Markup]:
    """Return the cell of an attack, or the pair of cells of its two shadows; note the footnotes they need in `used`."""
    entry = values.entries.get((setting.label, attack), Entry(Spread({}, {}, {}), None, ()))
    is_inverted = values.metric == "auc" and entry.is_inverted
    flags = [flag for flag in entry.flags if not flag.endswith(VANILLA_SHADOW)]
    is_flagged = any(flag != "inverted signal" or not is_inverted for flag in flags)
    signs = _INVERTED * is_inverted + _FLAGGED * is_flagged
    used |= set(signs)
    classes = [
        "first" if is_first else None,
        "strongest" if attack == values.strongest(setting) else None,
        "inverted" if is_inverted else None,
    ]
    shade = _shade(entry, values)
    cells = [figure_cell(entry.matched, values.metric, classes, flags=tuple(flags), signs=signs, style=shade)]
    if attack in values.paired:
        vanilla = entry.vanilla or Spread({}, {}, {})
        flags = [flag.removesuffix(VANILLA_SHADOW) for flag in entry.flags if flag.endswith(VANILLA_SHADOW)]
        is_flattered = values.is_flattered(setting, attack)
        classes = ["vanilla", "flattered" if is_flattered else None]
        signs = _FLATTERED * is_flattered
        cells.append(figure_cell(vanilla, values.metric, classes, flags=tuple(flags), signs=signs))
    return cells


def _shade(entry: Entry, values: Matrix) -> str | None:
    """Return how strongly a cell is shaded, up to `_DARKEST` percent for the largest mean of a table that leaks."""
    mean, largest, chance = entry.matched.mean, values.largest, values.chance
    if mean is None or largest is None or chance is None:
        return None
    share = round(_DARKEST * (mean - chance) / max(largest - chance, _LEAST_SCALE * (1 - chance)))
    return f"--shade-of-cell:{share}%" if share > 0 else None


def _remark(setting: Setting) -> str:
    if not setting.is_ranked:
        return "masked output; unranked: no label-only attack"
    return "masked output" if setting.is_masked else ""


def _footnotes(used: set[str]) -> Markup | None:
    texts = {
        _INVERTED: f"Inverted signal: an AUC below {INVERTED_AUC:g}. Who turns the score around has an attack, so this "
        "is a leak as well.",
        _FLAGGED: "Flagged; the tooltip says why.",
    }
    lines = [tag("p", f"{sign} {text}", class_="footnote") for sign, text in texts.items() if sign in used]
    return join(*lines) if lines else None
