"""Generated rows of zeros and ones with classes that a network learns only in part and memorizes for the rest.

Every feature has a popularity: the probability that it is 1, spread geometrically over the features. A class shares
most of them; for a share of the features, chosen for each class, it exchanges the popularities among themselves. A
row of class c has a typicality a in [0, 1] and takes feature j as 1 with probability
popularity[j] + a * (class_popularity[c, j] - popularity[j]), independently of all others. Typical rows are easy;
atypical ones look like any class, so that a network fits them by memory alone and membership shows.

Probabilities are whole multiples of 2**-16 and draws come from NumPy's legacy generator, whose stream never changes:
the rows are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oakum.datasets._prepared import Content, DataError

_ONE = 1 << 16
_MOST_TYPICAL = 1 << 8
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Process:
    """What is generated.

    Attributes:
        rows, features, num_classes: counts; classes are of equal size, give or take one row.
        popularity: lowest and highest probability of a feature.
        exchanged: share of the features whose popularities a class exchanges, in [0, 1].
        typicality_draws: typicality is the largest of so many uniform draws; more make rows more typical.
        seed: of the legacy generator.
    """

    rows: int
    features: int
    num_classes: int
    popularity: tuple[float, float]
    exchanged: float
    typicality_draws: int
    seed: int


def generate(process: Process) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return x (rows, features) of 0 and 1, and y (rows,) in [0, num_classes); equal processes give equal rows."""
    generator = np.random.RandomState(process.seed)
    popularity, of_class = _popularities(process, generator)
    y = generator.permutation(np.arange(process.rows, dtype=np.int64) % process.num_classes)
    draws = generator.randint(0, _MOST_TYPICAL + 1, size=(process.rows, process.typicality_draws), dtype=np.int32)
    typicality = draws.max(axis=1)
    x = np.empty((process.rows, process.features), dtype=np.uint8)
    for start in range(0, process.rows, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, process.rows))
        pull = typicality[rows, None] * (of_class[y[rows]] - popularity)
        probability = popularity + pull // _MOST_TYPICAL
        x[rows] = generator.randint(0, _ONE, size=probability.shape, dtype=np.uint16) < probability
    return x, y


def synthetic_content(process: Process, source: Path | None) -> Content:
    """Generate a whole data set.

    Raises:
        DataError: the user gave a source.
    """
    if source is not None:
        raise DataError("synthetic data is generated; leave out --source")
    x, y = generate(process)
    return Content(
        x=x,
        y=y,
        part=np.full(len(y), "all"),
        identity=None,
        class_names=tuple(f"synthetic group {i + 1}" for i in range(process.num_classes)),
        max_value=1,
        origin=f"generated, seed {process.seed}",
    )


def _popularities(process: Process, generator: np.random.RandomState) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the features' (features,) and the classes' (num_classes, features) popularities in units of 2**-16."""
    spread = np.geomspace(*process.popularity, process.features) * _ONE
    popularity = generator.permutation(spread.astype(np.int32))
    of_class = np.tile(popularity, (process.num_classes, 1))
    for own in of_class:
        chosen = generator.permutation(process.features)[: round(process.exchanged * process.features)]
        own[chosen] = generator.permutation(own[chosen])
    return popularity, of_class
