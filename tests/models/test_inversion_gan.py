from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.models.base import InputShape, count_parameters
from oakum.models.priors._minibatch_discrimination import MinibatchDiscrimination, summed_closeness
from oakum.models.priors.inversion_gan import InversionGAN, discriminator_loss, generator_loss

UPDATES, CLASSES = 6, 3


def prior(dims: tuple[int, ...] = (1, 8, 8), num_classes: int = CLASSES, **changes: Any) -> InversionGAN:
    options = {
        "latent_size": 3, "width": 2, "discriminator_updates": UPDATES, "discriminator_per_generator": 2,
        "batch_size": 4, "minibatch_outputs": 2, "minibatch_kernel": 3, "log_every": 2, **changes,
    }  # fmt: skip
    return InversionGAN(InversionGAN.Config(**options), InputShape(dims), num_classes)


def published(dims: tuple[int, ...], num_classes: int) -> dict[str, nn.Module]:
    with torch.device("meta"):
        return InversionGAN(InversionGAN.Config(), InputShape(dims), num_classes).build()


def images(size: int = 8) -> Tensor:
    return torch.rand(20, 1, size, size, generator=torch.Generator().manual_seed(0))


def make_target(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES))


def nothing(*arguments: Any) -> None:
    return None


def train(
    seed: int = 0, resume: Any = nothing, checkpoint: Any = nothing, target: nn.Module | None = None, **changes: Any
) -> Any:
    return prior(**changes).train(images(), seed, resume, checkpoint, target or make_target())


def equal(first: dict[str, nn.Module], second: dict[str, nn.Module]) -> bool:
    return all(
        torch.equal(value, second[name].state_dict()[key])
        for name, module in first.items()
        for key, value in module.state_dict().items()
    )


@pytest.mark.parametrize("dims", [(1, 8, 8), (1, 16, 16), (1, 32, 32), (3, 64, 64)])
def test_shapes_and_ranges(dims: tuple[int, ...]) -> None:
    networks = prior(dims).build()
    assert tuple(networks) == InversionGAN.network_names
    made = networks["generator"](torch.randn(5, 3))
    assert made.shape == (5, *dims) and made.min() >= 0 and made.max() <= 1
    assert networks["discriminator"](made).shape == (5, CLASSES)


@pytest.mark.parametrize(
    ("dims", "classes", "counts"),
    [((3, 64, 64), 1000, (5_142_083, 18_888_936)), ((1, 32, 32), 5, (1_443_777, 14_154_949))],
)
def test_the_published_sizes(dims: tuple[int, ...], classes: int, counts: tuple[int, int]) -> None:
    networks = published(dims, classes)
    assert (count_parameters(networks["generator"]), count_parameters(networks["discriminator"])) == counts


@pytest.mark.parametrize(
    ("size", "kernels"), [(16, [5, 5]), (32, [5, 5, 5]), (64, [5, 5, 5, 3]), (128, [5, 5, 5, 3, 3])]
)
def test_stages_follow_from_the_size_and_end_at_4x4(size: int, kernels: list[int]) -> None:
    discriminator = published((1, size, size), 5)["discriminator"]
    convolutions = [layer for layer in discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in convolutions] == kernels
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 256, 256][: len(kernels)]
    features = discriminator.features(torch.empty(2, 1, size, size, device="meta"))
    assert features.shape == (2, convolutions[-1].out_channels * 16)


@pytest.mark.parametrize("dims", [(1, 28, 28), (1, 4, 4), (1, 8, 16), (600,)])
def test_other_shapes_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        prior(dims).build()


def test_classes_and_a_target_are_needed() -> None:
    with pytest.raises(ConfigError, match="number of the target's classes"):
        prior(num_classes=0).build()
    with pytest.raises(ConfigError, match="trained against a target"):
        prior().train(images(), 0, nothing, nothing)


def naive_closeness(projected: Tensor) -> Tensor:
    """All differences at once: N * N * B * C values."""
    distances = (projected[:, None] - projected[None]).abs().sum(dim=3)
    return (-distances).exp().sum(dim=1) - 1


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocked_closeness_equals_the_broadcast_with_its_gradient(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    projected = 0.1 * torch.randn(7, 5, 4, generator=generator, dtype=torch.float64)
    projected[3] = projected[5]
    weights = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    found, expected = (projected.clone().to(to).requires_grad_(True) for to in (dtype, torch.float64))
    ours, naive = summed_closeness(found, rows), naive_closeness(expected)
    (ours * weights).sum().backward()
    (naive * weights).sum().backward()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours.double(), naive, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.grad.double(), expected.grad, rtol=tolerance, atol=4 * tolerance)


def test_blocked_closeness_keeps_no_array_of_all_differences() -> None:
    kept: list[int] = []

    def note_size(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    projected = torch.randn(32, 6, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note_size, lambda value: value):
        summed_closeness(projected)
    assert max(kept) <= 32 * 6 * 32


def test_closeness_at_its_limits() -> None:
    same = torch.ones(5, 2, 3)
    assert torch.equal(summed_closeness(same), torch.full((5, 2), 4.0))
    apart = 1000.0 * torch.arange(5.0).view(5, 1, 1).expand(5, 2, 3)
    assert torch.equal(summed_closeness(apart), torch.zeros(5, 2))
    assert torch.equal(summed_closeness(torch.randn(1, 2, 3)), torch.zeros(1, 2))


def test_rows_see_each_other_in_training_and_stand_alone_in_eval_mode() -> None:
    torch.manual_seed(0)
    module = MinibatchDiscrimination(6, outputs=2, kernel_size=3)
    features = 0.01 * torch.rand(4, 6)
    joined = module(features)
    assert torch.equal(joined[:, :6], features) and (joined[:, 6:] > 0.1).all()
    assert torch.equal(module.eval()(features), torch.cat([features, torch.zeros(4, 2)], dim=1))
    discriminator = prior().build()["discriminator"].eval()
    x = images()
    torch.testing.assert_close(discriminator(x[:1]), discriminator(x)[:1])


def test_batches_passed_together_are_compared_within_themselves() -> None:
    torch.manual_seed(0)
    module = MinibatchDiscrimination(6, outputs=2, kernel_size=3)
    batches = [0.01 * torch.rand(4, 6) for _ in range(3)]
    torch.testing.assert_close(module(torch.cat(batches), batches=3), torch.cat([module(batch) for batch in batches]))


def test_the_released_comparison_of_distinct_images_is_zero_before_training() -> None:
    """Why judging rows alone in eval mode is the released network: the projection puts images far apart."""
    torch.manual_seed(0)
    discriminator = InversionGAN(InversionGAN.Config(), InputShape((1, 16, 16)), 5).build()["discriminator"]
    x = images(16)
    assert torch.equal(discriminator.train()(x), discriminator.eval()(x))


def naive_lse(row: Tensor) -> float:
    return math.log(sum(math.exp(float(value)) for value in row))


def test_losses_equal_naive_twins() -> None:
    torch.manual_seed(0)
    labeled, unlabeled, fake = (torch.randn(5, CLASSES).double() for _ in range(3))
    soft = torch.randn(5, CLASSES).double().softmax(1)
    label = -sum(float(soft[i, k]) * (float(labeled[i, k]) - naive_lse(labeled[i])) for i in range(5) for k in range(3))
    real = sum(math.log1p(math.exp(naive_lse(row))) - naive_lse(row) for row in unlabeled)
    made = sum(math.log1p(math.exp(naive_lse(row))) for row in fake)
    found = [value.item() for value in discriminator_loss(labeled, unlabeled, fake, soft)]
    assert found[1:] == pytest.approx([label / 5, 0.5 * (real + made) / 5])
    assert found[0] == pytest.approx(sum(found[1:]))

    first, second = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    matching = sum(abs(float(first[:, j].sum() - second[:, j].sum())) / 5 for j in range(4)) / 4
    logs = [float(value) - naive_lse(row) for row in fake for value in row]
    entropy = -sum(math.exp(log) * log for log in logs)
    for reduction, expected in (("sum", entropy), ("mean", entropy / 5)):
        total, *terms = generator_loss(first, second, fake, 0.3, reduction)
        assert [value.item() for value in terms] == pytest.approx([matching, expected])
        assert total.item() == pytest.approx(matching + 0.3 * expected)


def test_networks_follow_from_the_seed_alone() -> None:
    first, history = train()
    torch.rand(5)
    second, again = train()
    assert equal(first, second) and history == again
    assert not equal(first, train(seed=1)[0])
    assert [row["step"] for row in history] == [2, 4, 6]
    assert history[0].keys() == {
        "step", "discriminator_loss", "label_loss", "realness_loss", "generator_loss", "feature_matching", "entropy",
    }  # fmt: skip


def test_the_target_teaches_and_stays_as_it_is() -> None:
    target = make_target()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    found, _ = train(target=target.train())
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in target.parameters())
    assert equal(found, train(target=make_target().eval())[0])
    assert not equal(found, train(target=make_target(seed=1))[0])


def test_the_discriminator_learns_the_targets_classes() -> None:
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    with torch.no_grad():
        target[1].weight.mul_(20)
    networks, history = train(
        target=target, width=8, discriminator_updates=200, learning_rate=2e-3, batch_size=16, log_every=100
    )
    discriminator = networks["discriminator"].eval()
    with torch.no_grad():
        agreement = (discriminator(images()).argmax(1) == target(images()).argmax(1)).double().mean()
    assert agreement > 0.9
    assert history[-1]["label_loss"] < 0.5 * math.log(CLASSES)


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


def test_bfloat16_stays_near_float32_and_keeps_float32_weights() -> None:
    networks, history = train(precision="bfloat16")
    _, expected = train()
    assert all(value.dtype != torch.bfloat16 for module in networks.values() for value in module.state_dict().values())
    for row, twin in zip(history, expected, strict=True):
        assert row != twin
        assert list(row.values()) == pytest.approx(list(twin.values()), rel=0.05, abs=0.05)


def test_without_minibatch_discrimination_there_is_no_projection() -> None:
    discriminator = prior(minibatch_outputs=0).build()["discriminator"]
    assert not any("projection" in name for name, _ in discriminator.named_parameters())
    train(minibatch_outputs=0)


def test_divergence_names_the_step() -> None:
    with pytest.raises(ArithmeticError, match=r"diverged at update \d"):
        train(learning_rate=1e30)


@pytest.mark.parametrize("bad", [{"batch_size": 1}, {"discriminator_updates": 0}, {"entropy_reduction": "max"}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validate(InversionGAN.Config, bad, "prior")


def test_a_generator_that_would_never_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"discriminator_updates 4 is less than .* the generator would never be"):
        validate(InversionGAN.Config, {"discriminator_updates": 4, "discriminator_per_generator": 5}, "prior")
    validate(InversionGAN.Config, {"discriminator_updates": 5, "discriminator_per_generator": 5}, "prior")
