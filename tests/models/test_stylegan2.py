from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.base import InputShape, count_parameters
from oakum.models.priors._modulated_convolution import (
    EqualizedConvolution,
    EqualizedLinear,
    Filter,
    MinibatchDeviation,
    ModulatedConvolution,
    modulated_convolution,
)
from oakum.models.priors.stylegan2 import (
    Generator,
    PathLength,
    StyleGAN2,
    ema_decay,
    move_average,
    r1_penalty,
    unit_range,
)
from oakum.seeding import derive_seed
from oakum.training.checkpoint import load_parts, save_parts

UPDATES = 6
TINY: dict[str, Any] = {
    "latent_size": 5, "style_size": 6, "channel_base": 64, "channel_max": 8, "updates": UPDATES, "batch_size": 4,
    "r1_interval": 2, "log_every": 2,
}  # fmt: skip


def prior(dims: tuple[int, ...] = (1, 16, 16), **changes: Any) -> StyleGAN2:
    return StyleGAN2(StyleGAN2.Config(**{**TINY, **changes}), InputShape(dims))


def generator(dims: tuple[int, ...] = (1, 16, 16), **changes: Any) -> Generator:
    torch.manual_seed(0)
    built = prior(dims, **changes).build()["generator"]
    assert isinstance(built, Generator)
    return built


def nothing(*arguments: Any) -> None:
    return None


def train(seed: int = 0, resume: Any = nothing, checkpoint: Any = nothing, **changes: Any) -> Any:
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return prior(**changes).train(images, seed, resume, checkpoint)


def equal(first: dict[str, nn.Module], second: dict[str, nn.Module]) -> bool:
    return all(
        torch.equal(value, second[name].state_dict()[key])
        for name, module in first.items()
        for key, value in module.state_dict().items()
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_convolution(x: Tensor, kernels: Tensor) -> Tensor:
    """Correlate one image (I, H, W) with kernels (O, I, k, k), entry by entry, zeros beyond the border."""
    border = kernels.shape[-1] // 2
    out = torch.zeros(len(kernels), *x.shape[1:], dtype=x.dtype)
    for o, row, column in torch.cartesian_prod(*[torch.arange(n) for n in out.shape]).tolist():
        for i, a, b in torch.cartesian_prod(*[torch.arange(n) for n in kernels.shape[1:]]).tolist():
            y, z = row + a - border, column + b - border
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                out[o, row, column] += kernels[o, i, a, b] * x[i, y, z]
    return out


def naive_kernels(weight: Tensor, style: Tensor, demodulate: bool) -> Tensor:
    """Return the weights of one image, output channel by output channel."""
    kernels = weight.clone()
    for o in range(len(weight)):
        for i in range(weight.shape[1]):
            kernels[o, i] *= style[i]
        if demodulate:
            kernels[o] /= math.sqrt(float((kernels[o] ** 2).sum()) + 1e-8)
    return kernels


@pytest.mark.parametrize(("size", "demodulate"), [(3, True), (3, False), (1, False)])
def test_modulated_convolution_equals_a_naive_twin(size: int, demodulate: bool) -> None:
    x, weight, style = normal(3, 2, 4, 5), normal(4, 2, size, size, seed=1), normal(3, 2, seed=2)
    found = modulated_convolution(x, weight, style, demodulate)
    expected = [naive_convolution(x[b], naive_kernels(weight, style[b], demodulate)) for b in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_upsampling_convolution_equals_zero_insertion_twin() -> None:
    x, weight, style = normal(2, 2, 3, 4), normal(3, 2, 3, 3, seed=1), normal(2, 2, seed=2)
    found = modulated_convolution(x, weight, style, upsample=True)
    for b in range(2):
        spread = torch.zeros(2, 7, 9, dtype=torch.float64)
        spread[:, 1:-1:2, 1:-1:2] = x[b]
        expected = naive_convolution(spread, naive_kernels(weight, style[b], True).flip(2, 3))
        torch.testing.assert_close(found[b], expected)


def test_a_constant_image_stays_constant_when_upsampled() -> None:
    torch.manual_seed(0)
    layer = ModulatedConvolution(3, 2, 3, style_size=4, upsample=True)
    doubled = layer(torch.ones(2, 3, 8, 8), torch.randn(2, 4))
    assert doubled.shape == (2, 2, 16, 16)
    inside = doubled[:, :, 4:-4, 4:-4]
    torch.testing.assert_close(inside, inside[:, :, :1, :1].expand_as(inside))
    plain = modulated_convolution(
        torch.ones(2, 3, 8, 8), layer.weight * layer.scale, layer.modulation(torch.zeros(2, 4))
    )
    flat = layer(torch.ones(2, 3, 8, 8), torch.zeros(2, 4))
    torch.testing.assert_close(flat[:, :, 8, 8], plain[:, :, 4, 4])


def test_demodulated_outputs_have_unit_variance_whatever_the_style() -> None:
    styles = normal(4, 16, seed=1).mul(2).exp()
    out = modulated_convolution(normal(4, 16, 66, 66), normal(8, 16, 3, 3, seed=2), styles)
    variances = out[:, :, 1:-1, 1:-1].var(dim=(2, 3))
    assert variances.min() > 0.75 and variances.max() < 1.25
    scaled = modulated_convolution(normal(4, 16, 6, 6), normal(8, 16, 3, 3, seed=2), 7 * styles)
    torch.testing.assert_close(scaled, modulated_convolution(normal(4, 16, 6, 6), normal(8, 16, 3, 3, seed=2), styles))


def test_filters_double_bilinearly_and_halve_by_weighted_means() -> None:
    x = normal(2, 3, 6, 6)
    blur = Filter().double()
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(blur.doubled(x)[:, :, 1:-1, 1:-1], bilinear[:, :, 1:-1, 1:-1])
    halved = blur.halved(x)
    taps = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    assert halved.shape == (2, 3, 3, 3)
    torch.testing.assert_close(halved[1, 2, 1, 1], taps @ x[1, 2, 1:5, 1:5] @ taps)


def test_equalized_layers_keep_the_scale_of_their_input() -> None:
    torch.manual_seed(0)
    out = EqualizedLinear(400, 300, bias=2.0, rate=0.01)(torch.randn(50, 400))
    assert out.mean().item() == pytest.approx(2, abs=0.05) and out.std().item() == pytest.approx(1, abs=0.05)
    same = EqualizedConvolution(30, 40, 3)(torch.randn(4, 30, 16, 16))
    assert same.shape == (4, 40, 16, 16)
    assert same[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.1)
    assert EqualizedConvolution(30, 20, 3, halve=True)(torch.randn(2, 30, 8, 8)).shape == (2, 20, 4, 4)


def test_a_step_on_an_equalized_weight_counts_by_rate_and_fan_in() -> None:
    layer, x = EqualizedLinear(400, 3, rate=0.01).double(), torch.ones(1, 400, dtype=torch.float64)
    before = layer(x)
    with torch.no_grad():
        layer.weight.add_(0.5)
        layer.bias.add_(0.25)
    torch.testing.assert_close(layer(x) - before, torch.full_like(before, 400 * 0.5 * 0.01 / 20 + 0.25 * 0.01))


def test_minibatch_deviation_equals_a_naive_twin() -> None:
    x = normal(8, 2, 3, 3)
    layer = MinibatchDeviation(group=4)
    out = layer(x)
    assert out.shape == (8, 3, 3, 3) and torch.equal(out[:, :2], x)
    for group in range(2):
        rows = x[4 * group : 4 * group + 4]
        deviations = [math.sqrt(float(pixel.var(correction=0)) + 1e-8) for pixel in rows.flatten(1).unbind(1)]
        torch.testing.assert_close(
            out[4 * group : 4 * group + 4, 2],
            torch.full((4, 3, 3), sum(deviations) / len(deviations), dtype=torch.float64),
        )
    mean = float(out[:, 2].mean())
    assert layer.average.item() == pytest.approx(0.99 + 0.01 * mean, abs=1e-6)


def test_the_critic_scores_images_one_by_one_in_eval_mode_only() -> None:
    torch.manual_seed(0)
    critic = prior().build()["critic"]
    images = torch.rand(4, 1, 16, 16)
    copies = images[:1].repeat(4, 1, 1, 1)
    assert not torch.allclose(critic(images)[:1], critic(copies)[:1])
    critic.eval()
    scores = critic(images)
    assert scores.shape == (4,)
    torch.testing.assert_close(scores[:1], critic(copies)[:1])
    torch.testing.assert_close(scores[:1], critic(images[:1]))
    assert torch.equal(critic(images), scores)


@pytest.mark.parametrize(
    ("dims", "layers"), [((1, 16, 16), 6), ((3, 32, 32), 8), ((3, 64, 64), 10), ((1, 128, 128), 12)]
)
def test_shapes_ranges_and_number_of_styles(dims: tuple[int, ...], layers: int) -> None:
    networks = prior(dims).build()
    made = networks["generator"]
    assert isinstance(made, Generator) and made.layers == layers
    z = torch.randn(3, 5)
    styles = made.map(z)
    assert styles.shape == (3, 6) and made.map(z[None].expand(2, 3, 5)).shape == (2, 3, 6)
    images = made(z)
    assert images.shape == (3, *dims) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(images, made.synthesize(styles[:, None].repeat(1, layers, 1)))
    assert networks["critic"](images).shape == (3,)


def test_the_default_network_has_the_stated_size() -> None:
    with torch.device("meta"):
        networks = StyleGAN2(StyleGAN2.Config(), InputShape((3, 64, 64))).build()
    assert isinstance(networks["generator"], Generator) and networks["generator"].layers == 10
    assert count_parameters(networks["generator"]) == 22_243_608
    assert count_parameters(networks["critic"]) == 23_407_361


@pytest.mark.parametrize("dims", [(1, 28, 28), (1, 8, 8), (1, 16, 32), (600,)])
def test_other_shapes_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"stylegan2.*data\.image_size"):
        prior(dims).build()


def test_batches_are_multiples_of_the_group() -> None:
    with pytest.raises(ValidationError, match="multiple of 4"):
        prior(batch_size=6)


def test_latents_count_by_their_direction_only() -> None:
    made, z = generator(), torch.randn(3, 5)
    torch.testing.assert_close(made.map(z), made.map(3 * z))
    assert not torch.allclose(made.map(z), made.map(-z))


def test_noise_is_constant_registered_and_of_learned_strength() -> None:
    made, z = generator(), torch.randn(3, 5)
    noises = {name: value for name, value in made.named_buffers() if name.endswith("noise")}
    assert len(noises) == made.layers - 1 and noises.keys() <= made.state_dict().keys()
    without = made.render(made.map(z)[:, None].expand(-1, 6, -1))
    for name, strength in made.named_parameters():
        if name.endswith("noise_strength"):
            strength.data.fill_(0.5)
    styles = made.map(z)[:, None].expand(-1, 6, -1)
    assert not torch.allclose(made.render(styles), without)
    assert torch.equal(made.train().render(styles), made.eval().render(styles))
    made.render(styles).sum().backward()
    assert all(p.grad is not None for name, p in made.named_parameters() if name.endswith("noise_strength"))


def test_every_style_matters_and_images_do_not_mix() -> None:
    made = generator((3, 16, 16))
    styles = torch.randn(2, 6, 6)
    images = made.render(styles)
    for layer in range(made.layers):
        changed = styles.clone()
        changed[0, layer] += 1
        found = made.render(changed)
        assert not torch.allclose(found[0], images[0]), layer
        torch.testing.assert_close(found[1], images[1])


def test_blocks_can_be_run_from_inside() -> None:
    made, styles = generator(), torch.randn(2, 6, 6)
    features, colors = made.constant.repeat(2, 1, 1, 1), None
    for block in made.blocks:
        features, colors = block(features, colors, styles)
    assert colors is not None
    assert torch.equal(unit_range(colors).clamp(0, 1), made.synthesize(styles))


class Cubic(nn.Module):
    """A smooth critic of 2x2 images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) @ self.weight) ** 3).sum(dim=1)


def test_r1_equals_finite_differences() -> None:
    critic, real, step = Cubic(), torch.rand(5, 1, 2, 2).double(), 1e-6
    squares = torch.zeros(5, dtype=torch.float64)
    for row in range(2):
        for column in range(2):
            # Pixels in [0, 1] move by half of what pixels in [-1, 1] move.
            up, down = real.clone(), real.clone()
            up[:, 0, row, column] += step / 2
            down[:, 0, row, column] -= step / 2
            squares += ((critic(up) - critic(down)).detach() / (2 * step)) ** 2
    assert r1_penalty(critic, real).item() == pytest.approx(float(squares.mean()), rel=1e-6)
    assert not real.requires_grad


def test_r1_has_the_gradient_of_a_linear_critic() -> None:
    linear = nn.Linear(4, 1).double()
    critic, weight = nn.Sequential(nn.Flatten(), linear), linear.weight
    expected = float(weight.detach().square().sum()) / 4
    penalty = r1_penalty(critic, torch.rand(5, 1, 2, 2).double())
    penalty.backward()
    assert penalty.item() == pytest.approx(expected)
    torch.testing.assert_close(weight.grad, weight.detach() / 2)


def test_path_length_equals_an_explicit_jacobian() -> None:
    matrix, styles = normal(4, 6), normal(3, 2, 3, seed=1).requires_grad_(True)
    direction = normal(3, 1, 2, 2, seed=2)
    images = torch.sin(styles.flatten(1) @ matrix.T).view(3, 1, 2, 2)
    keeper = PathLength().double()
    keeper.average.fill_(0.7)
    penalty = keeper(images, styles, direction)
    lengths = []
    for b in range(3):
        jacobian = torch.cos(matrix @ styles[b].flatten()).detach()[:, None] * matrix
        along = 2 * jacobian.T @ (direction[b].flatten() / 2)
        lengths.append(math.sqrt(float((along.view(2, 3) ** 2).sum(dim=1).mean())))
    average = 0.99 * 0.7 + 0.01 * sum(lengths) / 3
    assert keeper.average.item() == pytest.approx(average)
    assert penalty.item() == pytest.approx(sum((length - average) ** 2 for length in lengths) / 3)


def test_the_average_forgets_half_over_its_half_life() -> None:
    assert ema_decay(32, 10**6, half_life=320, ramp=0) ** 10 == pytest.approx(0.5)
    assert ema_decay(32, 6400, half_life=10_000, ramp=0.05) == ema_decay(32, 1, half_life=320, ramp=0)
    assert ema_decay(32, 10**6, half_life=320, ramp=0.05) == ema_decay(32, 1, half_life=320, ramp=0)
    kept, new = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = 0.75 * kept.weight.detach() + 0.25 * new.weight.detach()
    untouched = new.weight.detach().clone()
    move_average(kept, new, 0.75)
    torch.testing.assert_close(kept.weight.detach(), expected)
    assert torch.equal(new.weight, untouched)


def test_training_returns_the_average_of_the_player() -> None:
    seen: dict[str, Any] = {}
    networks, _ = train(
        updates=1, ema_ramp=0.0, ema_half_life=8.0, checkpoint=lambda step, parts, record: seen.update(parts)
    )
    torch.manual_seed(derive_seed(0, "init"))
    start = dict(prior().build()["generator"].named_parameters())
    player = dict(seen["player"].named_parameters())
    decay = 0.5 ** (4 / 8)
    for name, weight in networks["generator"].named_parameters():
        torch.testing.assert_close(weight, decay * start[name] + (1 - decay) * player[name])
    assert any(not torch.equal(start[name], player[name]) for name in start)


def test_adam_is_corrected_for_lazy_penalties() -> None:
    seen: dict[str, Any] = {}
    train(updates=1, learning_rate=0.01, r1_interval=4, checkpoint=lambda step, parts, record: seen.update(parts))
    (critic,), (player,) = seen["critic_optimizer"].param_groups, seen["player_optimizer"].param_groups
    assert critic["lr"] == pytest.approx(0.008) and critic["betas"] == (0.0, pytest.approx(0.99**0.8))
    assert (player["lr"], player["betas"]) == (0.01, (0.0, 0.99))


def test_penalties_are_lazy_and_can_be_switched_off() -> None:
    rows = train(r1_interval=4, path_length_weight=2.0, path_length_interval=3, log_every=1)[1]
    assert [row["step"] for row in rows if "gradient_penalty" in row] == [4, 5, 6]
    assert [row["step"] for row in rows if "path_length_penalty" in row] == [3, 4, 5, 6]
    assert rows[3]["gradient_penalty"] == rows[5]["gradient_penalty"]
    assert rows[2]["path_length_penalty"] == rows[4]["path_length_penalty"] != rows[5]["path_length_penalty"]
    off = train(r1_weight=0.0)[1][-1]
    assert off.keys() == {"step", "generator_loss", "critic_loss", "real_score", "fake_score"}


def test_networks_follow_from_the_seed_alone() -> None:
    first, history = train()
    torch.rand(5)
    second, again = train()
    assert equal(first, second) and history == again
    assert not equal(first, train(seed=1)[0])
    assert [row["step"] for row in history] == [2, 4, 6]
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert first.keys() == set(StyleGAN2.network_names)


def test_style_mixing_uses_two_styles() -> None:
    assert not equal(train(style_mixing=1.0)[0], train(style_mixing=0.0)[0])


class StoppedError(Exception):
    pass


def interrupted(folder: Path, stop: int, run: Any) -> Any:
    """Call run(resume, checkpoint), break it off after `stop` updates and run the rest from the checkpoint's files."""

    def checkpoint(step: int, parts: dict[str, Any], record: dict[str, Any]) -> None:
        if step == stop:
            save_parts(folder, parts, record)
            raise StoppedError

    with pytest.raises(StoppedError):
        run(nothing, checkpoint)
    return run(lambda parts: load_parts(folder, parts), nothing)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_training_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"r1_interval": 4, "path_length_weight": 2.0, "path_length_interval": 2}
    expected, history = train(**changes)
    found, resumed = interrupted(tmp_path, stop, lambda resume, checkpoint: train(0, resume, checkpoint, **changes))
    assert equal(found, expected) and resumed == history


def test_divergence_names_the_update() -> None:
    with pytest.raises(ArithmeticError, match=r"diverged at update \d"):
        train(learning_rate=1e30)


def squares(count: int, size: int) -> Tensor:
    """Return gray images (count, 1, size, size) with a bright square of a quarter of the area somewhere."""
    corners = torch.randint(size // 2, (count, 2), generator=torch.Generator().manual_seed(0))
    images = torch.full((count, 1, size, size), 0.1)
    for image, (row, column) in zip(images, corners.tolist(), strict=True):
        image[0, row : row + size // 2, column : column + size // 2] = 0.9
    return images


@pytest.mark.slow
def test_a_longer_training_stays_finite_resumes_and_approaches_the_public_images(tmp_path: Path) -> None:
    started = time.process_time()
    images = squares(200, 32)
    config = {
        "channel_base": 256,
        "channel_max": 16,
        "updates": 200,
        "batch_size": 8,
        "r1_interval": 16,
        "log_every": 20,
    }
    longer = prior((1, 32, 32), **config)
    expected, history = longer.train(images, 0, nothing, nothing)
    found, resumed = interrupted(tmp_path, 100, lambda resume, checkpoint: longer.train(images, 0, resume, checkpoint))
    assert equal(found, expected) and resumed == history
    assert all(math.isfinite(value) for row in history for value in row.values())
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(derive_seed(0, "init"))
    with torch.no_grad():
        before, after = longer.build()["generator"](z), expected["generator"](z)
    far, near = (float((made.mean(dim=0) - images.mean(dim=0)).square().mean().sqrt()) for made in (before, after))
    print(
        f"{time.process_time() - started:.0f} s; mean image off by {far:.3f} at first, {near:.3f} at last", history[-1]
    )
    assert near < 0.8 * far
