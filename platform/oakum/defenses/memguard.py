"""MemGuard: add noise to the scores of an ordinary model, so that a membership classifier errs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from oakum.defenses._memguard_detector import Detector, membership_logits, train_detector
from oakum.defenses._memguard_search import Perturbation, Variant, perturb
from oakum.defenses.base import Defense
from oakum.models.base import Classifier, predict_log_probabilities
from oakum.records import MetricValue
from oakum.registry import Source
from oakum.seeding import content_keys, keyed_uniform
from oakum.training.state import TrainState

if TYPE_CHECKING:
    from oakum.training.loop import LabeledData, TrainingLoop

REFERENCE = "reference"


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


class NoisyAnswers(nn.Module):
    """Answers queries (B, *dims) with logits (B, C): noisy or clean ones, by a draw keyed by the query's content."""

    def __init__(self, guarded: GuardedClassifier, config: MemGuard.Config, seed: int) -> None:
        super().__init__()
        self.classifier = guarded.classifier
        self.detector = copy.deepcopy(guarded.detector).double()
        self.num_classes = guarded.num_classes
        self._config = config
        self._seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C); gradients reach x as if the noise were a constant."""
        logits: Tensor = self.classifier(x)
        noise = self.perturb(logits)
        draw = keyed_uniform(content_keys(self._seed, x), 1).squeeze(1)
        is_noisy = draw < noise_probability(noise, self._config.budget)
        answer = torch.where(is_noisy[:, None], noise.logits, logits.detach())
        # The difference is exactly 0: what is returned has the argmax that the search made sure of.
        return answer + (logits - logits.detach())

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted classes (B,) int64: noise never changes them, so no search is needed."""
        labels: Tensor = self.classifier(x).argmax(dim=1)
        return labels

    def perturb(self, logits: Tensor) -> Perturbation:
        """Return the noise for clean logits (B, C), before the draw that decides whether it is added."""
        return perturb(logits, self.detector, variant=self._config.variant, bisect=self._config.bisect)


def noise_probability(noise: Perturbation, budget: float) -> Tensor:
    """Return how likely each vector's noise is added, (B,) float64 in [0, 1], for a mean L1 norm of at most `budget`.

    0 where noise brings the detector no nearer to 0.5, otherwise min(budget / distance, 1) (Jia et al. 2019, phase II).
    """
    is_better = noise.margin < noise.clean_margin
    return torch.where(is_better, (budget / noise.distance).clamp(max=1), 0.0)


class MemGuard(Defense):
    """Trains an ordinary model and adds noise to its scores, so that a classifier of members and non-members errs.

    After the model, the defender trains a detector of its own on sorted scores: members against the reference fold.
    Every query's scores get the smallest noise found that takes the detector across 0.5 and keeps the predicted class
    (`perturb`), with the largest probability that keeps the mean L1 norm within the budget (`noise_probability`).
    Labels stay as they are, and so do gradients and all else that the weights show (`unmasked`).

    Equal queries get equal answers: the draw is keyed by the query's content. The search itself is deterministic, up
    to the rounding of the model's logits.

    Differs from the paper: the recipe decides how the model is trained (the authors: SGD with a rate of 0.01); the
    reference fold may have another size than the training fold, either side weighs one half in the detector's loss.
    The authors' code does not sort iterates again (`variant: released_code`), takes the test fold for the detector's
    non-members, and has the draw as an expected value only.
    """

    source = Source(
        title="MemGuard: Defending against Black-Box Membership Inference Attacks via Adversarial Examples",
        authors="Jinyuan Jia, Ahmed Salem, Michael Backes, Yang Zhang, Neil Zhenqiang Gong",
        venue="CCS",
        year=2019,
        link="https://arxiv.org/abs/1909.10594",
    )
    searchable: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (REFERENCE,)
    masks_output: ClassVar[bool] = True

    class Config(Defense.Config):
        """Settings of MemGuard.

        Attributes:
            budget: largest mean L1 distance between clean and released scores; 0 releases the model as it is. The
                paper uses 0.1 to 1.
            variant: whether the search sorts every iterate, see `perturb`.
            bisect: end within 1e-3 of the detector's boundary on either side, instead of just beyond it. The detector's
                sign then tells nothing, but less noise is left against other readings, such as the loss.
            detector_epochs: of the detector's training with batches of 64.
            detector_learning_rate: of its plain SGD, constant.
        """

        budget: float = Field(default=1.0, ge=0, le=2)
        variant: Variant = "paper"
        bisect: bool = False
        detector_epochs: int = Field(default=400, ge=1)
        detector_learning_rate: float = Field(default=1e-3, gt=0)

    config: Config

    def build(self, model: Classifier) -> nn.Module:
        """Return a `GuardedClassifier` around the model."""
        classifier = super().build(model)
        assert isinstance(classifier, Classifier)
        return GuardedClassifier(classifier)

    def fit(self, state: TrainState, loop: TrainingLoop) -> nn.Module:
        """Train the classifier in the ordinary loop, then the detector on members against the reference fold.

        Reports `training/detector_accuracy`: noise against a detector that cannot tell members apart hides nothing.
        """
        module = loop.run(state, self.loss)
        assert isinstance(module, GuardedClassifier)
        members, others = (_probabilities(module, data, state.device) for data in (loop.train, loop.folds[REFERENCE]))
        train_detector(
            module.detector,
            members,
            others,
            epochs=self.config.detector_epochs,
            learning_rate=self.config.detector_learning_rate,
            seed=state.seed,
        )
        loop.metrics["training/detector_accuracy"] = _detector_accuracy(module.detector, members, others)
        return module

    def release(self, module: nn.Module, seed: int) -> nn.Module:
        """Return the classifier with noisy answers, or itself with budget 0."""
        assert isinstance(module, GuardedClassifier)
        return NoisyAnswers(module, self.config, seed) if self.config.budget > 0 else module.classifier

    def unmasked(self, module: nn.Module) -> nn.Module:
        """Return the classifier without noise."""
        assert isinstance(module, GuardedClassifier)
        return module.classifier


@torch.no_grad()
def _detector_accuracy(detector: nn.Module, members: Tensor, others: Tensor) -> MetricValue:
    """Return the detector's balanced accuracy on the samples that it was trained on."""
    hits = (membership_logits(detector, members) > 0).double().mean()
    rejections = (membership_logits(detector, others) <= 0).double().mean()
    accuracy = float(hits + rejections) / 2
    note = (
        "the detector hardly tells members apart, so the noise hides little: train it longer" if accuracy < 0.55 else ""
    )
    return MetricValue(accuracy, note=note)


def _probabilities(guarded: GuardedClassifier, data: LabeledData, device: torch.device) -> Tensor:
    """Return the classifier's probabilities (N, C) in the detector's dtype."""
    probabilities = predict_log_probabilities(guarded.classifier, data.x.to(device)).exp()
    return probabilities.to(next(guarded.detector.parameters()).dtype)
