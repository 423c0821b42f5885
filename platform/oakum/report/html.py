"""The report as one self-contained HTML file: no network, no script, nothing unescaped."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.records import RunRecord
from oakum.report import _sections as sections
from oakum.report._document import document, flag_places, write_document
from oakum.report._evidence import EvidenceStore, measured_at, missing_stages
from oakum.report._inversion_section import inversion_section
from oakum.report._markup import Markup, tag
from oakum.report._matrix_section import matrix_section
from oakum.report._overview import Overview, overview
from oakum.report._palette import looks
from oakum.report._provenance import glossary, provenance
from oakum.report._small_tables import loss_section, privacy_section
from oakum.report._verdict_section import verdict_section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write(
    record: RunRecord,
    store: EvidenceStore,
    out: Path,
    real_images: dict[int, NDArray[np.floating[Any]]] | None = None,
) -> Path:
    """Write the report to `out` (parents are created, an old file is replaced at once) and return it.

    Args:
        record: the run; may lack attacks, seeds or the baseline, and then the report says so.
        store: where the evidence for the figures lies; curves whose stage is gone are left out, and counted.
        real_images: class -> (n, C, H, W) images in [0, 1], shown beside reconstructions. Ignored, like every
            reconstruction, unless `record.data["public"]` is true.

    Raises:
        OSError: `out` cannot be written.
        oakum.store.DamagedEntryError: evidence does not match its checksum.
    """
    return write_document(render(record, store, real_images), out)


def render(
    record: RunRecord, store: EvidenceStore, real_images: dict[int, NDArray[np.floating[Any]]] | None = None
) -> str:
    """Return the page; arguments as for `write`."""
    view = overview(record)
    styles = looks(view)
    body = [
        ("verdicts", "Verdicts", verdict_section(view, styles)),
        ("glance", "At a glance", sections.glance_section(view, styles)),
        ("matrix", "Every attack", matrix_section(record, view, styles, store)),
        ("inversion", "Inversion", inversion_section(record, view, styles)),
        ("tradeoff", "Utility and leakage", sections.tradeoff_section(record)),
        ("losses", "Losses", loss_section(record, view, styles)),
        ("privacy", "Formal privacy", privacy_section(record, view, styles)),
        ("differences", "Differences", sections.difference_section(view, styles)),
        ("roc", "ROC curves", sections.roc_section(record, store)),
        ("pictures", "Reconstructions", sections.picture_section(record, store, real_images or {})),
        ("values", "Every value", sections.value_section(record, view, styles)),
        ("training", "Training", sections.training_section(record, store)),
        ("provenance", "Provenance", provenance(record, view)),
        ("glossary", "Glossary", glossary()),
    ]
    shown = [(anchor, title, content) for anchor, title, content in body if content is not None]
    navigation = tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title, _ in shown), aria_label="Sections")
    sections_of_page = [tag("section", content, id=anchor, aria_label=title) for anchor, title, content in shown]
    notices = _notices(view, missing_stages(record, store))
    main = tag("main", sections_of_page[0], notices, *sections_of_page[1:], id="content")
    head = _head(record, view, store, navigation)
    page = tag("div", head, main, _footer(record), class_="page")
    return document(f"{record.name}: privacy report", page)


def _head(record: RunRecord, view: Overview, store: EvidenceStore, navigation: Markup) -> Markup:
    facts = {
        "Data": str(record.data.get("name", "not recorded")),
        "Settings": str(len(view.settings)),
        "Seeds": ", ".join(str(seed) for seed in view.seeds) or "none",
        "Measured": _date(measured_at(record, store)),
        "Code": _code(record),
        "Run": record.run_key[:12],
    }
    entries = (tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items())
    return tag(
        "header",
        tag("p", "oakum privacy report", class_="eyebrow"),
        tag("h1", record.name),
        tag("p", record.description, class_="standfirst") if record.description else None,
        tag("dl", *entries, class_="facts"),
        navigation,
    )


def _notices(view: Overview, missing: int) -> Markup | None:
    gone = (
        [f"{missing} stages of this run are no longer in the store; figures leave their curves out."] if missing else []
    )
    groups = (
        ("Warnings", [tag("p", message) for message in [*view.warnings, *gone]]),
        ("Flags: distrust these numbers", [flag_places(flag) for flag in view.flags]),
        ("Unresolved: the sample supports no number", [tag("p", message) for message in view.unresolved]),
    )
    entries = [tag("div", tag("dt", title), tag("dd", *messages)) for title, messages in groups if messages]
    return tag("aside", tag("dl", *entries), class_="notice", aria_label="Warnings") if entries else None


def _date(timestamp: float | None) -> str:
    if timestamp is None:
        return "not recorded"
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _code(record: RunRecord) -> str:
    version = record.code.get("oakum")
    commit = str(record.code.get("commit") or "")[:9]
    parts = [f"oakum {version}" if version else "", commit, "modified" if record.code.get("dirty") else ""]
    return " ".join(part for part in parts if part) or "not recorded"


def _footer(record: RunRecord) -> Markup:
    text = "Numbers are what these attacks found on this data: a lower bound on what leaks, not a guarantee."
    return tag("footer", f"{text} Plan {record.plan_key[:12]}.")
