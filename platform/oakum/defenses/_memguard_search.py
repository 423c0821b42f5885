"""MemGuard's first phase: the noise that takes a vector of scores across the detector's boundary (whole batches)."""

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
# Weights of the distance, one after the other: the last one with which the search succeeds gives the noise.
DISTANCE_WEIGHTS = (1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5)
# Vectors so near to the boundary stay as they are, in probability of membership.
UNDECIDED = 1e-5
# Bisection ends so near to the boundary, in probability of membership, or after so many halvings.
TOLERANCE = 1e-3
MAX_HALVINGS = 20


@dataclass(frozen=True)
class Perturbation:
    """What the search came to for each of B vectors.

    Attributes:
        logits: (B, C) in the dtype of the clean ones, which they equal where nothing was needed or found; the argmax
            never changes.
        is_found: (B,) bool: noise was found.
        is_failed: (B,) bool: noise was needed, and none was found within the steps.
        distance: (B,) float64, the L1 distance between the clean and the perturbed probabilities, in [0, 2].
        clean_margin, margin: (B,) float64, |g - 0.5| of the clean and of the perturbed vector, in [0, 0.5].
    """

    logits: Tensor
    is_found: Tensor
    is_failed: Tensor
    distance: Tensor
    clean_margin: Tensor
    margin: Tensor


def perturb(
    logits: Tensor, detector: nn.Module, *, variant: Variant = "paper", bisects: bool = True
) -> Perturbation:
    """Return the smallest noise found for each vector (Jia et al. 2019, algorithm 1), computed in float64.

    Each vector is moved by steps of length 0.1 down the gradient of |u| + 10 max(0, max_{j != l} z_j - z_l)
    + w ||softmax(z) - s||_1 until its argmax is l and the detector's u = logit(g) has changed sign; then again with w ten times as
    large, from 0.1 to 1e5, until a search fails after 299 steps. The last success counts.

    Args:
        logits: clean ones, (B, C), without gradient.
        detector: see `Detector`, in float64, on the device of `logits`; its weights get no gradients.
        variant: `paper` lets the detector read every iterate sorted, as it reads what is released; `released_code`
            keeps the places that the clean vector's classes have when sorted.
        bisects: whether to look between the last two iterates for a point with |g - 0.5| <= 1e-3 on either side, instead
            of taking the first iterate beyond the boundary.
    """
    clean = logits.detach().double()
    label = logits.argmax(dim=1)
    clean_u = membership_logits(detector, clean.softmax(dim=1)).detach()
    clean_margin = _margin(clean_u)
    queries = _Queries(clean, label, clean.argsort(dim=1, stable=True), clean_u)
    search = _Search(detector, variant, logits.dtype)
    needed = clean_margin > UNDECIDED
    rows = needed.nonzero().squeeze(1)
    inside, outside, crossed = search.run(queries[rows])
    rows, inside, outside = rows[crossed], inside[crossed], outside[crossed]
    if bisects:
        outside = search.bisect(queries[rows], inside, outside)
    found = torch.zeros_like(needed)
    found[rows] = True
    perturbed = logits.detach().clone()
    perturbed[rows] = outside.to(logits.dtype)
    probabilities = perturbed.double().softmax(dim=1)
    return Perturbation(
        logits=perturbed,
        is_found=found,
        is_failed=needed & ~found,
        distance=(probabilities - clean.softmax(dim=1)).abs().sum(dim=1),
        clean_margin=clean_margin,
        margin=_margin(membership_logits(detector, probabilities).detach()),
    )


def _margin(u: Tensor) -> Tensor:
    return (u.sigmoid() - 0.5).abs()


@dataclass(frozen=True)
class _Queries:
    """Vectors under search: clean logits (B, C) float64, their argmax (B,), sorting order (B, C), and u (B,)."""

    clean: Tensor
    label: Tensor
    order: Tensor
    clean_u: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> _Queries:
        return _Queries(self.clean[rows], self.label[rows], self.order[rows], self.clean_u[rows])


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

    @torch.enable_grad()
    def _descend(self, queries: _Queries, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last two iterates, each (B, C), and whether the last one is a success, (B,) bool."""
        z = queries.clean
        inside, outside = z.clone(), z.clone()
        crossed = torch.zeros_like(queries.label, dtype=torch.bool)
        rows = torch.arange(len(queries), device=z.device)
        for step in range(MAX_STEPS + 1):
            z = z.detach().requires_grad_(True)
            probabilities = z.softmax(dim=1)
            u = self._membership_logits(queries, probabilities)
            going = torch.ones_like(crossed[rows])
            if step > 0:
                outside[rows] = z.detach()
                going = ~self._is_success(queries, z, u)
                crossed[rows[~going]] = True
                if step == MAX_STEPS or not going.any():
                    break
            loss = u.abs() + self._cost(queries, z, probabilities, weight)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
            rows, queries, z, gradient = rows[going], queries[going], z.detach()[going], gradient[going]
            inside[rows] = z
            norm = gradient.norm(dim=1, keepdim=True)
            z = z - STEP_SIZE * gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return inside, outside, crossed

    def bisect(self, queries: _Queries, inside: Tensor, outside: Tensor) -> Tensor:
        """Return points (B, C) between two iterates of which the second is a success, which the argmax never leaves."""
        result = outside.clone()
        rows = torch.arange(len(queries), device=result.device)
        for _ in range(MAX_HALVINGS):
            if not len(rows):
                break
            middle = (inside + outside) / 2
            u = self._membership_logits(queries, middle.softmax(dim=1)).detach()
            keeps_label = middle.to(self._dtype).argmax(dim=1) == queries.label
            success = keeps_label & (u * queries.clean_u <= 0)
            near = keeps_label & (_margin(u) <= TOLERANCE)
            inside = torch.where(success[:, None], inside, middle)
            outside = torch.where(success[:, None], middle, outside)
            result[rows] = torch.where(near[:, None], middle, outside)
            rows, queries, inside, outside = rows[~near], queries[~near], inside[~near], outside[~near]
        return result

    def _membership_logits(self, queries: _Queries, probabilities: Tensor) -> Tensor:
        if self._variant == "paper":
            return membership_logits(self._detector, probabilities)
        logits: Tensor = self._detector(probabilities.gather(1, queries.order))
        return logits.squeeze(1)

    def _is_success(self, queries: _Queries, z: Tensor, u: Tensor) -> Tensor:
        return (u * queries.clean_u <= 0) & (z.to(self._dtype).argmax(dim=1) == queries.label)

    @staticmethod
    def _cost(queries: _Queries, z: Tensor, probabilities: Tensor, weight: float) -> Tensor:
        label = queries.label[:, None]
        largest_other = z.scatter(1, label, -torch.inf).max(dim=1).values
        excess = (largest_other - z.gather(1, label).squeeze(1)).relu()
        distance = (probabilities - queries.clean.softmax(dim=1)).abs().sum(dim=1)
        return LABEL_WEIGHT * excess + weight * distance
