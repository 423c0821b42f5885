"""Reads what figures need from the store. Pictures are never read for data that is not public."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from oakum.records import CellRecord, RunRecord, StageRef
from oakum.report._overview import Setting, group_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXPECTED_FALSE_POSITIVES = 10
MAX_CLASSES = 10
EVALUATOR, SECOND = "evaluator", "second"
_INVERSION_ROLE = re.compile(r"inversion\.clean\.(?P<attack>[\w-]+)(?:\.(?P<chunk>\d+))?")


class EvidenceStore(Protocol):
    """The part of `oakum.store.Store` that a report needs."""

    def manifest(self, kind: str, key: str) -> Any | None: ...

    def manifests(self, refs: Iterable[StageRef]) -> Mapping[StageRef, Any]: ...

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
    """One picture that an inversion attack made.

    Attributes:
        pixels: (H, W) or (H, W, 3) uint8.
        verdicts: who judged it (`EVALUATOR`, `SECOND`, or an extractor's name) -> whether it shows the class to them.
    """

    pixels: NDArray[np.uint8]
    verdicts: dict[str, bool]

    @property
    def is_recognized(self) -> bool | None:
        """What the evaluation model says; None without its judgment."""
        return self.verdicts.get(EVALUATOR)

    @property
    def is_doubted(self) -> bool:
        """Whether the evaluation model recognizes the class and another judge does not."""
        return self.is_recognized is True and not all(self.verdicts.values())


# Class of the target -> setting label -> its picture, None where it has none of the class.
Rows = dict[int, dict[str, Reconstruction | None]]


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


def reconstructions_by_attack(record: RunRecord, store: EvidenceStore) -> dict[str, Rows]:
    """Return inversion attack -> class -> setting -> picture, all of the attack's first seed that all settings have.

    {} unless data is public. Settings without pictures are left out; at most `MAX_CLASSES` classes of an attack.
    """
    if not is_public(record):
        return {}
    settings = group_settings(record)
    attacks = dict.fromkeys(
        found.group("attack")
        for cell in record.cells
        for role in cell.stages
        if (found := _INVERSION_ROLE.fullmatch(role)) is not None
    )
    shown = {attack: _rows(settings, attack, record, store) for attack in attacks}
    return {attack: rows for attack, rows in shown.items() if rows}


def _rows(settings: tuple[Setting, ...], attack: str, record: RunRecord, store: EvidenceStore) -> Rows:
    met = {setting.label: {cell.seed: cell for cell in setting.cells if _tasks(cell, attack)} for setting in settings}
    met = {label: cells for label, cells in met.items() if cells}
    common = set.intersection(*(set(cells) for cells in met.values())) if met else set()
    made = {}
    for label, cells in met.items():
        cell = cells[min(common or cells)]
        if pictures := _reconstructions_of(cell, attack, record, store):
            made[label] = pictures
    classes = sorted({label for pictures in made.values() for label in pictures})[:MAX_CLASSES]
    return {label: {name: pictures.get(label) for name, pictures in made.items()} for label in classes}


def _tasks(cell: CellRecord, attack: str) -> list[StageRef]:
    """Return the stages that rebuilt classes, in the order of their classes: one, or one for each chunk of classes."""
    found = ((_INVERSION_ROLE.fullmatch(role), stage) for role, stage in cell.stages.items())
    own = [(int(role.group("chunk") or 0), stage) for role, stage in found if role and role.group("attack") == attack]
    return [stage for _, stage in sorted(own, key=lambda item: item[0])]


def _reconstructions_of(
    cell: CellRecord, attack: str, record: RunRecord, store: EvidenceStore
) -> dict[int, Reconstruction]:
    """Return class -> the first restart's picture, of the first tasks that hold `MAX_CLASSES` classes.

    The first restart, not the best, so that nothing is picked by eye.
    """
    from safetensors.numpy import load

    pictures: dict[int, NDArray[np.uint8]] = {}
    for stage in _tasks(cell, attack):
        if len(pictures) >= MAX_CLASSES:
            break
        content = _read(stage, "reconstructions.safetensors", store)
        if content is not None:
            tensors = load(content)
            made = zip(tensors["classes"], tensors["images"], strict=True)
            pictures |= {int(label): to_pixels(restarts[0]) for label, restarts in made}
    verdicts = _verdicts(cell.stages.get(f"judge.clean.{attack}"), store)
    number = _numbers_of_judge(record)
    return {
        label: Reconstruction(pixels, verdicts.get(number.get(label, label), {})) for label, pixels in pictures.items()
    }


def _numbers_of_judge(record: RunRecord) -> dict[int, int]:
    """Return class of the target -> the same class as the evaluation model numbers it; {} where they agree.

    An evaluation model that knows more classes than the target numbers them as the data does.
    """
    private = record.data.get("private_classes") or []
    return dict(enumerate(private)) if (record.data.get("evaluation_classes") or 0) > len(private) else {}


def to_pixels(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return an image (C, H, W) in [0, 1], real or made, as (H, W) or (H, W, 3) uint8."""
    import numpy as np

    pixels = np.asarray(np.clip(np.asarray(image) * 255 + 0.5, 0, 255), dtype=np.uint8)
    return pixels[0] if pixels.shape[0] == 1 else pixels[:3].transpose(1, 2, 0)


def attack_access(record: RunRecord, store: EvidenceStore) -> dict[str, str]:
    """Return membership attack -> `label`, `scores` or `weights`, for the attacks with a stage left in the store."""
    prefix = "membership.clean."
    attacks = {
        stage: role.removeprefix(prefix)
        for cell in record.cells
        for role, stage in cell.stages.items()
        if role.startswith(prefix)
    }
    found: dict[str, str] = {}
    for stage, manifest in store.manifests(attacks).items():
        access = manifest.summary.get("access")
        if access:
            found.setdefault(attacks[stage], str(access))
    return found


def measured_at(record: RunRecord, store: EvidenceStore) -> float | None:
    """Return when the youngest stage of the run was stored (Unix seconds), or None where no manifest is left."""
    stages = {stage for cell in record.cells for stage in cell.stages.values()} | {item.stage for item in record.shared}
    return max((float(manifest.created) for manifest in store.manifests(stages).values()), default=None)


def missing_stages(record: RunRecord, store: EvidenceStore) -> int:
    """Return how many stages of the record are no longer in the store, so that figures may lack curves."""
    stages = {stage for cell in record.cells for stage in cell.stages.values()}
    return len(stages) - len(store.manifests(stages))


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


def _verdicts(stage: StageRef | None, store: EvidenceStore) -> dict[int, dict[str, bool]]:
    """Return class -> judge -> verdict on the first restart; columns are `correct` and `correct_<judge>`."""
    columns = _parquet(stage, "judgments.parquet", store)
    if columns is None:
        return {}
    judges = {name: name.removeprefix("correct_") for name in columns if name.startswith("correct_")}
    judges = {"correct": EVALUATOR, **judges}
    return {
        int(label): {judge: bool(columns[name][row]) for name, judge in judges.items()}
        for row, (label, restart) in enumerate(zip(columns["class"], columns["restart"], strict=True))
        if restart == 0
    }
