"""DP-SGD: clipped per-sample gradients and Gaussian noise, with the epsilon that they amount to."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from oakum.config import ConfigError
from oakum.defenses._dpsgd_accounting import Accountant, Mechanism, guarantee, noise_for
from oakum.defenses._dpsgd_gradients import (
    PerSample,
    PoissonSampling,
    PrivateGradients,
    require_per_sample_gradients,
)
from oakum.defenses.base import Defense
from oakum.records import MetricValue
from oakum.registry import Source
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState

if TYPE_CHECKING:
    from oakum.training.loop import TrainingLoop

LARGEST_DEFAULT_DELTA = 1e-5


class DPSGD(Defense):
    """Clips every row's gradient, adds Gaussian noise to the sum, and reports (epsilon, delta) as `privacy/...`.

    Batches are Poisson samples: with N rows and batch size B each row joins each of round(N / B) batches of an epoch
    with probability B / N, sums are divided by B, and `drop_last` has no effect. The bound holds for neighbors that
    differ by one row of the training fold (planted canaries included), for every epoch's weights together, for what
    is computed from them without the fold, and as long as the training's seed stays secret: sampling and noise are
    pseudo-random, so that trainings can be repeated. It does not cover the training curves, the search for settings,
    nor the validation rows that `select: best_val` looks at.

    Differs from the paper (Algorithm 1): the recipe's optimizer takes the noised gradient, so momentum, Adam's
    moments and weight decay come after the noise; current accountants replace the moments accountant. The RelaxLoss
    experiments used shuffled batches instead of Poisson samples and computed no epsilon.
    """

    source = Source(
        title="Deep Learning with Differential Privacy",
        authors="Martín Abadi, Andy Chu, Ian Goodfellow, H. Brendan McMahan, Ilya Mironov, Kunal Talwar, Li Zhang",
        venue="CCS",
        year=2016,
        link="https://arxiv.org/abs/1607.00133",
    )
    searchable: ClassVar[bool] = True

    class Config(Defense.Config):
        """Settings of DP-SGD; exactly one of `epsilon` and `noise_multiplier`.

        Attributes:
            epsilon: the bound to keep over the recipe's epochs; the noise is computed from it.
            noise_multiplier: standard deviation of the noise on the sum of clipped gradients, in units of
                `max_grad_norm`; 0 clips only, without any guarantee.
            max_grad_norm: L2 norm to which the gradient of a row is clipped, over all parameters.
            delta: None takes min(1e-5, 1 / (10 N)) for a training fold of N rows.
            accountant: `prv`, or `rdp`, which is faster and looser. Above epsilon 200 both are `rdp`.
            per_sample: `hooks` keeps the gradients of all rows of a batch in memory; `ghost` keeps those of one layer,
                none where it is linear, for a second backward pass. Both clip to the same gradients up to rounding.
            norm: `group` unless the model has no batch normalization.
        """

        epsilon: float | None = Field(default=None, gt=0)
        noise_multiplier: float | None = Field(default=None, ge=0)
        max_grad_norm: float = Field(default=1.0, gt=0)
        delta: float | None = Field(default=None, gt=0, lt=1)
        accountant: Accountant = "prv"
        per_sample: PerSample = "hooks"
        norm: Literal["model", "group"] = Field(default="group")

        @model_validator(mode="after")
        def _ask_for_one_of_two(self) -> DPSGD.Config:
            if (self.epsilon is None) == (self.noise_multiplier is None):
                raise ValueError("give exactly one of epsilon (the noise is computed) and noise_multiplier")
            return self

    config: Config

    def check_training(self, recipe: Recipe, train_size: int) -> list[str]:
        """Refuse an epsilon that no noise reaches; warn of what weakens the guarantee or is set aside."""
        if recipe.images_per_class is not None:
            raise ConfigError(
                "dpsgd draws every batch as a Poisson sample, which its guarantee rests on; remove "
                "recipe.images_per_class"
            )
        mechanism = self._mechanism(recipe, train_size, recipe.epochs)
        self._noise_multiplier(mechanism)
        found = []
        if self.config.noise_multiplier == 0:
            found.append("dpsgd: noise_multiplier is 0: gradients are clipped, and nothing is guaranteed")
        if mechanism.delta * train_size >= 1:
            found.append(
                f"dpsgd: delta {mechanism.delta:g} allows giving away one of {train_size} rows in full; keep it well "
                f"below {1 / train_size:.1g}"
            )
        if recipe.precision != "float32":
            found.append(f"dpsgd: trains in float32 instead of {recipe.precision}, so that norms to clip are exact")
        return found

    def prepare(self, state: TrainState) -> TrainState:
        """Refuse layers without per-sample gradients; train in float32, with gradients summed by the optimizer."""
        require_per_sample_gradients(state.model)
        state.autocast_dtype = None
        state.reduces_gradients = True
        return state

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train on Poisson samples with the private optimizer, and report the guarantee over the epochs trained."""
        recipe, rows = loop.recipe, len(loop.train)
        noise_multiplier = self._noise_multiplier(self._mechanism(recipe, rows, recipe.epochs))
        sampling = _sampling(recipe, rows)
        gradients = PrivateGradients(
            state,
            noise_multiplier=noise_multiplier,
            max_grad_norm=self.config.max_grad_norm,
            expected_batch_size=sampling.expected,
            per_sample=self.config.per_sample,
        )
        loop.sampler = sampling.batches
        epochs = loop.snapshots[-1] if loop.snapshots else recipe.trained_epochs
        loop.metrics.update(self._metrics(noise_multiplier, self._mechanism(recipe, rows, epochs), recipe))
        with warnings.catch_warnings():
            # Samples need no gradients, of which torch informs whoever hooks the first layer.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            module = loop.run(state, gradients.loss)
        gradients.close()
        return module

    def _mechanism(self, recipe: Recipe, rows: int, epochs: int) -> Mechanism:
        sampling = _sampling(recipe, rows)
        delta = min(LARGEST_DEFAULT_DELTA, 1 / (10 * rows)) if self.config.delta is None else self.config.delta
        return Mechanism(sampling.rate, epochs * sampling.steps_per_epoch, delta)

    def _noise_multiplier(self, mechanism: Mechanism) -> float:
        if self.config.noise_multiplier is not None:
            return self.config.noise_multiplier
        assert self.config.epsilon is not None
        return noise_for(self.config.epsilon, mechanism, self.config.accountant)

    def _metrics(self, noise_multiplier: float, mechanism: Mechanism, recipe: Recipe) -> dict[str, MetricValue]:
        found = guarantee(noise_multiplier, mechanism, self.config.accountant)
        note = f"add/remove neighbors, Poisson sampling, {found.note}"
        if recipe.select == "best_val":
            note += "; validation rows, which choose the epoch, are not covered"
        return {
            "privacy/epsilon": MetricValue(found.epsilon, wants="low", note=note),
            "privacy/delta": MetricValue(mechanism.delta),
            "privacy/noise_multiplier": MetricValue(noise_multiplier),
            "privacy/max_grad_norm": MetricValue(self.config.max_grad_norm),
            "privacy/sample_rate": MetricValue(mechanism.sample_rate),
            "privacy/steps": MetricValue(float(mechanism.steps)),
        }


def _sampling(recipe: Recipe, rows: int) -> PoissonSampling:
    return PoissonSampling(rows, min(recipe.batch_size, rows))
