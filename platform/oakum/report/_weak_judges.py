"""Judges that know the attacked classes less well than the attacked model does, or that accept empty pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping

from oakum.records import CellRecord
from oakum.report.statistics import spread

_FAINT = re.compile(r"inversion/[^/]+/faint")
# Above this share of faint hits a reader is warned.
_MANY = 0.1
_JUDGES = {"evaluator": "evaluation model", "second": "second evaluation model"}


def real_accuracy(cells: tuple[CellRecord, ...], judge: str) -> float | None:
    """Return how many of the real images of attacked classes `evaluator` or `second` gets right, over seeds; or None.

    All attacks of a cell are judged beside the same real images, so the first one says it.
    """
    ending = f"/accuracy_on_real.{judge}"
    own = [next((value for key, value in cell.metrics.items() if key.endswith(ending)), None) for cell in cells]
    known = [found.value for found in own if found is not None and found.value is not None]
    return sum(known) / len(known) if known else None


def weak_judges(undefended: tuple[CellRecord, ...]) -> list[str]:
    """Return a warning for each judge that is right less often than the undefended model on unseen images.

    The judge is asked about real images of the attacked classes, which it may even have learned from.
    """
    target = spread(undefended, "utility/test_accuracy").mean
    if target is None:
        return []
    found = {title: real_accuracy(undefended, judge) for judge, title in _JUDGES.items()}
    return [
        f"The {title} recognizes {100 * share:.0f} % of the real images of the attacked classes, the undefended model "
        f"{100 * target:.0f} % of its test images: what so weak a judge rejects may show the class all the same."
        for title, share in found.items()
        if share is not None and share < target
    ]


def faint_hits(settings: Mapping[str, tuple[CellRecord, ...]]) -> list[str]:
    """Return a warning for each attack many of whose hits are fainter than any real image of their class.

    Args:
        settings: label -> its cells.
    """
    keys = dict.fromkeys(
        key for cells in settings.values() for cell in cells for key in cell.metrics if _FAINT.fullmatch(key)
    )
    found = []
    for key in keys:
        shares = {label: spread(cells, key).mean for label, cells in settings.items()}
        many = [
            f"{label} {100 * share:.0f} %" for label, share in shares.items() if share is not None and share > _MANY
        ]
        if many:
            found.append(
                f"Of what {key.split('/')[1]} made and the evaluation model recognizes, a part has less contrast than "
                f"every real image of its class ({', '.join(many)}): look at the pictures, a judge has to name a class "
                "even for an empty one."
            )
    return found
