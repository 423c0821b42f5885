"""What is installed: every method with its summary and source, for `oakum list` and `docs/methods.md`."""

from __future__ import annotations

import importlib
import inspect
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


_HEADINGS = {
    "defenses": "Defenses",
    "attacks.membership": "Membership attacks",
    "attacks.inversion": "Inversion attacks",
    "datasets": "Data sets",
    "models": "Models",
    "priors": "Priors",
    "extractors": "Extractors",
}


def methods_page() -> str:
    """Return `docs/methods.md`: every built-in method with its summary, source and deviations from the paper."""
    lines = ["# Methods", "", "Generated from the code by `make docs`; a test keeps it true.", ""]
    for kind in registry.KINDS:
        lines += [f"## {_HEADINGS[kind]}", "", "| name | what | source |", "|---|---|---|"]
        for entry in describe_methods(kind):
            source = entry["source"]
            cited = f"{source['authors']}: {source['title']}. {source['venue']} {source['year']}" if source else ""
            lines.append(f"| `{entry['name']}` | {entry['summary']} | {cited} |")
        lines.append("")
        for entry in describe_methods(kind):
            text = _deviations(registry.load(kind, entry["name"]))
            if text:
                lines += [f"**`{entry['name']}`** differs from its source: {text}", ""]
        lines += _schedulable_settings() if kind == "defenses" else []
    return "\n".join(lines).rstrip() + "\n"


def _schedulable_settings() -> list[str]:
    """Return the section on settings that may change during training."""
    found = {name: registry.load("defenses", name).schedulable for name in registry.available("defenses")}
    listed = [
        f"`{name}`: {', '.join(f'`{each}`' for each in settings)}" for name, settings in found.items() if settings
    ]
    return [
        "### Settings that may change during training",
        "",
        "`{name: relaxloss, alpha: 1.0, schedule: {5: {alpha: 2.0}}}` trains with `alpha` 2 from epoch 5 on, counted "
        "from 0; see docs/design.md. What may change: " + "; ".join(listed) + ".",
        "",
    ]


def _deviations(cls: type[Any]) -> str:
    """Return the paragraphs of a class's docstring that begin with `Differs from`."""
    blocks = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    found = [" ".join(block.split()) for block in blocks if block.startswith("Differs from")]
    return " ".join(block.partition(":")[2].strip() for block in found)
