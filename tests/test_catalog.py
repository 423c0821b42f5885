"""The catalog of methods, and the page that is generated from it."""

from __future__ import annotations

from pathlib import Path

from oakum import registry
from oakum.catalog import describe_methods, methods_page

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_page_in_docs_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == methods_page(), "run `make docs`"


def test_every_method_is_described() -> None:
    for kind in registry.KINDS:
        entries = describe_methods(kind)
        assert [entry["name"] for entry in entries] == list(registry.available(kind))
        for entry in entries:
            assert len(entry["summary"]) > 10
            assert entry["source"] or entry["name"] == "none"
