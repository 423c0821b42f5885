"""What the training of every prior shares: the loop over updates with its history and checkpoints, and image sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from oakum.config import ConfigError
from oakum.models.base import InputShape

Resume = Callable[[dict[str, Any]], dict[str, Any] | None]
Checkpoint = Callable[[int, dict[str, Any], dict[str, Any]], None]


def run_updates(
    update: Callable[[int], Mapping[str, Tensor]],
    parts: dict[str, Any],
    resume: Resume,
    checkpoint: Checkpoint,
    *,
    updates: int,
    log_every: int,
    hint: str = "lower its learning rate",
) -> list[dict[str, Any]]:
    """Run the updates that a checkpoint has not made yet and return the history.

    A row holds the latest value of each loss: one that not every update has stays from the update that had it.

    Args:
        update: makes update number `step` (from 0) and returns its losses, scalars.
        parts, resume, checkpoint: see `Prior.train`.
        hint: what to do when a loss is not finite.

    Raises:
        ArithmeticError: a loss is NaN or infinite; seen when the row is written.
    """
    record = resume(parts) or {"step": 0, "history": []}
    history: list[dict[str, Any]] = record["history"]
    latest: dict[str, Any] = dict(history[-1]) if history else {}
    for step in range(record["step"], updates):
        latest |= {"step": step + 1, **update(step)}
        if (step + 1) % log_every == 0 or step + 1 == updates:
            latest = {name: value if name == "step" else float(value) for name, value in latest.items()}
            if not all(math.isfinite(value) for value in latest.values()):
                raise ArithmeticError(f"the prior diverged at update {step + 1}; {hint}")
            history.append(dict(latest))
            checkpoint(step + 1, parts, {"step": step + 1, "history": history})
    return history


def square_image(prior: str, shape: InputShape, smallest: int, largest: int | None = None) -> tuple[int, int]:
    """Return (channels, pixels a side) of square images whose side is a power of two.

    Raises:
        ConfigError: rows, other proportions, or another size; names the sizes that are possible.
    """
    size = shape.dims[1] if shape.is_image else 0
    fits = smallest <= size <= (largest or size) and size & (size - 1) == 0
    if not shape.is_image or shape.dims[1] != shape.dims[2] or not fits:
        sides = [smallest << n for n in range(10) if smallest << n <= (largest or 64)]
        *others, last = map(str, sides)
        listed = f"{', '.join(others)} or {last}" if largest else f"{', '.join([*others, last])}, ..."
        raise ConfigError(
            f"prior {prior!r} makes square images of {listed} pixels, but the data has shape {shape.dims}; "
            "set data.image_size to one of these"
        )
    return shape.dims[0], size
