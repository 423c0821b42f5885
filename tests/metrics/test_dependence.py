from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oakum.metrics.dependence import center, dependence, kernel_matrix, median_sigma, prepare, squared_distances


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_kernel(x: Tensor, kernel: str, sigma: float | str) -> Tensor:
    count, width = x.shape
    result = torch.empty(count, count, dtype=torch.float64)
    stacked = torch.cat([x, x])
    pairs = sorted(float(((stacked[i] - stacked[j]) ** 2).sum()) for i in range(2 * count) for j in range(i))
    middle = (pairs[(len(pairs) - 1) // 2] + pairs[len(pairs) // 2]) / 2
    median = max(middle if middle > 0 else sum(pairs) / len(pairs), 1e-2)
    for i in range(count):
        for j in range(count):
            distance = float(((x[i] - x[j]) ** 2).sum())
            if kernel == "linear":
                result[i, j] = float((x[i] * x[j]).sum())
            elif kernel == "imq":
                result[i, j] = 1 / math.sqrt(distance + 1)
            elif sigma == "median":
                result[i, j] = math.exp(-distance / (2 * median**2))
            else:
                result[i, j] = math.exp(-distance / (2 * float(sigma) ** 2 * width))
    return result


def naive_dependence(a: Tensor, b: Tensor, measure: str, norm: str = "frobenius") -> Tensor:
    """Textbook forms on the one-sided centering of the released code."""
    count = len(a)
    eye = torch.eye(count, dtype=torch.float64)
    h = eye - 1 / count
    if measure == "hsic":
        shrunk = [(k @ h) @ torch.linalg.inv(k @ h + 1e-5 * count * eye) for k in (a, b)]
        return torch.trace(shrunk[0] @ shrunk[1])
    product = (h @ a @ h) @ (h @ b @ h)
    return torch.linalg.matrix_norm(product, "fro" if norm == "frobenius" else 2).sqrt() / count


@pytest.mark.parametrize(
    ("kernel", "sigma"), [("gaussian", 5.0), ("gaussian", "median"), ("linear", 1.0), ("imq", 1.0)]
)
@pytest.mark.parametrize("measure", ["hsic", "coco"])
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_equals_a_naive_float64_twin(kernel: str, sigma: float | str, measure: str, norm: str) -> None:
    a, b = rows(9, 4), rows(9, 3, 1)
    first, second = kernel_matrix(a, kernel, sigma), kernel_matrix(b, "gaussian", 1.0)
    torch.testing.assert_close(first, naive_kernel(a, kernel, sigma), rtol=1e-10, atol=1e-12)
    got = dependence(prepare(first, measure), prepare(second, measure), measure, norm)
    torch.testing.assert_close(got, naive_dependence(first, second, measure, norm), rtol=1e-7, atol=0)


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_gradient_equals_that_of_the_one_sided_form(measure: str) -> None:
    y = torch.nn.functional.one_hot(torch.arange(12) % 3).double()
    gradients = []
    for measured in (
        lambda a, b: dependence(prepare(a, measure), prepare(b, measure), measure),
        lambda a, b: naive_dependence(a, b, measure),
    ):
        z = rows(12, 5).requires_grad_(True)
        measured(kernel_matrix(z, "gaussian", 5.0), kernel_matrix(y, "linear")).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("measure", ["hsic", "coco"])
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("kernel", ["gaussian", "linear", "imq"])
def test_gradcheck(measure: str, norm: str, kernel: str) -> None:
    other = prepare(kernel_matrix(rows(6, 3, 5), "gaussian", 1.0), measure)

    def value(z: Tensor) -> Tensor:
        return dependence(prepare(kernel_matrix(z, kernel, 1.0), measure), other, measure, norm)

    assert torch.autograd.gradcheck(value, rows(6, 4).requires_grad_(True), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_stacked_kernels_give_what_single_ones_give(measure: str) -> None:
    kernels = [kernel_matrix(rows(8, width, width), "gaussian") for width in (3, 5, 7)]
    other = prepare(kernel_matrix(rows(8, 2), "linear"), measure)
    together = dependence(prepare(torch.stack(kernels), measure), other, measure)
    alone = torch.stack([dependence(prepare(kernel, measure), other, measure) for kernel in kernels])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("measure", ["hsic", "coco"])
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_identical_rows_give_zero_with_finite_gradients(measure: str, norm: str) -> None:
    z = torch.ones(8, 5, dtype=torch.float64, requires_grad=True)
    other = prepare(kernel_matrix(rows(8, 3), "gaussian"), measure)
    value = dependence(prepare(kernel_matrix(z, "gaussian"), measure), other, measure, norm)
    value.backward()
    assert abs(value.item()) < 1e-9
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_almost_identical_rows_have_finite_gradients(measure: str) -> None:
    for scale in (1e-2, 1e-4, 1e-6, 1e-8):
        z = (1 + scale * rows(8, 5)).float().requires_grad_(True)
        other = prepare(kernel_matrix(rows(8, 3), "gaussian"), measure)
        dependence(prepare(kernel_matrix(z, "gaussian"), measure), other, measure).backward()
        assert z.grad.isfinite().all(), scale


def test_one_row_gives_zero() -> None:
    for measure in ("hsic", "coco"):
        side = prepare(kernel_matrix(rows(1, 3), "gaussian"), measure)
        assert abs(dependence(side, side, measure).item()) < 1e-12


def test_nan_features_give_nan_and_do_not_raise() -> None:
    z = rows(8, 3)
    z[0, 0] = torch.nan
    for measure in ("hsic", "coco"):
        side = prepare(kernel_matrix(z, "gaussian"), measure)
        assert dependence(side, side, measure).isnan()


def test_hsic_of_labels_is_the_number_of_classes_less_one_and_symmetric() -> None:
    y = torch.nn.functional.one_hot(torch.arange(64) % 16).double()
    labels = prepare(kernel_matrix(y, "linear"), "hsic")
    assert dependence(labels, labels, "hsic").item() == pytest.approx(15, rel=1e-3)
    other = prepare(kernel_matrix(rows(64, 5), "gaussian"), "hsic")
    assert dependence(labels, other, "hsic").item() == pytest.approx(dependence(other, labels, "hsic").item())


@pytest.mark.parametrize("measure", ["hsic", "coco"])
def test_dependence_is_blind_to_the_order_of_rows_and_sees_what_depends(measure: str) -> None:
    x, order = rows(32, 6), torch.randperm(32, generator=torch.Generator().manual_seed(3))

    def value(a: Tensor, b: Tensor) -> float:
        sides = [prepare(kernel_matrix(side, "gaussian", 1.0), measure) for side in (a, b)]
        return dependence(*sides, measure).item()

    assert value(x[order], (2 * x)[order]) == pytest.approx(value(x, 2 * x), rel=1e-6)
    assert value(x, 2 * x) > value(x, rows(32, 6, 9))


def test_distances_are_zero_on_the_diagonal_and_near_exact_in_float32() -> None:
    x = rows(16, 500).float() * 10 + 3
    distances = squared_distances(x)
    assert (distances.diagonal() == 0).all()
    assert (distances >= 0).all()
    torch.testing.assert_close(distances.double(), torch.cdist(x.double(), x.double()).square(), rtol=1e-4, atol=1e-1)


def test_median_rule_falls_back_to_the_mean_and_has_a_floor() -> None:
    mostly_equal = torch.zeros(6, 1, dtype=torch.float64)
    mostly_equal[0] = 3.0
    pairs = [
        float((a - b) ** 2) for i, a in enumerate(mostly_equal.repeat(2, 1)) for b in mostly_equal.repeat(2, 1)[:i]
    ]
    assert median_sigma(squared_distances(mostly_equal)).item() == pytest.approx(sum(pairs) / len(pairs))
    assert median_sigma(squared_distances(torch.zeros(5, 2))).item() == pytest.approx(1e-2)


def test_centering_removes_the_mean_of_every_row_and_column() -> None:
    centered = center(kernel_matrix(rows(7, 3), "linear"))
    assert centered.sum(0).abs().max() < 1e-12
    assert centered.sum(1).abs().max() < 1e-12
