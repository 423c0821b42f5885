"""Gradient attack: the L1 norm with respect to the weights."""

from __future__ import annotations

from typing import ClassVar

from oakum.attacks.membership._gradient_norm import GradientNorm


class GradWL1(GradientNorm):
    """Scores a point by minus the L1 norm of its cross-entropy's gradient with respect to all parameters."""

    statistic: ClassVar[str] = "w/l1"
