"""Gradient attack: the L1 norm with respect to the input."""

from __future__ import annotations

from typing import ClassVar

from oakum.attacks.membership._gradient_norm import GradientNorm


class GradXL1(GradientNorm):
    """Scores a point by minus the L1 norm of its cross-entropy's gradient with respect to its normalized input."""

    statistic: ClassVar[str] = "x/l1"
