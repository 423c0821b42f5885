"""MemGuard: add noise to the scores of an ordinary model, so that a membership classifier errs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from oakum.defenses._memguard_detector import Detector, train_detector
from oakum.defenses._memguard_search import Perturbation, Variant, perturb
from oakum.defenses.base import Defense
from oakum.models.base import Classifier, predict_log_probabilities
from oakum.registry import Source
from oakum.seeding import content_keys, keyed_uniform
from oakum.training.state import TrainState

if TYPE_CHECKING:
    from oakum.training.loop import LabeledData, TrainingLoop


class GuardedClassifier(nn.Module):
    """A classifier beside the detector that its answers are to mislead.

    Attributes:
        classifier: trained as if it were alone.
        detector: trained afterwards; its parameters have `requires_grad` False.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.detector = Detector(classifier.num_classes).requires_grad_(False)
        self.num_classes = classifier.num_classes

    def forward(self, x: Tensor, with_taps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return what the classifier returns, without noise."""
        answer: Tensor | tuple[Tensor, list[Tensor]] = self.classifier(x, with_taps)
        return answer


class MaskedAnswers(nn.Module):
    """Answers (B, *dims) with the log-probabilities of noisy scores (B, C)."""

    def __init__(self, guarded: GuardedClassifier, config: MemGuard.Config, seed: int) -> None:
        super().__init__()
        self.classifier = guarded.classifier
        self.detector = copy.deepcopy(guarded.detector).double()
        self.num_classes = guarded.num_classes
        self._config = config
        self._seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C); gradients reach x as if the noise were a constant."""
        logits = self.classifier(x)
        noisy = self.perturb(logits)
        draw = keyed_uniform(content_keys(self._seed, x), 1).squeeze(1)
        takes_noise = draw < noise_probability(noisy, self._config.budget)
        answer = torch.where(takes_noise[:, None], noisy.logits, logits.detach())
        # The difference is exactly 0: the argmax that the search kept is the argmax of what is returned.
        return answer + (logits - logits.detach())

    def perturb(self, logits: Tensor) -> Perturbation:
        """Return the noise for clean logits (B, C), before the draw that decides whether it is added."""
        return perturb(logits, self.detector, variant=self._config.variant, bisects=self._config.bisects)


def noise_probability(noisy: Perturbation, budget: float) -> Tensor:
    """Return how likely noise is added to each vector, (B,) float64 in [0, 1], so that its mean L1 norm is at most `budget`.

    Jia et al. 2019, section 4.3: never where noise brings the detector no nearer to 0.5, else min(budget / distance, 1).
    """
    helps = noisy.margin < noisy.clean_margin
    return helps * (budget / noisy.distance).clamp(max=1).nan_to_num()


class MemGuard(Defense):
    __doc__ = "x"
    source = Source(
        title="MemGuard: Defending against Black-Box Membership Inference Attacks via Adversarial Examples",
        authors="Jinyuan Jia, Ahmed Salem, Michael Backes, Yang Zhang, Neil Zhenqiang Gong",
        venue="CCS",
        year=2019,
        link="https://arxiv.org/abs/1909.10594",
    )
    searchable: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("reference",)
    masks_output: ClassVar[bool] = True

    class Config(Defense.Config):
        budget: float = Field(default=1.0, ge=0, le=2)
        variant: Variant = "paper"
        bisects: bool = True
        detector_epochs: int = Field(default=400, ge=1)
        detector_learning_rate: float = Field(default=1e-3, gt=0)

    config: Config

    def build(self, model: Classifier) -> nn.Module:
        """Return a `GuardedClassifier` around the model."""
        classifier = super().build(model)
        assert isinstance(classifier, Classifier)
        return GuardedClassifier(classifier)

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train the classifier in the ordinary loop, then the detector on members against the reference fold."""
        module = loop.run(state, self.loss)
        assert isinstance(module, GuardedClassifier)
        train_detector(
            module.detector,
            _probabilities(module.classifier, loop.train, state.device),
            _probabilities(module.classifier, loop.folds["reference"], state.device),
            epochs=self.config.detector_epochs,
            learning_rate=self.config.detector_learning_rate,
            seed=state.seed,
        )
        return module

    def release(self, module: nn.Module, seed: int) -> nn.Module:
        assert isinstance(module, GuardedClassifier)
        return MaskedAnswers(module, self.config, seed) if self.config.budget > 0 else module.classifier

    def unmasked(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, GuardedClassifier)
        return module.classifier


def _probabilities(module: nn.Module, data: LabeledData, device: torch.device) -> Tensor:
    """Return float32 probabilities (N, C)."""
    return predict_log_probabilities(module, data.x.to(device)).exp().float()
