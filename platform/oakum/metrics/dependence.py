"""Dependence between two views of one batch: normalized HSIC and COCO, from kernel matrices.

Legend for names: M rows of the batch, D features of a row, J stacked kernel matrices.

A kernel matrix is turned once into an operator by `prepare`; `dependence` of two operators is then one product. A
batch's input and label operators are prepared once and reused for every hidden layer, and the kernel matrices of all
hidden layers can be stacked and prepared together.

Source: Peng et al., "Bilateral Dependency Optimization: Defending Against Model-inversion Attacks", KDD 2022. HSIC is
the normalized form of Fukumizu et al., "Kernel Measures of Conditional Dependence", NIPS 2007; COCO is Gretton et
al., "Kernel Constrained Covariance for Dependence Measurement", AISTATS 2005.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KernelName = Literal["gaussian", "linear", "imq"]
Measure = Literal["hsic", "coco"]
MatrixNorm = Literal["frobenius", "spectral"]
Sigma = float | Literal["median"]

HSIC_RIDGE = 1e-5
MEDIAN_FLOOR = 1e-2
# Products of centered kernel matrices whose squared norm is below this are rounding errors of zero; the fourth
# root has no finite slope there.
_COCO_ZERO = 1e-30


def squared_distances(rows_MD: Tensor) -> Tensor:
    """Return squared Euclidean distances between rows, (M, M), in the dtype of the input (float32 or float64).

    Nonnegative with an exactly zero diagonal; differentiable.
    """
    products_MM = _gram(rows_MD)
    squares_M = products_MM.diagonal()
    return (squares_M[:, None] + squares_M[None, :] - 2 * products_MM).abs()


def median_sigma(distances_MM: Tensor) -> Tensor:
    """Return the released code's median rule for a matrix of squared distances: a scalar without gradient.

    The rows are stacked on themselves and the median (of an even count, the mean of the middle two) is taken over the
    strictly lower triangle, so each pair counts four times and zero counts M times. A median of zero is replaced by
    the mean; the result is at least 0.01. It is a median of *squared* distances that the kernel squares once more, as
    the released code does.
    """
    distances_MM = distances_MM.detach()
    rows = distances_MM.shape[0]
    first, second = torch.tril_indices(rows, rows, -1, device=distances_MM.device)
    stacked = torch.cat([distances_MM[first, second].repeat(4), distances_MM.new_zeros(rows)]).sort().values
    median = (stacked[(len(stacked) - 1) // 2] + stacked[len(stacked) // 2]) / 2
    return torch.where(median > 0, median, stacked.mean()).clamp_min(MEDIAN_FLOOR)


def kernel_matrix(rows_MD: Tensor, kernel: KernelName, sigma: Sigma = 5.0) -> Tensor:
    """Return the kernel matrix (M, M) of rows (M, D), in the dtype of the input.

    Args:
        rows_MD: float32 or float64.
        kernel: `gaussian` is exp(-d2 / (2 sigma^2 D)), a bandwidth of sigma * sqrt(D); `linear` the inner product;
            `imq` the inverse multiquadric 1 / sqrt(d2 + 1).
        sigma: of the gaussian kernel; "median" is exp(-d2 / (2 s^2)) with s from `median_sigma`.
    """
    if kernel == "linear":
        return _gram(rows_MD)
    distances_MM = squared_distances(rows_MD)
    if kernel == "imq":
        return (distances_MM + 1).rsqrt()
    if isinstance(sigma, str):
        return torch.exp(-distances_MM / (2 * median_sigma(distances_MM).square()))
    return torch.exp(-distances_MM / (2 * sigma**2 * rows_MD.shape[1]))


def center(kernel_JMM: Tensor) -> Tensor:
    """Return H K H in float64 for symmetric kernel matrices (..., M, M), with H = I - 11^T / M."""
    kernel_JMM = kernel_JMM.double()
    means_JM1 = kernel_JMM.mean(dim=-1, keepdim=True)
    return kernel_JMM - (means_JM1 + means_JM1.mT) + means_JM1.mean(dim=-2, keepdim=True)


def prepare(kernel_JMM: Tensor, measure: Measure) -> Tensor:
    """Return the operator of each kernel matrix (..., M, M): all that `dependence` needs of it, float64.

    For `hsic` it is R = C (C + eps M I)^-1 with C = H K H and eps = 1e-5, for `coco` it is C.

    A matrix that is not positive definite even with the ridge (its entries are NaN or infinite) gives NaN.
    """
    centered_JMM = center(kernel_JMM)
    if measure == "coco":
        return centered_JMM
    operator: Tensor = _Shrunk.apply(centered_JMM, HSIC_RIDGE * kernel_JMM.shape[-1])
    return operator


def dependence(first_JMM: Tensor, second_JMM: Tensor, measure: Measure, norm: MatrixNorm = "frobenius") -> Tensor:
    """Return the dependence of two prepared sides, (...) float64; the sides broadcast against each other.

    `hsic` is trace(R_A R_B), in about [0, M - 1]; `coco` is sqrt(||C_A C_B||) / M. Identical rows on either side
    give 0, with finite gradients.

    Args:
        norm: of the product in `coco`. The released code uses the Frobenius norm; the textbook's constrained
            covariance is the spectral norm (the largest singular value).
    """
    if measure == "hsic":
        return (first_JMM * second_JMM.mT).sum(dim=(-2, -1))
    product_JMM = first_JMM @ second_JMM
    if norm == "spectral":
        squared_norm = torch.linalg.matrix_norm(product_JMM, ord=2).square()
    else:
        squared_norm = product_JMM.square().sum(dim=(-2, -1))
    is_zero = squared_norm <= _COCO_ZERO
    root = torch.where(is_zero, torch.ones_like(squared_norm), squared_norm).pow(0.25)
    return torch.where(is_zero, torch.zeros_like(root), root) / product_JMM.shape[-1]


def _gram(rows_MD: Tensor) -> Tensor:
    products_MM: Tensor = _Gram.apply(rows_MD)
    return products_MM


class _Gram(torch.autograd.Function):
    """X X^T. Its derivative needs one wide product, (G + G^T) X; autograd would do two, most of BiDO's cost."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor) -> Tensor:
        ctx.save_for_backward(rows_MD)
        return rows_MD @ rows_MD.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_MM: Tensor) -> Tensor:
        rows_MD: Tensor = ctx.saved_tensors[0]
        return (gradient_MM + gradient_MM.mT) @ rows_MD


class _Shrunk(torch.autograd.Function):
    """R = C (C + r I)^-1 = I - r (C + r I)^-1 for symmetric C, by one Cholesky factorization in float64.

    The derivative is dR = r S^-1 dC S^-1 with S = C + r I, which reuses the inverse of the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, centered_JMM: Tensor, ridge: float) -> Tensor:
        identity_MM = torch.eye(centered_JMM.shape[-1], dtype=centered_JMM.dtype, device=centered_JMM.device)
        factor_JMM, info_J = torch.linalg.cholesky_ex(centered_JMM + ridge * identity_MM)
        inverse_JMM = torch.cholesky_inverse(factor_JMM)
        inverse_JMM = inverse_JMM.masked_fill((info_J != 0)[..., None, None], torch.nan)
        ctx.save_for_backward(inverse_JMM)
        ctx.ridge = ridge
        return identity_MM - ridge * inverse_JMM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_JMM: Tensor) -> tuple[Tensor, None]:
        (inverse_JMM,) = ctx.saved_tensors
        return ctx.ridge * inverse_JMM @ gradient_JMM @ inverse_JMM, None
