"""What the report of a run and that of a search share as documents: the head, flags, and how the file is written."""

from __future__ import annotations

import os
from pathlib import Path

from oakum.report._flags import Flag
from oakum.report._markup import Markup, folded, tag, void
from oakum.report._style import sheet

# Even if escaping failed somewhere, a browser would run and load nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def document(title: str, page: Markup) -> str:
    """Return the whole file around a page; a browser shows the title in its tab."""
    head = tag(
        "head",
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        void("meta", name="generator", content="oakum"),
        tag("title", title),
        tag("style", Markup(sheet())),
    )
    body = tag("body", tag("a", "Skip to the findings", href="#content", class_="skip"), page)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def flag_places(flag: Flag) -> Markup:
    """Return a flag with its places, folded where they are many."""
    if not flag.has_many_places:
        return tag("p", flag.line)
    return folded(flag.counted, *(tag("p", place) for place in flag.listed))


def write_document(text: str, out: Path) -> Path:
    """Write the page to `out` (parents are created, an old file is replaced at once) and return it.

    Raises:
        OSError: `out` cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(out, text.encode())


def replace_file(out: Path, content: bytes) -> Path:
    """Write `out` so that a reader, such as another driver's upload, never meets half of it; return it."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out
