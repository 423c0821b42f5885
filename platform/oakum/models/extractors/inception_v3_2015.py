"""Inception-v3 of 2015-12-05: the feature network of FID, from a file that the user gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from oakum.models.extractors.base import Extractor, FeatureNetwork, check_layout, read_checkpoint, resize
from oakum.packages import PackageError, Progress, read_published
from oakum.registry import Source

_IMAGE_SIZE = 299
_WIDTH = 2048
_CLASSES = 1008

Pool = Callable[[Tensor], Tensor]


class InceptionV3FID(Extractor):
    """Final pooling layer, 2048 wide, of images at 299x299 in [-1, 1]: the network that published FIDs are measured in.

    torchvision's Inception-v3 with 1008 outputs and the pooling of the TensorFlow graph: averages inside the blocks
    leave the padding out, and the last block takes the maximum. Enlarging is bilinear without averaging, as in
    pytorch-fid; that tool reads 8-bit files, while reconstructions here stay floats.

    No package of these weights is known: give the file pt_inception-2015-12-05-6726825d.pth of the pytorch-fid project.
    """

    source = Source(
        title="GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        authors="Heusel et al.",
        venue="NeurIPS",
        year=2017,
        link="arXiv:1706.08500",
    )
    profile = "fid.inception"
    weights_name = "inception_v3_2015"
    feature_width = _WIDTH
    published_file: ClassVar[str] = "pt_inception-2015-12-05-6726825d.pth"
    license_note = "TensorFlow's network as converted by pytorch-fid (Apache-2.0); trained on ImageNet."
    published_sha256: ClassVar[str] = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

    @classmethod
    def fetch(cls, scratch: Path, progress: Progress, source: Path | None) -> dict[str, Tensor]:
        if source is None:
            raise PackageError(f"{cls.profile} needs a file of yours: no package publishes {cls.published_file}")
        data = read_published(source, cls.published_file, cls.published_sha256)
        return cls.convert(read_checkpoint(data, str(source)))

    @classmethod
    def convert(cls, published: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the published state dict under the names of the network, without the classifier.

        Raises:
            ConfigError: another layout.
        """
        renamed = {f"inception.{name}": value for name, value in published.items()}
        classifier = {"inception.fc.weight": (_CLASSES, _WIDTH), "inception.fc.bias": (_CLASSES,)}
        check_layout(renamed, {**cls.layout(), **classifier}, cls.weights_name)
        return {name: renamed[name] for name in cls.layout()}

    @classmethod
    def network(cls) -> FeatureNetwork:
        return InceptionFeatures()


class InceptionFeatures(FeatureNetwork):
    """The network without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inception = Inception3(num_classes=_CLASSES, aux_logits=False, transform_input=False, init_weights=False)
        layers = self.inception
        layers.fc = nn.Identity()
        layers.Mixed_5b = _BlockA(192, 32)
        layers.Mixed_5c = _BlockA(256, 64)
        layers.Mixed_5d = _BlockA(288, 64)
        layers.Mixed_6b = _BlockC(768, 128)
        layers.Mixed_6c = _BlockC(768, 160)
        layers.Mixed_6d = _BlockC(768, 160)
        layers.Mixed_6e = _BlockC(768, 192)
        layers.Mixed_7b = _BlockE(1280, average_inside)
        layers.Mixed_7c = _BlockE(2048, maximum)

    def prepare(self, images: Tensor) -> Tensor:
        return resize(images, _IMAGE_SIZE, antialias=False) * 2 - 1

    def features(self, prepared: Tensor) -> Tensor:
        pooled: Tensor = self.inception(prepared)
        return pooled


def average_inside(x: Tensor) -> Tensor:
    """3x3 means over pixels of the image alone."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def maximum(x: Tensor) -> Tensor:
    """3x3 maxima."""
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


class _BlockA(InceptionA):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        narrow = self.branch1x1(x)
        middle = self.branch5x5_2(self.branch5x5_1(x))
        wide = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([narrow, middle, wide, self.branch_pool(average_inside(x))], dim=1)


class _BlockC(InceptionC):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        narrow = self.branch1x1(x)
        middle = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        wide = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        wide = self.branch7x7dbl_5(self.branch7x7dbl_4(wide))
        return torch.cat([narrow, middle, wide, self.branch_pool(average_inside(x))], dim=1)


class _BlockE(InceptionE):  # type: ignore[misc]
    def __init__(self, channels: int, pool: Pool) -> None:
        super().__init__(channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.branch1x1(x)
        middle = self.branch3x3_1(x)
        wide = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            narrow,
            self.branch3x3_2a(middle),
            self.branch3x3_2b(middle),
            self.branch3x3dbl_3a(wide),
            self.branch3x3dbl_3b(wide),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(parts, dim=1)
