"""A model under audit with its points: what every attack on it shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from oakum.attacks.access import Points, Shadow, Target
from oakum.attacks.membership._gradients import gradient_statistics
from oakum.attacks.membership.base import MembershipAttack
from oakum.audit_checks import compare_samples
from oakum.audit_inputs import AuditRequest, ModelFiles, build_classifier, load_weights, read_points
from oakum.config import ConfigError
from oakum.models.base import Classifier, predict_log_probabilities
from oakum.records import sha256_hex
from oakum.seeding import derive_seed

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Examined:
    """A model with points of known membership in random order.

    Attributes:
        module: with its weights, in eval mode.
        points: members and non-members; `rows` are their positions in this order and tell nothing of membership.
        is_member: (N,) bool, not for an attack's eyes.
        is_early: (N,) bool: among the points that attacks on gradients ask about.
        files: option of the command -> {name, sha256}.
        warnings: what a reader must know of the files.
    """

    module: Classifier
    points: Points
    is_member: Bits
    is_early: Bits
    files: dict[str, dict[str, str]]
    warnings: list[str]

    @classmethod
    def read(cls, request: AuditRequest, files: ModelFiles, prefix: str = "") -> Examined:
        """Read a model and its points; `prefix` stands before the names of the options that name the files.

        Raises:
            ConfigError: a file cannot be read, or they do not fit together or to the model.
        """
        paths = {
            f"--{prefix}weights": files.weights,
            f"--{prefix}members": files.members,
            f"--{prefix}nonmembers": files.nonmembers,
        }
        weights, inside, outside = paths
        members, others = (read_points(paths[option], option, request.num_classes) for option in (inside, outside))
        warnings = compare_samples(members.x, others.x, inside, outside)
        module = build_classifier(request, tuple(members.x.shape[1:]))
        warnings += load_weights(module, files.weights, weights)
        count = len(members) + len(others)
        order = np.random.default_rng(derive_seed(request.seed, f"{prefix}order")).permutation(count)
        place = np.concatenate([np.arange(len(members)), np.arange(len(others))])
        x, y = torch.cat([members.x, others.x]), torch.cat([members.y, others.y])
        return cls(
            module=module.eval(),
            points=Points(x[order], y[order], torch.arange(count)),
            is_member=(np.arange(count) < len(members))[order],
            is_early=(place < (request.gradient_points or count))[order],
            files={
                option: {"name": path.name, "sha256": sha256_hex(path.read_bytes())} for option, path in paths.items()
            },
            warnings=warnings,
        )

    @cached_property
    def log_probabilities(self) -> Floats:
        """The model's answers (N, K).

        Raises:
            ConfigError: one of them is NaN.
        """
        found: Floats = predict_log_probabilities(self.module, self.points.x).numpy()
        broken = int(np.isnan(found).any(axis=1).sum())
        if broken:
            weights = next(iter(self.files))
            raise ConfigError(f"{weights}: the model answers NaN to {broken} samples; choose another checkpoint")
        return found

    @cached_property
    def _gradients(self) -> dict[str, dict[int, float]]:
        asked = self._early
        try:
            found = gradient_statistics(self.module, asked.x, asked.y)
        except FloatingPointError as error:
            raise ConfigError(f"{next(iter(self.files))}: {error}; or leave attacks on gradients out") from error
        return {name: dict(zip(asked.rows.tolist(), values.tolist(), strict=True)) for name, values in found.items()}

    @cached_property
    def _early(self) -> Points:
        kept = torch.from_numpy(self.is_early)
        return Points(self.points.x[kept], self.points.y[kept], self.points.rows[kept])

    def asked_by(self, attack: MembershipAttack) -> tuple[Points, Bits]:
        """Return the points that an attack is asked about and, not for its eyes, which of them are members."""
        return (self._early, self.is_member[self.is_early]) if attack.needs_gradients else (self.points, self.is_member)

    def target(self, attack: MembershipAttack) -> Target:
        """Return the model behind the access that an attack declares, with its recorded answers."""
        return Target(
            lambda: self.module,
            attack.access,
            self.module.num_classes,
            dict(enumerate(self.log_probabilities)),
            recorded_gradients=self._gradients if attack.needs_gradients else None,
        )

    def evidence(self) -> Shadow:
        """Return what the owner of this model knows of it."""
        return Shadow(self.log_probabilities, self.points.y.numpy(), self.is_member)
