from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import InputShape, count_parameters
from oakum.models.priors.dcgan import DCGAN, binary_loss

UPDATES = 6
# The released generator also holds an embedding (1, 100) and a linear layer 1 -> 100, which its forward never uses.
UNUSED = 100 + 100 + 100


def prior(dims: tuple[int, ...] = (1, 16, 16), **changes: Any) -> DCGAN:
    options = {"latent_size": 3, "width": 1, "updates": UPDATES, "batch_size": 4, "log_every": 2, **changes}
    return DCGAN(DCGAN.Config(**options), InputShape(dims))


def images() -> Tensor:
    return torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("dims", [(1, 16, 16), (1, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("spectral", [True, False])
def test_shapes_and_ranges(dims: tuple[int, ...], spectral: bool) -> None:
    networks = prior(dims, spectral_norm=spectral).build()
    assert tuple(networks) == DCGAN.network_names
    made = networks["generator"](torch.randn(5, 3))
    assert made.shape == (5, *dims) and made.min() >= 0 and made.max() <= 1
    assert made.min() < 0.5 < made.max()
    assert networks["critic"](made).shape == (5,)


@pytest.mark.parametrize(("dims", "count"), [((3, 64, 64), 3_577_004), ((1, 32, 32), 3_444_780)])
def test_the_published_sizes_without_what_nothing_uses(dims: tuple[int, ...], count: int) -> None:
    networks = prior(dims, latent_size=100, width=64).build()
    assert count_parameters(networks["generator"]) == count - UNUSED


@pytest.mark.parametrize("dims", [(1, 28, 28), (1, 8, 8), (1, 128, 128), (1, 16, 32), (600,)])
def test_other_shapes_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"16, 32 or 64 pixels.*data\.image_size"):
        prior(dims).build()


def test_the_critics_convolutions_have_spectral_norm_one_after_training() -> None:
    networks, _ = train(updates=15, learning_rate=1e-4)
    critic = networks["critic"].eval()
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))
        for layer in critic.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert norms == pytest.approx([1.0] * 3, abs=0.05)


def test_binary_loss_equals_its_definition() -> None:
    logits = torch.tensor([-2.0, 0.5, 3.0])
    probabilities = [1 / (1 + math.exp(-value)) for value in logits.tolist()]
    real = -sum(math.log(p) for p in probabilities) / 3
    fake = -sum(math.log(1 - p) for p in probabilities) / 3
    assert binary_loss(logits, is_real=True).item() == pytest.approx(real)
    assert binary_loss(logits, is_real=False).item() == pytest.approx(fake)


def test_networks_follow_from_the_seed_alone() -> None:
    first, history = train()
    torch.rand(5)
    second, again = train()
    assert equal(first, second) and history == again
    assert not equal(first, train(seed=1)[0])
    assert [row["step"] for row in history] == [2, 4, 6]
    assert history[0].keys() == {"step", "critic_loss", "generator_loss"}


def test_the_noise_on_what_the_critic_sees_changes_training() -> None:
    assert not equal(train(instance_noise=0.0)[0], train(instance_noise=0.1)[0])


def test_the_networks_learn_the_brightness_of_the_images() -> None:
    dark = 0.1 * images()
    networks, _ = prior(updates=80, learning_rate=4e-3, width=2).train(dark, 0, nothing, nothing)
    generator, critic = networks["generator"].eval(), networks["critic"].eval()
    assert generator(torch.randn(50, 3, generator=torch.Generator().manual_seed(1))).mean() < 0.2
    assert critic(dark).mean() > critic(1 - dark).mean()


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
