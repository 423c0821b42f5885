"""What is wrong with the files of an audit beside their format: overlaps, repetitions, another distribution."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oakum.config import ConfigError
from oakum.records import MetricValue

# Class shares of two files that are so unlikely under one distribution are worth a warning.
_UNLIKELY = 1e-3


def compare_samples(members: Tensor, others: Tensor, inside: str, outside: str) -> list[str]:
    """Return a warning for each of two files that holds a sample more than once.

    Args:
        members, others: (N, *dims) float32.
        inside, outside: the options that named the files.

    Raises:
        ConfigError: the shapes of their samples differ, or a sample is in both.
    """
    if members.shape[1:] != others.shape[1:]:
        shapes = f"{tuple(members.shape[1:])} and {tuple(others.shape[1:])}"
        raise ConfigError(f"{inside} and {outside} hold samples of different shapes: {shapes}; give equal ones")
    first, second = _digests(members), _digests(others)
    shared = set(first) & set(second)
    if shared:
        place = next(i for i, digest in enumerate(first) if digest in shared)
        raise ConfigError(
            f"{len(shared)} samples are in both files, such as number {place} of {inside} and number "
            f"{second.index(first[place])} of {outside} (counted from 0); no point is both: remove them from one file"
        )
    return [
        f"{option}: {len(digests) - len(set(digests))} of {len(digests)} samples repeat another one; intervals are too "
        "narrow then"
        for option, digests in ((inside, first), (outside, second))
        if len(set(digests)) < len(digests)
    ]


def compare_with_shadow(target: Tensor, shadow: Tensor) -> list[str]:
    """Return a warning if the shadow model's samples (N, *dims) overlap with the target's."""
    shared = len(set(_digests(target)) & set(_digests(shadow)))
    if not shared:
        return []
    return [
        f"{shared} samples of the shadow model's files are among the target's: an adversary who knows them knows part "
        "of the answer, and balanced accuracies are too high"
    ]


def _digests(x: Tensor) -> list[bytes]:
    return [hashlib.blake2b(sample.tobytes(), digest_size=16).digest() for sample in x.numpy()]


def warn_of_failure(member_accuracy: MetricValue, num_classes: int) -> list[str]:
    """Return a warning if the model does not do its work on the points that it was trained on."""
    chance = 1 / num_classes
    if member_accuracy.value is None or member_accuracy.low is None or member_accuracy.low > chance:
        return []
    return [
        f"the accuracy on members is {100 * member_accuracy.value:.1f} %, not clearly above chance "
        f"({100 * chance:.1f} %): the order of the classes, mean and std or the range of the samples may differ from "
        "the training, and the attacks mean nothing then"
    ]


def warn_of_class_shares(y: NDArray[np.int64], is_member: NDArray[np.bool_]) -> list[str]:
    """Return a warning if members and non-members differ in their shares of the classes.

    Pearson's chi-square test on the table of counts (scipy's, without correction), warning below p = 0.001.
    """
    from scipy.stats import chi2_contingency

    classes, label = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        return []
    table = np.stack([np.bincount(label[bits], minlength=len(classes)) for bits in (is_member, ~is_member)])
    probability = float(chi2_contingency(table, correction=False).pvalue)
    if probability >= _UNLIKELY:
        return []
    return [
        f"the shares of the classes differ between members and non-members (chi-square, p = {probability:.1g}): "
        "attacks may find the class instead of membership; draw both files from one distribution"
    ]
