from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import InputShape, count_parameters
from oakum.models.priors.wgan_gp import WGANGP, critic_loss

UPDATES = 6


def prior(dims: tuple[int, ...] = (1, 8, 8), **changes: Any) -> WGANGP:
    options = {
        "latent_size": 3, "width": 2, "critic_updates": UPDATES, "critic_per_generator": 2, "batch_size": 4,
        "log_every": 2, **changes,
    }  # fmt: skip
    return WGANGP(WGANGP.Config(**options), InputShape(dims))


def images(size: int = 8) -> Tensor:
    return torch.rand(20, 1, size, size, generator=torch.Generator().manual_seed(0))


def nothing(*arguments: Any) -> None:
    return None


def train(seed: int = 0, resume: Any = nothing, checkpoint: Any = nothing, **changes: Any) -> Any:
    return prior(**changes).train(images(), seed, resume, checkpoint)


def equal(first: dict[str, nn.Module], second: dict[str, nn.Module]) -> bool:
    return all(
        torch.equal(value, second[name].state_dict()[key])
        for name, module in first.items()
        for key, value in module.state_dict().items()
    )


@pytest.mark.parametrize("dims", [(1, 8, 8), (1, 16, 16), (3, 32, 32)])
def test_shapes_and_ranges(dims: tuple[int, ...]) -> None:
    networks = prior(dims).build()
    made = networks["generator"](torch.randn(5, 3))
    assert made.shape == (5, *dims) and made.min() >= 0 and made.max() <= 1
    assert networks["critic"](made).shape == (5,)


@pytest.mark.parametrize(
    ("dims", "counts"), [((3, 64, 64), (5_142_083, 4_316_545)), ((1, 32, 32), (1_443_777, 1_030_913))]
)
def test_the_published_sizes(dims: tuple[int, ...], counts: tuple[int, int]) -> None:
    networks = prior(dims, latent_size=100, width=64).build()
    assert (count_parameters(networks["generator"]), count_parameters(networks["critic"])) == counts


@pytest.mark.parametrize("dims", [(1, 28, 28), (1, 4, 4), (1, 8, 16), (600,)])
def test_other_shapes_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        prior(dims).build()


def test_critic_loss_equals_a_naive_twin() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)).double()
    real, fake = torch.rand(5, 1, 2, 2).double(), torch.rand(5, 1, 2, 2).double()
    mix = torch.rand(5, 1, 1, 1).double()
    loss, wasserstein, penalty = critic_loss(critic, real, fake, mix, weight=10.0)
    norms = []
    for i in range(5):
        point = (real[i : i + 1] + mix[i] * (fake[i : i + 1] - real[i : i + 1])).requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(point).sum(), point)
        norms.append(float(gradient.norm()))
    expected = sum((norm - 1) ** 2 for norm in norms) / 5
    distance = float((critic(real).mean() - critic(fake).mean()).detach())
    assert (wasserstein.item(), penalty.item()) == pytest.approx((distance, expected))
    assert loss.item() == pytest.approx(10 * expected - distance)


def test_networks_follow_from_the_seed_alone() -> None:
    first, history = train()
    torch.rand(5)
    second, again = train()
    assert equal(first, second) and history == again
    assert not equal(first, train(seed=1)[0])
    assert [row["step"] for row in history] == [2, 4, 6]
    assert history[0].keys() == {"step", "critic_loss", "wasserstein", "gradient_penalty", "generator_loss"}


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_training_ends_with_the_same_bits(stop: int) -> None:
    expected, history = train()
    kept: dict[str, Any] = {}

    class StoppedError(Exception):
        pass

    def checkpoint(step: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        if step == stop:
            states = {
                name: {key: _copied(value) for key, value in part.state_dict().items()} for name, part in parts.items()
            }
            kept.update(states=states, record={"step": step, "history": list(record["history"])})
            raise StoppedError

    with pytest.raises(StoppedError):
        train(checkpoint=checkpoint)

    def resume(parts: dict[str, Any]) -> dict[str, Any]:
        for name, part in parts.items():
            part.load_state_dict(kept["states"][name])
        record: dict[str, Any] = kept["record"]
        return record

    found, resumed = train(resume=resume)
    assert equal(found, expected) and resumed == history


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value


def test_divergence_names_the_step() -> None:
    with pytest.raises(ArithmeticError, match=r"diverged at update \d"):
        train(learning_rate=1e30)
