"""The stages that end in a trained model: its training and the parts of it, its teachers, what it is a snapshot of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from oakum.config import ConfigError
from oakum.models.base import Classifier
from oakum.pipeline.experiment import Experiment, Method, resolve_method
from oakum.pipeline.folds import FoldSet
from oakum.pipeline.stage import Stage
from oakum.pipeline.training import START, TEACHER
from oakum.records import canonical_json
from oakum.seeding import derive_seed
from oakum.training.recipe import Recipe


class StageMaker(Protocol):
    """Makes a stage with its fingerprint and resources filled in."""

    def __call__(
        self,
        kind: str,
        config: dict[str, Any],
        inputs: dict[str, Stage],
        folds: dict[str, FoldSet],
        label: str,
        methods: tuple[Method, ...] = (),
        *,
        part: str,
        weight: float = 1.0,
        threads: int | None = None,
        training: bool = False,
    ) -> Stage: ...


@dataclass(frozen=True)
class TrainedModel:
    """A model and what it was made from.

    Attributes:
        stage: the `train` or `snapshot` stage that holds the released weights.
        ancestors: `training` (of a snapshot), `teacher.<name>`, `phase.<epoch>` (what was trained until then).
    """

    stage: Stage
    ancestors: dict[str, Stage] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """What differs between a target and a shadow model of the same defense.

    Attributes:
        part: `target`, `shadow` or `evaluation`.
        folds: the folds of the seed.
        fold_of: role (`train`, `val`, `reference`) -> fold.
        seed: of the training.
        title: for people.
        labels: `private`, `control` or `all`: what the classes are.
    """

    part: str
    folds: FoldSet
    fold_of: dict[str, str]
    seed: int
    title: str
    labels: str = "private"


class ModelPlanner:
    """Plans the models of one experiment."""

    def __init__(
        self, experiment: Experiment, make_stage: StageMaker, data: dict[str, Any], public_classes: int
    ) -> None:
        self._public_classes = public_classes
        self._experiment = experiment
        self._make = make_stage
        self._data = data
        self._epochs = _snapshot_epochs(experiment.settings.values())

    def model(self, method: Method, placement: Placement) -> TrainedModel:
        """Return the stages of a defended model.

        Raises:
            ConfigError: the experiment draws no fold for a role that the defense reads.
        """
        defense = method.cls(method.config)
        snapshot = defense.snapshot()
        if snapshot is None:
            return self._trained(method, placement, placement.seed)
        epochs = self._epochs[canonical_json(snapshot.defense)]
        base = resolve_method("defenses", snapshot.defense, method.name)
        training = self._trained(base, placement, placement.seed, {**self._to_the_end(), "snapshots": epochs})
        config = {**training.stage.config, "defense": method.document(), "epoch": snapshot.epoch}
        del config["snapshots"], config["threads"]
        methods = (self._experiment.model, method)
        label = f"snapshot {placement.title}"
        stage = self._make(
            "snapshot", config, {"training": training.stage}, {}, label, methods, part=placement.part, weight=2.0
        )
        return TrainedModel(stage, {"training": training.stage, **training.ancestors})

    def _trained(
        self, method: Method, placement: Placement, seed: int, extra: dict[str, Any] | None = None
    ) -> TrainedModel:
        defense = method.cls(method.config)
        teachers: dict[str, Stage] = {}
        for name, teacher in defense.teachers().items():
            taught = resolve_method("defenses", teacher.defense, f"{method.name}: teacher {name}")
            if teacher.public:
                public = replace(
                    placement, fold_of={"train": "public"}, labels="all", title=f"{placement.title} source"
                )
                own = self._trained(taught, public, derive_seed(seed, f"teacher/{name}"), self._on_public(placement))
            elif teacher.own_rows:
                rows = {"of": method.document(), "teacher": name, "seed": seed}
                on_rows = {**self._to_the_end(), "rows": rows}
                own = self._trained(taught, placement, derive_seed(seed, f"teacher/{name}"), on_rows)
            else:
                own = self._trained(taught, placement, seed, self._to_the_end())
            teachers[f"{TEACHER}{name}"] = own.stage
            teachers |= own.ancestors
        fold_of = {role: self._fold(role, method, placement) for role in ("train", *defense.reads)}
        if placement.fold_of.get("val") in placement.folds.rows:
            fold_of["val"] = placement.fold_of["val"]
        config = {
            "model": self._experiment.model.document(),
            "defense": method.document(),
            "recipe": self._experiment.file.recipe.model_dump(mode="json"),
            "seed": seed,
            "labels": placement.labels,
            "folds": fold_of,
            **self._data,
            **(extra or {}),
        }
        parts = self._parts(method, placement, config, teachers)
        phases = {f"phase.{part.config['recipe']['stop_after']}": part for part in parts[:-1]}
        return TrainedModel(parts[-1], {**phases, **teachers})

    def _parts(
        self, method: Method, placement: Placement, config: dict[str, Any], teachers: dict[str, Stage]
    ) -> list[Stage]:
        """Return the stages of one training, one for each phase of its schedule; each goes on where the last ended."""
        taught_by = config.get("rows", {}).get("of")
        parents = (resolve_method("defenses", taught_by, method.name),) if taught_by else ()
        inputs = {name: each for name, each in teachers.items() if name.startswith(TEACHER)}
        title = f"teacher {placement.title}" if parents else f"train {placement.title}"
        parts: list[Stage] = []
        for phase, end in _phases(method, config["recipe"]):
            part = self._make(
                "train",
                {**config, "defense": phase.document(), "recipe": {**config["recipe"], **end}},
                {**inputs, START: parts[-1]} if parts else inputs,
                dict.fromkeys(config["folds"].values(), placement.folds),
                " ".join([title, *(f"to epoch {epoch}" for epoch in end.values())]),
                (self._experiment.model, method, *parents),
                part=placement.part,
                weight=12.0 if parents else 10.0,
                training=True,
            )
            parts.append(part)
        return parts

    def _to_the_end(self) -> dict[str, Any]:
        """Return the recipe of models that others learn from: these see all its epochs, wherever their pupils stop."""
        recipe = self._experiment.file.recipe
        return {"recipe": recipe.model_copy(update={"stop_after": None}).model_dump(mode="json")}

    def _on_public(self, placement: Placement) -> dict[str, Any]:
        """Return what differs for a source model: the public fold's own classes, and no validation rows of it."""
        placement.folds.require("public")
        recipe = self._to_the_end()["recipe"]
        return {
            "num_classes": self._public_classes,
            "recipe": {**recipe, "select": "last", "images_per_class": None},
        }

    @staticmethod
    def _fold(role: str, method: Method, placement: Placement) -> str:
        fold = placement.fold_of[role]
        if role != "train":
            try:
                placement.folds.require(fold)
            except ConfigError as error:
                raise ConfigError(f"defense {method.name!r} trains on fold {fold!r}: {error}") from error
        return fold


def check_model(
    method: Method, model: type[Classifier], num_classes: int, recipe: Recipe, train_size: int
) -> list[str]:
    """Return the warnings of a defense, in each phase of its schedule, for this model, recipe and training fold's size.

    Raises:
        ConfigError: they do not fit.
    """
    defense = method.cls(method.config)
    snapshot = defense.snapshot()
    if snapshot is not None and recipe.trained_epochs < snapshot.epoch <= recipe.epochs:
        raise ConfigError(
            f"{method.name} releases the model after {snapshot.epoch} epochs, but recipe.stop_after ends training "
            f"after {recipe.trained_epochs}; lower defense.epoch or raise recipe.stop_after"
        )
    warnings: list[str] = []
    for config in defense.phases(recipe.epochs).values():
        phase = method.cls(config)
        warnings += [*phase.check(model, num_classes), *phase.check_training(recipe, train_size)]
    return warnings


def _phases(method: Method, recipe: dict[str, Any]) -> list[tuple[Method, dict[str, int]]]:
    """Return the plain settings of each part of a training, with what its recipe says of its end.

    The last part ends where the experiment says; what a schedule changes from there on is not trained.
    """
    found = method.cls(method.config).phases(recipe["epochs"])
    last = recipe.get("stop_after", recipe["epochs"])
    begins = [epoch for epoch in found if epoch < last]
    ends: list[dict[str, int]] = [*({"stop_after": epoch} for epoch in begins[1:]), {}]
    return [(replace(method, config=found[begin]), end) for begin, end in zip(begins, ends, strict=True)]


def _snapshot_epochs(methods: Iterable[Method]) -> dict[bytes, list[int]]:
    """Return, for each training that snapshots are taken of, all their epochs: one training serves them."""
    epochs: dict[bytes, set[int]] = {}
    for method in methods:
        snapshot = method.cls(method.config).snapshot()
        if snapshot is not None:
            epochs.setdefault(canonical_json(snapshot.defense), set()).add(snapshot.epoch)
    return {key: sorted(found) for key, found in epochs.items()}
