"""HTML that is escaped by construction: text becomes markup only through `tag`, and `tag` escapes."""

from __future__ import annotations

from html import escape

from oakum.report._numbers import printable


class Markup(str):
    """HTML that is already safe."""

    __slots__ = ()


def tag(name: str, /, *children: Markup | str | None, **attributes: str | int | None) -> Markup:
    """Return an element. Children that are plain text and all attribute values are escaped; None is left out.

    Attribute names: a trailing underscore is dropped (`class_`), others become hyphens (`aria_label`).
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{words}>{join(*children)}</{name}>")


def void(name: str, /, **attributes: str | int | None) -> Markup:
    """Return an element without an end tag, such as `img`."""
    return Markup(str(tag(name, **attributes)).removesuffix(f"</{name}>"))


def join(*children: Markup | str | None) -> Markup:
    """Return the children one after another, plain text escaped."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children if child))


def folded(title: str, *content: Markup | str | None, class_: str | None = None) -> Markup:
    """Return content that a reader unfolds by its title."""
    return tag("details", tag("summary", title), *content, class_=class_)


def pairs(facts: dict[str, str]) -> Markup:
    """Return names and what belongs to them as a list of two columns."""
    entries = (join(tag("dt", name), tag("dd", value)) for name, value in facts.items())
    return tag("dl", *entries, class_="pairs")


def _escaped(text: str) -> str:
    return "\n".join(escape(printable(line), quote=True) for line in text.split("\n"))
