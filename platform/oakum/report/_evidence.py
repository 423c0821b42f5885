"""Reads what figures need from the store. Pictures are never read for data that is not public."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from oakum.records import CellRecord, RunRecord, StageRef
from oakum.report._overview import Overview, Setting, overview

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXPECTED_FALSE_POSITIVES = 10
MAX_CLASSES = 10


class EvidenceStore(Protocol):
    """The part of `oakum.store.Store` that a report needs."""

    def manifest(self, kind: str, key: str) -> Any | None: ...

    def read(self, manifest: Any, name: str) -> bytes: ...


@dataclass(frozen=True)
class Roc:
    """A ROC curve of one cell.

    Attributes:
        fpr, tpr: (K,) float64 in [0, 1], rising from (0, 0) to (1, 1); equal scores move together.
        non_members: their number; below `resolved_fpr` fewer than 10 of them are expected to be accused.
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    non_members: int

    @property
    def resolved_fpr(self) -> float:
        return min(1.0, EXPECTED_FALSE_POSITIVES / self.non_members)


@dataclass(frozen=True)
class Reconstruction:
    """One picture that an inversion attack made: (H, W) or (H, W, 3) uint8, and what the evaluation model said."""

    pixels: NDArray[np.uint8]
    is_recognized: bool | None


def is_public(record: RunRecord) -> bool:
    """Return whether pictures may be shown; anything but a plain true in the record means no."""
    return record.data.get("public") is True


def roc_of(cell: CellRecord, where: str, attack: str, store: EvidenceStore) -> Roc | None:
    """Return the ROC curve of `membership.<where>.<attack>`, or None without evidence of both kinds of points."""
    import numpy as np

    columns = _parquet(cell.stages.get(f"membership.{where}.{attack}"), "evidence.parquet", store)
    if columns is None:
        return None
    score, member = np.asarray(columns["score"], np.float64), np.asarray(columns["is_member"], np.bool_)
    if member.all() or not member.any():
        return None
    order = np.argsort(-score, kind="stable")
    is_last_of_tie = np.append(np.diff(score[order]) != 0, True)
    hits = np.cumsum(member[order])[is_last_of_tie]
    accused = np.flatnonzero(is_last_of_tie) + 1
    non_members = int((~member).sum())
    fpr = np.concatenate([[0.0], (accused - hits) / non_members])
    tpr = np.concatenate([[0.0], hits / int(member.sum())])
    return Roc(fpr, tpr, non_members)


def history_of(cell: CellRecord, store: EvidenceStore) -> dict[str, list[tuple[int, float]]]:
    """Return the clean target's training curves: metric -> [(epoch, value), ...]; {} without a history."""
    content = _read(cell.stages.get("target.clean"), "history.json", store)
    if content is None:
        return {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for position, entry in enumerate(json.loads(content).get("epochs", [])):
        epoch = int(entry.get("epoch", position))
        for name, value in entry.items():
            if "/" in name and isinstance(value, int | float):
                curves.setdefault(name, []).append((epoch, float(value)))
    return curves


def _reconstructions_of(cell: CellRecord, attack: str, store: EvidenceStore) -> dict[int, Reconstruction]:
    """Return class -> the first restart's picture. The first, not the best, so that nothing is picked by eye."""
    from safetensors.numpy import load

    content = _read(cell.stages.get(f"inversion.clean.{attack}"), "reconstructions.safetensors", store)
    if content is None:
        return {}
    tensors = load(content)
    verdicts = _verdicts(cell.stages.get(f"judge.clean.{attack}"), store)
    return {
        int(label): Reconstruction(_picture(pictures[0]), verdicts.get(int(label)))
        for label, pictures in zip(tensors["classes"], tensors["images"], strict=True)
    }


def reconstruction_rows(record: RunRecord, store: EvidenceStore) -> dict[int, dict[str, Reconstruction | None]]:
    """Return class -> setting label -> picture of the first seed that all settings have; {} unless data is public.

    Settings without pictures are left out; at most `MAX_CLASSES` classes.
    """
    if not is_public(record):
        return {}
    view = overview(record)
    attacking = [setting for setting in view.settings if _inversion_attacks(setting)]
    common = set.intersection(*(set(setting.seeds) for setting in attacking)) if attacking else set()
    made: dict[str, dict[int, Reconstruction]] = {}
    for setting in attacking:
        cell = next(cell for cell in setting.cells if not common or cell.seed == min(common))
        pictures = _reconstructions_of(cell, _shown_attack(setting, view), store)
        if pictures:
            made[setting.label] = pictures
    classes = sorted({label for pictures in made.values() for label in pictures})[:MAX_CLASSES]
    return {label: {name: pictures.get(label) for name, pictures in made.items()} for label in classes}


def _shown_attack(setting: Setting, view: Overview) -> str:
    """Return the inversion attack whose pictures are shown: the strongest, else the first with pictures."""
    attacks = _inversion_attacks(setting)
    column = view.column("inversion_top1")
    strongest = column.measurements[setting.label].attack if column else ""
    return strongest if strongest in attacks else attacks[0]


def real_picture(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return a real (C, H, W) image in [0, 1] as (H, W) or (H, W, 3) uint8."""
    import numpy as np

    return _picture(np.asarray(np.clip(np.asarray(image) * 255 + 0.5, 0, 255), dtype=np.uint8))


def _inversion_attacks(setting: Setting) -> list[str]:
    """Return the names of the inversion attacks that made pictures for this setting."""
    prefix = "inversion.clean."
    roles = dict.fromkeys(role for cell in setting.cells for role in cell.stages if role.startswith(prefix))
    return [role.removeprefix(prefix) for role in roles]


def attack_access(record: RunRecord, store: EvidenceStore) -> dict[str, str]:
    """Return membership attack -> `label`, `scores` or `weights`, for the attacks with a stage left in the store."""
    found: dict[str, str] = {}
    prefix = "membership.clean."
    for cell in record.cells:
        for role, stage in cell.stages.items():
            attack = role.removeprefix(prefix)
            if role.startswith(prefix) and attack not in found:
                manifest = store.manifest(stage.kind, stage.key)
                access = None if manifest is None else manifest.summary.get("access")
                if access:
                    found[attack] = str(access)
    return found


def measured_at(record: RunRecord, store: EvidenceStore) -> float | None:
    """Return when the youngest stage of the run was stored (Unix seconds), or None where no manifest is left."""
    stages = {stage for cell in record.cells for stage in cell.stages.values()} | {item.stage for item in record.shared}
    found = (store.manifest(stage.kind, stage.key) for stage in stages)
    return max((float(manifest.created) for manifest in found if manifest is not None), default=None)


def missing_stages(record: RunRecord, store: EvidenceStore) -> int:
    """Return how many stages of the record are no longer in the store, so that figures may lack curves."""
    stages = {stage for cell in record.cells for stage in cell.stages.values()}
    return sum(1 for stage in stages if store.manifest(stage.kind, stage.key) is None)


def _read(stage: StageRef | None, name: str, store: EvidenceStore) -> bytes | None:
    if stage is None:
        return None
    manifest = store.manifest(stage.kind, stage.key)
    return None if manifest is None else store.read(manifest, name)


def _parquet(stage: StageRef | None, name: str, store: EvidenceStore) -> dict[str, list[Any]] | None:
    import pyarrow.parquet as pq

    content = _read(stage, name, store)
    if content is None:
        return None
    columns: dict[str, list[Any]] = pq.read_table(io.BytesIO(content)).to_pydict()
    return columns


def _verdicts(stage: StageRef | None, store: EvidenceStore) -> dict[int, bool]:
    columns = _parquet(stage, "judgements.parquet", store)
    if columns is None:
        return {}
    rows = zip(columns["class"], columns["restart"], columns["correct"], strict=True)
    return {int(label): bool(correct) for label, restart, correct in rows if restart == 0}


def _picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[0] if image.shape[0] == 1 else image[:3].transpose(1, 2, 0)
