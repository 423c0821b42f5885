from __future__ import annotations

import copy
import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from oakum.attacks.access import predict_labels
from oakum.config import ConfigError, validate
from oakum.defenses._memguard_detector import Detector, membership_logits, train_detector
from oakum.defenses._memguard_search import Perturbation, perturb
from oakum.defenses.base import Defense
from oakum.defenses.memguard import GuardedClassifier, MemGuard, NoisyAnswers, noise_probability
from oakum.models.base import InputShape, predict_log_probabilities
from oakum.models.mlp import MLP
from oakum.training.loop import LabeledData, TrainingLoop
from oakum.training.optimizers import build_optimizer
from oakum.training.recipe import Recipe
from oakum.training.state import TrainState

CLASSES = 5


def clean_logits(count: int, classes: int = CLASSES, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(count, classes, dtype=torch.float64, generator=generator)


def scores_of(excess: float, count: int, seed: int, classes: int = CLASSES) -> Tensor:
    """Return scores whose largest logit is raised."""
    logits = clean_logits(count, classes, seed)
    return logits.scatter_add(1, logits.argmax(1, keepdim=True), torch.full_like(logits, excess)).softmax(1).float()


@cache
def detector_of(classes: int = CLASSES) -> Detector:
    """Return a float64 detector that takes concentrated scores for members'."""
    torch.manual_seed(0)
    detector = Detector(classes)
    members, others = scores_of(2.0, 150, 11, classes), scores_of(0.0, 150, 12, classes)
    train_detector(detector, members, others, epochs=20, learning_rate=0.05, seed=0)
    return detector.double().requires_grad_(False)


@cache
def noise_of_clean(bisect: bool, dtype: torch.dtype) -> tuple[Tensor, Perturbation]:
    logits = clean_logits(24).to(dtype)
    return logits, perturb(logits, detector_of(), bisect=bisect)


def naive_search(z0: np.ndarray, detector: Detector, sorts: bool) -> tuple[np.ndarray, bool]:
    """One vector at a time, in ascending order of its clean scores, with gradients by hand."""
    weights = [layer.weight.numpy() for layer in detector if hasattr(layer, "weight")]
    biases = [layer.bias.numpy() for layer in detector if hasattr(layer, "bias")]
    order = np.argsort(z0, kind="stable")
    start = z0[order]

    def softmax(z: np.ndarray) -> np.ndarray:
        powers = np.exp(z - z.max())
        return powers / powers.sum()

    def read(p: np.ndarray) -> tuple[float, np.ndarray]:
        """Return u and its gradient with respect to p."""
        places = np.argsort(p, kind="stable") if sorts else np.arange(len(p))
        layers, active = [p[places]], []
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            hidden = w @ layers[-1] + b
            active.append(hidden > 0)
            layers.append(hidden * active[-1])
        u = (weights[-1] @ layers[-1] + biases[-1]).item()
        back = weights[-1][0]
        for w, on in zip(weights[-2::-1], active[::-1], strict=True):
            back = (back * on) @ w
        gradient = np.empty_like(p)
        gradient[places] = back
        return u, gradient

    s, label = softmax(start), len(start) - 1
    u0 = read(s)[0]
    best, found = start, False
    if abs(1 / (1 + math.exp(-u0)) - 0.5) <= 1e-5:
        return z0, False
    for power in range(-1, 6):
        z, u, steps = start.copy(), u0, 0
        while steps < 299 and (steps == 0 or z.argmax() != label or u * u0 > 0):
            p = softmax(z)
            u, by_p = read(p)
            by_p = np.sign(u) * by_p + 10.0**power * np.sign(p - s)
            gradient = p * (by_p - (by_p * p).sum())
            other = z[:-1].argmax()
            if z[other] > z[-1]:
                gradient[other] += 10
                gradient[-1] -= 10
            z = z - 0.1 * gradient / np.linalg.norm(gradient)
            u, steps = read(softmax(z))[0], steps + 1
        if not (z.argmax() == label and u * u0 <= 0):
            break
        best, found = z, True
    result = np.empty_like(z0)
    result[order] = best
    return result, found


@pytest.mark.parametrize("variant", ["paper", "released_code"])
def test_the_search_equals_a_naive_twin_that_takes_one_vector_at_a_time(variant: str) -> None:
    detector, logits = detector_of(), clean_logits(8, seed=2)
    noise = perturb(logits, detector, variant=variant)
    assert noise.is_found.sum() >= 6
    for row, z in enumerate(logits.numpy()):
        expected, found = naive_search(z, detector, sorts=variant == "paper")
        assert noise.is_found[row] == found
        assert noise.logits[row].tolist() == pytest.approx(expected.tolist(), abs=1e-7)
    assert (noise.is_failed == ~noise.is_found).all()


def assert_promises(noise: Perturbation, logits: Tensor, detector: Detector) -> None:
    assert torch.equal(noise.logits.argmax(1), logits.argmax(1))
    assert noise.logits.dtype == logits.dtype
    probabilities = noise.logits.double().softmax(1)
    assert (probabilities >= 0).all() and probabilities.sum(1).tolist() == pytest.approx([1.0] * len(logits))
    assert torch.equal(noise.logits[~noise.is_found], logits[~noise.is_found])
    distance = (probabilities - logits.double().softmax(1)).abs().sum(1)
    assert noise.distance.tolist() == pytest.approx(distance.tolist())
    clean_u = membership_logits(detector, logits.double().softmax(1))
    assert noise.clean_margin.tolist() == pytest.approx((clean_u.sigmoid() - 0.5).abs().tolist())


@pytest.mark.parametrize("bisect", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_crosses_the_boundary_and_keeps_the_label(bisect: bool, dtype: torch.dtype) -> None:
    detector = detector_of()
    logits, noise = noise_of_clean(bisect, dtype)
    assert_promises(noise, logits, detector)
    assert noise.is_found.sum() >= 20
    before = membership_logits(detector, logits.double().softmax(1))[noise.is_found]
    after = membership_logits(detector, noise.logits.double().softmax(1))[noise.is_found]
    assert (before > 0).any() and (before < 0).any()
    if bisect:
        assert (noise.margin[noise.is_found] <= 1e-3 + 1e-6).all()
        assert 0 < (before * after <= 0).sum() < len(after)
    else:
        assert (before * after <= 1e-6).all()


@pytest.mark.parametrize("bisect", [False, True])
def test_the_label_survives_ties_and_extreme_scores(bisect: bool) -> None:
    rows = list(product([-30.0, 0.5, 0.5 + 1e-7, 60.0], repeat=3))
    logits = torch.tensor(rows, dtype=torch.float32)
    noise = perturb(logits, detector_of(3), bisect=bisect)
    assert_promises(noise, logits, detector_of(3))
    assert noise.logits.isfinite().all() and noise.is_found.any()


def test_variants_differ_where_classes_change_places() -> None:
    logits = torch.tensor([[0.0, 0.01, 0.02, 0.03, 4.0], [0.0, 0.0, 0.0, 0.0, 0.3]], dtype=torch.float64)
    paper, released = (perturb(logits, detector_of(), variant=variant) for variant in ("paper", "released_code"))
    assert not torch.allclose(paper.logits, released.logits)


def test_a_detector_that_no_noise_can_move_leaves_the_scores_and_says_so() -> None:
    detector, logits = copy.deepcopy(detector_of()), clean_logits(4)
    detector[-1].weight.zero_()
    detector[-1].bias.fill_(2.0)
    noise = perturb(logits, detector)
    assert noise.is_failed.all() and not noise.is_found.any() and torch.equal(noise.logits, logits)


def test_a_vector_on_the_boundary_needs_no_noise() -> None:
    detector, logits = copy.deepcopy(detector_of()), clean_logits(4)
    detector[-1].weight.zero_()
    detector[-1].bias.zero_()
    noise = perturb(logits, detector)
    assert not noise.is_failed.any() and not noise.is_found.any() and torch.equal(noise.logits, logits)


def noise_of(distance: list[float], clean_margin: list[float], margin: list[float]) -> Perturbation:
    flags = torch.ones(len(distance), dtype=torch.bool)
    numbers = [torch.tensor(values, dtype=torch.float64) for values in (distance, clean_margin, margin)]
    return Perturbation(torch.zeros(len(distance), 2), flags, ~flags, *numbers)


def test_the_draw_keeps_the_mean_distance_within_the_budget() -> None:
    noise = noise_of([0.0, 0.2, 0.4, 1.6, 0.4], [0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.0, 0.0, 0.05, 0.2])
    assert noise_probability(noise, 0.4).tolist() == pytest.approx([0.0, 1.0, 1.0, 0.25, 0.0])
    for budget in (0.0, 0.1, 0.5, 2.0):
        mean_distance = noise_probability(noise, budget) * noise.distance
        assert (mean_distance <= budget + 1e-12).all()


def guarded(dtype: torch.dtype = torch.float64) -> GuardedClassifier:
    """Return a classifier of 12 features whose scores lie on both sides of the detector's boundary."""
    torch.manual_seed(0)
    module = GuardedClassifier(MLP(MLP.Config(hidden=(16,)), InputShape((12,)), CLASSES))
    module.classifier.head.weight.data.mul_(8)
    module.detector.load_state_dict(detector_of().state_dict())
    return module.to(dtype).eval()


def inputs(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(3), dtype=dtype)


@torch.no_grad()
def test_what_is_released_does_not_depend_on_the_batch_and_repeats() -> None:
    config = MemGuard.Config(budget=0.1)
    released = NoisyAnswers(guarded(), config, seed=7).eval()
    x = inputs(16)
    whole = released(torch.cat([x, x]))
    torch.testing.assert_close(whole[:16], whole[16:], rtol=0, atol=1e-8)
    parts = torch.cat([released(part) for part in x.flip(0).split(11)]).flip(0)
    torch.testing.assert_close(whole[:16], parts, rtol=0, atol=1e-8)
    other_secret = NoisyAnswers(guarded(), config, seed=8).eval()(x)
    assert not torch.allclose(whole[:16], other_secret)


@torch.no_grad()
def test_released_scores_stay_within_the_budget_on_average() -> None:
    module, x, budget = guarded(), inputs(48), 0.1
    released = NoisyAnswers(module, MemGuard.Config(budget=budget), seed=1).eval()
    clean, masked = module.classifier(x), released(x)
    noise = released.perturb(clean)
    share = noise_probability(noise, budget)
    assert 0.1 < share.mean() < 0.9 and (share * noise.distance <= budget + 1e-12).all()
    is_noisy = ~(masked == clean).all(dim=1)
    assert torch.equal(masked, torch.where(is_noisy[:, None], noise.logits, clean))
    spread = (share * (1 - share)).sum().sqrt().item()
    assert is_noisy.sum().item() == pytest.approx(share.sum().item(), abs=3 * spread)
    assert torch.equal(masked.argmax(1), clean.argmax(1))


def test_gradients_pass_as_if_the_noise_were_constant() -> None:
    module, x = guarded(torch.float32), inputs(6, torch.float32).requires_grad_(True)
    released = NoisyAnswers(module, MemGuard.Config(), seed=0).eval()
    logits = released(x)
    (gradient,) = torch.autograd.grad(logits.log_softmax(1).sum(), x)
    assert gradient.isfinite().all() and (gradient != 0).any()
    slope = CLASSES * logits.detach().softmax(1)
    (expected,) = torch.autograd.grad((module.classifier(x) * (1 - slope)).sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert all(parameter.grad is None for parameter in released.detector.parameters())


def train(defense: Defense, seed: int = 3) -> torch.nn.Module:
    return trained(defense, seed)[0]


def trained(defense: Defense, seed: int = 3) -> tuple[torch.nn.Module, TrainingLoop]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(40, 8, generator=generator), torch.randint(3, (40,), generator=generator)
    train_fold, reference = LabeledData(x[:24], y[:24]), LabeledData(x[24:], y[24:])
    torch.manual_seed(0)
    network = defense.build(MLP(MLP.Config(hidden=(16,)), InputShape((8,)), 3))
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=1e-2)
    optimizer = build_optimizer(recipe, [parameter for parameter in network.parameters() if parameter.requires_grad])
    loop = TrainingLoop(train_fold, reference, recipe, folds={"reference": reference})
    return defense.fit(TrainState(network, optimizer, num_classes=3, seed=seed), loop), loop


def memguard(**changes: object) -> MemGuard:
    return MemGuard(MemGuard.Config(**{"detector_epochs": 3, **changes}))


def test_the_model_is_that_of_none_and_budget_zero_releases_it_bit_for_bit() -> None:
    undefended = train(Defense(Defense.Config()))
    defense = memguard(budget=0.0)
    module = train(defense)
    assert isinstance(module, GuardedClassifier)
    assert defense.unmasked(module) is module.classifier and defense.release(module, 0) is module.classifier
    for mine, theirs in zip(module.classifier.parameters(), undefended.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_fit_trains_the_detector_on_members_against_the_reference_fold() -> None:
    module = train(memguard())
    torch.rand(7)
    again = train(memguard())
    other = train(memguard(detector_epochs=4))
    assert isinstance(module, GuardedClassifier) and isinstance(again, GuardedClassifier)
    assert isinstance(other, GuardedClassifier)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert not torch.equal(module.detector[0].weight, other.detector[0].weight)
    assert not any(parameter.requires_grad for parameter in module.detector.parameters())


def test_a_detector_that_learned_nothing_is_reported() -> None:
    _, loop = trained(memguard(detector_epochs=1, detector_learning_rate=1e-9))
    accuracy = loop.metrics["training/detector_accuracy"]
    assert accuracy.value is not None and accuracy.value < 0.55 and "train it longer" in accuracy.note


@torch.no_grad()
def test_labels_are_the_argmax_of_the_scores() -> None:
    released = NoisyAnswers(guarded(), MemGuard.Config(budget=1.0), seed=7).eval()
    x = inputs(32)
    assert torch.equal(released.labels(x), released(x).argmax(1))
    assert torch.equal(predict_labels(released, x, batch_size=7), released(x).argmax(1))


def test_the_detector_learns_to_tell_members_from_others() -> None:
    inside, outside = (membership_logits(detector_of(), scores_of(excess, 100, 13).double()) for excess in (2.0, 0.0))
    assert ((inside > 0).double().mean() + (outside < 0).double().mean()) / 2 > 0.75


def test_either_side_weighs_one_half_in_the_training_of_the_detector() -> None:
    members, others = scores_of(2.0, 60, 1), scores_of(2.0, 20, 1)
    torch.manual_seed(0)
    detector = Detector(CLASSES)
    detector[-1].weight.data.zero_()
    train_detector(detector, members, others, epochs=20, learning_rate=0.1, seed=0)
    beliefs = membership_logits(detector, members).sigmoid()
    assert beliefs.mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_detector_read_with_the_other_sign_sees_through_noise_that_ends_just_beyond_its_boundary() -> None:
    detector = detector_of()
    shares = {}
    for bisect in (False, True):
        logits, noise = noise_of_clean(bisect, torch.float64)
        before = membership_logits(detector, logits.softmax(1))
        after = membership_logits(detector, noise.logits.softmax(1))
        shares[bisect] = ((before > 0) == (after < 0))[noise.is_found].double().mean().item()
    assert shares[False] == 1.0 and 0.1 < shares[True] < 0.9


def test_it_answers_through_predict_without_gradients() -> None:
    released = memguard().release(train(memguard()), 5).eval()
    answers = predict_log_probabilities(released, torch.rand(5, 8))
    assert answers.shape == (5, 3) and answers.isfinite().all()
    assert predict_log_probabilities(released, torch.rand(0, 8)).shape == (0, 3)
    assert released(torch.rand(0, 8)).shape == (0, 3)


@pytest.mark.parametrize(
    "bad", [{"budget": -0.1}, {"budget": 2.1}, {"variant": "reference"}, {"detector_epochs": 0}, {"epsilon": 1.0}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(MemGuard.Config, bad, "defense")
