"""How things are listed in sentences, the same on every page."""

from __future__ import annotations


def listed(names: list[str]) -> str:
    """Write names as `a`, `a and b` or `a, b and c`; nothing of no name."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
