"""The splits of the released RelaxLoss code, row by row where that needs no file of its repository."""

from __future__ import annotations

import hashlib

import numpy as np

from oakum.datasets._released_splits import relaxloss_cifar, relaxloss_purchase, relaxloss_texas

# Fold in the file -> ours.
FOLDS = {
    "target_train": "train",
    "target_test": "test",
    "shadow_train": "shadow_train",
    "shadow_test": "shadow_test",
    "pseudo_test": "reference",
    "pseudo_attack": "reference",
}
TABULAR = {"texas": (relaxloss_texas, 67_330), "purchase": (relaxloss_purchase, 197_324)}
# The released permutation files are not at hand; these are the row ids that they begin with.
STARTS = {"texas": (43_098, 53_253, 62_391, 30_902), "purchase": (27_342, 106_867, 131_585, 173_810)}


def check_cifar(case) -> None:
    rows = relaxloss_cifar(60_000, int(case["partition/seed"]))[FOLDS[case.groups["fold"]]]
    np.testing.assert_array_equal(rows[:16], case.at("first16"))
    assert len(rows) == case.at("size")
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == str(case.at("sha256"))


def tabular_folds(case) -> dict[str, np.ndarray]:
    """The split of a permutation that begins as the released one and goes on in ascending order."""
    data = case.groups["data"]
    split, rows = TABULAR[data]
    others = np.setdiff1d(np.arange(rows), STARTS[data])
    return split(np.concatenate([STARTS[data], others]), int(case["partition/seed"]))


def check_tabular(case) -> None:
    """Sizes; and of the rows whose place is known, those that the file shows are where it shows them."""
    rows = tabular_folds(case)[FOLDS[case.groups["fold"]]]
    assert len(rows) == case.at("size")
    known = STARTS[case.groups["data"]]
    for found, expected in zip(rows.tolist(), case.at("first16").tolist(), strict=False):
        assert (found in known) == (expected in known)
        assert found == expected or found not in known


def check_disjoint(case) -> None:
    rows = np.concatenate(list(tabular_folds(case).values()))
    assert (len(np.unique(rows)) == len(rows)) == bool(case[case.name])


OWNS = r"partition/"
RULES = [
    (r"partition/seed", None),
    (r"(?P<case>partition/cifar/(?P<fold>\w+))/(first16|size|sha256)", check_cifar),
    (r"(?P<case>partition/(?P<data>texas|purchase)/(?P<fold>\w+))/size", check_tabular),
    (r"(?P<case>partition/(?P<data>texas|purchase)/disjoint)", check_disjoint),
    # Not checked: tests/golden/EXCLUDED.md.
    (r"partition/(texas|purchase)/\w+/(first16|sha256)", None),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
