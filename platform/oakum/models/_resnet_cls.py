"""The ResNets of the variational inversion experiments, which narrow to a small embedding before their head."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from oakum.models._residual import basic_block, residual_stage
from oakum.models._staged import convolution, norm_relu
from oakum.models.base import Classifier
from oakum.registry import Source

VMI = Source(
    title="Variational Model Inversion Attacks",
    authors="Wang, Fu, Li, Khisti, Zemel, Makhzani",
    venue="NeurIPS",
    year=2021,
    link="arXiv:2201.10787",
)
BLOCKS = {10: (1, 1, 1, 1), 34: (3, 4, 6, 3)}


class EmbeddingResNet(Classifier):
    """A strided stem, four stages of basic blocks, and embedding and head, each on normalized activations.

    head(embedding_norm(relu(z))) with z = embed(feature_norm(relu(mean of the last map))). A subclass registers these
    four layers, in the order of its own weight files.
    """

    head_modules: ClassVar[tuple[str, ...]] = ("embedding_norm", "head")
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)
    feature_norm: nn.BatchNorm1d
    embed: nn.Linear
    embedding_norm: nn.BatchNorm1d
    head: nn.Linear

    class Config(Classifier.Config):
        depth: Literal[10, 34] = Field(default=34, description="10: one block in each stage; 34: 3, 4, 6 and 3")
        embedding: int = Field(default=50, ge=1, le=4096, description="width z of the embedding")
        width: int = Field(default=64, ge=1, le=1024, description="channels of the first stage; doubled at each")

    config: Config

    def assemble_backbone(self, channels: int) -> int:
        """Register stem and stages; return the number of channels of the last stage."""
        width = self.config.width
        self.stem = nn.Sequential(
            convolution(channels, width, 7, stride=2), *norm_relu(width), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages = nn.ModuleList()
        inner = width
        for number, blocks in enumerate(BLOCKS[self.config.depth]):
            outer = width << number
            self.stages.append(residual_stage(basic_block, inner, outer, blocks, stride=2 if number else 1))
            inner = outer
        self.trunk_width = self.config.embedding
        return inner

    def trunk(self, x: Tensor) -> Tensor:
        return self._embedding(self._maps(x)[-1])

    def logits_and_hidden(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, K) and the hidden layers: stem, four stages, z and embedding_norm(relu(z))."""
        maps = self._maps(x)
        embedding = self._embedding(maps[-1])
        normalized = self.embedding_norm(embedding.relu())
        return self.head(self.head_dropout(normalized)), [*maps, embedding, normalized]

    def _maps(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in (self.stem, *self.stages):
            x = layer(x)
            outputs.append(x)
        return outputs

    def _embedding(self, last: Tensor) -> Tensor:
        embedding: Tensor = self.embed(self.feature_norm(last.mean(dim=(2, 3)).relu()))
        return embedding
