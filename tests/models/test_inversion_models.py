"""The networks of the inversion experiments; the forwards of most are among the golden vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import vgg16_bn

from oakum import registry
from oakum.config import ConfigError
from oakum.models._improved_residual import FACE_SIZE, Gate, enlarge
from oakum.models._torchvision_names import vgg16_bn_features
from oakum.models.base import Classifier, InputShape, count_parameters, same_architecture, same_up_to_sizes
from oakum.models.vgg16_bn1d import VGG16BN1d

CLASSES = 5
# The smallest settings of every model, and images that it takes.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "face_cnn": ({"width": 2}, (3, 32, 32)),
    "facenet112": ({"width": 2}, (3, 20, 20)),
    "facenet64": ({"width": 2}, (3, 64, 64)),
    "ir152": ({"width": 2}, (3, 16, 16)),
    "ir50": ({"width": 2}, (3, 33, 20)),
    "ir_se50": ({"width": 2}, (3, 20, 20)),
    "lenet3": ({}, (1, 28, 28)),
    "mcnn": ({}, (1, 32, 32)),
    "mlp": ({"hidden": (8, 6)}, (10,)),
    "plain_cnn": ({"width": 2, "hidden": 6}, (1, 64, 64)),
    "resnet18_bido": ({"width": 2}, (3, 33, 32)),
    "resnet_cls": ({"depth": 10, "width": 2, "embedding": 3}, (3, 32, 32)),
    "resnet_cls_h": ({"depth": 10, "width": 2, "embedding": 3}, (3, 33, 16)),
    "scnn": ({}, (1, 32, 32)),
    "small_cnn": ({"width": 2}, (3, 19, 16)),
    "vgg16_bn1d": ({"width": 2}, (3, 32, 32)),
    "vgg19_evaluator": ({"width": 2}, (3, 32, 33)),
}
NAMES = sorted(SMALL)
Shapes = list[tuple[int, ...]]
GROUPS: Shapes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512,)]
GROUPS_AT_112: Shapes = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512,)]
VGG_AT_64: Shapes = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (2048,)]
VGG_AT_32: Shapes = [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512,)]
RESNET34_AT_64: Shapes = [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (50,), (50,)]
RESNET10_AT_32: Shapes = [(64, 8, 8), (64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1), (2,), (2,)]
RESNET18_AT_64: Shapes = [(64, 64, 64)] * 3 + [(128, 32, 32)] * 2 + [(256, 16, 16)] * 2 + [(512, 8, 8)] * 2 + [(512,)]


class Size(NamedTuple):
    """A row of the table of parameter counts; all parameters are trained unless `trained` says otherwise."""

    name: str
    dims: tuple[int, ...]
    classes: int
    parameters: int
    trunk_width: int
    taps: Shapes
    trained: int | None = None
    options: dict[str, Any] | None = None


SIZES = [
    Size("face_cnn", (3, 64, 64), 62, 642910, 4096, [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]),
    Size("facenet112", (3, 64, 64), 1000, 44087976, 512, GROUPS_AT_112),
    Size("facenet112", (3, 112, 112), 1000, 44087976, 512, GROUPS_AT_112),
    Size("facenet64", (3, 64, 64), 1000, 35437224, 512, GROUPS),
    Size("ir152", (3, 64, 64), 1000, 62599848, 512, GROUPS),
    Size("ir50", (3, 64, 64), 1000, 35437224, 512, GROUPS),
    Size("ir50", (3, 112, 112), 1000, 44087976, 512, GROUPS_AT_112),
    Size("ir_se50", (3, 64, 64), 1000, 44839080, 512, GROUPS_AT_112),
    Size("lenet3", (1, 28, 28), 5, 3269509, 1024, [(32, 14, 14), (64, 7, 7), (1024,)]),
    Size("mcnn", (1, 32, 32), 5, 1029765, 256, [(64, 14, 14), (128, 5, 5), (256, 1, 1)]),
    Size("plain_cnn", (1, 64, 64), 5, 6609819, 25, [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (25,)]),
    Size("resnet18_bido", (3, 64, 64), 1000, 12732968, 512, RESNET18_AT_64),
    Size("resnet_cls", (3, 64, 64), 1000, 21362446, 50, [(50,)]),
    Size("resnet_cls_h", (3, 64, 64), 1000, 21362446, 50, RESNET34_AT_64),
    Size("resnet_cls_h", (3, 32, 32), 5, 4907861, 2, RESNET10_AT_32, options={"depth": 10, "embedding": 2}),
    Size("scnn", (1, 32, 32), 10, 1740234, 512, [(512,)]),
    Size("vgg16_bn1d", (3, 64, 64), 1000, 16776232, 2048, VGG_AT_64, trained=16774184),
    Size("vgg16_bn1d", (3, 32, 32), 5, 14726725, 512, VGG_AT_32, trained=14726213),
    Size("vgg19_evaluator", (3, 32, 32), 10, 20041546, 512, VGG_AT_32, trained=20041034),
]


def on_meta(name: str, dims: tuple[int, ...], num_classes: int, **options: object) -> Classifier:
    """Return a model of any size without memory and time: its tensors have shapes alone."""
    cls = registry.load("models", name)
    with torch.device("meta"):
        model: Classifier = cls(cls.Config(**options), InputShape(dims), num_classes)
    return model


def build(name: str, num_classes: int = CLASSES, seed: int = 0, **more: object) -> Classifier:
    """Return the small form of a model in eval mode; equal arguments give equal weights."""
    torch.manual_seed(seed)
    options, dims = SMALL[name]
    cls = registry.load("models", name)
    model: Classifier = cls(cls.Config(**options, **more), InputShape(dims), num_classes)
    return model.eval()


def inputs(model: Classifier, count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *model.input_shape.dims, generator=generator, dtype=dtype)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.name}-{size.dims[-1]}")
def test_sizes(size: Size) -> None:
    model = on_meta(size.name, size.dims, size.classes, **(size.options or {}))
    x = torch.empty(2, *size.dims, device="meta")
    logits, taps = model(x, with_taps=True)
    assert logits.shape == (2, size.classes)
    assert [tuple(tap.shape[1:]) for tap in taps] == size.taps and len(taps) == len(model.tap_names)
    assert count_parameters(model) == size.parameters
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == (size.trained or size.parameters)
    assert model.trunk_width == size.trunk_width and model.trunk(x).shape == (2, size.trunk_width)


@pytest.mark.parametrize("name", sorted({size.name for size in SIZES}))
def test_docstrings_state_the_number_of_parameters(name: str) -> None:
    text = registry.load("models", name).__doc__ or ""
    assert any(f"{size.parameters:,}" in text for size in SIZES if size.name == name)


# What lies between the trunk and the head.
AFTER_TRUNK: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "vgg16_bn1d": lambda model, trunk: model.feature_norm(trunk),
    "vgg19_evaluator": lambda model, trunk: model.feature_norm(trunk),
    "resnet_cls": lambda model, trunk: model.embedding_norm(trunk.relu()),
    "resnet_cls_h": lambda model, trunk: model.embedding_norm(trunk.relu()),
    "ir_se50": lambda model, trunk: model.judge(trunk),
}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_head_reads_the_trunk(name: str) -> None:
    model: Any = build(name)
    x = inputs(model)
    trunk = model.trunk(model.normalize(x))
    assert trunk.shape == (2, model.trunk_width)
    assert not torch.allclose(trunk[0], trunk[1])
    features = AFTER_TRUNK[name](model, trunk) if name in AFTER_TRUNK else trunk
    torch.testing.assert_close(model.head(features), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_trunk_does_not_reach_are_the_head_modules(name: str) -> None:
    model = build(name)
    torch.autograd.backward(model.trunk(inputs(model)).square().sum())
    unreached = {key for key, weight in model.named_parameters() if weight.grad is None}
    head = tuple(f"{module}." for module in model.head_modules)
    assert unreached == {key for key, _ in model.named_parameters() if key.startswith(head)}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dropout_takes_what_the_head_reads(name: str) -> None:
    model: Any = build(name)
    x = inputs(model)
    (layer,) = model.dropout_layers()
    layer.train()
    layer.rate, layer.keys = 1 - 1e-9, torch.arange(2)
    assert torch.equal(model(x), model.head.bias.expand(2, CLASSES))


@pytest.mark.parametrize(
    ("name", "dims", "classes", "bottleneck", "parameters"),
    [
        ("mcnn", (1, 32, 32), 5, 128, 1_094_917),
        ("vgg16_bn1d", (3, 64, 64), 1000, 1024, 19_944_488),
        ("resnet_cls", (3, 64, 64), 1000, 25, 21_339_896),
        ("resnet_cls_h", (3, 64, 64), 1000, 25, 21_339_896),
    ],
)
def test_trunk_and_bottleneck_have_the_size_of_the_released_networks(
    name: str, dims: tuple[int, ...], classes: int, bottleneck: int, parameters: int
) -> None:
    model = on_meta(name, dims, classes)
    torch.autograd.backward(model.trunk(torch.empty(2, *dims, device="meta")).sum())
    reached = sum(weight.numel() for weight in model.parameters() if weight.grad is not None)
    statistics = (model.trunk_width + 1) * 2 * bottleneck
    assert reached + statistics + (bottleneck + 1) * classes == parameters


@pytest.mark.parametrize(
    ("name", "dims", "expected"),
    [
        ("face_cnn", (3, 15, 64), "16x16 pixels and more"),
        ("facenet112", (3, 15, 15), "16 to 112 pixels"),
        ("facenet112", (3, 113, 113), "16 to 112 pixels"),
        ("facenet112", (3, 64, 60), "square images"),
        ("facenet64", (3, 112, 112), "64x64 images"),
        ("ir152", (3, 15, 64), "16x16 pixels and more"),
        ("ir50", (3, 64, 15), "16x16 pixels and more"),
        ("ir_se50", (3, 128, 128), "16 to 112 pixels"),
        ("lenet3", (1, 32, 32), "28x28 images"),
        ("plain_cnn", (1, 32, 32), "64x64 images"),
        ("resnet18_bido", (3, 31, 64), "32x32 pixels and more"),
        ("resnet_cls", (3, 15, 64), "16x16 pixels and more"),
        ("resnet_cls_h", (3, 64, 15), "16x16 pixels and more"),
        ("vgg16_bn1d", (3, 31, 64), "32x32 pixels and more"),
        ("vgg19_evaluator", (3, 64, 31), "32x32 pixels and more"),
    ],
)
def test_images_of_a_wrong_size_are_refused(name: str, dims: tuple[int, ...], expected: str) -> None:
    for wrong in (dims, (600,)):
        with pytest.raises(ConfigError, match=rf"model '{name}' takes .*{expected}.*set data\.image_size"):
            on_meta(name, wrong, CLASSES)


@pytest.mark.parametrize("name", ["vgg16_bn1d", "vgg19_evaluator"])
def test_the_bias_of_the_normalized_feature_stays_zero(name: str) -> None:
    model: Any = build(name).train()
    norm = model.feature_norm
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    F.cross_entropy(model(inputs(model, 4)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert not norm.bias.requires_grad and not norm.bias.any()
    assert not torch.equal(norm.weight, torch.ones_like(norm.weight))


def triangle_weights(size: int) -> Tensor:
    """Return (112, size) float64: each row holds the bilinear weights of one pixel of the enlarged line."""
    weights = torch.zeros(FACE_SIZE, size, dtype=torch.float64)
    for pixel in range(FACE_SIZE):
        center = (pixel + 0.5) * size / FACE_SIZE
        for source in range(size):
            weights[pixel, source] = max(0.0, 1 - abs(source + 0.5 - center))
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("size", [16, 50, 64, 111])
def test_enlarging_is_bilinear(size: int) -> None:
    x = torch.rand(3, 2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = enlarge(x)
    weights = triangle_weights(size)
    torch.testing.assert_close(found, weights @ x @ weights.T)
    torch.testing.assert_close(found, F.interpolate(x, (112, 112), mode="bilinear", antialias=True))
    torch.testing.assert_close(found[1:2], enlarge(x[1:2]))


def test_enlarging_equals_pillow_up_to_its_rounding() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((112, 112), Image.Resampling.BILINEAR))
    found = enlarge(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0) * 255
    assert np.abs(found.numpy() - expected).max() <= 1.01


@pytest.mark.parametrize("name", ["facenet112", "ir_se50"])
def test_small_faces_are_enlarged_inside(name: str) -> None:
    options, _ = SMALL[name]
    cls = registry.load("models", name)
    small, large = (cls(cls.Config(**options), InputShape((3, size, size)), CLASSES).eval() for size in (64, 112))
    large.load_state_dict(small.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = small(x)
    torch.testing.assert_close(logits, large(enlarge(x)))
    logits[0].square().sum().backward()
    assert x.grad is not None and x.grad[0].any() and not x.grad[1].any()


@torch.no_grad()
def test_ir_se50_sees_blue_first_between_minus_one_and_one() -> None:
    model: Any = build("ir_se50")
    x = inputs(model)
    plain = build("ir_se50", mean=None, std=None)
    torch.testing.assert_close(plain(2 * x - 1), model(x))
    model.stem[0].weight[:, 1:] = 0
    red_and_green = x.clone()
    red_and_green[:, :2] = 0.3
    torch.testing.assert_close(model(red_and_green), model(x))
    blue = x.clone()
    blue[:, 2] = 0.3
    assert not torch.allclose(model(blue), model(x))


@torch.no_grad()
def test_ir_se50_embeddings_have_length_one() -> None:
    model = build("ir_se50")
    taps = model(inputs(model), with_taps=True)[1]
    torch.testing.assert_close(taps[-1].norm(dim=1), torch.ones(2))


@torch.no_grad()
def test_gates_scale_each_channel() -> None:
    gate = Gate(32).double()
    first, second = (weight.numpy() for weight in gate.parameters())
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(x)
    for sample in range(2):
        squeezed = np.maximum(first @ x[sample].mean(dim=(1, 2)).numpy(), 0)
        for channel, value in enumerate(second @ squeezed):
            expected[sample, channel] = x[sample, channel] / (1 + math.exp(-value))
    assert first.shape == (2, 32) and second.shape == (32, 2)
    torch.testing.assert_close(gate(x), expected)


@torch.no_grad()
def test_lenet3_equals_a_naive_twin() -> None:
    model = build("lenet3").double()
    x = inputs(model, dtype=torch.float64)
    w = list(model.parameters())
    hidden = F.max_pool2d(F.conv2d(x, w[0], w[1], padding=2).relu(), 2)
    hidden = F.max_pool2d(F.conv2d(hidden, w[2], w[3], padding=2).relu(), 2).flatten(1)
    torch.testing.assert_close(model(x), (hidden @ w[4].T + w[5]).relu() @ w[6].T + w[7])


@torch.no_grad()
def test_face_cnn_equals_a_naive_twin() -> None:
    model: Any = build("face_cnn").double()
    x = inputs(model, dtype=torch.float64)
    convolutions = [weight for weight in model.parameters() if weight.dim() == 4]
    hidden = x
    for convolution in convolutions:
        # A fresh normalization divides by sqrt(1 + 1e-5) in eval mode.
        hidden = F.max_pool2d(F.conv2d(hidden, convolution, padding=1).relu() / math.sqrt(1 + 1e-5), 2)
    torch.testing.assert_close(model(x), model.head(hidden.flatten(1)))


def test_one_network_under_two_names_is_one_architecture() -> None:
    ir50, facenet64 = (on_meta(name, (3, 64, 64), 10) for name in ("ir50", "facenet64"))
    assert same_architecture(ir50, facenet64)
    assert same_architecture(*(on_meta(name, (3, 64, 64), 10) for name in ("resnet_cls", "resnet_cls_h")))
    assert not same_architecture(facenet64, on_meta("facenet112", (3, 64, 64), 10))
    assert not same_architecture(ir50, on_meta("ir152", (3, 64, 64), 10))
    assert not same_architecture(*(on_meta(name, (3, 64, 64), 10) for name in ("vgg16_bn1d", "vgg19_evaluator")))


def test_networks_for_two_image_sizes_are_one_architecture_up_to_sizes() -> None:
    facenet64 = on_meta("facenet64", (3, 64, 64), 10)
    assert same_up_to_sizes(facenet64, on_meta("facenet112", (3, 64, 64), 10))
    for name in ("ir152", "ir_se50", "resnet18_bido", "vgg16_bn1d"):
        assert not same_up_to_sizes(facenet64, on_meta(name, (3, 64, 64), 10)), name


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_of_other_classes_leave_the_head(name: str) -> None:
    model, drawn = build(name), tensors_of(build(name))
    given = tensors_of(build(name, num_classes=CLASSES + 2, seed=1))
    model.load_initial(given)
    for key, value in model.state_dict().items():
        assert torch.equal(value, drawn[key] if key.startswith("head.") else given[key]), key


def test_initial_weights_with_a_fitting_head_are_taken_whole_in_the_dtype_of_the_model() -> None:
    model = build("lenet3")
    given = tensors_of(build("lenet3", seed=1).double())
    model.load_initial(given)
    assert all(torch.equal(value, given[key].float()) for key, value in model.state_dict().items())
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())


def test_a_fresh_part_that_fits_in_part_only_is_left_as_drawn() -> None:
    model, drawn = build("ir50"), tensors_of(build("ir50"))
    given = tensors_of(build("ir50", seed=1))
    given["embed.3.weight"] = given["embed.3.weight"][:, :-1]
    del given["head.bias"]
    given["head.extra"] = torch.zeros(3)
    model.load_initial(given)
    for key, value in model.state_dict().items():
        assert torch.equal(value, drawn[key] if key.startswith(("embed.", "head.")) else given[key]), key


def test_initial_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model, drawn = build("lenet3"), tensors_of(build("lenet3"))
    given = tensors_of(build("lenet3", seed=1))
    given["block1.0.weight"] = given["block1.0.weight"].int()
    given["block1.0.bias"] = torch.zeros(31)
    given["block9.0.bias"] = given.pop("block2.0.bias")
    with pytest.raises(ConfigError) as caught:
        model.load_initial(given)
    message = str(caught.value)
    assert "LeNet3 on (1, 28, 28)" in message and "(and 1 more)" in message
    assert "'block1.0.weight' holds torch.int32, the model needs torch.float32" in message
    assert "'block1.0.bias' has shape (31,), the model needs (32,)" in message
    assert "'block2.0.bias' is missing" in message and "block9" not in message
    assert all(torch.equal(value, drawn[key]) for key, value in model.state_dict().items())
    given = {**drawn, "more": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"'more' is not in the model\. Give weights of the same architecture"):
        model.load_initial(given)


def test_without_fresh_prefixes_the_head_must_fit() -> None:
    alexnet = registry.load("models", "alexnet")
    three, four = (alexnet(alexnet.Config(), InputShape((3, 32, 32)), classes) for classes in (3, 4))
    assert alexnet.fresh_prefixes == ()
    with pytest.raises(ConfigError, match=r"'head\.weight' has shape"):
        three.load_initial(four.state_dict())
    other = tensors_of(alexnet(alexnet.Config(), InputShape((3, 32, 32)), 3))
    three.load_initial(other)
    assert all(torch.equal(value, other[key]) for key, value in three.state_dict().items())


@pytest.fixture(scope="module")
def torchvision_network() -> nn.Module:
    """torchvision's vgg16_bn in eval mode; its classifier has no values, only shapes."""
    with torch.device("meta"):
        network: Any = vgg16_bn(weights=None)
    network.features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in network.features.state_dict().items():
        if value.dim() == 4:
            value.normal_(std=math.sqrt(2 / value[0].numel()), generator=generator)
        elif value.is_floating_point():
            value.uniform_(*(0.5, 1.5) if name.endswith(("var", "weight")) else (-0.5, 0.5), generator=generator)
        else:
            value.fill_(7)
    evaluated: nn.Module = network.eval()
    return evaluated


@torch.no_grad()
def test_weights_of_torchvision_become_the_convolutions(torchvision_network: Any) -> None:
    torch.manual_seed(0)
    model = VGG16BN1d(VGG16BN1d.Config(), InputShape((3, 64, 64)), 10).eval()
    head = model.head.weight.clone()
    model.load_initial(vgg16_bn_features(torchvision_network.state_dict()))
    x = inputs(model)
    expected = torchvision_network.features(x)
    torch.testing.assert_close(model.trunk(x), expected.flatten(1))
    assert torch.equal(model.head.weight, head) and not model.feature_norm.bias.requires_grad
    assert model.state_dict()["stages.2.1.num_batches_tracked"] == 7


def test_names_of_torchvision(torchvision_network: nn.Module) -> None:
    state = torchvision_network.state_dict()
    found = vgg16_bn_features(state)
    assert found["stages.0.0.weight"] is state["features.0.weight"]
    assert found["stages.4.7.running_var"] is state["features.41.running_var"]
    assert len(found) == sum(name.startswith("features.") for name in state)
    uncounted = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    again = vgg16_bn_features(uncounted)
    assert set(again) == set(found) and again["stages.3.4.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", ["features.44.weight", "module.features.0.weight", "features.0", "layer1.0.bn1.bias"])
def test_other_names_than_those_of_torchvision_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' is no tensor of torchvision's vgg16_bn; give"):
        vgg16_bn_features({name: torch.zeros(1)})


def test_weights_without_batch_normalization_are_refused() -> None:
    names = {f"features.{number}.{part}": torch.zeros(1) for number in (0, 2, 5) for part in ("weight", "bias")}
    model = on_meta("vgg16_bn1d", (3, 32, 32), CLASSES)
    with pytest.raises(ConfigError, match=r"'stages\.0\.0\.weight' has shape \(1,\)"):
        model.load_initial(vgg16_bn_features(names))
