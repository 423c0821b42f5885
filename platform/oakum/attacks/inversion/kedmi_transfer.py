"""KED-MI with a prior that was trained against the undefended model."""

from __future__ import annotations

from typing import ClassVar, Literal

from oakum.attacks.inversion.kedmi import KEDMI
from oakum.registry import Source


class KEDMITransfer(KEDMI):
    """KED-MI whose inversion-specific GAN knows the undefended model of the same seed, not the attacked one.

    All defense settings of a seed share one prior: a difference between them then comes from the search alone, and
    beside KED-MI it shows what the prior's training against a defended model costs the adversary. All noise is
    KED-MI's.

    Differs from the paper: the adversary there trains the prior against the model that it attacks.
    """

    source = Source(
        title="Knowledge-Enriched Distributional Model Inversion Attacks",
        authors="Si Chen, Mostafa Kahla, Ruoxi Jia, Guo-Jun Qi",
        venue="ICCV",
        year=2021,
        link="https://arxiv.org/abs/2010.04092",
    )
    prior_of: ClassVar[Literal["target", "undefended"]] = "undefended"
    draws_of: ClassVar[str] = "kedmi"

    class Config(KEDMI.Config):
        """Settings of KED-MI."""

    config: Config
