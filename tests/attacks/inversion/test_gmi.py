from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oakum.attacks.access import Access, AccessError, Knowledge, Target
from oakum.attacks.inversion._latent_search import start_latents
from oakum.attacks.inversion.gmi import GMI, search_latents
from oakum.config import ConfigError, validate

LATENTS, CLASSES = 6, 4


class ToyGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(LATENTS, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.project(z)).sigmoid().view(-1, 1, 4, 4)


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    return ToyGenerator(), critic, classifier


def attack(networks, classes=(0, 1, 2), seed: int = 7, access: Access = Access.WEIGHTS, **settings) -> Tensor:
    generator, critic, classifier = networks
    config = GMI.Config(**{"iterations": 15, "restarts": 3, "nominal_batch": 5, **settings})
    knowledge = Knowledge(seed=seed, generator=generator, critic=critic, latent_size=LATENTS)
    target = Target(lambda: classifier, access, CLASSES)
    return GMI(config).reconstruct(target, torch.tensor(classes, dtype=torch.long), knowledge)


def naive_search(z: Tensor, y: int, networks, iterations: int, rate: float, batch: int) -> Tensor:
    """One latent at a time, with the update written out."""
    generator, critic, classifier = (module.eval().double() for module in networks)
    z, v = z.double()[None], torch.zeros(1, LATENTS, dtype=torch.float64)
    for _ in range(iterations):
        z = z.detach().requires_grad_(True)
        image = generator(z)
        identity = -classifier(image).log_softmax(1)[0, y]
        ((-critic(image).sum() + 100 * identity) / batch).backward()
        before = v
        v = 0.9 * v - rate * z.grad
        z = torch.clamp(z.detach() + (-0.9 * before) + (1 + 0.9) * v, -1, 1)
    return z[0]


def test_search_equals_a_naive_twin_for_every_row(networks) -> None:
    starts, classes = (
        torch.randn(6, LATENTS, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 1, 2, 3, 0, 1]),
    )
    doubled = [module.eval().double() for module in networks]
    found = search_latents(
        starts.double(), classes, *doubled, iterations=12, learning_rate=0.02, nominal_batch=5, keep_trajectory=True
    )
    for row, label in enumerate(classes.tolist()):
        torch.testing.assert_close(found.latents[row], naive_search(starts[row], label, networks, 12, 0.02, 5))
    assert found.trajectory.shape == (13, 6, LATENTS)
    assert torch.equal(found.trajectory[0], starts.double())
    assert found.trajectory[1:].abs().max() <= 1
    assert not found.latents.requires_grad


def test_shape_range_and_repeatability(networks) -> None:
    images = attack(networks)
    assert images.shape == (3, 3, 1, 4, 4)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, attack(networks))
    assert not torch.equal(images, attack(networks, seed=8))


def test_chunks_other_classes_and_more_restarts_leave_a_reconstruction_as_it_is(networks) -> None:
    images = attack(networks)
    torch.testing.assert_close(attack(networks, max_rows=2), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attack(networks, classes=(2,)), images[2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attack(networks, restarts=5)[:, :3], images, rtol=1e-4, atol=1e-5)


def test_the_search_raises_the_target_class(networks) -> None:
    classes = torch.arange(CLASSES)
    with torch.no_grad():
        networks[2][2].weight.mul_(10)
    before, after = (attack(networks, classes.tolist(), iterations=count) for count in (0, 60))
    classifier = networks[2].eval()

    def confidence(images: Tensor) -> Tensor:
        probabilities = classifier(images.flatten(0, 1)).softmax(1)
        return probabilities[torch.arange(12), classes.repeat_interleave(3)].mean()

    assert confidence(after) > confidence(before) + 0.2


def test_the_nominal_batch_is_part_of_the_step(networks) -> None:
    assert torch.allclose(
        attack(networks, nominal_batch=10, learning_rate=0.02), attack(networks, nominal_batch=5, learning_rate=0.01)
    )
    assert not torch.allclose(attack(networks, nominal_batch=10), attack(networks, nominal_batch=5))


def test_the_temperature_divides_the_logits_of_the_target(networks) -> None:
    generator, critic, target = networks
    cooled = nn.Sequential(*list(target)[:-1], nn.Linear(*target[-1].weight.shape[::-1]))
    with torch.no_grad():
        cooled[-1].weight.copy_(target[-1].weight / 4)
        cooled[-1].bias.copy_(target[-1].bias / 4)
    found = attack((generator, critic, cooled))
    torch.testing.assert_close(attack(networks, temperature=4.0), found, rtol=0, atol=1e-5)
    assert not torch.equal(attack(networks), found)


def test_networks_come_back_as_they_were(networks) -> None:
    generator, critic, _ = networks
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    attack(networks)
    assert generator.training and generator.norm.training and critic.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert all(parameter.grad is None for module in networks for parameter in module.parameters())
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_exploding_latents_are_an_error_that_says_what_to_do(networks) -> None:
    with torch.no_grad():
        networks[2][2].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"9 of 9 latents are not finite at iteration 0.*lower learning_rate"):
        attack(networks)


def test_an_unbounded_step_is_clipped(networks) -> None:
    found = attack(networks, learning_rate=1e6)
    assert found.isfinite().all()


def test_bfloat16_stays_near_float32(networks) -> None:
    torch.testing.assert_close(attack(networks, precision="bfloat16"), attack(networks), rtol=0, atol=0.1)


def test_needs_a_prior_and_weights_access(networks) -> None:
    target = Target(lambda: networks[2], Access.WEIGHTS, CLASSES)
    with pytest.raises(ConfigError, match="prior"):
        GMI(GMI.Config()).reconstruct(target, torch.tensor([0]), Knowledge())
    with pytest.raises(AccessError):
        attack(networks, access=Access.SCORES)


def test_no_classes_give_no_reconstructions(networks) -> None:
    assert attack(networks, classes=()).shape == (0, 3, 1, 4, 4)


def test_starts_are_standard_normal_and_independent_of_each_other() -> None:
    starts = start_latents(3, "gmi/start", list(range(40)), 5, 100)
    assert starts.shape == (200, 100)
    assert abs(starts.mean()) < 0.03 and abs(starts.std() - 1) < 0.03
    assert len(torch.unique(starts[:, 0])) == 200


@pytest.mark.parametrize(
    "bad", [{"iterations": -1}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"restarts": 0}, {"precision": "float16"}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(GMI.Config, bad, "attack")
