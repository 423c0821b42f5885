"""The report of a search as one self-contained HTML file: no network, no script, nothing unescaped."""

from __future__ import annotations

from pathlib import Path

from oakum.report import _search_sections as sections
from oakum.report._document import document, flag_places, write_document
from oakum.report._flags import gather
from oakum.report._markup import Markup, tag
from oakum.report._search_protocol import protocol_section
from oakum.report._search_verdict import verdict_section
from oakum.report._search_view import GRID, SearchView, search_view
from oakum.report._search_words import counts, data_name, sentence, warnings
from oakum.search.records import SearchRecord


def write(record: SearchRecord, out: Path) -> Path:
    """Write the page to `out` (parents are created, an old file is replaced at once) and return it.

    Raises:
        OSError: `out` cannot be written.
    """
    return write_document(render(record), out)


def render(record: SearchRecord) -> str:
    """Return the page; an unfinished search is shown as far as it is."""
    view = search_view(record)
    body = [
        ("verdict", "Verdict", verdict_section(view)),
        ("front", "Front", sections.front_section(view)),
        ("parameters", "Parameters", sections.parameter_section(view)),
        ("progress", "Progress", sections.progress_section(view)),
        ("trials", "Every trial", sections.trial_section(view)),
        ("protocol", "How it was judged", protocol_section(view)),
        ("words", "Words", sections.words_section()),
    ]
    shown = [(anchor, title, content) for anchor, title, content in body if content is not None]
    navigation = tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title, _ in shown), aria_label="Sections")
    parts = [tag("section", content, id=anchor, aria_label=title) for anchor, title, content in shown]
    main = tag("main", _notices(view), *parts, id="content")
    page = tag("div", _head(view, navigation), main, _footer(view), class_="page")
    return document(f"{record.header.name}: search report", page)


def _head(view: SearchView, navigation: Markup) -> Markup:
    header = view.record.header
    samplers = dict.fromkeys(trial.origin for trial in view.record.trials if trial.origin != GRID)
    origins = [*samplers, *([GRID] if any(trial.origin == GRID for trial in view.record.trials) else [])]
    facts = {
        "Data": data_name(header.experiment) or "not recorded",
        "Trials": counts(view),
        "Points from": ", ".join(origins) or "none yet",
        "Confirmed": ", ".join(str(number) for number in sorted(view.confirmed)) or "no",
        "Search": header.key[:12],
    }
    entries = (tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items())
    return tag(
        "header",
        tag("p", "oakum search report", class_="eyebrow"),
        tag("h1", header.name),
        tag("p", sentence(view), class_="standfirst"),
        tag("dl", *entries, class_="facts"),
        navigation,
    )


def _notices(view: SearchView) -> Markup | None:
    confirmation = view.record.confirmation
    flags = gather(list(confirmation.record.cells)) if confirmation else ()
    groups = (
        ("Warnings", [tag("p", text) for text in warnings(view)]),
        ("Notes", [tag("p", text) for text in view.record.header.notes]),
        ("Flags of the confirmation: distrust these numbers", [flag_places(flag) for flag in flags]),
    )
    entries = [tag("div", tag("dt", title), tag("dd", *texts)) for title, texts in groups if texts]
    return tag("aside", tag("dl", *entries), class_="notice", aria_label="Warnings") if entries else None


def _footer(view: SearchView) -> Markup:
    text = "Numbers are what these attacks found on this data: a lower bound on what leaks, not a guarantee."
    return tag("footer", f"{text} Search {view.record.header.key[:12]}.")
