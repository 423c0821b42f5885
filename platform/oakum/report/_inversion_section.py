"""The tables of inversion: every attack against every setting, beside what is reached without a leak."""

from __future__ import annotations

from typing import Any

from oakum.records import RunRecord
from oakum.report._flags import inversion_flags
from oakum.report._inversion import (
    FLOORS,
    PRDC,
    Comparison,
    Floor,
    Quantity,
    common_floor,
    compare,
    floor_values,
    floors_of,
    inversion_attacks,
    key_of,
    met,
    metrics_of,
    quantities,
)
from oakum.report._markup import Markup, folded, join, tag
from oakum.report._numbers import number
from oakum.report._overview import Overview, Setting, unit_of
from oakum.report._palette import Look
from oakum.report._tables import baseline_first, figure_cell, first_class, matrix_table, row_head
from oakum.report._weak_judges import real_accuracy
from oakum.report.statistics import Spread, spread

Looks = dict[str, Look]

_MOST_NARROW_COLUMNS = 8
_JUDGE_OF_ROLE = {"evaluation": "evaluator", "second": "second"}
_UNSETTLED, _FLAGGED = "\N{SECTION SIGN}", "*"


def inversion_section(record: RunRecord, view: Overview, styles: Looks) -> Markup | None:
    """Return a table for each attack, or None where the overview has all that was measured: one attack's top-1."""
    attacks = [attack for attack in inversion_attacks(record) if quantities(metrics_of(record, attack))]
    if not attacks or (len(attacks) == 1 and metrics_of(record, attacks[0]) == ["top1"]):
        return None
    parts: list[Markup | None] = [tag("p", _lead(record, attacks), class_="lead")]
    parts += [tag("p", sentence) for sentence in _judges(record)]
    if len(attacks) > 1:
        parts += [tag("h3", "Top-1 of every attack, %"), _summary(record, attacks, view, styles)]
    for attack in attacks:
        parts += [tag("h3", f"{attack} attack"), *_attack(record, attack, view, styles)]
    return join(tag("h2", "Inversion, every attack"), *parts, *_notes(record, attacks, view))


def _lead(record: RunRecord, attacks: list[str]) -> str:
    text = (
        "How many reconstructions are recognized by judges who took no part in attack or defense, and how near they "
        "come to real images of their class: defenders want few and far. A distance says something only beside others "
        "in the features of the same network, so each names its own; PRDC is in the evaluation model's. Means over "
        "seeds, in small print every seed of top-1 and the range of the rest. "
    )
    measured = {metric for attack in attacks for metric in metrics_of(record, attack)}
    if any(f"top1.{floor.suffix}" in measured for floor in FLOORS):
        text += "Gray rows are floors: what is reached without any leak. "
    if "top1.control" not in measured:
        text += "No control was run: how many the attack would get right on a model of other classes is not known. "
    return text.rstrip()


def _judges(record: RunRecord) -> list[str]:
    """Return who judged, what they learned from, and what they compared with, as far as the record says."""
    evaluation = record.config.get("evaluation") or {}
    second = evaluation.get("second") or {}
    named = [
        ("Evaluation model", evaluation, "evaluation"),
        ("second evaluation model", second, "second"),
    ]
    models = [
        f"{title}: {_name(part['model'])}{_remarks(record, part, role)}"
        for title, part, role in named
        if part.get("model")
    ]
    imported = [_is_imported(part) for _, part, _ in named if part.get("model")]
    extractors = [name for entry in evaluation.get("extractors") or [] if (name := _name(entry))]
    sentences = ["; ".join([*models, *([f"feature networks: {', '.join(extractors)}"] if extractors else [])]) + "."]
    sentences = sentences if models else []
    if any(imported):
        sentences.append(
            "What an imported evaluation model learned from is not known here: it may have seen the private images."
        )
    if evaluation.get("fold") == "train" and not all(imported):
        sentences.append(
            "The evaluation models learned from the target's own training images, so a reconstruction may please both "
            "by what they share beyond the class."
        )
    if evaluation.get("real_per_class"):
        sentences.append(f"Compared with the first {evaluation['real_per_class']} training images of each class.")
    return [" ".join(sentences)] if sentences else []


def _name(entry: Any) -> str:
    return str(entry.get("name") or "") if isinstance(entry, dict) else str(entry or "")


def _is_imported(evaluation: dict[str, Any]) -> bool:
    """Return whether an evaluation model, of which this is the configuration, was used as it was imported."""
    recipe = evaluation.get("recipe")
    return isinstance(recipe, dict) and recipe.get("epochs") == 0


def _remarks(record: RunRecord, evaluation: dict[str, Any], role: str) -> str:
    """Write whether an evaluation model was imported, and how much of its validation and of the real images it knows.

    "" if nothing of it is known.
    """
    models = [item for item in record.shared if item.role.partition(".")[0] == role]
    values = [item.metrics["val_accuracy"].value for item in models if "val_accuracy" in item.metrics]
    known = [value for value in values if value is not None]
    real = real_accuracy(record.cells, _JUDGE_OF_ROLE[role])
    shares = [f"{number(sum(known) / len(known), 'percent')} of its validation images"] if known else []
    shares += [f"{number(real, 'percent')} of the attacked classes' real images"] if real is not None else []
    remarks = ["imported, not trained here"] * _is_imported(evaluation) + shares
    return f" ({', '.join(remarks)})" if remarks else ""


def _summary(record: RunRecord, attacks: list[str], view: Overview, styles: Looks) -> Markup:
    """Return top-1 of every attack on every setting, the strongest of each row framed."""
    head = [tag("th", "Setting", class_="text", scope="col")]
    head += [tag("th", attack, _chance(record, attack, "top1"), scope="col") for attack in attacks]
    rows = []
    for setting in baseline_first(view):
        values = {attack: spread(setting.cells, key_of(attack, "top1")) for attack in attacks}
        measured = [attack for attack in attacks if values[attack].values]
        strongest = max(measured, key=lambda one: (len(values[one].values), values[one].mean or 0.0), default=None)
        cells = [
            figure_cell(
                values[attack],
                "top1",
                ["strongest" if attack == strongest else None],
                flags=_flags(setting, attack),
                signs=_signs(setting, attack),
            )
            for attack in attacks
        ]
        rows.append(_row(setting, cells, view, styles))
    note = "The framed number is the strongest attack of its row; signs are explained below each attack's table."
    return join(matrix_table(tag("tr", *head), rows, "narrow"), tag("p", note, class_="footnote"))


def _attack(record: RunRecord, attack: str, view: Overview, styles: Looks) -> list[Markup | None]:
    """Return the table of one attack, what is not believable in it, and, folded, neighborhoods of other sizes."""
    columns = quantities(metrics_of(record, attack))
    groups = [group for group in dict.fromkeys(column.group for column in columns) if group.startswith(PRDC)]
    shown = [column for column in columns if column.group not in groups[1:]]
    further = [
        folded(group, _table(record, attack, [one for one in columns if one.group == group], view, styles))
        for group in groups[1:]
    ]
    return [_table(record, attack, shown, view, styles), *_doubts(met(view.settings, attack), attack), *further]


def _table(record: RunRecord, attack: str, columns: list[Quantity], view: Overview, styles: Looks) -> Markup:
    """Return settings as rows, each floor below all of them, or below each where settings have floors of their own."""
    settings = met(baseline_first(view), attack)
    metrics = metrics_of(record, attack)
    common = {floor: common_floor(settings, attack, floor, columns) for floor in floors_of(metrics, columns)}
    rows: list[Markup] = []
    for setting in settings:
        rows.append(_row(setting, _cells(setting, attack, columns), view, styles))
        for floor, values in common.items():
            if values is None:
                rows.append(_floor_row(floor, floor_values(setting, attack, floor, columns), columns, owner="its "))
    rows += [_floor_row(floor, values, columns) for floor, values in common.items() if values is not None]
    width = "wide" if len(columns) > _MOST_NARROW_COLUMNS else "narrow"
    return matrix_table(_head(record, attack, columns), rows, width)


def _head(record: RunRecord, attack: str, columns: list[Quantity]) -> Markup:
    """Return two rows: groups, and the columns with what stands in small print."""
    groups: dict[str, list[Quantity]] = {}
    for column in columns:
        groups.setdefault(column.group, []).append(column)
    top = [tag("th", "Setting", class_="text", scope="col", rowspan=2)]
    names = []
    for group, own in groups.items():
        top.append(tag("th", group, class_="group first", scope="colgroup", colspan=len(own)))
        for place, column in enumerate(own):
            remark = tag("small", column.remark) if column.remark else None
            chance = _chance(record, attack, column.metric)
            names.append(tag("th", column.title, remark, chance, scope="col", class_=first_class(place)))
    return join(tag("tr", *top), tag("tr", *names))


def _chance(record: RunRecord, attack: str, metric: str) -> Markup | None:
    level = record.chance.get(key_of(attack, metric))
    return None if level is None else tag("small", f"chance {number(level, unit_of(metric))}")


def _cells(setting: Setting, attack: str, columns: list[Quantity]) -> list[Markup]:
    cells = []
    for column, class_ in zip(columns, _rules(columns), strict=True):
        is_top1 = column.metric == "top1"
        cells.append(
            figure_cell(
                spread(setting.cells, key_of(attack, column.metric)),
                column.metric,
                [class_],
                flags=_flags(setting, attack) if is_top1 else (),
                signs=_signs(setting, attack) if is_top1 else "",
                lists_seeds=is_top1,
            )
        )
    return cells


def _rules(columns: list[Quantity]) -> list[str | None]:
    """Return the class of each column: the first of a group is set apart by a rule."""
    groups = [column.group for column in columns]
    return [first_class(place - groups.index(group)) for place, group in enumerate(groups)]


def _row(setting: Setting, cells: list[Markup], view: Overview, styles: Looks) -> Markup:
    class_ = "baseline" if setting == view.baseline else None
    remark = "masked output" if setting.is_masked else ""
    return tag("tr", row_head(setting, styles, remark), *cells, class_=class_)


def _floor_row(floor: Floor, values: list[Spread], columns: list[Quantity], owner: str = "") -> Markup:
    cells = [
        tag("td", class_=class_)
        if own.state == "absent"
        else figure_cell(own, column.metric, [class_], lists_seeds=column.metric == "top1")
        for own, column, class_ in zip(values, columns, _rules(columns), strict=True)
    ]
    return tag("tr", tag("th", f"{owner}{floor.title}", scope="row"), *cells, class_="floor")


def _flags(setting: Setting, attack: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(flag for cell in setting.cells for flag in inversion_flags(cell, attack)))


def _signs(setting: Setting, attack: str) -> str:
    """Return the signs of a top-1: the floors it is not above, floors nothing is settled of, flags."""
    standings = {floor: compare(setting, attack, floor).standing for floor in FLOORS}
    signs = "".join(floor.sign for floor, standing in standings.items() if standing == "not above")
    return signs + _UNSETTLED * ("unsettled" in standings.values()) + _FLAGGED * bool(_flags(setting, attack))


def _doubts(settings: list[Setting], attack: str) -> list[Markup]:
    """Return in words which top-1 are not above a floor, and which flags were raised."""
    lines = []
    unsettled: list[str] = []
    for floor in FLOORS:
        found = [compare(setting, attack, floor) for setting in settings]
        below = [one for one in found if one.standing == "not above"]
        if below:
            claim = tag("strong", f"{floor.sign} Not believable: top-1 is not above the {floor.title}. ")
            meaning = f"What {floor.who} reaches as well shows nothing of the target. "
            lines.append(tag("p", claim, meaning, "; ".join(_beside(one) for one in below), ".", class_="footnote"))
        unsettled += [one.setting.label for one in found if one.standing == "unsettled"]
    if unsettled:
        text = "One seed, and no interval over identities, so whether top-1 is above its floor is not settled: "
        lines.append(tag("p", f"{_UNSETTLED} {text}{', '.join(dict.fromkeys(unsettled))}.", class_="footnote"))
    if any(_flags(setting, attack) for setting in settings):
        lines.append(tag("p", f"{_FLAGGED} Flagged; the tooltip says why.", class_="footnote"))
    return lines


def _beside(one: Comparison) -> str:
    above, count = one.seeds_above
    top1, floor = (number(values.mean or 0.0, "percent") for values in (one.top1, one.floor))
    return f"{one.setting.label}: {top1} against {floor}, above it in {above} of {count} seeds"


def _notes(record: RunRecord, attacks: list[str], view: Overview) -> list[Markup]:
    """Return every note once, with the columns it is about, and attacks and settings where it is not about all."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for attack in attacks:
        settings = met(view.settings, attack)
        noted: dict[tuple[str, str], list[Quantity]] = {}
        for column in quantities(metrics_of(record, attack)):
            for note, labels in _noted(settings, key_of(attack, column.metric)).items():
                where = "" if len(labels) == len(settings) else f" on {', '.join(labels)}"
                noted.setdefault((note, where), []).append(column)
        for (note, where), columns in noted.items():
            places.setdefault((note, _named(columns), where), []).append(attack)
    lines = []
    for (note, names, where), own in places.items():
        who = "" if own == attacks else f"{', '.join(own)}: "
        lines.append(tag("p", f"{who}{names}{where} \N{EN DASH} {note}.", class_="footnote"))
    return [tag("h3", "Notes"), *lines] if lines else []


def _noted(settings: list[Setting], key: str) -> dict[str, list[str]]:
    """Return note -> the settings whose cells carry it."""
    found: dict[str, dict[str, None]] = {}
    for setting in settings:
        for cell in setting.cells:
            metric = cell.metrics.get(key)
            if metric is not None and metric.note:
                found.setdefault(metric.note, {})[setting.label] = None
    return {note: list(labels) for note, labels in found.items()}


def _named(columns: list[Quantity]) -> str:
    """Name columns where their headings do not stand above them."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        names = groups.setdefault(column.group.removesuffix(", %"), [])
        names.append(" ".join(part for part in (column.title, column.remark) if part))
    return "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items())
