"""What is installed: every method with its summary and source, for `oakum list` and the docs."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from typing import Any

from oakum import registry


def describe_methods(kind: str) -> list[dict[str, Any]]:
    """Return {kind, name, summary, source} of every installed method of `kind` (a key of `registry.KINDS`).

    The summary is the first sentence of the module's docstring; the source is None for the baseline.
    """
    found = []
    for name, module in registry.available(kind).items():
        cls = registry.load(kind, name)
        text = (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]
        source = getattr(cls, "source", None)
        found.append(
            {
                "kind": kind,
                "name": name,
                "summary": " ".join(text.split()),
                "source": asdict(source) if source is not None else None,
            }
        )
    return found
