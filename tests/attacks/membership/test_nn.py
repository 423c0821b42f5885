from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn

from oakum.attacks.access import Access, Knowledge, Points, Shadow, Target
from oakum.attacks.membership.nn import AttackNetwork, NeuralNetwork, fit, sorted_inputs
from oakum.metrics.membership import auc


def answers(count: int, sharpness: float, seed: int) -> np.ndarray:
    return log_softmax(np.random.default_rng(seed).normal(size=(count, 5)) * sharpness, axis=1)


def shadow_of(members: np.ndarray, others: np.ndarray) -> Shadow:
    log_probabilities = np.concatenate([members, others])
    y = np.zeros(len(log_probabilities), dtype=np.int64)
    return Shadow(log_probabilities, y, np.arange(len(y)) < len(members))


# Members are predicted with more certainty.
SHADOW = shadow_of(answers(60, 6.0, 0), answers(60, 2.0, 1))
ASKED = np.concatenate([answers(50, 6.0, 2), answers(50, 2.0, 3)])
IS_MEMBER = np.arange(100) < 50


def score(asked: np.ndarray, knowledge: Knowledge, attack: NeuralNetwork | None = None) -> np.ndarray:
    attack = attack or NeuralNetwork(NeuralNetwork.Config())

    def never_loaded() -> nn.Module:
        raise AssertionError("the scores are recorded")

    target = Target(never_loaded, Access.SCORES, asked.shape[1], dict(enumerate(asked)))
    points = Points(torch.zeros(len(asked), 1), torch.zeros(len(asked), dtype=torch.int64), torch.arange(len(asked)))
    scores = attack.score(target, points, knowledge)
    assert scores.dtype == np.float64
    assert scores.shape == (len(asked),)
    assert ((scores >= 0) & (scores <= 1)).all()
    return scores


def test_learns_from_shadow_models_what_members_look_like() -> None:
    scores = score(ASKED, Knowledge(shadow=(SHADOW,)))
    assert auc(scores, IS_MEMBER) > 0.8
    assert NeuralNetwork.fixed_threshold == 0.5
    assert ((scores >= 0.5) == IS_MEMBER).mean() > 0.7


def test_all_shadow_models_are_pooled() -> None:
    parts = shadow_of(answers(60, 6.0, 0), np.empty((0, 5))), shadow_of(np.empty((0, 5)), answers(60, 2.0, 1))
    assert (score(ASKED, Knowledge(shadow=parts)) == score(ASKED, Knowledge(shadow=(SHADOW,)))).all()


def test_depends_on_the_seed_and_nothing_else() -> None:
    first = score(ASKED, Knowledge(seed=1, shadow=(SHADOW,)))
    torch.manual_seed(5)
    torch.rand(3)
    assert (score(ASKED, Knowledge(seed=1, shadow=(SHADOW,))) == first).all()
    assert (score(ASKED, Knowledge(seed=2, shadow=(SHADOW,))) != first).any()


def test_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    score(ASKED[:3], Knowledge(shadow=(SHADOW,)))
    assert (torch.get_rng_state() == before).all()


def test_one_instance_is_fitted_once_for_the_same_knowledge() -> None:
    attack, knowledge = NeuralNetwork(NeuralNetwork.Config()), Knowledge(shadow=(SHADOW,))
    first = score(ASKED, knowledge, attack)
    network = attack._network(knowledge)
    assert (score(ASKED[::-1], knowledge, attack)[::-1] == first).all()
    assert attack._network(knowledge) is network
    swapped = Knowledge(shadow=(shadow_of(answers(60, 2.0, 1), answers(60, 6.0, 0)),))
    assert auc(score(ASKED, swapped, attack), IS_MEMBER) < 0.2


def test_the_order_of_classes_and_a_shift_of_the_logits_do_not_matter() -> None:
    knowledge, attack = Knowledge(shadow=(SHADOW,)), NeuralNetwork(NeuralNetwork.Config())
    first = score(ASKED, knowledge, attack)
    assert (score(ASKED[:, ::-1].copy(), knowledge, attack) == first).all()
    assert sorted_inputs(np.array([[-1.0, -3.0, -0.5]])).tolist() == [[-3.0, -1.0, -0.5]]


def test_the_released_code_trains_the_output_layer_alone() -> None:
    networks = {}
    for variant in ("paper", "released_code"):
        attack = NeuralNetwork(NeuralNetwork.Config(variant=variant))
        networks[variant] = attack._network(Knowledge(shadow=(SHADOW,)))
    trained = {name: sum(p.numel() for p in each.parameters() if p.requires_grad) for name, each in networks.items()}
    assert trained == {"paper": 5 * 100 + 100 + 101, "released_code": 101}
    start = AttackNetwork(5)
    bound = 1 / math.sqrt(5)
    assert networks["released_code"].hidden.weight.abs().max() < bound
    assert networks["paper"].hidden.weight.abs().max() > bound
    assert {name: p.shape for name, p in start.named_parameters()} == {
        name: p.shape for name, p in networks["paper"].named_parameters()
    }


def naive_steps(network: AttackNetwork, x: Tensor, y: Tensor, steps: int) -> list[np.ndarray]:
    """Full-batch Adam with gradients by hand, in float64."""
    w1, b1, w2, b2 = (p.detach().double().numpy().copy() for p in network.parameters())
    x, y = x.double().numpy(), y.double().numpy()
    first, second = [np.zeros_like(p) for p in (w1, b1, w2, b2)], [np.zeros_like(p) for p in (w1, b1, w2, b2)]
    for step in range(1, steps + 1):
        hidden = np.maximum(x @ w1.T + b1, 0)
        error = (1 / (1 + np.exp(-(hidden @ w2[0] + b2[0]))) - y) / len(y)
        back = (error[:, None] * w2) * (hidden > 0)
        gradients = [back.T @ x, back.sum(0), error[None] @ hidden, error.sum(keepdims=True)]
        for p, gradient, m, v in zip((w1, b1, w2, b2), gradients, first, second, strict=True):
            m[:] = 0.9 * m + 0.1 * gradient
            v[:] = 0.999 * v + 0.001 * gradient**2
            p -= 1e-3 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return [w1, b1, w2, b2]


def test_training_equals_a_naive_twin() -> None:
    network = AttackNetwork(5).double()
    x, y = sorted_inputs(SHADOW.log_probabilities).double(), torch.from_numpy(SHADOW.is_member).double()
    expected = naive_steps(network, x, y, 7)
    losses = fit(network, x, y, epochs=7, batch_size=len(x))
    for parameter, value in zip(network.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach(), value, rtol=1e-7, atol=1e-9)
    assert losses == sorted(losses, reverse=True)


def test_released_zeros_stay_finite() -> None:
    with np.errstate(divide="ignore"):
        hard = np.log(np.eye(5)[np.random.default_rng(0).integers(0, 5, 40)])
    scores = score(hard, Knowledge(shadow=(shadow_of(hard[:20], answers(20, 1.0, 0)),)))
    assert np.isfinite(scores).all()
    assert (scores > 0.5).all()
    assert sorted_inputs(hard).min().item() == pytest.approx(math.log(1e-30))


def test_no_points_give_no_scores() -> None:
    target, nobody = Target(nn.Identity, Access.SCORES, 5), torch.empty(0, dtype=torch.int64)
    attack = NeuralNetwork(NeuralNetwork.Config())
    scores = attack.score(target, Points(torch.empty(0, 5), nobody, nobody), Knowledge(shadow=(SHADOW,)))
    assert scores.shape == (0,)


@pytest.mark.parametrize("shadow", [(), (shadow_of(answers(9, 1.0, 0), np.empty((0, 5))),)])
def test_members_and_others_are_needed(shadow: tuple[Shadow, ...]) -> None:
    with pytest.raises(ValueError, match="shadow_train and shadow_test"):
        score(ASKED, Knowledge(shadow=shadow))


def test_nan_is_refused() -> None:
    broken = ASKED.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN for 1 of 100"):
        score(broken, Knowledge(shadow=(SHADOW,)))
