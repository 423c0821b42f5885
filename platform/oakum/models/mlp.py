"""Multi-layer perceptron for tabular data, in the layout of the RelaxLoss experiments."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from oakum.models.base import Classifier, InputShape
from oakum.registry import Source


class MLP(Classifier):
    """Fully connected layers with one activation; samples of any shape are flattened.

    With the default widths and 100 classes: 1,317,348 parameters on 600 features (Purchase100) and 7,020,004 on
    6,169 (Texas100). Taps: every hidden activation; the trunk is the last one.
    """

    source = Source(
        title="RelaxLoss: Defending Membership Inference Attacks without Losing Utility",
        authors="Chen, Yu, Fritz",
        venue="ICLR",
        year=2022,
        link="arXiv:2207.05801",
    )
    tap_names: ClassVar[tuple[str, ...]] = ("hidden",)
    fresh_prefixes: ClassVar[tuple[str, ...]] = ("head.",)

    class Config(Classifier.Config):
        hidden: tuple[int, ...] = Field(default=(1024, 512, 256, 128), min_length=1)
        activation: Literal["tanh", "relu"] = "tanh"

    def __init__(self, config: Config, input_shape: InputShape, num_classes: int) -> None:
        super().__init__(config, input_shape, num_classes)
        width = 1
        for size in input_shape.dims:
            width *= size
        activation = nn.Tanh if config.activation == "tanh" else nn.ReLU
        self.layers = nn.ModuleList()
        for hidden in config.hidden:
            self.layers.append(nn.Sequential(nn.Linear(width, hidden), activation()))
            width = hidden
        self.trunk_width = width
        self.head = nn.Linear(width, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self._activations(x)[-1]

    def logits_and_taps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        taps = self._activations(x)
        return self.head(self.head_dropout(taps[-1])), taps

    def _activations(self, x: Tensor) -> list[Tensor]:
        hidden = x.flatten(1)
        activations = []
        for layer in self.layers:
            hidden = layer(hidden)
            activations.append(hidden)
        return activations
