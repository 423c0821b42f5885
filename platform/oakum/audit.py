"""Audit of a model that exists already: membership attacks on a checkpoint, with files of members and non-members.

The files are read as data, never executed. Attacks get the points in random order; which of them are members is joined
after they have answered. Thresholds come from a shadow model of the user alone, or belong to the attack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from oakum import __version__, registry
from oakum.attacks.access import Knowledge, Points, Target
from oakum.attacks.membership.base import MembershipAttack
from oakum.audit_checks import compare_with_shadow, warn_of_class_shares, warn_of_failure
from oakum.audit_examined import Examined, Floats
from oakum.audit_inputs import AuditRequest
from oakum.config import ConfigError, validate
from oakum.metrics.membership import membership_flags, membership_metrics, select_class_thresholds, select_threshold
from oakum.metrics.utility import accuracy
from oakum.models.base import count_parameters
from oakum.records import MetricValue
from oakum.seeding import derive_seed

_KIND = "attacks.membership"


@dataclass(frozen=True)
class AttackResult:
    """What one attack came to.

    Attributes:
        name: of the attack.
        access: what it needs of the model: label, scores or weights.
        members, nonmembers: how many points it was asked about.
        metrics: see `membership_metrics`. `balanced_accuracy` takes the threshold of the attack itself or of the shadow
            model, `balanced_accuracy_per_class` the shadow model's for each class.
        flags: what makes the numbers suspicious.
    """

    name: str
    access: str
    members: int
    nonmembers: int
    metrics: dict[str, MetricValue]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        model: {name, options, norm, num_classes, input_shape, parameters}.
        files: option of the command -> {name, sha256}.
        members, nonmembers: points in the files.
        utility: `member_accuracy` and `nonmember_accuracy` with Wilson intervals, and their difference `accuracy_gap`.
        attacks: in order of their names.
        warnings: what a reader must know beside the numbers.
        uses_shadow: whether a shadow model was given.
        seed: see `AuditRequest`.
    """

    model: dict[str, Any]
    files: dict[str, dict[str, str]]
    members: int
    nonmembers: int
    utility: dict[str, MetricValue]
    attacks: tuple[AttackResult, ...]
    warnings: tuple[str, ...]
    uses_shadow: bool
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data = {name: value for name, value in vars(self).items() if name not in {"utility", "attacks", "warnings"}}
        return {
            "oakum": __version__,
            **data,
            "utility": _plain(self.utility),
            "attacks": {
                attack.name: {
                    "access": attack.access,
                    "members": attack.members,
                    "nonmembers": attack.nonmembers,
                    "metrics": _plain(attack.metrics),
                    "flags": list(attack.flags),
                }
                for attack in self.attacks
            },
            "warnings": list(self.warnings),
        }


def _plain(metrics: dict[str, MetricValue]) -> dict[str, Any]:
    return {name: value.to_json() for name, value in metrics.items()}


def run_audit(request: AuditRequest, progress: Callable[[str], None]) -> Audit:
    """Attack a model and return what was found.

    Args:
        request: what to audit.
        progress: called with a line before each attack.

    Raises:
        ConfigError: an attack or a model that does not exist, files that cannot be read or do not fit together, or an
            attack that needs a shadow model where none is given.
    """
    names = _chosen(request)
    target = Examined.read(request, request.target)
    shadow = None if request.shadow is None else Examined.read(request, request.shadow, "shadow-")
    utility = _utility(target)
    results = []
    for name in names:
        progress(f"attack {name}")
        results.append(_attacked(name, target, shadow, request.seed))
    inside = int(target.is_member.sum())
    return Audit(
        model={
            "name": request.model,
            "options": target.module.config.model_dump(mode="json"),
            "norm": request.norm,
            "num_classes": request.num_classes,
            "input_shape": list(target.points.x.shape[1:]),
            "parameters": count_parameters(target.module),
        },
        files={**target.files, **(shadow.files if shadow else {})},
        members=inside,
        nonmembers=len(target.points) - inside,
        utility=utility,
        attacks=tuple(results),
        warnings=tuple(_warnings(target, shadow, utility["member_accuracy"])),
        uses_shadow=shadow is not None,
        seed=request.seed,
    )


def _chosen(request: AuditRequest) -> list[str]:
    """Return the names of the attacks, sorted, each once.

    Raises:
        ConfigError: no such attack, or it needs a shadow model and there is none.
    """
    names = {registry.canonical_name(_KIND, name) for name in request.attacks or registry.available(_KIND)}
    fitted = {name for name in names if registry.load(_KIND, name).needs_shadow}
    if request.shadow is None and fitted and request.attacks:
        raise ConfigError(
            f"--attacks {min(fitted)}: it is fitted on a shadow model; give --shadow-weights, --shadow-members and "
            "--shadow-nonmembers, or leave it out"
        )
    return sorted(names if request.shadow is not None else names - fitted)


def _attacked(name: str, target: Examined, shadow: Examined | None, seed: int) -> AttackResult:
    cls = registry.load(_KIND, name)
    attack: MembershipAttack = cls(validate(cls.Config, {}, f"--attacks {name}"))
    own_seed = derive_seed(seed, f"attack/{name}")
    knowledge = Knowledge(seed=own_seed, shadow=() if shadow is None else (shadow.evidence(),))
    asked, (points, is_member) = target.target(attack), target.asked_by(attack)
    scores = _scores(name, attack, asked, points, knowledge)
    threshold, by_class = attack.fixed_threshold, None
    if shadow is not None and threshold is None:
        known, known_bits = shadow.asked_by(attack)
        own = _scores(name, attack, shadow.target(attack), known, knowledge)
        threshold = select_threshold(own[known_bits], own[~known_bits])
        by_class = select_class_thresholds(own, known_bits, known.y.numpy(), asked.num_classes)
    metrics = membership_metrics(scores, is_member, seed=own_seed, threshold=threshold)
    if by_class is not None:
        classwise = membership_metrics(scores, is_member, seed=own_seed, threshold=by_class[points.y.numpy()])
        metrics["balanced_accuracy_per_class"] = classwise["balanced_accuracy"]
    flags = sorted({*membership_flags(scores, is_member, threshold), *asked.flags})
    inside = int(is_member.sum())
    return AttackResult(name, attack.access.name.lower(), inside, len(is_member) - inside, metrics, tuple(flags))


def _scores(name: str, attack: MembershipAttack, target: Target, points: Points, knowledge: Knowledge) -> Floats:
    scores = attack.score(target, points, knowledge)
    if scores.shape != (len(points),) or scores.dtype != np.float64:
        raise TypeError(f"attack {name!r} must return {len(points)} float64 scores, not {scores.dtype} {scores.shape}")
    return scores


def _utility(target: Examined) -> dict[str, MetricValue]:
    predicted, y = target.log_probabilities.argmax(axis=1), target.points.y.numpy()
    inside, outside = (accuracy(predicted[bits], y[bits]) for bits in (target.is_member, ~target.is_member))
    assert inside.value is not None and outside.value is not None
    gap = MetricValue(inside.value - outside.value, wants="low")
    return {"member_accuracy": inside, "nonmember_accuracy": outside, "accuracy_gap": gap}


def _warnings(target: Examined, shadow: Examined | None, member_accuracy: MetricValue) -> list[str]:
    found = [
        *target.warnings,
        *warn_of_failure(member_accuracy, target.module.num_classes),
        *warn_of_class_shares(target.points.y.numpy(), target.is_member),
    ]
    if shadow is not None:
        found += [*shadow.warnings, *compare_with_shadow(target.points.x, shadow.points.x)]
    return found
