"""MemGuard's first phase: the noise that takes a vector of scores across the detector's boundary, in whole batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from oakum.defenses._memguard_detector import membership_logits

Variant = Literal["paper", "released_code"]

MAX_STEPS = 299
STEP_SIZE = 0.1
LABEL_WEIGHT = 10.0
# Weights of the distance, one after the other; the last one with which the search succeeds gives the noise.
DISTANCE_WEIGHTS = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5)
# A clean vector as near as this to the boundary, in probability of membership, needs no noise.
UNDECIDED = 1e-5
# Bisection ends as near as this to the boundary, or after so many halvings.
TOLERANCE = 1e-3
MAX_HALVINGS = 20


@dataclass(frozen=True)
class Perturbation:
    """What the search came to for each of B vectors.

    Attributes:
        logits: (B, C) in the dtype of the clean ones, which they equal where no noise was needed or found; the argmax
            never changes.
        is_found: (B,) bool, noise was found.
        is_failed: (B,) bool, noise was needed, and none was found within the steps.
        distance: (B,) float64, L1 distance between clean and perturbed probabilities, in [0, 2].
        clean_margin: (B,) float64, |g - 0.5| of the clean vector, in [0, 0.5].
        margin: the same of the perturbed vector.
    """

    logits: Tensor
    is_found: Tensor
    is_failed: Tensor
    distance: Tensor
    clean_margin: Tensor
    margin: Tensor


@torch.no_grad()
def perturb(logits: Tensor, detector: nn.Module, *, variant: Variant = "paper", bisect: bool = False) -> Perturbation:
    """Return the smallest noise found for each vector (Jia et al. 2019, phase I).

    With l the argmax of the clean logits, s their softmax, g the detector's probability and u = logit(g): each vector
    is moved by steps of length 0.1 down the gradient of

        |u| + 10 max(0, max_{j != l} z_j - z_l) + w ||softmax(z) - s||_1

    until its argmax is l and u has lost the sign it started with; then from the start again with w ten times as large,
    from 0.1 to 1e5, until 299 steps are not enough. The last success counts. Vectors do not influence one another, and
    float64 keeps the rounding of larger or smaller batches from growing on the way.

    Args:
        logits: clean ones, (B, C), on the detector's device; B may be 0.
        detector: see `Detector`, in float64.
        variant: `paper` lets the detector read every iterate sorted, as it reads what is released; `released_code`
            keeps the places that the classes have in the sorted clean vector.
        bisect: look between the last two iterates for a point with |g - 0.5| <= 1e-3, on either side, instead of taking
            the first iterate beyond the boundary.
    """
    clean = logits.double()
    scores = clean.softmax(dim=1)
    clean_u = membership_logits(detector, scores)
    clean_margin = _margin(clean_u)
    is_needed = clean_margin > UNDECIDED
    rows = is_needed.nonzero().squeeze(1)
    queries = _Queries(clean, scores, logits.argmax(dim=1), clean.argsort(dim=1, stable=True), clean_u)
    search = _Search(detector, variant, logits.dtype)
    inside, outside, crossed = search.run(queries[rows])
    rows, inside, outside = rows[crossed], inside[crossed], outside[crossed]
    if bisect:
        outside = search.bisect(queries[rows], inside, outside)
    is_found = torch.zeros_like(is_needed)
    is_found[rows] = True
    perturbed = logits.clone()
    perturbed[rows] = outside.to(logits.dtype)
    probabilities = perturbed.double().softmax(dim=1)
    return Perturbation(
        logits=perturbed,
        is_found=is_found,
        is_failed=is_needed & ~is_found,
        distance=(probabilities - scores).abs().sum(dim=1),
        clean_margin=clean_margin,
        margin=_margin(membership_logits(detector, probabilities)),
    )


def _margin(u: Tensor) -> Tensor:
    return (u.sigmoid() - 0.5).abs()


@dataclass(frozen=True)
class _Queries:
    """Vectors under search: clean logits and scores, (B, C) float64, argmax (B,), sorting order (B, C), and u (B,)."""

    clean: Tensor
    scores: Tensor
    label: Tensor
    order: Tensor
    clean_u: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> _Queries:
        parts = (self.clean, self.scores, self.label, self.order, self.clean_u)
        return _Queries(*(part[rows] for part in parts))


class _Search:
    """Moves vectors against one detector; argmaxes must agree in `dtype`, in which vectors are released."""

    def __init__(self, detector: nn.Module, variant: Variant, dtype: torch.dtype) -> None:
        self._detector = detector
        self._variant = variant
        self._dtype = dtype

    def run(self, queries: _Queries) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last two iterates of the last success, each (B, C), and whether there was one, (B,) bool."""
        inside, outside = queries.clean.clone(), queries.clean.clone()
        found = torch.zeros_like(queries.label, dtype=torch.bool)
        rows = torch.arange(len(queries), device=found.device)
        for weight in DISTANCE_WEIGHTS:
            before, after, crossed = self._descend(queries[rows], weight)
            rows = rows[crossed]
            if not len(rows):
                break
            inside[rows], outside[rows], found[rows] = before[crossed], after[crossed], True
        return inside, outside, found

    def _descend(self, queries: _Queries, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last two iterates of successes, each (B, C), and which rows are successes, (B,) bool."""
        inside, outside = queries.clean.clone(), queries.clean.clone()
        crossed = torch.zeros_like(queries.label, dtype=torch.bool)
        rows = torch.arange(len(queries), device=crossed.device)
        z = queries.clean
        _, direction = self._read(queries, z, weight)
        for _ in range(MAX_STEPS):
            if not len(rows):
                break
            before, z = z, z - STEP_SIZE * direction
            u, direction = self._read(queries, z, weight)
            is_success = self._is_success(queries, z, u)
            if is_success.any():
                done = rows[is_success]
                inside[done], outside[done], crossed[done] = before[is_success], z[is_success], True
                goes_on = ~is_success
                rows, queries, z, direction = rows[goes_on], queries[goes_on], z[goes_on], direction[goes_on]
        return inside, outside, crossed

    @torch.enable_grad()
    def _read(self, queries: _Queries, z: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Return u (B,) and the loss's gradient at z, scaled to length 1 (or 0, where it vanishes), (B, C)."""
        z = z.detach().requires_grad_(True)
        probabilities = z.softmax(dim=1)
        u = self._membership_logits(queries, probabilities)
        loss = u.abs() + _cost(queries, z, probabilities, weight)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        norm = gradient.norm(dim=1, keepdim=True)
        return u.detach(), gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def bisect(self, queries: _Queries, inside: Tensor, outside: Tensor) -> Tensor:
        """Return points (B, C) between two iterates, of which the second is a success, with the clean argmax."""
        result = outside.clone()
        rows = torch.arange(len(queries), device=result.device)
        for _ in range(MAX_HALVINGS):
            if not len(rows):
                break
            middle = (inside + outside) / 2
            u = self._membership_logits(queries, middle.softmax(dim=1))
            is_success = self._is_success(queries, middle, u)[:, None]
            is_near = self._keeps_label(queries, middle) & (_margin(u) <= TOLERANCE)
            inside = torch.where(is_success, inside, middle)
            outside = torch.where(is_success, middle, outside)
            result[rows] = torch.where(is_near[:, None], middle, outside)
            rows, queries, inside, outside = rows[~is_near], queries[~is_near], inside[~is_near], outside[~is_near]
        return result

    def _membership_logits(self, queries: _Queries, probabilities: Tensor) -> Tensor:
        if self._variant == "paper":
            return membership_logits(self._detector, probabilities)
        logits: Tensor = self._detector(probabilities.gather(1, queries.order))
        return logits.squeeze(1)

    def _is_success(self, queries: _Queries, z: Tensor, u: Tensor) -> Tensor:
        return (u * queries.clean_u <= 0) & self._keeps_label(queries, z)

    def _keeps_label(self, queries: _Queries, z: Tensor) -> Tensor:
        return z.to(self._dtype).argmax(dim=1) == queries.label


def _cost(queries: _Queries, z: Tensor, probabilities: Tensor, weight: float) -> Tensor:
    """Return the two terms beside |u|, (B,): another argmax, and the distance."""
    label = queries.label[:, None]
    largest_other = z.scatter(1, label, -torch.inf).max(dim=1).values
    excess = (largest_other - z.gather(1, label).squeeze(1)).relu()
    distance = (probabilities - queries.scores).abs().sum(dim=1)
    return LABEL_WEIGHT * excess + weight * distance
