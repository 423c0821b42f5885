"""The convolutional classifiers of the membership side; counts and two forwards are among the golden vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum import registry
from oakum.config import ConfigError, validate
from oakum.models._dropout import SampleDropout
from oakum.models._normalization import batch_to_group_norm
from oakum.models._staged import require_depth
from oakum.models.base import Classifier, InputShape, count_parameters
from oakum.seeding import sample_keys

CLASSES = 5
SMALL: dict[str, dict[str, object]] = {
    "alexnet": {},
    "densenet": {"depth": 16, "growth": 3},
    "preresnet": {"depth": 14, "width": 3},
    "resnet20": {"width": 3},
    "resnet50": {"width": 3},
    "resnext": {"depth": 20, "cardinality": 2, "widen": 2, "width": 3},
    "vgg": {"depth": 11, "batch_norm": True},
    "wrn": {"depth": 16, "widen": 2},
}
NAMES = sorted(SMALL)
SMALLEST_SIZE = dict.fromkeys(NAMES, 8) | {"alexnet": 29, "vgg": 32}
DEPTH_STEPS = {"densenet": (6, 4), "preresnet": (6, 2), "resnext": (9, 2), "wrn": (6, 4)}
TAP_SHAPES = {
    "alexnet": [(64, 4, 4), (192, 2, 2), (384, 2, 2), (256, 2, 2), (256,)],
    "densenet": [(60, 32, 32), (66, 16, 16), (69, 8, 8), (69,)],
    "preresnet": [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
    "resnet20": [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
    "resnet50": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)],
    "resnext": [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (1024,)],
    "vgg": [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512,)],
    "wrn": [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)],
}


def build(name: str, channels: int = 3, size: int = 32, **options: object) -> Classifier:
    """Return a model with equal weights at each call; without options it is the small one."""
    torch.manual_seed(0)
    cls = registry.load("models", name)
    model: Classifier = cls(cls.Config(**(options or SMALL[name])), InputShape((channels, size, size)), CLASSES)
    return model


def images(count: int, channels: int = 3, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, size, size, generator=generator, dtype=dtype)


class Weights:
    """A model's state in its order, used up one layer at a time; normalization is that of eval mode."""

    def __init__(self, model: nn.Module) -> None:
        self.left = list(model.state_dict().values())

    def take(self) -> Tensor:
        return self.left.pop(0)

    def conv(
        self, x: Tensor, stride: int = 1, padding: int | None = None, groups: int = 1, bias: bool = False
    ) -> Tensor:
        weight = self.take()
        sides = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.take() if bias else None, stride, sides, 1, groups)

    def norm(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance, _ = (self.take().view(-1, 1, 1) for _ in range(5))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def head(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, x.shape[-1]).flatten(1)
        logits = x @ self.take().T + self.take()
        assert not self.left
        return logits


def residual_twin(w: Weights, x: Tensor, blocks: tuple[int, ...], convs: int, groups: int = 1) -> Tensor:
    """ResNet and ResNeXt; blocks of two 3x3 convolutions, or of three whose middle one has stride and groups."""
    x = w.norm(w.conv(x)).relu()
    strided = 0 if convs == 2 else 1
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = x
            for i in range(convs):
                middle = convs == 3 and i == 1
                y = w.norm(w.conv(y, stride if i == strided else 1, groups=groups if middle else 1))
                y = y.relu() if i < convs - 1 else y
            x = (y + (x if y.shape == x.shape else w.norm(w.conv(x, stride)))).relu()
    return w.head(x)


def preactivation_twin(w: Weights, x: Tensor, blocks: int, wide: bool) -> Tensor:
    x = w.conv(x)
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            start = w.norm(x).relu()
            y = w.conv(w.norm(w.conv(start, stride)).relu())
            x = y + (x if y.shape == x.shape else w.conv(start if wide else x, stride))
    return w.head(w.norm(x).relu())


def densenet_twin(w: Weights, x: Tensor, layers: int) -> Tensor:
    x = w.conv(x)
    for stage in range(3):
        if stage:
            x = F.avg_pool2d(w.conv(w.norm(x).relu()), 2)
        for _ in range(layers):
            x = torch.cat([x, w.conv(w.norm(w.conv(w.norm(x).relu())).relu())], 1)
    return w.head(w.norm(x).relu())


def vgg_twin(w: Weights, x: Tensor) -> Tensor:
    for pools in (1, 1, 0, 1, 0, 1, 0, 1):
        x = w.norm(w.conv(x, bias=True)).relu()
        x = F.max_pool2d(x, 2) if pools else x
    return w.head(x)


def alexnet_twin(w: Weights, x: Tensor) -> Tensor:
    x = F.max_pool2d(w.conv(x, stride=4, padding=5, bias=True).relu(), 2)
    x = F.max_pool2d(w.conv(x, bias=True).relu(), 2)
    for _ in range(3):
        x = w.conv(x, bias=True).relu()
    return w.head(F.max_pool2d(x, 2))


TWINS: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "alexnet": alexnet_twin,
    "densenet": lambda w, x: densenet_twin(w, x, layers=2),
    "preresnet": lambda w, x: preactivation_twin(w, x, blocks=2, wide=False),
    "resnet20": lambda w, x: residual_twin(w, x, (3, 3, 3), convs=2),
    "resnet50": lambda w, x: residual_twin(w, x, (4, 8, 4), convs=3),
    "resnext": lambda w, x: residual_twin(w, x, (2, 2, 2), convs=3, groups=2),
    "vgg": vgg_twin,
    "wrn": lambda w, x: preactivation_twin(w, x, blocks=2, wide=True),
}


@torch.no_grad()
def disturb(model: Classifier) -> None:
    """Move every one-dimensional state tensor away from its start, so that no layer acts as the identity."""
    for name, value in model.state_dict().items():
        if value.dim() == 1:
            value.add_(torch.rand_like(value), alpha=0.5 if name.endswith("running_var") else 0.1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward_equals_a_naive_twin(name: str, channels: int) -> None:
    model = build(name, channels).double().eval()
    disturb(model)
    x = images(2, channels, dtype=torch.float64)
    logits = model(x)
    assert logits.shape == (2, CLASSES)
    torch.testing.assert_close(logits, TWINS[name](Weights(model), x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_taps_and_parameters_are_those_of_the_docstrings(name: str) -> None:
    cls = registry.load("models", name)
    with torch.device("meta"):
        model = cls(cls.Config(), InputShape((3, 32, 32)), 10)
        logits, taps = model(torch.empty(2, 3, 32, 32), with_taps=True)
    assert [tuple(tap.shape[1:]) for tap in taps] == TAP_SHAPES[name]
    assert len(taps) == len(model.tap_names) and model.tap_names[-1] == "feature"
    assert logits.shape == (2, 10)
    assert f"{count_parameters(model):,}" in cls.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_the_last_tap_is_what_the_head_reads(name: str) -> None:
    model = build(name).eval()
    logits, taps = model(images(2), with_taps=True)
    torch.testing.assert_close(model.head(taps[-1]), logits)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = build(name).double().eval()
    F.cross_entropy(model(images(2, dtype=torch.float64)), torch.tensor([0, 1])).backward()
    unreached = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not unreached


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes(name: str) -> None:
    width = build(name).head.in_features
    for size in (SMALLEST_SIZE[name], 49):
        logits, taps = build(name, size=size).eval()(images(2, size=size), with_taps=True)
        assert torch.isfinite(logits).all() and taps[-1].shape == (2, width)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_architecture_cannot_take_is_refused(name: str) -> None:
    cls = registry.load("models", name)
    smallest = SMALLEST_SIZE[name]
    for dims in ((600,), (3, smallest - 1, 64), (3, 64, smallest - 1)):
        with pytest.raises(
            ConfigError, match=rf"'{name}' takes images of {smallest}x{smallest}.*set data\.image_size to 32"
        ):
            cls(cls.Config(), InputShape(dims), CLASSES)


@pytest.mark.parametrize("name", sorted(DEPTH_STEPS))
def test_depths_between_the_steps_are_refused(name: str) -> None:
    config = registry.load("models", name).Config
    step, rest = DEPTH_STEPS[name]
    for depth in (rest, step + rest + 1, 2 * step + rest - 1):
        with pytest.raises(ConfigError, match=rf"depth must be {step}n\+{rest} \({step + rest}, "):
            validate(config, {"depth": depth}, "model")
    assert validate(config, {"depth": step + rest}, "model").depth == step + rest


def test_required_depth() -> None:
    valid = [depth for depth in range(-10, 40) if not _raises(depth)]
    assert valid == [10, 16, 22, 28, 34]


def _raises(depth: int) -> bool:
    try:
        return require_depth(depth, step=6, rest=4) != depth
    except ValueError:
        return True


def test_vgg_depths_are_those_of_the_paper() -> None:
    with pytest.raises(ConfigError, match="depth"):
        validate(registry.load("models", "vgg").Config, {"depth": 12}, "model")


@pytest.mark.parametrize("name", sorted({*NAMES} - {"alexnet"}))
def test_initialization(name: str) -> None:
    wide = {
        "resnet20": {"width": 16},
        "resnet50": {"width": 16},
        "resnext": {"depth": 11, "cardinality": 4, "width": 16},
    }
    model = build(name, **wide.get(name, {}))
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    scaled = [
        (layer.weight * math.sqrt(layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels / 2)).flatten()
        for layer in convolutions
    ]
    for values in (*(value for value in scaled if len(value) > 2000), torch.cat(scaled)):
        assert abs(values.mean()) < 5 / math.sqrt(len(values))
        assert abs(values.var() - 1) < 5 * math.sqrt(2 / len(values))
    assert all(layer.bias is None or not layer.bias.any() for layer in convolutions)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert bool((layer.weight == 1).all()) and not layer.bias.any()


@pytest.mark.parametrize("name", NAMES)
def test_initialization_of_the_head(name: str) -> None:
    cls = registry.load("models", name)
    torch.manual_seed(0)
    head = cls(cls.Config(**SMALL[name]), InputShape((3, 32, 32)), 4000).head
    deviation = {"vgg": 0.01, "resnext": math.sqrt(2 / head.in_features)}
    expected = deviation.get(name, 1 / math.sqrt(3 * head.in_features))
    assert head.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert bool(head.bias.any()) == (name not in {"vgg", "resnext", "wrn"})


def test_alexnet_starts_as_pytorch_draws_it() -> None:
    for layer in build("alexnet").modules():
        if isinstance(layer, nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert 0.99 * bound < layer.weight.abs().max() <= bound


def switch_on(model: Classifier, rate: float, count: int, start: int = 0) -> list[SampleDropout]:
    """Set the rate, and keys that differ between samples and between layers, for samples start..start+count."""
    layers = model.dropout_layers()
    for number, layer in enumerate(layers):
        layer.rate = rate
        layer.keys = sample_keys(number, torch.arange(start, start + count))
    return layers


@pytest.mark.parametrize(("name", "options"), [*SMALL.items(), ("mlp", {"hidden": (16,)})])
@torch.no_grad()
def test_dropout_acts_in_training_only(name: str, options: dict[str, object]) -> None:
    model = build(name, **options)
    names, x = list(model.state_dict()), images(4)
    evaluated, trained = model.eval()(x), model.train()(x)
    layers = switch_on(model, 0.5, len(x))
    assert layers and list(model.state_dict()) == names
    assert not torch.allclose(model.train()(x), trained)
    switch_on(model, 0.0, len(x))
    assert torch.equal(model.train()(x), trained)
    fresh = build(name, **options).eval()
    switch_on(fresh, 0.5, len(x))
    assert torch.equal(fresh(x), evaluated)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dropout_masks_do_not_depend_on_how_a_batch_is_cut(name: str) -> None:
    model, x = build(name).double().eval(), images(4, dtype=torch.float64)
    plain = model(x)
    for layer in switch_on(model, 0.5, 4):
        layer.train()
    whole = model(x)
    halves = []
    for start in (0, 2):
        switch_on(model, 0.5, 2, start)
        halves.append(model(x[start : start + 2]))
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(whole, plain)


@pytest.mark.parametrize(("name", "count"), [("densenet", 9), ("wrn", 12)])
def test_dropout_inside_the_blocks(name: str, count: int) -> None:
    cls = registry.load("models", name)
    model = cls(cls.Config(), InputShape((3, 32, 32)), CLASSES)
    layers = model.dropout_layers()
    assert len(layers) == count and not any(layer is model.head_dropout for layer in layers)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"densenet", "wrn"}))
def test_dropout_before_the_head(name: str) -> None:
    model = build(name)
    assert [id(layer) for layer in model.dropout_layers()] == [id(model.head_dropout)]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_group_normalization_decouples_the_samples(name: str) -> None:
    model = build(name)
    normalizations = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert batch_to_group_norm(model) == normalizations
    model.double().train()
    x = images(3, dtype=torch.float64)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-10, atol=1e-12)
