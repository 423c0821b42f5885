"""What an adversary may see, and what it owns. Nothing here holds the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oakum.attacks.points import Points as Points
from oakum.models.base import predict_log_probabilities


class Access(IntEnum):
    """What the adversary may query; a higher level includes the lower ones."""

    LABEL = 1
    SCORES = 2
    WEIGHTS = 3


class AccessError(PermissionError):
    """An attack asked for more than the access it declares."""


class Target:
    """A released model behind the access that an attack declares; counts what is asked of it.

    Args:
        load_module: returns the released module in eval mode; called at the first need.
        access: the attack's declared access.
        recorded: log-probabilities by row id from an earlier pass, so that several attacks share one.
        load_unmasked: returns the classifier that the weights show, without the mask of a test-time defense; None: the
            released module.
        recorded_gradients: `gradient_statistics` of an earlier pass: name -> row id -> value.

    Attributes:
        access: what may be asked.
        queries: samples asked about so far.
        flags: what makes the answers suspicious.
    """

    def __init__(
        self,
        load_module: Callable[[], nn.Module],
        access: Access,
        num_classes: int,
        recorded: dict[int, NDArray[np.float64]] | None = None,
        load_unmasked: Callable[[], nn.Module] | None = None,
        recorded_gradients: dict[str, dict[int, float]] | None = None,
    ) -> None:
        self._load_module = load_module
        self.access = access
        self._recorded = recorded or {}
        self._load_unmasked = load_unmasked or load_module
        self._recorded_gradients = recorded_gradients or {}
        self._module: nn.Module | None = None
        self.num_classes = num_classes
        self.queries = 0
        self.flags: set[str] = set()

    def scores(self, points: Points) -> NDArray[np.float64]:
        """Return the released log-probabilities (N, K), float64.

        Raises:
            AccessError: the attack declared label access only.
        """
        self._require(Access.SCORES)
        self.queries += len(points)
        rows = points.rows.tolist()
        if self._recorded and all(row in self._recorded for row in rows):
            return np.stack([self._recorded[row] for row in rows]) if rows else np.empty((0, self.num_classes))
        return self._answer(points.x).numpy()

    def scores_of(self, x: Tensor) -> NDArray[np.float64]:
        """Return the released log-probabilities (N, K), float64, of inputs of the adversary's own making (N, *dims).

        Raises:
            AccessError: the attack declared label access only.
        """
        self._require(Access.SCORES)
        self.queries += len(x)
        return self._answer(x).numpy()

    def labels(self, points: Points) -> NDArray[np.int64]:
        """Return the predicted classes (N,) int64."""
        return self.labels_of(points.x)

    def labels_of(self, x: Tensor) -> NDArray[np.int64]:
        """Return the predicted classes (N,) int64 of any inputs (N, *dims) in [0, 1]."""
        self._require(Access.LABEL)
        self.queries += len(x)
        module = self._released()
        return predict_labels(module, x.to(device_of(module))).cpu().numpy()

    def module(self) -> nn.Module:
        """Return the classifier itself: eval mode, weights frozen, gradients reach its input.

        Of a defense that masks its output this is the unmasked classifier: the weights show it.

        Raises:
            AccessError: the attack did not declare weights access.
        """
        self._require(Access.WEIGHTS)
        return self._load_unmasked().eval().requires_grad_(False)

    def gradient_statistics(self, points: Points) -> dict[str, NDArray[np.float64]]:
        """Return name -> (N,) float64, see `oakum.attacks.membership._gradients.STATISTICS` for the names.

        Flags `zero gradients` when a sample's gradient is exactly zero: such a sample tells nothing.

        Raises:
            AccessError: the attack did not declare weights access.
        """
        from oakum.attacks.membership._gradients import gradient_statistics

        self._require(Access.WEIGHTS)
        self.queries += len(points)
        rows = points.rows.tolist()
        recorded = self._recorded_gradients
        if recorded and all(row in next(iter(recorded.values())) for row in rows):
            found = {name: np.array([values[row] for row in rows]) for name, values in recorded.items()}
        else:
            found = gradient_statistics(self._load_unmasked().eval(), points.x, points.y)
        if any((found[f"{of}/l2"] == 0).any() for of in ("x", "w")):
            self.flags.add("zero gradients")
        return found

    def _answer(self, x: Tensor) -> Tensor:
        module = self._released()
        return predict_log_probabilities(module, x.to(device_of(module))).cpu()

    def _released(self) -> nn.Module:
        if self._module is None:
            self._module = self._load_module().eval().requires_grad_(False)
        return self._module

    def _require(self, needed: Access) -> None:
        if self.access < needed:
            raise AccessError(
                f"the attack declares {self.access.name.lower()} access and asked for {needed.name.lower()}"
            )


@dataclass(frozen=True)
class Knowledge:
    """All that the adversary owns beside the target.

    Attributes:
        generator: the prior's generator, latents (B, Z) -> images (B, C, H, W) in [0, 1]; None without a prior.
        critic: the prior's critic, images -> (B,); None without one.
        networks: all networks of the prior by name, `generator` and `critic` included; eval mode, weights frozen.
        latent_size: Z.
        shadow: per shadow model, log-probabilities and labels of its members and non-members; empty when the
            experiment draws no shadow folds.
        seed: the attack's own seed: its starts and draws depend on nothing else.
    """

    seed: int = 0
    generator: nn.Module | None = None
    critic: nn.Module | None = None
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    latent_size: int = 0
    shadow: tuple[Shadow, ...] = field(default=())


@dataclass(frozen=True)
class Shadow:
    """Evidence of one shadow model: the adversary knows its members.

    Attributes:
        log_probabilities: (N, K) float64.
        y: (N,) int64.
        is_member: (N,) bool.
    """

    log_probabilities: NDArray[np.float64]
    y: NDArray[np.int64]
    is_member: NDArray[np.bool_]


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's first parameter, or the CPU when it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


@torch.no_grad()
def predict_labels(module: nn.Module, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Return the released classes (N,) int64 of inputs (N, *dims).

    A released module whose scores are costly may offer `labels(x)`, (B, *dims) -> (B,) int64, which must give the
    argmax of its scores.
    """
    labels: Callable[[Tensor], Tensor] | None = getattr(module, "labels", None)
    if labels is None:
        return predict_log_probabilities(module, x).argmax(dim=1)
    parts = [labels(part) for part in x.split(batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
