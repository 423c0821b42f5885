"""Networks under deterministic weights, WGAN-GP losses and learning-rate schedules against the released code."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from oakum import registry
from oakum.models.base import Classifier, InputShape, count_parameters
from oakum.models.priors.wgan_gp import critic_loss

# Name in the file -> name and settings of our model; the released networks that are not listed have no counterpart.
CLASSIFIERS: dict[str, tuple[str, dict]] = {
    "MCNN": ("mcnn", {}),
    "SCNN": ("scnn", {}),
    "VGG16_bido_celeba": ("vgg16_bn1d", {}),
    "VGG16_bido_cifar5": ("vgg16_bn1d", {}),
    "VGG19_eval_cifar10": ("vgg19_evaluator", {}),
    "ResNet18_bido_1000": ("resnet18_bido", {}),
    "ResNetClsH34_img64_z50_1000": ("resnet_cls_h", {"depth": 34, "embedding": 50}),
    "IR50_64_1000": ("ir50", {}),
    "FaceNet64_1000": ("facenet64", {}),
}
# The released network returns the last one of our taps alone.
RETURNS_LAST_TAP = {"VGG19_eval_cifar10", "IR50_64_1000", "FaceNet64_1000"}
# Name in the file -> what the released network returns in the place of the logits.
ANSWERS = {
    "ResNetClsH34_img64_z50_1000": lambda logits: [logits.log_softmax(dim=1)],
    "FaceNet64_1000": lambda logits: [logits.softmax(dim=1), logits.argmax(dim=1, keepdim=True)],
}
PRIOR_PARTS = {"GMI_Generator_celeba": "generator", "GMI_DGWGAN": "critic"}


def fill(module: nn.Module) -> nn.Module:
    """Fill the floating state tensors by the rule of the vectors' README, in registration order."""
    tensors = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    for k, (name, value) in enumerate(tensors.items()):
        count = value.numel()
        wave = torch.cos(0.618 * torch.arange(count, dtype=torch.float64) + 0.37 * k).view(value.shape)
        if value.dim() >= 2:
            wave = wave * 2 / math.sqrt(count / value.shape[0])
        elif name.endswith("running_var"):
            wave = 1 + 0.1 * wave.abs()
        elif name.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave = 0.1 * wave
        value.copy_(wave)
    return module.eval()


def cosine_input(shape: list[int]) -> torch.Tensor:
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.5 + 0.5 * torch.cos(0.1 * index**1.1)).view(shape).float()


def prior(channels: int, size: int):
    prior_class = registry.load("priors", "wgan_gp")
    return prior_class(prior_class.Config(latent_size=100), InputShape((channels, size, size))).build()


def assert_tensors_match(module: nn.Module, description: dict) -> None:
    shapes = [list(value.shape) for value in module.state_dict().values() if value.is_floating_point()]
    assert shapes == description["tensors"]
    parameters = list(module.parameters())
    assert sum(parameter.numel() for parameter in parameters) == description["params"]
    assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == description["trainable"]


def outputs_of(name: str, description: dict) -> list[torch.Tensor]:
    shape = description["input"]
    if name in PRIOR_PARTS:
        size, channels = (
            (description["outputs"][0][-1], 3) if PRIOR_PARTS[name] == "generator" else (shape[-1], shape[1])
        )
        module = prior(channels, size)[PRIOR_PARTS[name]]
        assert_tensors_match(module, description)
        x = cosine_input(shape)
        return [fill(module)(2 * x - 1 if PRIOR_PARTS[name] == "generator" else x)]
    model, options = CLASSIFIERS[name]
    model_class = registry.load("models", model)
    classes = next(size[0] for size in reversed(description["tensors"]) if len(size) == 2)
    module = model_class(model_class.Config(**options), InputShape(tuple(shape[1:])), classes)
    assert_tensors_match(module, description)
    logits, taps = fill(module).logits_and_taps(cosine_input(shape))
    answer = ANSWERS[name](logits) if name in ANSWERS else [logits]
    return [*(taps[-1:] if name in RETURNS_LAST_TAP else taps), *answer]


@torch.no_grad()
def check_forward(case) -> None:
    name = case.groups["net"]
    description = json.loads(str(case["nets_json"]))[name]
    outputs = outputs_of(name, description)
    assert len(outputs) == len(description["outputs"])
    for index, output in enumerate(outputs):
        assert output.numel() == math.prod(description["outputs"][index])
        head = case.at(f"out{index}_head")
        assert_allclose(output.flatten()[: len(head)], head, rtol=1e-3, atol=1e-4)
        spread = [output.double().mean(), output.double().std()]
        assert_allclose(spread, case.at(f"out{index}_mean_std"), rtol=1e-3, atol=1e-4)


def check_wgan(case) -> None:
    real, fake, mix = (case.tensor(f"{case.name}/{name}") for name in ("real", "fake", "alpha"))
    critic = fill(prior(real.shape[1], real.shape[2])["critic"])
    assert_allclose(critic(real).detach(), case.at("d_real"), rtol=1e-3, atol=1e-4)
    assert_allclose(critic(fake).detach(), case.at("d_fake"), rtol=1e-3, atol=1e-4)
    loss, wasserstein, penalty = critic_loss(critic, real, fake, mix, 10.0)
    assert_allclose(wasserstein.item(), case.at("wasserstein"), rtol=1e-3, atol=1e-5)
    assert_allclose(penalty.item(), case.at("gp"), rtol=1e-3)
    assert_allclose(loss.item(), case.at("d_loss"), rtol=1e-3)
    assert_allclose(-critic(fake).mean().item(), case.at("g_loss"), rtol=1e-3, atol=1e-5)


# Keyword arguments of the released code -> fields of ours.
FIELDS = {"depth": "depth", "widen_factor": "widen"}
FEATURES = {"Purchase": 600, "Texas": 6169}


def membership_model(name: str, num_classes: int, kwargs: dict) -> Classifier:
    """Return our counterpart of a network of the RelaxLoss code, such as `vgg11_bn`."""
    options = {FIELDS[key]: value for key, value in kwargs.items()}
    if found := re.fullmatch(r"vgg(\d+)(_bn)?", name):
        name, options = "vgg", {"depth": int(found[1]), "batch_norm": bool(found[2])}
    dims = (FEATURES[name],) if name in FEATURES else (3, 32, 32)
    cls = registry.load("models", "mlp" if name in FEATURES else name)
    return cls(cls.Config(**options), InputShape(dims), num_classes)


@torch.no_grad()
def fill_parameters(module: nn.Module) -> None:
    """Fill the parameters by the rule of the membership vectors' README, in registration order."""
    for k, (name, weight) in enumerate(module.named_parameters()):
        index = torch.arange(weight.numel(), dtype=torch.float64)
        if weight.dim() > 1:
            values = torch.sin(0.7 * index + k) * math.sqrt(2 / weight[0].numel())
        elif name.endswith("weight"):
            values = 1 + 0.1 * torch.cos(index + k)
        else:
            values = 0.05 * torch.sin(2 * index + k)
        weight.copy_(values.view(weight.shape))


@torch.no_grad()
def check_mlp(case) -> None:
    expected = case.at("eval_logits")
    module = membership_model(case.groups["net"], expected.shape[1], {}).double().eval()
    fill_parameters(module)
    (features,) = module.input_shape.dims
    index = torch.arange(len(expected) * features, dtype=torch.float64)
    x = (torch.sin(float(case.at("x_freq")) * index) > 0.2).double().view(len(expected), features)
    assert_allclose(module(x), expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def check_cnn(case) -> None:
    name, classes = case.groups["net"], int(case.groups["classes"])
    module = membership_model(name, classes, {}).double()
    ours = [(key.rsplit(".", 1)[-1], list(value.shape)) for key, value in module.named_parameters()]
    suffixes = [str(key).rsplit(".", 1)[-1] for key in case.at("param_names")]
    assert ours == list(zip(suffixes, json.loads(str(case.at("param_shapes"))), strict=True))
    fill_parameters(module)
    frequency = float(case["networks/forward/x_freq"])
    x = torch.sin(frequency * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).view(2, 3, 32, 32)
    for mode in ("eval", "train"):
        assert_allclose(module.train(mode == "train")(x), case.at(f"{mode}_logits"), rtol=1e-9)


SCHEDULES = {"cifar_lr": (150, 225), "nonimage_lr": (50, 100)}


def check_schedule(case) -> None:
    from oakum.training.optimizers import build_optimizer, build_scheduler
    from oakum.training.recipe import Recipe

    expected = case[case.name]
    milestones = SCHEDULES[case.groups["of"]]
    recipe = Recipe(optimizer="sgd", learning_rate=0.1, milestones=milestones, gamma=0.1, epochs=len(expected))
    optimizer = build_optimizer(recipe, [nn.Parameter(torch.zeros(1))])
    scheduler = build_scheduler(recipe, optimizer)
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert_allclose(rates, expected, rtol=1e-9)


OWNS = r"forward/(?!KED_|VMI_)|wgan_|nets_json|networks/|schedule/"
RULES = [
    (r"(?P<case>networks/forward/(?P<net>Purchase|Texas))/.*", check_mlp),
    (r"(?P<case>networks/forward/(?P<net>[a-z0-9_]+)_(?P<classes>\d+))/.*", check_cnn),
    (r"networks/(forward/x_freq|table)", None),
    (r"(?P<case>schedule/(?P<of>cifar_lr|nonimage_lr))", check_schedule),
    (r"nets_json", None),
    (r"(?P<case>forward/(?P<net>[^/]+))/.*", check_forward),
    (r"(?P<case>wgan_\w+)/.*", check_wgan),
]


def test_vectors(golden_case) -> None:
    golden_case.check(golden_case)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each row of `networks/table` in the folder that conftest.py names."""
    if "network" in metafunc.fixturenames:
        folder = Path(os.environ.get("OAKUM_GOLDEN") or Path(__file__).parent / "data")
        files = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npz"))]
        rows = [row for file in files if "networks/table" in file for row in json.loads(str(file["networks/table"]))]
        metafunc.parametrize("network", rows, ids=[f"{row['name']}-{row['num_classes']}" for row in rows])


def test_sizes_of_the_table(network: dict) -> None:
    """Counts and the output's shape, on the meta device: nothing is computed. `droprate_ok` is the released code's."""
    with torch.device("meta"):
        model = membership_model(network["name"], network["num_classes"], network.get("kwargs", {}))
        output = model(torch.empty(2, *model.input_shape.dims))
    assert count_parameters(model) == network["params"]
    stored = sum(value.numel() for value in model.state_dict().values())
    assert stored - count_parameters(model) == network.get("buffers", 0)
    assert list(output.shape) == network["out"]
