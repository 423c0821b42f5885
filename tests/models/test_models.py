"""What every registered model promises; a new model file is covered without an edit here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from oakum import registry
from oakum.config import ConfigError
from oakum.models.base import (
    Classifier,
    InputShape,
    count_parameters,
    predict_log_probabilities,
    same_architecture,
    same_up_to_sizes,
)
from oakum.models.mcnn import MCNN
from oakum.models.mlp import MLP
from oakum.models.small_cnn import SmallCNN
from oakum.models.strided_cnn import StridedCNN

NAMES = list(registry.available("models"))
SHAPES = [InputShape(dims) for dims in ((1, 32, 32), (1, 16, 16), (1, 28, 28), (3, 64, 64), (3, 32, 32), (600,))]
CLASSES = 7
# Models whose default size takes seconds to build.
NARROW = (
    *("facenet112", "facenet64", "ir152", "ir50", "ir_se50", "plain_cnn", "resnet18_bido", "resnet_cls"),
    *("resnet_cls_h", "vgg16_bn1d", "vgg19_evaluator"),
)
SMALL: dict[str, dict[str, int]] = {
    "resnext": {"depth": 11, "cardinality": 2, "width": 8},
    **{name: {"width": 2} for name in NARROW},
}


def build(name: str, num_classes: int = CLASSES) -> Classifier:
    """Return the model for the first shape that it takes."""
    cls = registry.load("models", name)
    for shape in SHAPES:
        try:
            model: Classifier = cls(cls.Config(**SMALL.get(name, {})), shape, num_classes)
        except ConfigError:
            continue
        return model
    raise AssertionError(f"model {name} takes none of {SHAPES}: add its shape")


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_taps(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    x = torch.rand(3, *model.input_shape.dims)
    logits = model(x)
    again, taps = model(x, with_taps=True)
    assert logits.shape == (3, CLASSES) and torch.equal(logits, again)
    assert bool(taps) == bool(model.tap_names) and all(len(tap) == 3 for tap in taps)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_weights_taps_and_input(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).train()
    x = torch.rand(4, *model.input_shape.dims, requires_grad=True)
    logits, taps = model(x, with_taps=True)
    (logits.sum() + sum(tap.square().sum() for tap in taps)).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_from_the_seed(name: str) -> None:
    torch.manual_seed(3)
    first = build(name).state_dict()
    torch.manual_seed(3)
    second = build(name).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_neighbors_in_eval_mode(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    x = torch.rand(4, *model.input_shape.dims)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]))


@pytest.mark.parametrize("name", sorted({*NAMES} - {"mlp"}))
def test_images_of_a_wrong_shape_are_refused(name: str) -> None:
    cls = registry.load("models", name)
    for dims in ((600,), (1, 7, 7)):
        with pytest.raises(ConfigError, match=name):
            cls(cls.Config(), InputShape(dims), CLASSES)


def test_parameters_are_those_of_the_papers() -> None:
    assert count_parameters(MCNN(MCNN.Config(), InputShape((1, 32, 32)), 5)) == 1_029_765
    assert count_parameters(MLP(MLP.Config(), InputShape((600,)), 100)) == 1_317_348


@pytest.mark.parametrize("cls", [SmallCNN, StridedCNN])
@pytest.mark.parametrize("size", [8, 15, 16, 28])
def test_our_networks_take_images_of_any_size(cls: type[Classifier], size: int) -> None:
    model = cls(cls.Config(width=2), InputShape((1, size, size)), CLASSES)  # type: ignore[call-arg]
    assert model(torch.rand(2, 1, size, size)).shape == (2, CLASSES)


def test_log_probabilities() -> None:
    model = build("strided_cnn").train()
    x = torch.rand(5, *model.input_shape.dims)
    found = predict_log_probabilities(model, x, batch_size=2)
    assert model.training and not found.requires_grad
    assert found.dtype == torch.float64 and found.exp().sum(1).tolist() == pytest.approx([1.0] * 5)
    assert torch.equal(found, predict_log_probabilities(model, x, batch_size=2))
    assert predict_log_probabilities(model, x[:0]).shape == (0, CLASSES)


def test_log_probabilities_restore_the_mode_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError

    module = Broken().train()
    with pytest.raises(ArithmeticError):
        predict_log_probabilities(module, torch.rand(1, 2))
    assert module.training


def test_same_architecture() -> None:
    assert same_architecture(build("small_cnn"), build("small_cnn", num_classes=3))
    assert not same_architecture(build("small_cnn"), build("strided_cnn"))
    shape = InputShape((1, 16, 16))
    narrow, wide = (SmallCNN(SmallCNN.Config(width=width), shape, 5) for width in (4, 8))
    assert not same_architecture(narrow, wide)


def test_same_up_to_sizes() -> None:
    def small(side: int, **config: Any) -> SmallCNN:
        return SmallCNN(SmallCNN.Config(**config), InputShape((1, side, side)), 5)

    assert same_up_to_sizes(small(16, width=4), small(32, width=8))
    assert same_up_to_sizes(small(16), build("small_cnn", num_classes=3))
    assert not same_up_to_sizes(small(16), small(16, kernel=5))
    assert not same_up_to_sizes(small(16), build("strided_cnn"))
