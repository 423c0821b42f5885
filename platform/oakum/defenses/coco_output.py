"""Output dependence: logits that depend little on the input, without a term for the label."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from oakum.defenses.base import Defense
from oakum.metrics.dependence import KernelName, MatrixNorm, Sigma, dependence, kernel_matrix, prepare
from oakum.registry import Source
from oakum.training.state import Batch, TrainState


def output_dependence(
    x: Tensor,
    logits: Tensor,
    *,
    logits_kernel: KernelName = "linear",
    sigma: Sigma = 5.0,
    norm: MatrixNorm = "frobenius",
) -> Tensor:
    """Return COCO(X, logits) of one batch, a scalar of float64, at least 0; 0 where either side is constant.

    Args:
        x: (B, ...) inputs in [0, 1]; their kernel is gaussian.
        logits: (B, K), float32 or float64; gradients flow into them.
        logits_kernel, sigma, norm: see `oakum.metrics.dependence`.
    """
    input_side = prepare(kernel_matrix(x.flatten(1), "gaussian", sigma), "coco")
    output_side = prepare(kernel_matrix(logits, logits_kernel, sigma), "coco")
    return dependence(input_side, output_side, "coco", norm)


class OutputDependence(Defense):
    """Adds lambda_x * COCO(X, logits) to the cross-entropy, over the rows of the global batch.

    The single-term baseline that motivates BiDO: what lowers the dependence on the input alone lowers accuracy with it.
    The authors report about 85 % test accuracy at lambda_x 5 on faces, and chance at 20.

    Differs from the released code: COCO is computed in float64, with the same value up to rounding.
    """

    source = Source(
        title="Bilateral Dependency Optimization: Defending Against Model-inversion Attacks",
        authors="Xiong Peng, Feng Liu, Jingfeng Zhang, Long Lan, Junjie Ye, Tongliang Liu, Bo Han",
        venue="KDD",
        year=2022,
        link="https://arxiv.org/abs/2206.05483",
    )
    searchable: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = True
    schedulable: ClassVar[tuple[str, ...]] = ("lambda_x",)

    class Config(Defense.Config):
        """Settings of the output dependence.

        Attributes:
            lambda_x: weight of the dependence on the input, to be lowered; 0 is ordinary training.
            logits_kernel: `linear`, `gaussian` or `imq`; inputs always take the gaussian kernel.
            sigma: bandwidth of gaussian kernels in units of sqrt(features), or "median" for the median rule.
            coco_norm: `frobenius` as released, or `spectral` as in the definition of COCO.
        """

        lambda_x: float = Field(default=5.0, ge=0)
        logits_kernel: KernelName = "linear"
        sigma: Annotated[float, Field(gt=0)] | Literal["median"] = 5.0
        coco_norm: MatrixNorm = "frobenius"

        @field_validator("logits_kernel", "coco_norm", "sigma", mode="before")
        @classmethod
        def _ignore_case(cls, value: Any) -> Any:
            return value.lower() if isinstance(value, str) else value

    config: Config

    def loss(self, state: TrainState, batch: Batch) -> Tensor:
        """Return the mean cross-entropy plus the global batch's dependence, which is equal on every rank."""
        config = self.config
        if config.lambda_x == 0:
            return super().loss(state, batch)
        logits = state.forward(batch.x)
        cross_entropy = state.batch_mean(F.cross_entropy(logits, batch.y, reduction="none"))
        penalty = config.lambda_x * output_dependence(
            state.collective.gather_rows(batch.x),
            state.collective.gather_rows(logits),
            logits_kernel=config.logits_kernel,
            sigma=config.sigma,
            norm=config.coco_norm,
        )
        return cross_entropy + penalty.to(cross_entropy.dtype)
