"""What Poisson sampling, clipping and Gaussian noise guarantee, computed by Opacus' accountants."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from oakum.config import ConfigError

Accountant = Literal["prv", "rdp"]

# Orders near 1 matter where noise is small: with 1.1 as the least one, epsilon comes out up to 100 times too large.
RDP_ORDERS = (
    *(1 + 10 ** (-k / 4) for k in range(20, 3, -1)),
    *(1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5),
    *range(5, 64),
    *(128, 256, 512),
)
# The PRV accountant discretizes [-epsilon, epsilon]: far above this it needs minutes and gigabytes, or overflows.
LARGEST_PRV_EPSILON = 200.0
SMALLEST_NOISE, LARGEST_NOISE = 1e-5, 1e5
NOISE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism on Poisson-sampled batches, composed over all steps.

    Attributes:
        sample_rate: q in (0, 1], the probability of each row to be in a batch.
        steps: optimizer steps, at least 1.
        delta: in (0, 1).
    """

    sample_rate: float
    steps: int
    delta: float


@dataclass(frozen=True)
class Guarantee:
    """An upper bound on epsilon at the mechanism's delta, for neighbors that differ by adding or removing one row.

    Attributes:
        epsilon: at least 0, or None where there is no finite bound.
        note: the accountant that gave the bound, or why there is none.
    """

    epsilon: float | None
    note: str


@lru_cache(maxsize=1024)
def guarantee(noise_multiplier: float, mechanism: Mechanism, accountant: Accountant) -> Guarantee:
    """Return the smallest bound that the accountant offers.

    `rdp` composes Renyi divergences (Mironov, Talwar, Zhang 2019) and converts them (Balle et al. 2020, Theorem 21).
    `prv` composes privacy losses numerically (Gopi, Lee, Wutschitz 2021), to within half a percent of epsilon or 0.01;
    where the Renyi bound is smaller, or above 200, `prv` returns the Renyi bound.

    Args:
        noise_multiplier: standard deviation of the noise in units of the clipping norm; 0 gives no finite bound.
        mechanism: sampling, steps and delta.
        accountant: which bound to compute.
    """
    if noise_multiplier == 0:
        return Guarantee(None, "no noise, no guarantee")
    history = [(noise_multiplier, mechanism.sample_rate, mechanism.steps)]
    with _quiet():
        renyi = _renyi(history, mechanism.delta)
        losses = None
        if accountant == "prv" and renyi is not None and renyi <= LARGEST_PRV_EPSILON:
            losses = _privacy_losses(history, mechanism.delta, error=min(max(0.005 * renyi, 0.01), 1.0))
    if losses is not None and (renyi is None or losses < renyi):
        return Guarantee(losses, "PRV accountant")
    if renyi is not None:
        return Guarantee(renyi, "RDP accountant")
    return Guarantee(None, "the accountants find no finite bound")


@lru_cache(maxsize=256)
def noise_for(epsilon: float, mechanism: Mechanism, accountant: Accountant) -> float:
    """Return a noise multiplier whose guarantee is at most `epsilon`, no more than about 0.2 % above the least one.

    Raises:
        ConfigError: no noise multiplier up to 100,000 is enough.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        found = guarantee(math.exp(log_noise), mechanism, accountant).epsilon
        return math.log((1e300 if found is None else max(found, 1e-300)) / epsilon)

    low, high = math.log(SMALLEST_NOISE), math.log(LARGEST_NOISE)
    if excess(high) > 0:
        raise ConfigError(
            f"dpsgd: no noise reaches epsilon {epsilon:g} at delta {mechanism.delta:g} in {mechanism.steps} steps that "
            f"sample {mechanism.sample_rate:.3g} of the training fold; raise epsilon or delta, or train fewer epochs"
        )
    log_noise: float = low if excess(low) <= 0 else brentq(excess, low, high, xtol=NOISE_TOLERANCE)
    while excess(log_noise) > 0:
        log_noise += NOISE_TOLERANCE
    return math.exp(log_noise)


def import_opacus() -> None:
    """Import Opacus (seconds) without the handler that its import adds to the root logger."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    import opacus  # noqa: F401

    root.handlers[:] = handlers


def _renyi(history: list[tuple[float, float, int]], delta: float) -> float | None:
    import_opacus()
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = history
    try:
        return _bound(accountant.get_epsilon(delta, alphas=list(RDP_ORDERS)))
    except (ArithmeticError, ValueError):
        return None


def _privacy_losses(history: list[tuple[float, float, int]], delta: float, error: float) -> float | None:
    import_opacus()
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    try:
        return _bound(accountant.get_epsilon(delta, eps_error=error))
    except (ArithmeticError, RuntimeError, ValueError):
        return None


def _bound(epsilon: float) -> float | None:
    return max(float(epsilon), 0.0) if math.isfinite(epsilon) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the accountants, which warn of the ends of their grids and of the logarithm of 0."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
