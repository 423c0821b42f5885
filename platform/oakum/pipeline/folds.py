"""Which rows a stage reads, drawn again from plain data in every worker and checked against the key's digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oakum.config import ConfigError, validate
from oakum.datasets._canaries import Canaries, CanaryPart, candidates, plant
from oakum.datasets._folds import CONTROL, FoldsConfig, draw_folds, fold_digest, private_classes, relabel
from oakum.datasets._prepared import Labels, PreparedData, Samples
from oakum.datasets.base import load_labels, load_samples, open_prepared
from oakum.records import canonical_json, sha256_hex
from oakum.seeding import derive_seed

if TYPE_CHECKING:
    from oakum.attacks.points import Points
    from oakum.training.loop import LabeledData

CANARY_TRAIN_FOLD = "train+canaries"


@dataclass(frozen=True)
class Selection:
    """Plain data from which folds are drawn.

    Attributes:
        data: name of the prepared data set.
        image_size: pixels a side, or None for the native shape.
        folds: `FoldsConfig` as plain data.
        experiment_seed, seed_index: of the draw.
        canary_fold: fold of canary candidates, or None when none are planted.
        canary_part: which of them are planted.
    """

    data: str
    image_size: int | None
    folds: Mapping[str, Any]
    experiment_seed: int
    seed_index: int
    canary_fold: str | None = None
    canary_part: CanaryPart = "all"


class FoldSet:
    """The folds of one seed index.

    Attributes:
        rows: fold -> row ids in drawn order; of `control` those of `control_classes` alone.
    """

    def __init__(self, selection: Selection, prepared: PreparedData, labels: Labels) -> None:
        self.selection = selection
        self.prepared = prepared
        self.labels = labels
        self.config = validate(FoldsConfig, dict(selection.folds), "folds")
        self.rows: dict[str, NDArray[np.int64]] = draw_folds(
            self.config, labels.y, labels.part, labels.identity, selection.experiment_seed, selection.seed_index
        )
        if CONTROL in self.rows:
            control = self.rows[CONTROL]
            self.rows[CONTROL] = control[self.class_index(control, "control") >= 0]

    @cached_property
    def private_classes(self) -> tuple[int, ...]:
        """Original class ids of the target's classes, ascending; position = the target's class index."""
        return private_classes(self.config, self.labels.y, self.labels.part, self.labels.identity)

    @cached_property
    def control_classes(self) -> tuple[int, ...]:
        """Original class ids of the control, ascending, at most as many as the target has; position = class index.

        Raises:
            ConfigError: the experiment's `folds` do not draw `control`.
        """
        found = np.unique(self.labels.y[self.require(CONTROL)])
        return tuple(int(label) for label in found[: len(self.private_classes)])

    @cached_property
    def canaries(self) -> Canaries:
        """The planted candidates of this seed."""
        assert self.selection.canary_fold is not None
        halves = derive_seed(self.selection.experiment_seed, "canaries/halves")
        rows = candidates(self.require(self.selection.canary_fold), self.selection.canary_part, halves)
        seed = derive_seed(self.selection.experiment_seed, "canaries", self.selection.seed_index)
        return plant(rows, self.class_index(rows), len(self.private_classes), seed)

    def require(self, fold: str) -> NDArray[np.int64]:
        """Return the rows of a fold.

        Raises:
            ConfigError: the experiment's `folds` do not draw it, or it is empty.
        """
        if fold not in self.rows or not len(self.rows[fold]):
            raise ConfigError(
                f"this experiment needs fold {fold!r}; let `folds.rules` take it "
                f"(drawn: {', '.join(sorted(self.rows))})"
            )
        return self.rows[fold]

    def class_index(self, rows: NDArray[np.int64], labels: str = "private") -> NDArray[np.int64]:
        """Return the class index of each row as the target (`private`) or the control model (`control`) counts.

        It is -1 for rows of classes that the model does not know.
        """
        return relabel(self.labels.y[rows], self.control_classes if labels == "control" else self.private_classes)

    def digest(self, fold: str) -> str:
        """Return the content digest of a fold, of the canaries (with their labels and coin) or of both."""
        if fold == CANARY_TRAIN_FOLD:
            return sha256_hex(f"{self.digest('train')}+{self._canary_digest()}".encode())
        if fold == self.selection.canary_fold:
            return self._canary_digest()
        return fold_digest(self.prepared.digest, self.selection.image_size, self.require(fold))

    def _canary_digest(self) -> str:
        canaries = self.canaries
        rows = fold_digest(self.prepared.digest, self.selection.image_size, canaries.rows)
        planted = [canaries.planted_label.tolist(), canaries.is_member.tolist()]
        return sha256_hex(canonical_json([rows, planted]))


class LoadedFolds(FoldSet):
    """Folds together with their samples, in a worker."""

    def __init__(self, selection: Selection, data_home: Path) -> None:
        samples = load_samples(selection.data, data_home, selection.image_size)
        super().__init__(selection, open_prepared(selection.data, data_home), samples)
        self.samples: Samples = samples

    def check(self, digests: Mapping[str, str]) -> None:
        """Raise `ConfigError` when a fold is not the one that the stage's key names."""
        for fold, digest in digests.items():
            if self.digest(fold) != digest:
                raise ConfigError(
                    f"fold {fold!r} of {self.selection.data!r} on this machine is not the one that was planned; "
                    f"prepare the data again on every node (`oakum data prepare {self.selection.data} --force`)"
                )

    def labeled(self, fold: str, labels: str) -> LabeledData:
        """Return a fold in memory.

        Args:
            labels: `private` or `control` (class indices of the target or of the control model), or `all` (original
                class ids).
        """
        from oakum.training.loop import LabeledData

        points = self.canary_training_points() if fold == CANARY_TRAIN_FOLD else self.points(fold, labels)
        return LabeledData(points.x, points.y)

    def points(self, fold: str, labels: str = "private") -> Points:
        """Return a fold's samples with their labels; canary candidates carry their planted label."""
        import torch

        from oakum.attacks.points import Points

        if fold == self.selection.canary_fold:
            rows, y = self.canaries.rows, self.canaries.planted_label
        else:
            rows = self.require(fold)
            y = self.labels.y[rows] if labels == "all" else self.class_index(rows, labels)
        return Points(self.samples.tensor(rows), torch.from_numpy(y.copy()), torch.from_numpy(rows.copy()))

    def canary_training_points(self) -> Points:
        """Return the training fold followed by the canaries whose coin put them into training."""
        import torch

        from oakum.attacks.points import Points

        train = self.points("train")
        chosen = self.canaries.is_member
        rows, planted = self.canaries.rows[chosen], self.canaries.planted_label[chosen]
        return Points(
            torch.cat([train.x, self.samples.tensor(rows)]),
            torch.cat([train.y, torch.from_numpy(planted.copy())]),
            torch.cat([train.rows, torch.from_numpy(rows.copy())]),
        )


def plan_folds(selection: Selection, data_home: Path) -> FoldSet:
    """Draw folds from labels alone, without reading the samples."""
    prepared = open_prepared(selection.data, data_home)
    return FoldSet(selection, prepared, load_labels(selection.data, data_home))
