"""The sections of the HTML report that show results. Each returns None where the run has nothing for it."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from oakum.records import RunRecord
from oakum.report import figures
from oakum.report._evidence import (
    EVALUATOR,
    SECOND,
    EvidenceStore,
    Reconstruction,
    Rows,
    is_public,
    reconstructions_by_attack,
    to_pixels,
)
from oakum.report._marks import mark, strip
from oakum.report._markup import Markup, folded, join, tag, void
from oakum.report._numbers import aim_text, difference_unit, interval_text, mean_text, number, range_text, values_text
from oakum.report._overview import Column, Overview, Setting, metric_keys, topic_of, unit_of
from oakum.report._palette import Look
from oakum.report._tables import MOST_OPEN_ROWS, plain_table, row_head
from oakum.report._verdict import tone
from oakum.report.statistics import Spread, spread

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Looks = dict[str, Look]

_TOPICS = {
    "utility": "Utility",
    "membership": "Membership, average record",
    "canary": "Membership, worst case (canaries)",
    "inversion": "Inversion",
    "privacy": "Formal privacy",
    "cost": "Cost",
    "other": "Other",
}


def glance_section(view: Overview, styles: Looks) -> Markup | None:
    """Return the table of means, with every seed as a dot on a scale that the column's rows share."""
    if not view.columns:
        return None
    head = [tag("th", "Setting", class_="text", scope="col")]
    head += [tag("th", column.title, tag("small", aim_text(column)), scope="col") for column in view.columns]
    rows = []
    for setting in view.settings:
        cells = [_glance_cell(column, setting, styles) for column in view.columns]
        rows.append(tag("tr", row_head(setting, styles), *cells))
    caption = (
        "Mean, each seed as a dot, range of seeds. The dashed line is chance. Within a column all rows share a scale."
    )
    return join(tag("h2", "At a glance"), plain_table(tag("tr", *head), rows, caption))


def _glance_cell(column: Column, setting: Setting, styles: Looks) -> Markup:
    measurement = column.measurements[setting.label]
    if measurement.spread.mean is None:
        return _missing_cell(measurement.spread)
    attack = measurement.attack if column.names_attack else ""
    details = [part for part in (range_text(measurement.spread, column.unit), attack) if part]
    return tag(
        "td",
        tag("span", mean_text(measurement.spread, column.unit), class_="main"),
        strip(column, measurement.spread, styles[setting.label]),
        *(tag("small", detail) for detail in details),
    )


def tradeoff_section(record: RunRecord) -> Markup | None:
    """Return the utility-leakage figure."""
    return _figure_section(
        figures.utility_leakage(record),
        "tradeoff",
        "Utility against leakage",
        "Large marks are means over seeds, small ones the seeds. Up and to the left is better: "
        "more accuracy, less leakage.",
        "Test accuracy against leakage for every setting; all values are in the tables of this report.",
    )


def difference_section(view: Overview, styles: Looks) -> Markup | None:
    """Return the table of paired differences, or None without a baseline or anything to compare."""
    columns = [column for column in view.columns if column.topic != "cost"]
    others = [setting for setting in view.settings if setting != view.baseline]
    if view.baseline is None or not others or not columns:
        return None
    head = [tag("th", "Setting", class_="text", scope="col")]
    head += [tag("th", column.title, tag("small", difference_unit(column)), scope="col") for column in columns]
    names = {
        column.differences[setting.label].label
        for column in columns
        for setting in others
        if column.differences[setting.label].low is not None
    }
    common = next(iter(names)) if len(names) == 1 else None
    rows = [
        tag("tr", row_head(setting, styles), *(_difference_cell(column, setting, common) for column in columns))
        for setting in others
    ]
    interval = f"the {common}" if common else "its interval"
    caption = (
        f"Mean of the paired differences; below it {interval}, and every seed in order. "
        "Colored only where the seeds settle the sign: green is what a defender wants, red what it does not."
    )
    heading = tag("h2", f"Differences to {view.baseline.label}, paired per seed")
    return join(heading, plain_table(tag("tr", *head), rows, caption))


def _difference_cell(column: Column, setting: Setting, common: str | None) -> Markup:
    difference = column.differences[setting.label]
    if difference.mean is None:
        return tag("td", tag("span", difference.label, class_="none"))
    interval = interval_text(difference, column.unit)
    listed = values_text(difference.values.values(), column.unit, sign=True)
    color = tone(column, difference, setting)
    return tag(
        "td",
        tag("span", number(difference.mean, column.unit, sign=True, mark=column.unit == "seconds"), class_="main"),
        tag("small", interval) if interval else None,
        tag("small", difference.label, class_="wrap") if difference.label != common else None,
        tag("small", listed, class_="wrap" if len(difference.values) > 3 else None) if interval else None,
        class_=color if color != "neutral" else None,
    )


def roc_section(record: RunRecord, store: EvidenceStore) -> Markup | None:
    """Return the ROC figures of the model without and of the model with canaries."""
    lead = (
        "Thin lines are seeds, the thick line is their mean, the gray line is the baseline's mean, the dashed line is "
        "chance. In the shaded part fewer than 10 false positives are expected, so no claim is made there."
    )
    parts = []
    for where, title in (("clean", "Average records"), ("canary", "Worst case: canaries")):
        figure = figures.roc(record, store, where)
        if figure is not None:
            alternative = f"ROC curves on logarithmic axes, {title.lower()}, one panel for each setting."
            parts += [tag("h3", title), drawing(figure, f"roc-{where}", None, alternative)]
    heading = tag("h2", "ROC curves of the strongest membership attack")
    return join(heading, tag("p", lead, class_="lead"), *parts) if parts else None


def picture_section(
    record: RunRecord, store: EvidenceStore, real_images: dict[int, NDArray[np.floating[Any]]]
) -> Markup | None:
    """Return a block for each attack, real images beside reconstructions; a sentence for data that is not public."""
    attacked = any(role.startswith("inversion.") for cell in record.cells for role in cell.stages)
    if not attacked:
        return None
    heading = tag("h2", "Reconstructions")
    if not is_public(record):
        return join(
            heading, tag("p", "The data is not public, so this report shows no pictures, real or reconstructed.")
        )
    blocks = reconstructions_by_attack(record, store)
    if not blocks:
        return None
    parts = []
    for attack, rows in blocks.items():
        title = tag("h3", f"{attack} attack") if len(blocks) > 1 else None
        parts += [title, tag("div", _picture_table(record, attack, rows, real_images), class_="scroll")]
    made = [item for rows in blocks.values() for row in rows.values() for item in row.values() if item is not None]
    return join(heading, tag("figure", *parts, tag("figcaption", _picture_caption(made))))


def _picture_caption(made: list[Reconstruction]) -> str:
    text = (
        "The first reconstruction of each class, of one seed, not picked by quality. Solid red frame: the independent "
        "evaluation model recognizes the class, so the attack succeeded. Dashed frame: it does not."
    )
    if any(len(item.verdicts) > 1 for item in made):
        text += (
            " Dotted red frame: the evaluation model recognizes the class, but another judge does not. A picture's "
            "tooltip names who recognizes it."
        )
    return text


def _picture_table(
    record: RunRecord, attack: str, rows: Rows, real_images: dict[int, NDArray[np.floating[Any]]]
) -> Markup:
    count = min(figures.REAL_EXAMPLES, max((len(real_images.get(label, [])) for label in rows), default=0))
    labels = list(next(iter(rows.values())))
    head = [tag("th", Markup("&nbsp;"))]
    if count:
        head.append(tag("th", "real images", colspan=count, scope="colgroup"))
    head += [tag("th", label, scope="col", class_=None if place else "first") for place, label in enumerate(labels)]
    body = [_picture_row(record, attack, label, made, real_images, count) for label, made in rows.items()]
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="pictures")


def _picture_row(
    record: RunRecord,
    attack: str,
    label: int,
    made: dict[str, Reconstruction | None],
    real_images: dict[int, NDArray[np.floating[Any]]],
    count: int,
) -> Markup:
    names = record.data.get("class_names") or []
    name = str(names[label]) if label < len(names) else f"class {label}"
    cells = [tag("th", name, scope="row")]
    real = list(real_images.get(label, []))[:count]
    cells += [tag("td", _image(to_pixels(image), f"real image of {name}")) for image in real]
    cells += [tag("td")] * (count - len(real))
    for place, (setting, item) in enumerate(made.items()):
        first = "" if place else " first"
        if item is None:
            cells.append(tag("td", class_=f"made{first}"))
            continue
        outcome = {True: "doubted" if item.is_doubted else "hit", False: "miss", None: ""}[item.is_recognized]
        said = _who_recognizes(item.verdicts)
        picture = _image(item.pixels, f"reconstruction of {name} from {setting} by {attack}{said and ', ' + said}")
        title = said[:1].upper() + said[1:]
        cells.append(tag("td", picture, class_=f"made {outcome}{first}", title=title or None))
    return tag("tr", *cells)


def _who_recognizes(verdicts: dict[str, bool]) -> str:
    """Write the verdicts of all judges; "" without any."""
    names = {EVALUATOR: "the evaluation model", SECOND: "the second evaluation model"}
    parts = []
    for verb, wanted in (("recognized", True), ("not recognized", False)):
        if who := [names.get(judge, judge) for judge in verdicts if verdicts[judge] == wanted]:
            parts.append(f"{verb} by {', '.join(who)}")
    return "; ".join(parts)


def _image(pixels: NDArray[np.uint8], alternative: str) -> Markup:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return void("img", alt=alternative, src=f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}")


def value_section(record: RunRecord, view: Overview, styles: Looks) -> Markup | None:
    """Return every metric of every setting and seed, a table for each topic."""
    keys = metric_keys(record)
    parts: list[Markup] = []
    for topic in dict.fromkeys(topic_of(key) for key in keys):
        rows: list[Markup] = []
        for key in (key for key in keys if topic_of(key) == topic):
            rows += _value_rows(key, record, view, styles)
        head = ["Metric", "Setting", *(f"Seed {seed}" for seed in view.seeds), "Mean", "Range", "Chance"]
        cells = [
            tag("th", title, scope="col", class_="text" if place < 2 else None) for place, title in enumerate(head)
        ]
        table = plain_table(tag("tr", *cells), rows, None, "values measured")
        if len(rows) > MOST_OPEN_ROWS:
            parts.append(folded(f"{_TOPICS[topic]}: {len(rows):,} rows", table, class_="bulk"))
        else:
            parts += [tag("h3", _TOPICS[topic]), table]
    lead = "Small numbers below a value are the interval inside that seed, over records or identities."
    return join(tag("h2", "Every value"), tag("p", lead, class_="lead"), *parts) if parts else None


def _value_rows(key: str, record: RunRecord, view: Overview, styles: Looks) -> list[Markup]:
    unit = unit_of(key)
    chance = record.chance.get(key)
    measured = [(setting, spread(setting.cells, key)) for setting in view.settings]
    measured = [(setting, values) for setting, values in measured if values.state != "absent"]
    rows = []
    for place, (setting, values) in enumerate(measured):
        cells: list[Markup] = []
        if place == 0:
            name = Markup("/<wbr>").join(join(part) for part in key.split("/"))
            cells.append(tag("th", tag("code", Markup(name)), rowspan=len(measured), scope="rowgroup"))
        cells.append(tag("td", mark(styles[setting.label]), Markup("&ensp;"), setting.label, class_="text wrap"))
        cells += [_value_cell(values, seed, unit) for seed in view.seeds]
        cells.append(tag("td", tag("span", mean_text(values, unit), class_="main" if values.values else "none")))
        cells.append(tag("td", range_text(values, unit)))
        cells.append(tag("td", number(chance, unit) if chance is not None else ""))
        rows.append(tag("tr", *cells, class_="group-start" if place == 0 else None))
    return rows


def _value_cell(values: Spread, seed: int, unit: Any) -> Markup:
    if seed in values.values:
        interval = values.intervals.get(seed)
        small = None
        if interval is not None:
            small = tag("small", f"{number(interval[0], unit, mark=False)} to {number(interval[1], unit, mark=False)}")
        return tag("td", number(values.values[seed], unit), small)
    if seed in values.unresolved:
        return tag("td", tag("span", "unresolved", class_="none", title=values.unresolved[seed]))
    return tag("td", tag("span", "not measured", class_="none"))


def training_section(record: RunRecord, store: EvidenceStore) -> Markup | None:
    """Return the training curves of the models without canaries."""
    return _figure_section(
        figures.training_curves(record, store),
        "training",
        "Training",
        "Models without canaries. Thin lines are seeds, thick lines their mean. Losses of different defenses are "
        "different functions; compare the accuracies.",
        "Training loss and accuracies over epochs for every setting.",
    )


def _figure_section(figure: Figure | None, name: str, title: str, caption: str, alternative: str) -> Markup | None:
    if figure is None:
        return None
    return join(tag("h2", title), drawing(figure, name, caption, alternative))


def drawing(figure: Figure, name: str, caption: str | None, alternative: str) -> Markup:
    """Return a figure with its caption; `alternative` says what it shows to those who do not see it."""
    plot = tag("div", Markup(figures.to_svg(figure, name)), class_="plot", role="img", aria_label=alternative)
    narrow = "narrow" if figure.get_figwidth() < 8 else None
    return tag("figure", plot, tag("figcaption", caption) if caption else None, class_=narrow)


def _missing_cell(values: Spread) -> Markup:
    reasons = "; ".join(values.reasons)
    text = mean_text(values, "plain")
    return tag("td", tag("span", text, class_="none", title=reasons or None))
