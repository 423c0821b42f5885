from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oakum.attacks.access import Access, AccessError, Knowledge, Target
from oakum.attacks.inversion._latent_search import start_latents
from oakum.attacks.inversion.plgmi import PLGMI, search_margins
from oakum.config import ConfigError, validate

LATENTS, CLASSES = 6, 4


class ToyGenerator(nn.Module):
    """A conditional generator with batch normalization, so that its mode matters."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(LATENTS, 64)
        self.norm = nn.BatchNorm1d(64)
        self.shift = nn.Embedding(CLASSES, 64)

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        return (self.norm(self.project(z)) + self.shift(classes)).sigmoid().view(-1, 1, 8, 8)


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return ToyGenerator(), nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES))


def attack(networks, classes=(0, 1, 2), seed: int = 7, access: Access = Access.WEIGHTS, **settings) -> Tensor:
    generator, classifier = networks
    config = PLGMI.Config(**{"iterations": 10, "restarts": 3, **settings})
    owned = {"generator": generator, "projection_discriminator": nn.Identity()}
    knowledge = Knowledge(seed=seed, generator=generator, networks=owned, latent_size=LATENTS)
    target = Target(lambda: classifier, access, CLASSES)
    return PLGMI(config).reconstruct(target, torch.tensor(classes, dtype=torch.long), knowledge)


def darker(number: int, images: Tensor) -> Tensor:
    """A view that differs from step to step."""
    return images * (1 - 0.1 * (number % 3))


def naive_search(z: Tensor, label: int, networks, iterations: int, rate: float, views: int) -> Tensor:
    """One latent at a time, with margins and Adam written out."""
    generator, classifier = networks
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(iterations):
        z = z.detach().requires_grad_(True)
        loss = torch.zeros((), dtype=torch.float64)
        for view in range(views):
            logits = classifier(darker(step * views + view, generator(z[None], torch.tensor([label]))))[0]
            others = [logits[other] for other in range(CLASSES) if other != label]
            loss = loss + max(others) - logits[label]
        (gradient,) = torch.autograd.grad(loss, z)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = second / (1 - 0.999 ** (step + 1))
        z = z.detach() - rate * first / (1 - 0.9 ** (step + 1)) / (corrected.sqrt() + 1e-8)
    return z


@pytest.mark.parametrize("views", [1, 2])
def test_the_search_equals_a_naive_twin_for_every_row(networks, views: int) -> None:
    doubled = [module.eval().double() for module in networks]
    starts = torch.randn(6, LATENTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    found = search_margins(starts, classes, *doubled, darker, iterations=12, learning_rate=0.1, views=views)
    for row, label in enumerate(classes.tolist()):
        torch.testing.assert_close(found[row], naive_search(starts[row], label, doubled, 12, 0.1, views))
    assert not found.requires_grad


def test_shape_range_repeatability_and_independence(networks) -> None:
    images = attack(networks)
    assert images.shape == (3, 3, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, attack(networks))
    assert not torch.equal(images, attack(networks, seed=8))
    assert not torch.equal(images, attack(networks, flip=False))
    for changed in ({"max_rows": 2}, {"restarts": 5}):
        torch.testing.assert_close(attack(networks, **changed)[:, :3], images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attack(networks, classes=(2,)), images[2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attack(networks, precision="bfloat16"), images, rtol=0, atol=0.1)


def test_without_iterations_it_shows_samples_of_each_class(networks) -> None:
    found = attack(networks, iterations=0)
    generator = networks[0].eval()
    starts = start_latents(7, "plgmi/start", [0, 1, 2], 3, LATENTS)
    expected = generator(starts, torch.arange(3).repeat_interleave(3)).detach()
    torch.testing.assert_close(found.flatten(0, 1), expected)


def test_the_search_raises_the_margin_of_the_class(networks) -> None:
    classifier = networks[1].eval()

    def margins(images: Tensor) -> Tensor:
        logits = classifier(images.flatten(0, 1)).detach()
        wanted = torch.arange(3).repeat_interleave(3)
        others = logits.scatter(1, wanted[:, None], float("-inf")).amax(1)
        return logits.gather(1, wanted[:, None]).flatten() - others

    before, after = (margins(attack(networks, iterations=count, flip=False)) for count in (0, 60))
    assert (after > before).all()
    assert (after - before).mean() > 0.1


def test_the_networks_keep_their_mode_and_their_weights(networks) -> None:
    generator, classifier = networks
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    attack(networks)
    assert generator.training
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(weight.grad is None for network in (generator, classifier) for weight in network.parameters())


def test_it_needs_weights_and_a_conditional_prior(networks) -> None:
    with pytest.raises(AccessError):
        attack(networks, access=Access.SCORES)
    with pytest.raises(ConfigError, match="pseudo_label_gan"):
        PLGMI(PLGMI.Config()).reconstruct(
            Target(lambda: networks[1], Access.WEIGHTS, CLASSES),
            torch.tensor([0]),
            Knowledge(generator=networks[0], networks={"generator": networks[0]}, latent_size=LATENTS),
        )


def test_a_diverging_search_names_the_attack(networks) -> None:
    with torch.no_grad():
        networks[1][2].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="PLG-MI"):
        attack(networks)


@pytest.mark.parametrize("settings", [{"iterations": -1}, {"learning_rate": 0}, {"views": 0}, {"restarts": 0}])
def test_settings_without_sense_are_refused(settings) -> None:
    with pytest.raises(ConfigError):
        validate(PLGMI.Config, settings, "attacks.inversion")
