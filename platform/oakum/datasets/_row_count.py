"""What the number of rows says about a source whose checksum nobody published."""

from __future__ import annotations

from oakum.datasets._download import Progress


def matches_row_count(name: str, rows: int, published: int, progress: Progress) -> bool | None:
    """Return False when rows are missing or too many, and say so; None otherwise: equal counts prove nothing."""
    if rows == published:
        return None
    progress(f"{name}: {rows:,} rows, the published data has {published:,}", None)
    return False
