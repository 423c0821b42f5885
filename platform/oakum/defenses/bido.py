"""BiDO: hidden layers that depend little on the input and much on the label."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from oakum.config import ConfigError
from oakum.defenses.base import Defense
from oakum.metrics.dependence import (
    KernelName,
    MatrixNorm,
    Measure,
    Sigma,
    dependence,
    kernel_matrix,
    prepare,
)
from oakum.models.base import Classifier
from oakum.registry import Source
from oakum.training.recipe import Recipe
from oakum.training.state import Batch, TrainState

MIN_ROWS = 8
MIN_CLASSES = 2
SKIPPED_BATCHES = "bido/skipped_batches"


def layer_dependences(
    hidden: list[Tensor],
    x: Tensor,
    y_onehot: Tensor,
    *,
    measure: Measure,
    label_kernel: KernelName = "linear",
    sigma: Sigma = 5.0,
    norm: MatrixNorm = "frobenius",
) -> tuple[Tensor, Tensor]:
    """Return D(Z_j, X) and D(Z_j, Y) for every hidden layer j, each (J,) float64.

    Hidden layers and inputs take the gaussian kernel; `label_kernel` is the kernel of the labels alone.

    Args:
        hidden: J tensors (B, ...), float32 or float64; gradients flow into them.
        x: (B, ...) inputs in [0, 1].
        y_onehot: (B, K) in the dtype of `x`.
        measure, label_kernel, sigma, norm: see `oakum.metrics.dependence`.
    """
    input_side = prepare(kernel_matrix(x.flatten(1), "gaussian", sigma), measure)
    label_side = prepare(kernel_matrix(y_onehot, label_kernel, sigma), measure)
    kernels = torch.stack([kernel_matrix(layer.flatten(1), "gaussian", sigma) for layer in hidden])
    hidden_side = prepare(kernels, measure)
    return dependence(hidden_side, input_side, measure, norm), dependence(hidden_side, label_side, measure, norm)


class BiDO(Defense):
    """Adds lambda_x * sum_j D(Z_j, X) - lambda_y * sum_j D(Z_j, Y) to the cross-entropy.

    D is normalized HSIC or COCO between a tapped hidden layer Z_j and the input X or the one-hot label Y, over the
    rows of the global batch. A batch of fewer than 8 rows or of a single class has no measurable dependence: its loss
    is the cross-entropy alone, and `bido/skipped_batches`, a curve of each epoch, counts it.

    Differs from the released code: kernels of X and Y are computed once per batch instead of once per layer, and
    HSIC is solved in float64 by Cholesky instead of a float32 inverse on the CPU; the value is the same up to rounding.
    There no batch is skipped. Inputs are in [0, 1], as in its experiments on MNIST and faces; its experiments with VMI
    scale them to [-1, 1], which doubles distances between inputs, so that their kernel is that of half this `sigma`.
    """

    source = Source(
        title="Bilateral Dependency Optimization: Defending Against Model-inversion Attacks",
        authors="Xiong Peng, Feng Liu, Jingfeng Zhang, Long Lan, Junjie Ye, Tongliang Liu, Bo Han",
        venue="KDD",
        year=2022,
        link="https://arxiv.org/abs/2206.05483",
    )
    searchable: ClassVar[bool] = True
    needs_taps: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("lambda_x", "lambda_y")

    class Config(Defense.Config):
        """Settings of BiDO.

        Attributes:
            lambda_x: weight of the dependence on the input, to be lowered.
            lambda_y: weight of the dependence on the label, to be raised. The two weights have no default, as they
                differ by measure: the authors recommend (0.05, 0.5) for HSIC on CelebA, (1, 50) for COCO on MNIST.
            measure: `hsic` or `coco`, in any case.
            label_kernel: `linear`, `gaussian` or `imq`; hidden layers and inputs always take the gaussian kernel.
            sigma: bandwidth of gaussian kernels in units of sqrt(features), or "median" for the median rule.
            coco_norm: `frobenius` as released, or `spectral` as in the definition of COCO.
        """

        lambda_x: float = Field(ge=0)
        lambda_y: float = Field(ge=0)
        measure: Measure = "hsic"
        label_kernel: KernelName = "linear"
        sigma: Annotated[float, Field(gt=0)] | Literal["median"] = 5.0
        coco_norm: MatrixNorm = "frobenius"

        @field_validator("measure", "label_kernel", "coco_norm", "sigma", mode="before")
        @classmethod
        def _ignore_case(cls, value: Any) -> Any:
            return value.lower() if isinstance(value, str) else value

    config: Config

    @property
    def _is_off(self) -> bool:
        return self.config.lambda_x == 0 and self.config.lambda_y == 0

    def check(self, model: type[Classifier], num_classes: int) -> list[str]:
        """Refuse models without tap points, unless both weights are 0; warn of settings known to fail."""
        if self._is_off:
            return []
        warnings = super().check(model, num_classes)
        if self.config.lambda_y == 0:
            warnings.append(
                "bido: lambda_y is 0; lowering the dependence on the input alone destroyed training in the authors' "
                "ablation (0.83 % test accuracy at lambda_x 0.1). Set lambda_y to about ten times lambda_x"
            )
        if self.config.coco_norm != "frobenius" and self.config.measure != "coco":
            warnings.append("bido: coco_norm has no effect with measure hsic")
        return warnings

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Refuse batches whose dependence can never be measured, so that every one would train as without a defense.

        Raises:
            ConfigError: all batches have fewer than 8 rows or a single class.
        """
        warnings = super().check_training(recipe, train_size)
        rows = min(recipe.batch_size, train_size)
        if self._is_off or (rows >= MIN_ROWS and recipe.images_per_class != recipe.batch_size):
            return warnings
        what = f"{rows} row{'s' * (rows != 1)}" if rows < MIN_ROWS else "images of one class"
        raise ConfigError(
            f"defense 'bido' measures dependence over a batch of {MIN_ROWS} rows and {MIN_CLASSES} classes or more, "
            f"but every batch would have {what}, and training would be that of no defense; raise recipe.batch_size, "
            "lower recipe.images_per_class, or give more images"
        )

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean cross-entropy plus the global batch's dependence terms, which are equal on every rank."""
        if self._is_off:
            return super().loss(state, batch)
        logits, taps = state.forward_with_taps(batch.x)
        cross_entropy = state.batch_mean(F.cross_entropy(logits, batch.y, reduction="none"))
        if len(batch.global_y) < MIN_ROWS or len(torch.unique(batch.global_y)) < MIN_CLASSES:
            state.counters[SKIPPED_BATCHES] += 1
            return cross_entropy
        y = state.collective.gather_rows(batch.y)
        x = state.collective.gather_rows(batch.x)
        on_input, on_label = layer_dependences(
            [state.collective.gather_rows(tap) for tap in taps],
            x,
            F.one_hot(y, state.num_classes).to(x.dtype),
            measure=self.config.measure,
            label_kernel=self.config.label_kernel,
            sigma=self.config.sigma,
            norm=self.config.coco_norm,
        )
        penalty = self.config.lambda_x * on_input.sum() - self.config.lambda_y * on_label.sum()
        return cross_entropy + penalty.to(cross_entropy.dtype)
