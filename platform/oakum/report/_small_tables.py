"""Small tables beside the large ones: losses of members and non-members, and formal guarantees."""

from __future__ import annotations

from oakum.records import RunRecord
from oakum.report._markup import Markup, join, tag
from oakum.report._matrix import membership_attacks
from oakum.report._overview import Overview, metric_keys
from oakum.report._palette import Look
from oakum.report._tables import baseline_first, figure_cell, first_class, matrix_table, row_head
from oakum.report.statistics import Spread, spread

Looks = dict[str, Look]


def loss_section(record: RunRecord, view: Overview, styles: Looks) -> Markup | None:
    """Return mean and variance of the losses of members and non-members, or None where none were measured."""
    others = (record.config.get("attacks") or {}).get("nonmembers") or "test"
    keys = [f"utility/{fold}_{name}" for fold in ("train", others) for name in ("loss_mean", "loss_variance")]
    if not any(key in cell.metrics for cell in record.cells for key in keys):
        return None
    has_auc = "loss" in membership_attacks(record)
    top = [
        tag("th", "Setting", class_="text", scope="col", rowspan=2),
        tag("th", "Members (train fold)", class_="group first", scope="colgroup", colspan=2),
        tag("th", f"Non-members ({others} fold)", class_="group first", scope="colgroup", colspan=2),
        tag("th", "AUC of the loss attack", class_="first", scope="col", rowspan=2) if has_auc else None,
    ]
    names = [
        tag("th", name, scope="col", class_=first_class(place % 2))
        for place, name in enumerate(["mean", "variance"] * 2)
    ]
    rows = []
    for setting in baseline_first(view):
        columns = [*keys, *(["membership/loss/auc"] if has_auc else [])]
        cells = [
            figure_cell(spread(setting.cells, key), key, [first_class(place % 2)]) for place, key in enumerate(columns)
        ]
        class_ = "baseline" if setting == view.baseline else None
        rows.append(tag("tr", row_head(setting, styles), *cells, class_=class_))
    note = (
        "Cross-entropy of the released model in nats. Members whose losses are small and all alike stand out from "
        "non-members; a defense against membership attacks brings the two distributions together."
    )
    table = matrix_table(join(tag("tr", *top), tag("tr", *names)), rows, "narrow")
    return join(tag("h2", "Losses of members and non-members"), tag("p", note, class_="lead"), table)


def privacy_section(record: RunRecord, view: Overview, styles: Looks) -> Markup | None:
    """Return the guarantees that settings were trained with, or None where there are none."""
    keys = [key for key in metric_keys(record) if key.startswith("privacy/")]
    guarded = [
        setting for setting in view.settings if any(key in cell.metrics for cell in setting.cells for key in keys)
    ]
    if not guarded:
        return None
    first = ["privacy/epsilon", "privacy/delta"]
    keys = [*(key for key in first if key in keys), *(key for key in keys if key not in first)]
    names = [key.removeprefix("privacy/").replace("_", " ") for key in keys]
    head = [tag("th", "Setting", class_="text", scope="col"), *(tag("th", name, scope="col") for name in names)]
    head.append(tag("th", "What the bound says", class_="text", scope="col"))
    rows = []
    for setting in guarded:
        cells = [_bound_cell(spread(setting.cells, key), key) for key in keys]
        metrics = [cell.metrics["privacy/epsilon"] for cell in setting.cells if "privacy/epsilon" in cell.metrics]
        notes = dict.fromkeys(metric.note for metric in metrics if metric.note)
        cells.append(tag("td", "; ".join(notes), class_="text wrap"))
        rows.append(tag("tr", row_head(setting, styles), *cells))
    lead = (
        "Epsilon bounds what any attack can learn of one record, known today or not, with probability 1 \N{MINUS SIGN} "
        "delta; the attacks above show what these attacks found. A large epsilon promises next to nothing. The other "
        "settings carry no such guarantee."
    )
    table = matrix_table(tag("tr", *head), rows, "narrow")
    return join(tag("h2", "Formal privacy"), tag("p", lead, class_="lead"), table)


def _bound_cell(values: Spread, key: str) -> Markup:
    if values.state == "unresolved" and key == "privacy/epsilon":
        return tag("td", tag("span", "no finite bound", class_="none", title="; ".join(values.reasons)))
    return figure_cell(values, key)
