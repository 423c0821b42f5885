"""Gradient attack: the L2 norm with respect to the weights."""

from __future__ import annotations

from typing import ClassVar

from oakum.attacks.membership._gradient_norm import GradientNorm


class GradWL2(GradientNorm):
    """Scores a point by minus the L2 norm of its cross-entropy's gradient with respect to all parameters."""

    statistic: ClassVar[str] = "w/l2"
