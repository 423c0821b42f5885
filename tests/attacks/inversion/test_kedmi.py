from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from oakum.attacks.access import Access, AccessError, Knowledge, Target
from oakum.attacks.inversion.kedmi import KEDMI, Distributions, kedmi_loss, search_distributions
from oakum.config import ConfigError, validate
from oakum.models.base import InputShape
from oakum.models.priors.inversion_gan import InversionGAN
from oakum.seeding import keyed_normal, sample_keys

LATENTS, CLASSES = 6, 4


class ToyGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(LATENTS, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.project(z)).sigmoid().view(-1, 1, 4, 4)


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "generator": ToyGenerator(),
        "discriminator": nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)),
        "classifier": nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES)),
    }


def attack(networks, classes=(0, 1, 2), seed: int = 7, access: Access = Access.WEIGHTS, **settings) -> Tensor:
    prior = {name: module for name, module in networks.items() if name != "classifier"}
    config = KEDMI.Config(**{"iterations": 12, "restarts": 2, "samples": 3, "nominal_batch": 5, **settings})
    knowledge = Knowledge(seed=seed, networks=prior, latent_size=LATENTS)
    target = Target(lambda: networks["classifier"], access, CLASSES)
    return KEDMI(config).reconstruct(target, torch.tensor(classes, dtype=torch.long), knowledge)


def latents_synthesized(networks, **settings) -> Tensor:
    """Return the latents of the reconstructions, which the generator gets last."""
    seen: list[Tensor] = []
    handle = networks["generator"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    attack(networks, **settings)
    handle.remove()
    return seen[-1]


def naive_search(y: int, networks, noise: Tensor, rate: float, clip: float | None) -> tuple[Tensor, Tensor]:
    """One distribution at a time, with the objective and Adam written out."""
    parameters = [torch.zeros(LATENTS, dtype=torch.float64) for _ in range(2)]
    first, second = ([torch.zeros(LATENTS, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    for step, eps in enumerate(noise, start=1):
        mean, log_variance = (value.detach().requires_grad_(True) for value in parameters)
        z = mean + torch.sqrt(log_variance.exp()) * eps
        image = networks["generator"]((z if clip is None else torch.clamp(z, -clip, clip))[None])
        realness = networks["discriminator"](image).exp().sum().log()
        prior = torch.log1p(realness.exp()) - realness
        (prior - 100 * networks["classifier"](image).log_softmax(1)[0, y]).backward()
        for i, value in enumerate((mean, log_variance)):
            first[i] = 0.9 * first[i] + 0.1 * value.grad
            second[i] = 0.999 * second[i] + 0.001 * value.grad**2
            scale = (second[i] / (1 - 0.999**step)).sqrt() + 1e-8
            parameters[i] = value.detach() - rate * (first[i] / (1 - 0.9**step)) / scale
    return parameters[0], parameters[1]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_search_equals_a_naive_twin_for_every_row(networks, clip) -> None:
    for module in networks.values():
        module.eval().double()
    noise = torch.randn(15, 5, LATENTS, generator=torch.Generator().manual_seed(1)).double()
    classes, start = torch.tensor([0, 1, 2, 3, 0]), torch.zeros(5, LATENTS, dtype=torch.float64)
    found = search_distributions(
        Distributions(start, start, clip),
        classes,
        *networks.values(),
        lambda iteration: noise[iteration],
        iterations=len(noise),
        learning_rate=0.02,
        nominal_batch=1,
    )
    for row, label in enumerate(classes.tolist()):
        mean, log_variance = naive_search(label, networks, noise[:, row], 0.02, clip)
        torch.testing.assert_close(found.mean[row], mean)
        torch.testing.assert_close(found.log_variance[row], log_variance)
    assert found.clip == clip and not found.mean.requires_grad and not found.log_variance.requires_grad
    assert not start.any()


def test_the_prior_loss_neither_overflows_nor_loses_its_digits() -> None:
    judged = torch.tensor([[200.0, 0.0], [-200.0, -300.0], [12.0, -50.0]])
    prior, identity = kedmi_loss(judged, torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    assert prior.tolist() == pytest.approx([0.0, 200.0, 6.144193e-06])
    assert identity.tolist() == pytest.approx([0.6931472] * 3)


def test_shape_range_and_repeatability(networks) -> None:
    images = attack(networks)
    assert images.shape == (3, 6, 1, 4, 4)
    assert images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert len(torch.unique(images.flatten(0, 1), dim=0)) == 18
    assert torch.equal(images, attack(networks))
    assert not torch.equal(images, attack(networks, seed=8))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", ["released_code", "clamped"])
def test_chunks_other_classes_restarts_and_samples_leave_a_reconstruction_as_it_is(networks, variant) -> None:
    images = attack(networks, variant=variant)
    close(attack(networks, variant=variant, max_rows=2), images)
    close(attack(networks, variant=variant, max_rows=1), images)
    close(attack(networks, variant=variant, classes=(2,)), images[2:])
    close(attack(networks, variant=variant, classes=(2, 0)), images[[2, 0]])
    close(attack(networks, variant=variant, restarts=4)[:, :6], images)
    close(attack(networks, variant=variant, samples=5).unflatten(1, (2, 5))[:, :, :3].flatten(1, 2), images)


def test_chunks_do_not_matter_with_the_inversion_gans_own_discriminator(networks) -> None:
    """Its minibatch discrimination couples rows in training; images that are near copies would show it."""
    torch.manual_seed(0)
    config = InversionGAN.Config(latent_size=LATENTS, width=2, minibatch_outputs=4, minibatch_kernel=2)
    prior = InversionGAN(config, InputShape((1, 8, 8)), CLASSES).build()
    with torch.no_grad():
        prior["discriminator"].among_rows.projection.mul_(1e-2)
    own = {**prior, "classifier": nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))}
    settings = {"identity_weight": 0.0, "iterations": 5}
    close(attack(own, max_rows=1, **settings), attack(own, **settings))


def test_the_fit_raises_the_target_class(networks) -> None:
    classes = torch.arange(CLASSES)
    with torch.no_grad():
        networks["classifier"][2].weight.mul_(10)
    before, after = (attack(networks, classes.tolist(), iterations=count) for count in (0, 100))
    classifier = networks["classifier"].eval()

    def confidence(images: Tensor) -> Tensor:
        probabilities = classifier(images.flatten(0, 1)).softmax(1)
        return probabilities[torch.arange(24), classes.repeat_interleave(6)].mean()

    assert confidence(after) > confidence(before) + 0.2


def test_the_discriminator_alone_makes_images_more_real(networks) -> None:
    def realness(images: Tensor) -> Tensor:
        return networks["discriminator"].eval()(images.flatten(0, 1)).logsumexp(1).mean()

    before, after = (attack(networks, iterations=count, identity_weight=0.0) for count in (0, 100))
    assert realness(after) > realness(before)


def test_without_iterations_the_samples_are_of_the_starting_distribution(networks) -> None:
    settings = {"iterations": 0, "samples": 300, "classes": (0, 1, 2, 3)}
    for log_variance, spread in ((0.0, 1.0), (1.0, 1.6487)):
        drawn = latents_synthesized(networks, initial_log_variance=log_variance, max_rows=100, **settings)
        assert drawn.std().item() == pytest.approx(spread, rel=0.1)
        assert drawn.abs().max() > 2
    clamped = latents_synthesized(networks, variant="clamped", initial_log_variance=1.0, **settings)
    assert clamped.abs().max() == 1


def test_variants_are_different_attacks(networks) -> None:
    assert not torch.allclose(attack(networks, variant="clamped"), attack(networks))


def test_adam_divides_the_nominal_batch_out(networks) -> None:
    torch.testing.assert_close(attack(networks, nominal_batch=1), attack(networks, nominal_batch=60), rtol=0, atol=1e-4)


def test_the_temperature_divides_the_logits_of_the_target(networks) -> None:
    head = networks["classifier"][2]
    cooled = nn.Linear(16, CLASSES)
    with torch.no_grad():
        cooled.weight.copy_(head.weight / 4)
        cooled.bias.copy_(head.bias / 4)
    found = attack({**networks, "classifier": nn.Sequential(nn.Flatten(), cooled)})
    torch.testing.assert_close(attack(networks, temperature=4.0), found, rtol=0, atol=1e-4)
    assert not torch.equal(attack(networks), found)


def test_networks_come_back_as_they_were(networks) -> None:
    generator = networks["generator"].train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    attack(networks)
    assert generator.training and generator.norm.training and networks["discriminator"].training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert all(parameter.grad is None for module in networks.values() for parameter in module.parameters())
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_every_reconstruction_is_synthesized_once(networks) -> None:
    rows: list[int] = []
    networks["generator"].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    attack(networks, iterations=4)
    assert sum(rows) == 4 * 3 * 2 + 3 * 2 * 3


def test_samples_are_drawn_afresh_not_with_the_noise_of_the_fit(networks) -> None:
    seen: list[Tensor] = []
    networks["generator"].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    attack(networks, classes=(0,), iterations=3, restarts=1, samples=3, learning_rate=1e-6)
    fitted, drawn = torch.cat(seen[:-1]), seen[-1]
    assert fitted.shape == drawn.shape == (3, LATENTS)
    assert torch.cdist(fitted, drawn).min() > 0.1


def test_a_broken_fit_is_an_error_that_says_what_to_do(networks) -> None:
    with torch.no_grad():
        networks["classifier"][2].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"KED-MI: 6 of 6 .*at iteration 0.*lower learning_rate"):
        attack(networks)


def test_bfloat16_stays_near_float32(networks) -> None:
    torch.testing.assert_close(attack(networks, precision="bfloat16"), attack(networks), rtol=0, atol=0.1)


def test_needs_a_prior_and_weights_access(networks) -> None:
    target = Target(lambda: networks["classifier"], Access.WEIGHTS, CLASSES)
    with pytest.raises(ConfigError, match="inversion_gan"):
        KEDMI(KEDMI.Config()).reconstruct(target, torch.tensor([0]), Knowledge())
    with pytest.raises(AccessError):
        attack(networks, access=Access.SCORES)


def test_no_classes_give_no_reconstructions(networks) -> None:
    assert attack(networks, classes=()).shape == (0, 6, 1, 4, 4)


def test_keyed_noise_is_standard_normal_and_belongs_to_key_and_step() -> None:
    keys = torch.arange(50) * 10**12 - 3
    noise = torch.stack([keyed_normal(sample_keys(step, keys), 101) for step in range(20)])
    assert noise.shape == (20, 50, 101) and noise.dtype == torch.float32 and noise.isfinite().all()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert len(torch.unique(noise[:, :, 0])) == 1000
    for along in (0, 1, 2):
        others = noise.roll(1, dims=along)
        assert abs((noise * others).mean()) < 0.015
    assert torch.equal(keyed_normal(sample_keys(3, keys[7:9]), 101), noise[3, 7:9])


@pytest.mark.parametrize(
    "bad",
    [
        {"iterations": -1},
        {"learning_rate": 0.0},
        {"samples": 0},
        {"restarts": 0},
        {"variant": "clipped"},
        {"initial_log_variance": 100.0},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        validate(KEDMI.Config, bad, "attack")
