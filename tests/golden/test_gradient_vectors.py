"""Gradient statistics, the NN attack and the accuracy at a fixed threshold against the released code's outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import Tensor, nn

from oakum.attacks.membership._gradients import STATISTICS, Moments, gradient_statistics
from oakum.attacks.membership.nn import AttackNetwork, fit
from oakum.metrics.membership import auc
from oakum.metrics.utility import accuracy

NAMES = dict(zip(("l1", "l2", "Min", "Max", "Mean", "Skewness", "Kurtosis"), STATISTICS, strict=True))
NETWORKS = {
    "gradnorm/mlp": lambda: nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)),
    "gradnorm/conv": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16, 6),
    ),
}


def check_gradients(case) -> None:
    module = NETWORKS[case.name]().double().eval()
    module.load_state_dict({name: case.tensor(f"{case.name}/state/{name}") for name in module.state_dict()})
    x, y = case.tensor(f"{case.name}/x"), case.tensor(f"{case.name}/y")
    assert_allclose(module(x).detach(), case.at("logits"), rtol=1e-9)
    found = gradient_statistics(module, x, y)
    for stored, name in NAMES.items():
        for of in ("x", "w"):
            assert_allclose(found[f"{of}/{name}"], case.at(f"wrt_{of}/{stored}"), rtol=1e-9, atol=1e-14)


def check_statistics(case) -> None:
    assert [NAMES[str(name)] for name in case.at("names")] == list(STATISTICS)
    found = Moments.of(case.tensor(f"{case.name}/input")[None]).statistics()[0]
    assert_allclose(found, case.at("output"), rtol=1e-9)


def rows(case, role: str) -> tuple[Tensor, Tensor]:
    """Return sorted logits and membership of the shadow or target."""
    inside, outside = (case.tensor(f"{case.name}/{role}_{side}_logits") for side in ("member", "nonmember"))
    return torch.cat([inside, outside]).sort(dim=1).values, (
        torch.arange(len(inside) + len(outside)) < len(inside)
    ) * 1.0


def network_with(case, w2: Tensor, b2: Tensor) -> AttackNetwork:
    network = AttackNetwork(case.at("init/w1").shape[1])
    hidden = {
        f"hidden.{name}": case.tensor(f"{case.name}/init/{key}") for name, key in (("weight", "w1"), ("bias", "b1"))
    }
    network.load_state_dict({**hidden, "output.weight": w2, "output.bias": b2})
    network.hidden.requires_grad_(False)
    return network


def five_steps(case, network: AttackNetwork) -> list[float]:
    x, is_member = rows(case, "shadow")
    return fit(network, x, is_member, epochs=5, batch_size=len(x))


def start_of(case) -> tuple[Tensor, Tensor]:
    """Return the output layer before training.

    The file's `init/w2` and `init/b2` are equal to `after/`: they were written after the five steps. The start is then
    the one from which five steps lead there, found by taking the steps back until they meet it. What the file holds of
    the untrained network (its outputs, its figures, the first losses) tells whether it is the right one.
    """
    end = [case.tensor(f"{case.name}/after/{key}") for key in ("w2", "b2")]
    start = [case.tensor(f"{case.name}/init/{key}") for key in ("w2", "b2")]
    if not torch.equal(start[0], end[0]):
        return start[0], start[1]
    for _ in range(12):
        network = network_with(case, *start)
        five_steps(case, network)
        reached = (network.output.weight.detach(), network.output.bias.detach())
        start = [old + goal - found for old, goal, found in zip(start, end, reached, strict=True)]
    return start[0], start[1]


def measured(case, network: AttackNetwork) -> list[float]:
    x, is_member = rows(case, "target")
    with torch.no_grad():
        logits = network(x)
    called = (logits.sigmoid() >= 0.5).numpy()
    percent = accuracy(called, is_member.numpy() == 1).value
    assert percent is not None
    loss = F.binary_cross_entropy_with_logits(logits, is_member).item()
    return [loss, 100 * percent, auc(logits.double().numpy(), is_member.numpy() == 1)]


def check_attack_network(case) -> None:
    network = network_with(case, *start_of(case))
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert trained == case.at("registered_params")
    members = case.tensor(f"{case.name}/target_member_logits").sort(dim=1).values
    assert_allclose(network(members).detach(), case.at("forward_sorted_target_member"), rtol=1e-5, atol=2e-6)
    assert_allclose(measured(case, network), case.at("test_before"), rtol=1e-5)
    assert_allclose(five_steps(case, network), case.at("train_losses_5_fullbatch_steps"), rtol=1e-5)
    for parameter, key in ((network.hidden.weight, "w1"), (network.output.weight, "w2"), (network.output.bias, "b2")):
        assert_allclose(parameter.detach(), case.at(f"after/{key}"), rtol=1e-5, atol=1e-6)
    assert_allclose(measured(case, network), case.at("test_after"), rtol=1e-5)


def check_accuracy(case) -> None:
    called = case["metrics_binary/score"] >= 0.5
    found = accuracy(called, case["metrics_binary/y"] == 1).value
    assert found is not None
    assert_allclose(100 * found, case[case.name], rtol=1e-12)


OWNS = r"gradnorm/|normmetrics/|nnattack/|metrics_binary/accuracy_percent"
RULES = [
    (r"gradnorm/layout", None),
    (r"(?P<case>gradnorm/\w+)/.*", check_gradients),
    (r"(?P<case>normmetrics)/.*", check_statistics),
    (r"(?P<case>nnattack)/.*", check_attack_network),
    (r"(?P<case>metrics_binary/accuracy_percent)", check_accuracy),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)
