"""Names of torchvision's weights in the networks here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from oakum.config import ConfigError
from oakum.models.vgg import CONVOLUTIONS

_LAYERS_OF_A_CONVOLUTION = 3


def vgg16_bn_features(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the convolutional part of torchvision's `vgg16_bn` under the names of `vgg16_bn1d`.

    Torchvision numbers the layers of all five stages in one row (`features.7.weight`), the model here within each stage
    (`stages.1.0.weight`). The classifier's tensors are left out. Files written before PyTorch counted the batches of a
    normalization lack `num_batches_tracked`; it is 0 then.

    Raises:
        ConfigError: a name that `vgg16_bn` does not have.
    """
    places = _places()
    found = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "classifier":
            continue
        number, _, suffix = rest.partition(".")
        if part != "features" or number not in places or not suffix:
            raise ConfigError(
                f"{name!r} is no tensor of torchvision's vgg16_bn; give the state dict of "
                "torchvision.models.vgg16_bn, with names such as 'features.0.weight'"
            )
        found[f"{places[number]}.{suffix}"] = value
    for name in [name for name in found if name.endswith(".running_mean")]:
        found.setdefault(f"{name.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return found


def _places() -> dict[str, str]:
    """Return {torchvision's number: our name} of VGG-16's layers: convolutions, normalizations, ReLUs and poolings."""
    layers = [
        f"stages.{stage}.{layer}"
        for stage, count in enumerate(CONVOLUTIONS[16])
        for layer in range(_LAYERS_OF_A_CONVOLUTION * count + 1)
    ]
    return {str(number): name for number, name in enumerate(layers)}
