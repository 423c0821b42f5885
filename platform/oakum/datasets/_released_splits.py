"""The splits of the code released with RelaxLoss (Chen, Yu, Fritz, ICLR 2022), row by row.

Every function returns the five folds as int64 row ids in the released order. They are drawn by NumPy's legacy
generator, whose stream never changes, and are not stratified.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

CIFAR_ROWS, CIFAR_TRAIN_ROWS = 60_000, 50_000


def relaxloss_cifar(rows: int, seed: int) -> dict[str, Rows]:
    """Return the split of CIFAR-10 and CIFAR-100: all rows shuffled, then five slices of rows // 5.

    Args:
        rows: of the data set; 60,000, the training rows before the test rows, for the released split.
        seed: 1000 for the released split.
    """
    order = np.random.RandomState(seed).permutation(np.arange(rows, dtype=np.int64))
    size = rows // 5
    names = ("train", "test", "shadow_train", "shadow_test", "reference")
    return {name: order[i * size : (i + 1) * size] for i, name in enumerate(names)}


def relaxloss_texas(order: Rows, seed: int) -> dict[str, Rows]:
    """Return the split of Texas100.

    The target's folds keep the order of their pools; the shadow's are shuffled.

    Args:
        order: (67330,) row ids in the fixed order that came with the released code (`random_r_texas100.npy`).
        seed: 1000 for the released split.
    """
    members, reference, others = _pools(order)
    generator = np.random.RandomState(seed)
    folds = {"reference": reference}
    for name, pool in (("train", members), ("test", others)):
        shuffled = generator.permutation(len(pool))
        chosen = shuffled[: len(pool) // 2]
        folds[f"shadow_{name}"] = pool[chosen]
        folds[name] = np.delete(pool, chosen)
    return folds


def relaxloss_purchase(order: Rows, seed: int) -> dict[str, Rows]:
    """Return the split of Purchase100; the last row of `order` is left out where the pools would differ in size.

    Args:
        order: (197324,) row ids in the fixed order that came with the released code (`random_r_purchase100.npy`).
        seed: 1000 for the released split.
    """
    members, reference, others = _pools(order)
    generator = np.random.RandomState(seed)
    folds = {"reference": reference}
    for name, pool in (("train", members), ("test", others[: len(members)])):
        shuffled = generator.permutation(len(pool))
        folds[f"shadow_{name}"] = pool[shuffled[: len(pool) // 2]]
        folds[name] = pool[shuffled[len(pool) // 2 :]]
    return folds


def _pools(order: Rows) -> tuple[Rows, Rows, Rows]:
    """Return the first 40 %, the next 20 % and the last 40 %; the cuts are rounded down."""
    first, second = int(0.4 * len(order)), int(0.6 * len(order))
    return order[:first], order[first:second], order[second:]
