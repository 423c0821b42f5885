"""The plan: every stage of an experiment with its key, and which stages make up each cell of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from oakum.config import ConfigError
from oakum.models.base import InputShape
from oakum.pipeline.experiment import Experiment, Method, resolve_method
from oakum.pipeline.fingerprint import fingerprint
from oakum.pipeline.folds import CANARY_TRAIN_FOLD, FoldSet, Selection, plan_folds
from oakum.pipeline.plan_inversion import CONTROL_FOLD, InversionPlanner
from oakum.pipeline.plan_models import ModelPlanner, Placement, check_model
from oakum.pipeline.stage import Resources, Stage
from oakum.records import canonical_json, sha256_hex
from oakum.seeding import derive_seed
from oakum.training.recipe import Recipe
from oakum.weights import open_weights, weights_folder

SHADOW_FOLDS = ("shadow_train", "shadow_test")
_MAY_READ_TEST = frozenset({"answers", "gradients", "membership"})
_ON_GPU = frozenset({"train", "prior", "inversion", "judge", "gradients"})


@dataclass(frozen=True)
class Cell:
    """One defense setting under one seed.

    Attributes:
        stages: role (`target.clean`, `membership.canary.loss`, ...) -> stage.
    """

    setting: str
    seed: int
    method: Method
    stages: dict[str, Stage]


@dataclass(frozen=True)
class Plan:
    """All stages of an experiment, in an order in which every stage comes after its inputs."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    shared: dict[str, Stage]
    data: dict[str, Any]
    warnings: tuple[str, ...]

    def stages(self) -> Iterator[Stage]:
        """Yield every stage once, inputs before their users."""
        seen: set[str] = set()
        for stage in [*self.shared.values(), *(stage for cell in self.cells for stage in cell.stages.values())]:
            yield from _with_inputs(stage, seen)

    @property
    def run_key(self) -> str:
        """Hash of the name and the plan without seeds: more seeds extend the same run."""
        document = self.experiment.document()
        document.pop("seeds")
        document.pop("description")
        return sha256_hex(canonical_json({"name": self.experiment.file.name, "plan": document}))

    @property
    def plan_key(self) -> str:
        """Hash of every stage key."""
        return sha256_hex(canonical_json(sorted(stage.key for stage in self.stages())))


def build_plan(experiment: Experiment, data_home: Path, where: str = "experiment") -> Plan:
    """Turn a validated experiment into stages with keys. Reads labels, never samples.

    Raises:
        ConfigError: a fold is missing, a model cannot serve a defense, or the data is not prepared.
    """
    return _Planner(experiment, data_home, where).plan()


class _Planner:
    def __init__(self, experiment: Experiment, data_home: Path, where: str) -> None:
        self.experiment = experiment
        self.file = experiment.file
        self.where = where
        self.data_home = data_home
        self.weights = weights_folder(data_home)
        self.folds = {seed: plan_folds(self._selection(seed), data_home) for seed in sorted({0, *self.file.seeds})}
        first = self.folds[0]
        self.input_shape = list(first.prepared.input_shape(self.file.data.image_size))
        self.private_classes = list(first.private_classes)
        self.threads = self.file.execution.threads
        self.has_shadows = bool(experiment.membership) and all(fold in first.rows for fold in SHADOW_FOLDS)
        self._nonmembers = self.file.attacks.nonmembers
        data = {"num_classes": len(self.private_classes), "input_shape": self.input_shape}
        self.models = ModelPlanner(experiment, self._stage, data, first.prepared.num_classes)
        self.inversion = InversionPlanner(
            experiment,
            self._stage,
            self.models,
            self.folds,
            self.input_shape,
            lambda name: open_weights(self.weights, name).sha256,
        )
        self._check_combinations()

    def plan(self) -> Plan:
        shared = self.inversion.shared()
        cells = tuple(
            self._cell(label, method, seed, shared)
            for seed in self.file.seeds
            for label, method in self.experiment.settings.items()
        )
        plan = Plan(self.experiment, cells, shared, self._data(), (*self.warnings, *self.inversion.warnings))
        for stage in plan.stages():
            if "test" in stage.folds and stage.kind not in _MAY_READ_TEST:
                raise AssertionError(f"stage {stage.label} reads the test fold")
        return plan

    def _selection(self, seed: int) -> Selection:
        file = self.file
        return Selection(
            data=file.data.name,
            image_size=file.data.image_size,
            folds=file.folds.model_dump(mode="json", by_alias=True),
            experiment_seed=file.experiment_seed,
            seed_index=seed,
            canary_fold=file.canaries.fold if file.canaries else None,
            canary_part=file.canaries.part if file.canaries else "all",
        )

    def _check_combinations(self) -> None:
        self.warnings: list[str] = []
        model, first = self.experiment.model, self.folds[0]
        sizes = [len(first.require("train")), *([len(first.rows["shadow_train"])] if self.has_shadows else [])]
        for label, method in self.experiment.settings.items():
            found: list[str] = []
            for size in sizes:
                try:
                    found += check_model(method, model.cls, len(self.private_classes), self.file.recipe, size)
                except ConfigError as error:
                    raise ConfigError(f"{self.where}: settings.{label}: {error}") from error
            self.warnings += [f"settings.{label}: {text}" for text in dict.fromkeys(found)]
        shape = InputShape(tuple(self.input_shape))
        for label, method in self.experiment.settings.items():
            try:
                network = method.cls(method.config).build(model.cls(model.config, shape, len(self.private_classes)))
            except ConfigError as error:
                raise ConfigError(f"{self.where}: settings.{label}: {error}") from error
            self.warnings += self._batch_norm_warnings(label, network)
        self.warnings += self._start_warnings()
        if self.experiment.evaluation_model is not None:
            other = self.experiment.evaluation_model
            other.cls(other.config, shape, len(self.private_classes))
        if self.experiment.second_model is not None:
            self.experiment.second_model.cls(self.experiment.second_model.config, shape, len(self.private_classes))
        for prior in self.experiment.priors.values():
            prior.cls(prior.config, shape, len(self.private_classes)).build()
        self._check_folds(first)
        for fold, recipe in self._trained_by_recipe().items():
            self._require_a_batch(recipe, fold, "recipe")
        if self.file.evaluation is not None:
            evaluation = self.file.evaluation
            self._require_a_batch(evaluation.recipe, evaluation.fold, "evaluation.recipe")
            if evaluation.second is not None:
                self._require_a_batch(evaluation.second.recipe, evaluation.fold, "evaluation.second.recipe")

    def _start_warnings(self) -> list[str]:
        model = self.experiment.model
        if model.cls.published_start is None or model.config.initial_weights is not None:
            return []
        return [
            f"model: {model.name} starts from random values, although its published recipe starts from "
            f"{model.cls.published_start} weights; get them with `oakum import torchvision --name NAME` (color images, "
            "default width) and set model.initial_weights: NAME"
        ]

    def _batch_norm_warnings(self, label: str, network: nn.Module) -> list[str]:
        workers = self.file.execution.workers
        normalizes = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
        if workers == 1 or self.file.recipe.batch_norm == "global" or not normalizes:
            return []
        return [
            f"settings.{label}: each of {workers} workers normalizes its own part of a batch, so results depend on "
            "their number; set recipe.batch_norm: global"
        ]

    def _check_folds(self, first: FoldSet) -> None:
        """Refuse folds that the asked-for attacks or recipe cannot do without; warn of classes that are missing."""
        if self.file.recipe.select == "best_val":
            first.require("val")
            if self.has_shadows:
                first.require("shadow_val")
        if self.experiment.membership:
            first.require(self.file.attacks.nonmembers)
        if self.file.recipe.augmentation and not InputShape(tuple(self.input_shape)).is_image:
            raise ConfigError(f"{self.where}: recipe.augmentation: {self.file.data.name} has no images; remove it")
        needy = [method.name for method in self.experiment.membership if method.cls.needs_shadow]
        if needy and not self.has_shadows:
            raise ConfigError(
                f"{self.where}: attacks.membership: {needy[0]!r} is fitted on a shadow model; let `folds.rules` take "
                "shadow_train and shadow_test, or remove the attack"
            )
        for fold in ("train", *SHADOW_FOLDS):
            rows = first.rows.get(fold)
            missing = (
                set(range(len(self.private_classes))) - set(first.class_index(rows)) if rows is not None else set()
            )
            if missing:
                effect = (
                    "a class threshold falls back to the one of all" if fold in SHADOW_FOLDS else "it is not learned"
                )
                self.warnings.append(f"fold {fold!r} has no sample of class {min(missing)}: {effect}")

    def _trained_by_recipe(self) -> dict[str, Recipe]:
        """Return the folds that targets, shadow models, controls and their teachers learn from, with their recipes."""
        recipe = self.file.recipe
        found = {"train": recipe}
        if self.has_shadows:
            found["shadow_train"] = recipe
        if self.inversion.has_control:
            found[CONTROL_FOLD] = recipe
        defenses = [method.cls(method.config) for method in self.experiment.settings.values()]
        if any(teacher.public for defense in defenses for teacher in defense.teachers().values()):
            # As ModelPlanner trains them.
            found["public"] = recipe.model_copy(update={"images_per_class": None})
        return found

    def _require_a_batch(self, recipe: Recipe, fold: str, place: str) -> None:
        """Refuse a recipe that drops the only batch of its fold: it would train nothing without a word."""
        count = len(self.folds[0].require(fold))
        if recipe.drop_last and count < recipe.batch_size:
            raise ConfigError(
                f"{self.where}: {place}: drop_last leaves no batch: fold {fold!r} has {count} samples, batch_size is "
                f"{recipe.batch_size}; lower batch_size or remove drop_last"
            )
        if recipe.images_per_class:
            classes = len(np.unique(self.folds[0].labels.y[self.folds[0].require(fold)]))
            asked = recipe.batch_size // recipe.images_per_class
            if asked > classes:
                raise ConfigError(
                    f"{self.where}: {place}: a batch of {recipe.batch_size} with images_per_class "
                    f"{recipe.images_per_class} draws {asked} classes, but fold {fold!r} has {classes}; lower "
                    "batch_size or raise images_per_class"
                )
            return
        if not recipe.drop_last and count > recipe.batch_size and count % recipe.batch_size == 1:
            self.warnings.append(
                f"{place}: the last batch of fold {fold!r} holds one sample, which batch normalization over a single "
                "position cannot use; choose another batch_size, or drop_last"
            )

    def _stage(
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
    ) -> Stage:
        execution = self.file.execution
        threads = threads or self.threads
        initial = config["model"].get("initial_weights") if kind == "train" else None
        if initial is not None:
            config = {**config, "initial_weights_sha256": open_weights(self.weights, initial).sha256}
        modules = [f"oakum.pipeline.stages.{kind}", *(method.cls.__module__ for method in methods)]
        versions = [str(method.cls.version) for method in methods if getattr(method.cls, "version", None) is not None]
        stable = methods and len(versions) == len(methods)
        source = next(iter(folds.values())).selection if folds else None
        return Stage(
            kind=kind,
            config={**config, "threads": threads},
            inputs=inputs,
            folds={name: fold_set.digest(name) for name, fold_set in folds.items()},
            fingerprint=f"version:{','.join(versions)}" if stable else fingerprint(*modules),
            selection=dict(vars(source)) if source is not None else {},
            resources=Resources(
                cpus=threads,
                gpus=execution.gpus if kind in _ON_GPU else 0.0,
                workers=execution.workers if training else 1,
                min_workers=execution.min_workers if training else None,
            ),
            label=label,
            weight=weight,
            part=part,
        )

    def _cell(self, label: str, method: Method, seed: int, shared: dict[str, Stage]) -> Cell:
        stages: dict[str, Stage] = {}
        if self.has_shadows:
            none = resolve_method("defenses", "none", "vanilla shadow")
            stages |= self._shadow(method, seed, "matched", label)
            stages |= self._shadow(none, seed, "vanilla", "none")
        for name in ["clean", "canary"] if self.file.canaries else ["clean"]:
            stages.update(self._target(label, method, seed, name, stages))
        stages |= self.inversion.cell(label, seed, stages["target.clean"], shared)
        return Cell(label, seed, method, stages)

    def _shadow(self, method: Method, seed: int, name: str, label: str) -> dict[str, Stage]:
        """Return a shadow model and its evidence: the target's recipe on the adversary's own folds."""
        folds = self.folds[seed]
        own_seed = derive_seed(self.file.experiment_seed, "shadow", seed)
        title = f"{label}/{seed} shadow"
        fold_of = {"train": "shadow_train", "val": "shadow_val", "reference": "shadow_reference"}
        model = self.models.model(method, Placement("shadow", folds, fold_of, own_seed, title))
        queried = dict.fromkeys(SHADOW_FOLDS, folds)
        stages = {f"shadow.{name}": model.stage, **_named(model.ancestors, "shadow", name)}
        stages |= self._evidence(model.stage, queried, method, title, "shadow_", name, "shadow")
        read = {fold for key, stage in stages.items() for fold in stage.folds}
        if not read <= {*SHADOW_FOLDS, "shadow_val", "shadow_reference", "public"}:
            raise AssertionError(f"{title} reads {sorted(read)}")
        return stages

    def _evidence(
        self, model: Stage, queried: dict[str, FoldSet], method: Method, title: str, prefix: str, name: str, part: str
    ) -> dict[str, Stage]:
        """Return what all attacks on a model share: its answers and, where an attack reads them, its gradients."""
        methods = (self.experiment.model, method)
        stages = {
            f"{prefix}answers.{name}": self._stage(
                "answers", {}, {"target": model}, queried, f"answers {title}", methods, part=part
            )
        }
        if any(attack.cls.needs_gradients for attack in self.experiment.membership):
            asked = {fold: folds for fold, folds in queried.items() if fold != "val" or self._nonmembers == "val"}
            config = {"points_per_fold": self.file.attacks.gradient_points}
            label = f"gradients {title}"
            stages[f"{prefix}gradients.{name}"] = self._stage(
                "gradients", config, {"target": model}, asked, label, methods, part=part, weight=5.0
            )
        return stages

    def _target(self, label: str, method: Method, seed: int, name: str, shadows: dict[str, Stage]) -> dict[str, Stage]:
        folds = self.folds[seed]
        target_seed = derive_seed(self.file.experiment_seed, "target", seed)
        title = f"{label}/{seed} {name}"
        fold_of = {
            "train": "train" if name == "clean" else CANARY_TRAIN_FOLD,
            "val": "val",
            "reference": "reference",
        }
        model = self.models.model(method, Placement("target", folds, fold_of, target_seed, title))
        points = "train" if name == "clean" else folds.selection.canary_fold
        assert points is not None
        queried = {each: folds for each in (points, self._nonmembers, "val") if each in folds.rows}
        stages = {f"target.{name}": model.stage, **_named(model.ancestors, "", name)}
        stages |= self._evidence(model.stage, queried, method, title, "", name, "attack")
        for attack in self.experiment.membership:
            stages[f"membership.{name}.{attack.name}"] = self._membership(
                attack, method, {**shadows, **stages}, folds, seed, name, title
            )
        return stages

    def _membership(
        self,
        attack: Method,
        method: Method,
        stages: dict[str, Stage],
        folds: FoldSet,
        seed: int,
        name: str,
        title: str,
    ) -> Stage:
        canary = folds.selection.canary_fold
        members = ["train", self._nonmembers] if name == "clean" or canary is None else [canary]
        inputs = {"target": stages[f"target.{name}"], "answers": stages[f"answers.{name}"]}
        if attack.cls.needs_gradients:
            inputs["gradients"] = stages[f"gradients.{name}"]
        asked = dict.fromkeys(members, folds)
        # A canary target is scored by attacks alone: its thresholds would come from points of another kind.
        shadows = ("matched", "vanilla") if name == "clean" or attack.cls.needs_shadow else ()
        for shadow in shadows if self.has_shadows else ():
            inputs[shadow] = stages[f"shadow.{shadow}"]
            inputs[f"{shadow}_answers"] = stages[f"shadow_answers.{shadow}"]
            if attack.cls.needs_gradients:
                inputs[f"{shadow}_gradients"] = stages[f"shadow_gradients.{shadow}"]
            asked |= dict.fromkeys(SHADOW_FOLDS, folds)
        config = {
            "attack": attack.document(),
            "seed": derive_seed(self.file.experiment_seed, f"attack/{attack.name}", seed),
            "points": name,
            "nonmembers": self._nonmembers,
            "points_per_fold": self.file.attacks.gradient_points if attack.cls.needs_gradients else None,
        }
        methods = (attack, method, self.experiment.model)
        return self._stage("membership", config, inputs, asked, f"{attack.name} {title}", methods, part="attack")

    def _data(self) -> dict[str, Any]:
        first = self.folds[0]
        counts = {name: len(rows) for name, rows in first.rows.items()}
        return {
            "name": self.file.data.name,
            "digest": first.prepared.digest,
            "public": first.prepared.public,
            "license_note": first.prepared.license_note,
            "class_names": [first.prepared.class_names[index] for index in self.private_classes],
            "private_classes": self.private_classes,
            "folds": counts,
            "fold_digests": {
                str(seed): {name: folds.digest(name) for name in folds.rows} for seed, folds in self.folds.items()
            },
            "input_shape": self.input_shape,
            "evaluation_classes": self.inversion.evaluation_classes,
        }


def _named(ancestors: dict[str, Stage], prefix: str, name: str) -> dict[str, Stage]:
    """Return roles of a model's ancestors: `teacher.clean.<teacher>`, `shadow_training.matched`, ..."""
    roles = {}
    for key, stage in ancestors.items():
        kind, _, which = key.partition(".")
        role = f"{prefix}_{kind}.{name}" if prefix else f"{kind}.{name}"
        roles[f"{role}.{which}" if which else role] = stage
    return roles


def _with_inputs(stage: Stage, seen: set[str]) -> Iterator[Stage]:
    if stage.key in seen:
        return
    for upstream in stage.inputs.values():
        yield from _with_inputs(upstream, seen)
    seen.add(stage.key)
    yield stage
