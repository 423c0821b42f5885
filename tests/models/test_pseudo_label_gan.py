from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oakum.config import ConfigError, validate
from oakum.models.base import InputShape
from oakum.models.priors._projection_networks import ConditionalGenerator, ProjectionDiscriminator
from oakum.models.priors.pseudo_label_gan import PseudoLabelGAN, choose_images, hinge_loss, margin_loss

UPDATES, CLASSES = 4, 3


def prior(dims: tuple[int, ...] = (1, 8, 8), num_classes: int = CLASSES, **changes: Any) -> PseudoLabelGAN:
    options = {
        "latent_size": 4, "width": 2, "updates": UPDATES, "discriminator_per_generator": 2, "batch_size": 6,
        "images_per_class": 5, "log_every": 2, **changes,
    }  # fmt: skip
    return PseudoLabelGAN(PseudoLabelGAN.Config(**options), InputShape(dims), num_classes)


def images(size: int = 8) -> Tensor:
    return torch.rand(20, 1, size, size, generator=torch.Generator().manual_seed(0))


def make_target(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES))


def nothing(*arguments: Any) -> None:
    return None


def train(seed: int = 0, resume: Any = nothing, checkpoint: Any = nothing, **changes: Any) -> Any:
    return prior(**changes).train(images(), seed, resume, checkpoint, make_target().requires_grad_(False))


def equal(first: dict[str, nn.Module], second: dict[str, nn.Module]) -> bool:
    return all(
        torch.equal(value, second[name].state_dict()[key])
        for name, module in first.items()
        for key, value in module.state_dict().items()
    )


@pytest.mark.parametrize("dims", [(1, 8, 8), (1, 16, 16), (1, 32, 32), (3, 64, 64)])
def test_shapes_and_ranges(dims: tuple[int, ...]) -> None:
    networks = prior(dims).build()
    assert tuple(networks) == PseudoLabelGAN.network_names
    made = networks["generator"](torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert made.shape == (5, *dims) and made.min() >= 0 and made.max() <= 1
    assert networks["projection_discriminator"](made, torch.zeros(5, dtype=torch.long)).shape == (5,)


def test_the_published_widths_at_64_pixels() -> None:
    with torch.device("meta"):
        networks = PseudoLabelGAN(PseudoLabelGAN.Config(), InputShape((3, 64, 64)), 1000).build()
    assert networks["generator"].project.out_features == 4 * 4 * 1024
    assert [block.conv_2.out_channels for block in networks["generator"].blocks] == [512, 256, 128, 64]
    blocks = networks["projection_discriminator"].blocks
    assert [block.conv_2.out_channels for block in blocks] == [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("dims", [(1, 28, 28), (1, 4, 4), (600,)])
def test_other_shapes_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        prior(dims).build()


def test_classes_and_a_target_are_needed() -> None:
    with pytest.raises(ConfigError, match="number of the target's classes"):
        prior(num_classes=0).build()
    with pytest.raises(ConfigError, match="trained against a target"):
        prior().train(images(), 0, nothing, nothing)


def test_a_class_keeps_the_images_with_its_highest_scores() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.1, 0.9]])
    assert choose_images(scores, 2).tolist() == [[0, 2], [4, 1]]
    assert choose_images(scores, 3).tolist() == [[0, 2, 3], [4, 1, 3]]  # image 3 serves both
    assert choose_images(scores, 99).shape == (2, 5)


@pytest.mark.parametrize("classes", [2, 5])
def test_margins_equal_a_naive_twin(classes: int) -> None:
    logits = torch.randn(7, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0] = 1.0
    wanted = torch.arange(7) % classes
    for row, label in enumerate(wanted.tolist()):
        values = logits[row].tolist()
        expected = max(value for other, value in enumerate(values) if other != label) - values[label]
        assert margin_loss(logits, wanted)[row].item() == expected


def test_the_hinge_loss_equals_a_naive_twin() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -1.0, 0.5])
    assert hinge_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 0 + 1.5) / 3)


def test_the_score_is_the_projection_of_summed_features() -> None:
    torch.manual_seed(0)
    network = ProjectionDiscriminator(CLASSES, 1, 1, 3).double().eval()
    x, classes = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    features = network.blocks(x).clamp(min=0).flatten(2).sum(dim=2)
    for row, label in enumerate(classes.tolist()):
        direction = network.head.weight[0] + network.embedding.weight[label]
        expected = direction @ features[row] + network.head.bias[0]
        torch.testing.assert_close(network(x, classes)[row], expected)


def test_every_weight_of_the_discriminator_is_spectrally_normalized() -> None:
    torch.manual_seed(0)
    network = ProjectionDiscriminator(CLASSES, 1, 1, 3)
    for _ in range(200):
        network(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    weighted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(weighted) == 2 * 3 + 2
    for module in weighted:
        largest = torch.linalg.svdvals(module.weight.detach().flatten(1))[0]
        assert largest.item() == pytest.approx(1.0, abs=0.02)


def test_a_class_norm_scales_with_the_values_of_its_class() -> None:
    torch.manual_seed(0)
    generator = ConditionalGenerator(4, CLASSES, 1, 1, 2).eval()
    norm = generator.blocks[0].norm_1
    with torch.no_grad():
        norm.scale.weight.copy_(torch.rand_like(norm.scale.weight))
        norm.shift.weight.copy_(torch.rand_like(norm.shift.weight))
    x = torch.randn(2, 4, 4, 4)
    found = norm(x, torch.tensor([0, 2]))
    for row, label in enumerate((0, 2)):
        scale, shift = norm.scale.weight[label], norm.shift.weight[label]
        expected = x[row] / (1 + norm.norm.eps) ** 0.5 * scale[:, None, None] + shift[:, None, None]
        torch.testing.assert_close(found[row], expected)


def test_without_classes_latents_are_spread_evenly_over_them() -> None:
    generator = ConditionalGenerator(4, 5, 1, 1, 2).eval()
    z = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    classes = generator.classes_of(z)
    assert torch.bincount(classes, minlength=5).tolist() == pytest.approx([1000] * 5, abs=120)
    assert torch.equal(generator(z[:6]), generator(z[:6], classes[:6]))
    torch.testing.assert_close(generator(z[3:4]), generator(z[:6])[3:4])
    extremes = torch.tensor([[-40.0, 0, 0, 0], [40.0, 0, 0, 0]])
    assert generator.classes_of(extremes).tolist() == [0, 4]


def test_training_is_repeatable_and_seeded() -> None:
    first, history = train()
    assert [row["step"] for row in history] == [2, 4]
    assert set(history[0]) == {"step", "generator_loss", "identity_loss", "discriminator_loss"}
    assert equal(first, train()[0])
    assert not equal(first, train(seed=1)[0])


def test_training_goes_on_where_a_checkpoint_ends() -> None:
    whole, history = train()
    kept: dict[str, Any] = {}

    def keep(step: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        if step == 2:
            states = {name: part.state_dict() for name, part in parts.items()}
            kept.update(parts=torch.utils._pytree.tree_map(_copied, states), record={"step": 2, "history": history[:1]})

    def load(parts: dict[str, Any]) -> dict[str, Any]:
        for name, state in kept["parts"].items():
            parts[name].load_state_dict(state)
        return dict(kept["record"])

    train(checkpoint=keep)
    resumed, continued = train(resume=load)
    assert equal(whole, resumed)
    assert continued == history


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def test_the_target_is_left_as_it_is() -> None:
    target = make_target().requires_grad_(False)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    prior().train(images(), 0, nothing, nothing, target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(weight.grad is None for weight in target.parameters())


def test_the_generator_learns_what_the_target_takes_for_a_class() -> None:
    """Two kinds of public images; the target knows which is which; the generator must make each on demand."""
    torch.manual_seed(0)
    dark, bright = 0.2 * torch.rand(32, 1, 8, 8), 0.8 + 0.2 * torch.rand(32, 1, 8, 8)
    target = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        target[1].weight[0], target[1].weight[1] = -0.1, 0.1
        target[1].bias.copy_(torch.tensor([3.2, -3.2]))
    made = PseudoLabelGAN(
        PseudoLabelGAN.Config(latent_size=4, width=4, updates=60, batch_size=16, learning_rate=1e-2),
        InputShape((1, 8, 8)),
        2,
    )
    networks, _ = made.train(torch.cat([dark, bright]), 0, nothing, nothing, target.requires_grad_(False))
    generator = networks["generator"].eval()
    means = [generator(torch.randn(50, 4), torch.full((50,), label)).mean().item() for label in (0, 1)]
    assert means[0] < 0.35 and means[1] > 0.65


@pytest.mark.parametrize(
    "settings",
    [{"images_per_class": 0}, {"updates": 0}, {"batch_size": 1}, {"learning_rate": 0}, {"precision": "half"}],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validate(PseudoLabelGAN.Config, settings, "priors")


def test_bfloat16_training_stays_finite_and_keeps_float32_weights() -> None:
    networks, history = train(precision="bfloat16")
    assert all(weight.dtype == torch.float32 for network in networks.values() for weight in network.parameters())
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in history)


def test_a_diverging_prior_stops_with_advice() -> None:
    with pytest.raises(ArithmeticError, match="lower its learning rate"):
        prior().train(torch.full((20, 1, 8, 8), float("nan")), 0, nothing, nothing, make_target())
