from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import distributions as dist

from oakum.attacks.inversion._flow import FlowBank, standard_normal_log_density
from oakum.attacks.inversion._variational_families import (
    Family,
    Flows,
    Gaussians,
    Mixtures,
    hard_choice,
)
from oakum.config import ConfigError
from oakum.seeding import torch_generator

CLASSES, LAYERS, SIZE = 3, 2, 8


def streams(count: int = CLASSES, seed: int = 0) -> list[torch.Generator]:
    return [torch_generator(seed + number) for number in range(count)]


def flows(classes: int = CLASSES, layers: int = LAYERS, size: int = SIZE, seed: int = 0, **options) -> Flows:
    return Flows(streams(classes, seed), layers, size, **{"steps": 2, "levels": 2, "width": 5, **options})


def moved(family, seed: int = 5):
    """Return the family with every parameter away from its start; a flow's small weights move less."""
    stream, by = torch_generator(seed), 0.03 if isinstance(family, Flows | FlowBank) else 0.3
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=stream))
    return family


@pytest.fixture(params=["gaussian", "layered_gaussian", "mixture", "flow"])
def family(request) -> Family:
    made: dict[str, Family] = {
        "gaussian": Gaussians(CLASSES, 1, SIZE),
        "layered_gaussian": Gaussians(CLASSES, LAYERS, SIZE),
        "mixture": Mixtures(streams(), 4, SIZE),
        "flow": flows(),
    }
    return moved(made[request.param])


def test_samples_belong_to_their_class_alone(family: Family) -> None:
    samples = family.sample(6, streams())
    assert samples.shape == (CLASSES, 6, family.layers, SIZE) and samples.dtype == torch.float64
    changed = family.sample(6, [*streams(CLASSES - 1), torch_generator(99)])
    assert torch.equal(changed[:-1], samples[:-1])
    assert not torch.isclose(changed[-1], samples[-1]).any()


def test_a_class_moves_by_its_own_gradient_alone(family: Family) -> None:
    (family.sample(6, streams())[1].square().mean() + family.kl(6, streams(seed=9))[1]).backward()
    for name, parameter in family.named_parameters():
        by_class = parameter.grad.reshape(CLASSES, -1)
        assert by_class[1].abs().sum() > 0, name
        assert by_class[0].abs().sum() == by_class[2].abs().sum() == 0, name


def test_the_divergence_is_the_mean_of_the_density_ratio(family: Family) -> None:
    samples = family.sample(20_000, streams(seed=50))
    ratio = family.log_density(samples) - standard_normal_log_density(samples)
    expected = ratio.mean(dim=(1, 2)).detach()
    assert (expected > 0.1).all()
    torch.testing.assert_close(family.kl(20_000, streams(seed=70)).detach(), expected, rtol=0.05, atol=0.02)


def test_a_state_dict_holds_all_of_a_family(family: Family) -> None:
    other: Family
    if isinstance(family, Flows):
        other = flows(seed=1234)
    elif isinstance(family, Mixtures):
        other = Mixtures(streams(seed=1234), 4, SIZE)
    else:
        other = Gaussians(CLASSES, family.layers, SIZE)
    torch.manual_seed(77)
    expected = family.sample(5, streams())
    assert not torch.equal(other.sample(5, streams()), expected)
    other.load_state_dict(family.state_dict())
    assert torch.equal(other.sample(5, streams()), expected)
    assert torch.equal(other.log_density(expected), family.log_density(expected))


def test_gaussians_equal_the_textbook() -> None:
    family = moved(Gaussians(CLASSES, LAYERS, SIZE))
    x = torch.randn(CLASSES, 10, LAYERS, SIZE, generator=torch_generator(1), dtype=torch.float64)
    factors = family.factor()
    assert torch.equal(factors, factors.tril()) and (factors.diagonal(dim1=-2, dim2=-1) > 0).all()
    for number in range(CLASSES):
        for layer in range(LAYERS):
            covariance = factors[number, layer] @ factors[number, layer].T
            expected = dist.MultivariateNormal(family.mean[number, layer], covariance)
            torch.testing.assert_close(family.log_density(x)[number, :, layer], expected.log_prob(x[number, :, layer]))
            torch.testing.assert_close(family.entropy()[number, layer], expected.entropy())
    standard = dist.MultivariateNormal(torch.zeros(SIZE).double(), torch.eye(SIZE).double())
    expected = dist.kl_divergence(dist.MultivariateNormal(family.mean, factors @ factors.mT), standard)
    torch.testing.assert_close(family.kl(1, streams()), expected.mean(dim=1))
    drawn = family.sample(40_000, streams())[0, :, 1].detach()
    torch.testing.assert_close(drawn.mean(0), family.mean[0, 1].detach(), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), (factors @ factors.mT)[0, 1].detach(), rtol=0.05, atol=0.08)


def test_gaussians_start_as_the_prior_with_equal_layers() -> None:
    family = Gaussians(CLASSES, LAYERS, SIZE)
    samples = family.sample(4, streams())
    assert torch.equal(samples[:, :, 0], samples[:, :, 1])
    assert torch.equal(samples[:, :, 0], family.noise(4, streams()))
    assert torch.equal(family.kl(4, streams()), torch.zeros(CLASSES).double())


def test_mixtures_equal_the_textbook() -> None:
    family = moved(Mixtures(streams(), 4, SIZE))
    x = torch.randn(CLASSES, 10, 1, SIZE, generator=torch_generator(1), dtype=torch.float64)
    factor = family.below.tril(-1) + torch.diag_embed(family.log_diagonal.exp())
    for number in range(CLASSES):
        components = dist.MultivariateNormal(family.mean[number], scale_tril=factor[number])
        expected = dist.MixtureSameFamily(dist.Categorical(logits=family.logits[number]), components)
        torch.testing.assert_close(family.log_density(x)[number, :, 0], expected.log_prob(x[number, :, 0]))


def test_the_density_of_a_mixture_integrates_to_one() -> None:
    """The released code divides the density by the number of components once more: it would integrate to 1 / 5."""
    family = moved(Mixtures(streams(1), 5, 1))
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = family.log_density(grid[None, :, None, None])[0, :, 0].exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-6)


def test_components_are_drawn_by_their_weights() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5]).expand(50_000, 4)
    choice = hard_choice(logits, torch.randn(50_000, 4, generator=torch_generator(3)))
    assert torch.equal(choice.sum(1), torch.ones(50_000)) and set(choice.flatten().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(choice.mean(0), logits[0].softmax(0), rtol=0, atol=0.01)


def test_a_choice_passes_the_gradient_of_the_softmax() -> None:
    noise = torch.randn(1, 4, generator=torch_generator(3), dtype=torch.float64)
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(4.0).double()
    (hard,) = torch.autograd.grad((hard_choice(logits, noise) * weights).sum(), logits)
    normal = dist.Normal(torch.zeros(()).double(), torch.ones(()).double())
    gumbel = -(-normal.cdf(noise).log()).log()
    (soft,) = torch.autograd.grad(((logits + gumbel).softmax(1) * weights).sum(), logits)
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize(("size", "levels"), [(8, 1), (8, 2), (8, 3), (12, 3), (5, 1)])
def test_a_flow_is_a_bijection_with_the_density_of_its_jacobian(size: int, levels: int) -> None:
    bank = moved(FlowBank(streams(2), 1, size, steps=2, levels=levels, width=4)).requires_grad_(False)
    noise = torch.randn(2, size, generator=torch_generator(4), dtype=torch.float64)

    def sample(flow: int, row: Tensor) -> Tensor:
        both = row.expand(2, 1, size)
        return bank.decode(both[..., : bank.top_size], both[..., bank.top_size :])[0][flow, 0]

    for flow in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda row, flow=flow: sample(flow, row), noise[flow])
        expected = standard_normal_log_density(noise[flow]) - torch.linalg.slogdet(jacobian)[1]
        x, log_density = bank.decode(*noise[:, None].split([bank.top_size, size - bank.top_size], dim=-1))
        torch.testing.assert_close(log_density[flow, 0], expected)
        top, encoded = bank.encode(x)
        torch.testing.assert_close(top[:, 0], noise[:, : bank.top_size])
        torch.testing.assert_close(encoded, log_density)


def test_a_flow_starts_near_the_prior_with_its_shifts_at_zero() -> None:
    family = flows(size=32, levels=3, steps=4)
    assert (family.kl(2000, streams()) < 1).all()
    drawn = family.sample(2000, streams()).flatten(0, 2)
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1
    fitted = family.bank.encode(torch.randn(CLASSES * LAYERS, 500, 32, generator=torch_generator(9)).double())[0]
    assert fitted.mean(dim=1).abs().max() < 0.5 and (fitted.std(dim=1) - 1).abs().max() < 0.5


def test_normalizations_are_fitted_to_the_data() -> None:
    bank = FlowBank(streams(1), 1, 6, steps=3, levels=1, width=5)
    x = 7 + 3 * torch.randn(1, 400, 6, generator=torch_generator(8), dtype=torch.float64)
    bank.fit(x)
    top = bank.encode(x)[0]
    torch.testing.assert_close(top.mean(dim=1), torch.zeros(1, 6).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(top.std(dim=1, correction=0), torch.ones(1, 6).double(), rtol=0, atol=1e-4)


def test_layers_of_a_flow_share_the_noise_at_the_top_alone() -> None:
    family = moved(flows())
    noise = family.noise(4, streams())
    top = family.bank.top_size
    changed = noise.clone()
    changed[..., :top] += 1
    assert not torch.isclose(family(changed), family(noise)).all(dim=-1).any()
    changed = noise.clone()
    changed[..., top:SIZE] += 1  # the first layer's own share
    assert torch.equal(family(changed)[:, :, 1], family(noise)[:, :, 1])
    assert not torch.isclose(family(changed)[:, :, 0], family(noise)[:, :, 0]).all(dim=-1).any()


def test_a_flow_does_not_depend_on_which_others_are_computed_with_it() -> None:
    together, alone = flows(), Flows([torch_generator(1)], LAYERS, SIZE, steps=2, levels=2, width=5)
    x, found = (
        together.sample_and_log_density(together.noise(6, streams())),
        alone.sample_and_log_density(alone.noise(6, [torch_generator(1)])),
    )
    for whole, part in zip(x, found, strict=True):
        torch.testing.assert_close(part[0], whole[1])


def test_precision_is_an_option_and_rounds_alone() -> None:
    double, single = flows(), flows(dtype=torch.float32)
    samples = single.sample(5, streams())
    assert samples.dtype == torch.float32
    torch.testing.assert_close(samples, double.sample(5, streams()).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "levels"), [(10, 3), (6, 3), (4, 3), (1, 1)])
def test_latents_that_cannot_be_halved_are_refused(size: int, levels: int) -> None:
    with pytest.raises(ConfigError, match=f"latent has {size}: lower flow_levels"):
        FlowBank(streams(1), 1, size, levels=levels)


def test_a_hundred_latents_take_three_levels() -> None:
    family = flows(classes=1, layers=1, size=100, levels=3)
    assert family.bank.top_size == 25 and family.noise_size == 100
    assert family.sample(2, streams(1)).shape == (1, 2, 1, 100)
