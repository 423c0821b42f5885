"""Precision, recall, density and coverage against the released code's outputs."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from oakum.metrics import inversion


def check_score(case) -> None:
    """The released code asks the ball of the nearest sample alone; density and coverage know no variants."""
    name, k = case.groups["name"], int(case.groups["k"])
    fake, real = case[f"{case.groups['root']}/fake"], case[f"{case.groups['root']}/real"]
    assert_allclose(inversion.prdc(fake, real, k, variant="released_code")[name].value, case[case.name], rtol=1e-6)
    standard = inversion.prdc(fake, real, k)[name].value
    if name in ("density", "coverage"):
        assert_allclose(standard, case[case.name], rtol=1e-6)
    else:
        assert standard >= case[case.name] - 1e-6


def check_distances(case) -> None:
    fake, real = (case[f"{case.groups['root']}/{side}"].astype(np.float64) for side in ("fake", "real"))
    blocks = [block for _, block in inversion._squared_distances(fake, real)]
    assert_allclose(np.concatenate(blocks), case[case.name], rtol=1e-4, atol=1e-5)


_ROOT = r"(?P<root>prdc)"
OWNS = r"prdc/"
RULES = [
    (r"prdc/(real|fake)", None),
    (rf"(?P<case>{_ROOT}/(?P<name>precision|recall|density|coverage)@(?P<k>\d+))", check_score),
    (rf"(?P<case>{_ROOT}/sqdist_fake_real)", check_distances),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
