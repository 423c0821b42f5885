"""The information bottleneck's loss and cutout against the released code's outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from oakum.defenses.mid import information
from oakum.training.augmentation import cut_out


def check_bottleneck(case) -> None:
    total_information = information(case.tensor("vib/mu"), case.tensor("vib/std")).mean()
    cross_entropy = F.cross_entropy(case.tensor("vib/logits"), case.tensor("vib/y"))
    assert_allclose(total_information, case["vib/info"], rtol=1e-6)
    assert_allclose(cross_entropy, case["vib/ce"], rtol=1e-6)
    assert_allclose(cross_entropy + float(case["vib/beta"]) * total_information, case["vib/total"], rtol=1e-6)


def check_cutout(case) -> None:
    """The offsets are all images' center rows, then all center columns."""
    rows, columns = case.tensor("vmi/cutout_offsets").view(2, -1)
    got = cut_out(case.tensor("vmi/cutout_in"), rows, columns)
    assert torch.equal(got, case.tensor("vmi/cutout_out"))


OWNS = r"vib/|vmi/cutout_"
RULES = [
    (r"vib/(mu|std|logits|y|beta)", None),
    (r"(?P<case>vib)/(ce|info|total)", check_bottleneck),
    (r"vmi/cutout_(in|offsets)", None),
    (r"(?P<case>vmi/cutout_out)", check_cutout),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
