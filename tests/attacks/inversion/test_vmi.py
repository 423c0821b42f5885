from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as dist

from oakum.attacks.access import Access, AccessError, Knowledge, Target
from oakum.attacks.inversion.vmi import VMI, identity_loss, images_from, layers_of
from oakum.config import ConfigError, validate
from oakum.models.base import InputShape
from oakum.models.priors.stylegan2 import StyleGAN2
from oakum.seeding import derive_seed, torch_generator

LATENTS, CLASSES, SEED = 8, 4, 7
FAMILIES = ["gaussian", "layered_gaussian", "mixture", "flow"]


class ToyGenerator(nn.Module):
    """`layers` is a module here, as in the other generators of oakum: it does not make this a layered generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(LATENTS, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.layers(z)).sigmoid().view(-1, 1, 4, 4)


class ToyLayered(nn.Module):
    """Three layers with a mapped latent each; records what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = 3
        self.mapping = nn.Linear(LATENTS, 5)
        self.synthesis = nn.Linear(15, 16)
        self.asked: list[Tensor] = []

    def map(self, z: Tensor) -> Tensor:
        return self.mapping(z)

    def synthesize(self, ws: Tensor) -> Tensor:
        self.asked.append(ws.detach())
        return self.synthesis(ws.flatten(1)).sigmoid().view(-1, 1, 4, 4)


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return ToyGenerator(), nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def attack(networks, classes=(0, 1, 2), seed: int = SEED, access: Access = Access.WEIGHTS, **settings) -> Tensor:
    generator, classifier = networks
    family = settings.get("family", "gaussian")
    of_family = {"flow": {"flow_steps": 2, "flow_levels": 2, "flow_width": 4}, "mixture": {"components": 3}}
    config = {
        "steps": 8, "restarts": 3, "batch": 4, "family": family, "learning_rate": 0.01,
        **of_family.get(family, {}), **settings,
    }  # fmt: skip
    knowledge = Knowledge(seed=seed, generator=generator, latent_size=LATENTS)
    target = Target(lambda: classifier, access, CLASSES)
    return VMI(validate(VMI.Config, config, "attack")).reconstruct(
        target, torch.tensor(classes, dtype=torch.long), knowledge
    )


def naive_reconstruction(networks, label: int, steps: int, batch: int, rate: float, weight: float) -> Tensor:
    """The search for one class with textbook distributions and SGD with momentum 0.9 written out."""
    generator, classifier = (module.eval().double() for module in networks)
    mean, log_diagonal = (torch.zeros(LATENTS, dtype=torch.float64) for _ in range(2))
    below = torch.zeros(LATENTS, LATENTS, dtype=torch.float64)
    values = [mean, below, log_diagonal]
    velocities = [torch.zeros_like(value) for value in values]
    prior = dist.MultivariateNormal(torch.zeros(LATENTS).double(), torch.eye(LATENTS).double())
    stream = torch_generator(derive_seed(SEED, "vmi/fit", label))

    def factor(below: Tensor, log_diagonal: Tensor) -> Tensor:
        return torch.tril(below, -1) + torch.diag(log_diagonal.exp())

    for _ in range(steps):
        values = [value.detach().requires_grad_(True) for value in values]
        scale = factor(values[1], values[2])
        noise = torch.randn(batch, LATENTS, generator=stream).double()
        images = torch.stack([generator((values[0] + scale @ row)[None])[0] for row in noise])
        loss = -classifier(images).log_softmax(1)[:, label].mean()
        loss = loss + weight * dist.kl_divergence(dist.MultivariateNormal(values[0], scale_tril=scale), prior)
        gradients = torch.autograd.grad(loss, values)
        velocities = [0.9 * v + g for v, g in zip(velocities, gradients, strict=True)]
        values = [value - rate * v for value, v in zip(values, velocities, strict=True)]
    scale, noises = factor(values[1], values[2]), []
    for restart in range(3):
        noises.append(torch.randn(LATENTS, generator=torch_generator(derive_seed(SEED, "vmi/sample", label, restart))))
    return torch.stack([generator((values[0] + scale @ row.double())[None])[0] for row in noises]).detach()


def test_the_fit_equals_a_naive_twin_for_every_class(networks) -> None:
    doubled = tuple(module.eval().double() for module in networks)
    found = attack(doubled, classes=(0, 3), steps=10, learning_rate=0.5, kl_weight=0.02)
    for row, label in enumerate((0, 3)):
        expected = naive_reconstruction(networks, label, 10, 4, 0.5, 0.02).float()
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, attack(doubled, classes=(0, 3), steps=0), atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_range_and_repeatability(networks, family: str) -> None:
    images = attack(networks, family=family)
    assert images.shape == (3, 3, 1, 4, 4)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    torch.rand(3)
    assert torch.equal(images, attack(networks, family=family))
    assert not torch.equal(images, attack(networks, family=family, seed=8))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_other_classes_and_more_restarts_leave_a_reconstruction_as_it_is(networks, family: str) -> None:
    images = attack(networks, family=family)
    for found, expected in [
        (attack(networks, family=family, max_rows=8), images),
        (attack(networks, family=family, max_rows=1), images),
        (attack(networks, family=family, classes=(2,)), images[2:]),
        (attack(networks, family=family, restarts=5)[:, :3], images),
    ]:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "optimizer", "rate"),
    [("gaussian", "adam", 0.1), ("mixture", "adam", 0.1), ("flow", "adam", 0.01), ("flow", "sgd", 0.005)],
)
def test_the_fit_raises_the_target_class(networks, family: str, optimizer: str, rate: float) -> None:
    with torch.no_grad():
        networks[1][2].weight.mul_(10)
    settings = {"family": family, "optimizer": optimizer, "learning_rate": rate, "classes": range(CLASSES)}
    before, after = (attack(networks, steps=steps, restarts=20, **settings) for steps in (0, 60))
    classifier = networks[1].eval()

    def confidence(images: Tensor) -> Tensor:
        probabilities = classifier(images.flatten(0, 1)).softmax(1)
        return probabilities[torch.arange(20 * CLASSES), torch.arange(CLASSES).repeat_interleave(20)].mean()

    assert confidence(after) > confidence(before) + 0.2


def test_the_weight_of_the_divergence_holds_samples_near_the_prior(networks) -> None:
    start = attack(networks, steps=0)
    settings = {"steps": 60, "optimizer": "adam", "learning_rate": 0.05}
    distances = [(attack(networks, kl_weight=weight, **settings) - start).abs().mean() for weight in (0.0, 0.1, 10.0)]
    assert distances[0] > distances[1] > 2 * distances[2]


def test_layers_get_a_latent_each_or_share_one(networks) -> None:
    torch.manual_seed(0)
    generator = ToyLayered()
    for family in FAMILIES:
        generator.asked.clear()
        images = attack((generator, networks[1]), family=family, classes=(0, 2))
        assert images.shape == (2, 3, 1, 4, 4) and images.isfinite().all()
        *fitting, final = generator.asked
        assert [ws.shape for ws in fitting] == [(2 * 4, 3, 5)] * 8 and final.shape == (6, 3, 5)
        shared = torch.isclose(final[:, 1], final[:, 0]).all().item()
        assert shared == (family in ("gaussian", "mixture"))


def test_images_from_maps_the_latent_of_every_layer() -> None:
    generator = ToyLayered()
    latents = torch.randn(4, 3, LATENTS)
    w = torch.stack([generator.map(latents[:, layer]) for layer in range(3)], dim=1)
    torch.testing.assert_close(images_from(generator, latents), generator.synthesize(w))
    assert layers_of(generator) == 3
    toy = ToyGenerator().eval()
    assert layers_of(toy) == 1
    assert torch.equal(images_from(toy, latents[:, :1].double()), toy(latents[:, 0]))


def test_the_prior_of_the_paper_is_searched_layer_by_layer(networks) -> None:
    torch.manual_seed(0)
    config = StyleGAN2.Config(latent_size=LATENTS, style_size=LATENTS, channel_base=16)
    generator = StyleGAN2(config, InputShape((1, 16, 16))).build()["generator"]
    assert layers_of(generator) == 6
    target = nn.Sequential(nn.AvgPool2d(4), networks[1])
    found = attack((generator, target), family="flow", learning_rate=1e-3)
    assert found.shape == (3, 3, 1, 16, 16)
    assert not torch.equal(found, attack((generator, target), family="flow", steps=0))


def test_the_identity_loss_spreads_the_smoothed_share_over_the_other_classes() -> None:
    logits = torch.randn(5, 3, generator=torch_generator(2))
    classes = torch.tensor([0, 1, 2, 1, 0])
    weights = torch.full((5, 3), 0.1 / 2)
    weights[torch.arange(5), classes] = 0.9
    expected = -(weights * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(identity_loss(logits, classes, 0.1), expected)
    torch.testing.assert_close(
        identity_loss(logits, classes), nn.functional.cross_entropy(logits, classes, reduction="none")
    )
    assert identity_loss(logits.bfloat16(), classes).dtype == torch.float32


def test_the_temperature_divides_the_logits_of_the_target(networks) -> None:
    generator, target = networks
    cooled = nn.Sequential(*list(target)[:-1], nn.Linear(*target[-1].weight.shape[::-1]))
    with torch.no_grad():
        cooled[-1].weight.copy_(target[-1].weight / 4)
        cooled[-1].bias.copy_(target[-1].bias / 4)
    settings = {"learning_rate": 1.0}
    found = attack((generator, cooled), **settings)
    torch.testing.assert_close(attack(networks, temperature=4.0, **settings), found, rtol=0, atol=1e-5)
    assert not torch.allclose(attack(networks, **settings), found, atol=1e-3)


def test_networks_come_back_as_they_were(networks) -> None:
    generator, _ = networks
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    attack(networks)
    assert generator.training and generator.norm.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert all(parameter.grad is None for module in networks for parameter in module.parameters())
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("steps", "found_at"), [(3, 3), (51, 50)])
def test_a_diverged_distribution_is_an_error_that_says_what_to_do(networks, steps: int, found_at: int) -> None:
    with torch.no_grad():
        networks[1][2].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=rf"VMI.*not finite at iteration {found_at}\..*lower learning_rate"):
        attack(networks, steps=steps, classes=(0, 1))


def test_precisions_stay_near_each_other(networks) -> None:
    found = attack(networks, learning_rate=1.0)
    torch.testing.assert_close(attack(networks, learning_rate=1.0, family_precision="float32"), found)
    torch.testing.assert_close(attack(networks, learning_rate=1.0, precision="bfloat16"), found, rtol=0, atol=0.1)


def test_needs_a_prior_and_weights_access(networks) -> None:
    target = Target(lambda: networks[1], Access.WEIGHTS, CLASSES)
    with pytest.raises(ConfigError, match="prior"):
        VMI(VMI.Config()).reconstruct(target, torch.tensor([0]), Knowledge())
    with pytest.raises(AccessError):
        attack(networks, access=Access.SCORES)


def test_a_latent_that_does_not_suit_the_flow_is_refused(networks) -> None:
    with pytest.raises(ConfigError, match="latent has 8: lower flow_levels"):
        attack(networks, family="flow", flow_levels=4)


def test_a_plan_can_ask_before_whether_a_latent_suits() -> None:
    with pytest.raises(ConfigError, match="latent has 50: lower flow_levels"):
        VMI(VMI.Config(family="flow", flow_levels=3)).check(50)
    VMI(VMI.Config(family="flow", flow_levels=2)).check(50)
    VMI(VMI.Config(family="gaussian")).check(50)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_classes_give_no_reconstructions(networks, family: str) -> None:
    assert attack(networks, classes=(), family=family).shape == (0, 3, 1, 4, 4)


def test_the_defaults_are_the_published_ones() -> None:
    config = VMI.Config()
    assert (config.family, config.steps, config.batch, config.optimizer) == ("flow", 320, 32, "sgd")
    assert (config.learning_rate, config.momentum, config.kl_weight, config.label_smoothing) == (1e-4, 0.9, 1e-3, 0)
    assert (config.flow_steps, config.flow_levels, config.flow_width) == (10, 3, 100)


@pytest.mark.parametrize(
    "bad", [{"steps": -1}, {"family": "normal"}, {"optimizer": "lbfgs"}, {"kl_weight": -1.0}, {"batch": 0}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(VMI.Config, bad, "attack")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"family": "gaussian", "flow_levels": 2}, "flow_levels has no effect with family gaussian"),
        ({"family": "flow", "components": 3}, "components has no effect with family flow"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum has no effect with optimizer adam"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(VMI.Config, settings, "attack")


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_were_written_out_are_read_again(family: str) -> None:
    config = VMI.Config(family=family, optimizer="adam")
    assert validate(VMI.Config, config.model_dump(mode="json"), "attack") == config
