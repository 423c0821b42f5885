"""The plan: every stage of an experiment with its key, and which stages make up each cell of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oakum.config import ConfigError
from oakum.models.base import InputShape
from oakum.pipeline.experiment import Experiment, Method
from oakum.pipeline.fingerprint import fingerprint
from oakum.pipeline.folds import CANARY_TRAIN_FOLD, FoldSet, Selection, plan_folds
from oakum.pipeline.stage import Resources, Stage
from oakum.records import canonical_json, sha256_hex
from oakum.seeding import derive_seed
from oakum.training.recipe import Recipe

_MAY_READ_TEST = frozenset({"answers", "membership"})


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
        self.folds = {seed: plan_folds(self._selection(seed), data_home) for seed in sorted({0, *self.file.seeds})}
        first = self.folds[0]
        self.input_shape = list(first.prepared.input_shape(self.file.data.image_size))
        self.private_classes = list(first.private_classes)
        self.threads = self.file.execution.threads
        self._check_combinations()

    def plan(self) -> Plan:
        shared: dict[str, Stage] = {}
        if self.experiment.evaluation_model is not None:
            shared["evaluation"] = self._evaluator()
        if self.experiment.prior is not None and self.experiment.inversion:
            shared["prior"] = self._prior(self.experiment.prior)
        cells = tuple(
            self._cell(label, method, seed, shared)
            for seed in self.file.seeds
            for label, method in self.experiment.settings.items()
        )
        plan = Plan(self.experiment, cells, shared, self._data(), tuple(self.warnings))
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
        )

    def _check_combinations(self) -> None:
        self.warnings: list[str] = []
        model = self.experiment.model
        for label, method in self.experiment.settings.items():
            try:
                found = method.cls(method.config).check(model.cls, len(self.private_classes))
            except ConfigError as error:
                raise ConfigError(f"{self.where}: settings.{label}: {error}") from error
            self.warnings += [f"settings.{label}: {text}" for text in found]
        shape = InputShape(tuple(self.input_shape))
        for chosen in (model, self.experiment.evaluation_model):
            if chosen is not None:
                chosen.cls(chosen.config, shape, len(self.private_classes))
        if self.experiment.prior is not None:
            self.experiment.prior.cls(self.experiment.prior.config, shape).build()
        if self.experiment.file.recipe.select == "best_val":
            self.folds[0].require("val")
        self._require_a_batch(self.file.recipe, "train", "recipe")
        if self.file.evaluation is not None:
            self._require_a_batch(self.file.evaluation.recipe, "evaluation", "evaluation.recipe")

    def _require_a_batch(self, recipe: Recipe, fold: str, place: str) -> None:
        """Refuse a recipe that drops the only batch of its fold: it would train nothing without a word."""
        count = len(self.folds[0].require(fold))
        if recipe.drop_last and count < recipe.batch_size:
            raise ConfigError(
                f"{self.where}: {place}: drop_last leaves no batch: fold {fold!r} has {count} samples, batch_size is "
                f"{recipe.batch_size}; lower batch_size or remove drop_last"
            )
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
        weight: float = 1.0,
        threads: int | None = None,
        training: bool = False,
    ) -> Stage:
        execution = self.file.execution
        threads = threads or self.threads
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
                gpus=execution.gpus if kind in {"train", "prior", "inversion"} else 0.0,
                workers=execution.workers if training else 1,
            ),
            label=label,
            weight=weight,
        )

    def _training(
        self, model: Method, defense: dict[str, Any], recipe: Any, seed: int, labels: str, num_classes: int, fold: str
    ) -> dict[str, Any]:
        return {
            "model": model.document(),
            "defense": defense,
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
            "labels": labels,
            "num_classes": num_classes,
            "input_shape": self.input_shape,
            "train_fold": fold,
        }

    def _evaluator(self) -> Stage:
        assert self.file.evaluation is not None and self.experiment.evaluation_model is not None
        model = self.experiment.evaluation_model
        seed = derive_seed(self.file.experiment_seed, "evaluation")
        folds = {"evaluation": self.folds[0]}
        if "val" in self.folds[0].rows:
            folds["val"] = self.folds[0]
        config = self._training(
            model,
            {"name": "none"},
            self.file.evaluation.recipe,
            seed,
            "all",
            self.folds[0].prepared.num_classes,
            "evaluation",
        )
        return self._stage("train", config, {}, folds, "evaluation model", (model,), weight=5.0)

    def _prior(self, prior: Method) -> Stage:
        config = {
            "prior": prior.document(),
            "input_shape": self.input_shape,
            "seed": derive_seed(self.file.experiment_seed, "prior"),
        }
        self.folds[0].require("public")
        threads = self.file.prior.threads if self.file.prior else None
        label = f"prior {prior.name}"
        return self._stage(
            "prior", config, {}, {"public": self.folds[0]}, label, (prior,), weight=100.0, threads=threads
        )

    def _cell(self, label: str, method: Method, seed: int, shared: dict[str, Stage]) -> Cell:
        stages: dict[str, Stage] = {}
        targets = ["clean", "canary"] if self.file.canaries else ["clean"]
        for name in targets:
            stages.update(self._target(label, method, seed, name))
        for attack in self.experiment.inversion:
            stages.update(self._inversion(label, seed, stages["target.clean"], attack, shared))
        return Cell(label, seed, method, stages)

    def _target(self, label: str, method: Method, seed: int, name: str) -> dict[str, Stage]:
        folds = self.folds[seed]
        fold = "train" if name == "clean" else CANARY_TRAIN_FOLD
        used = {fold: folds, **({"val": folds} if "val" in folds.rows else {})}
        target_seed = derive_seed(self.file.experiment_seed, "target", seed)
        config = self._training(
            self.experiment.model,
            method.document(),
            self.file.recipe,
            target_seed,
            "private",
            len(self.private_classes),
            fold,
        )
        methods = (self.experiment.model, method)
        title = f"{label}/{seed} {name}"
        target = self._stage("train", config, {}, used, f"train {title}", methods, weight=10.0, training=True)
        points = "train" if name == "clean" else folds.selection.canary_fold
        assert points is not None
        queried = {each: folds for each in (points, "test", "val") if each in folds.rows}
        answers = self._stage("answers", {}, {"target": target}, queried, f"answers {title}", methods)
        stages = {f"target.{name}": target, f"answers.{name}": answers}
        asked = {points: folds} if name == "canary" else {"train": folds, "test": folds}
        for attack in self.experiment.membership:
            config = {
                "attack": attack.document(),
                "seed": derive_seed(self.file.experiment_seed, f"attack/{attack.name}", seed),
                "points": name,
            }
            stages[f"membership.{name}.{attack.name}"] = self._stage(
                "membership", config, {"target": target, "answers": answers}, asked, f"{attack.name} {title}", (attack,)
            )
        return stages

    def _inversion(
        self, label: str, seed: int, target: Stage, attack: Method, shared: dict[str, Stage]
    ) -> dict[str, Stage]:
        folds = self.folds[seed]
        config = {
            "attack": attack.document(),
            "seed": derive_seed(self.file.experiment_seed, f"attack/{attack.name}", seed),
            "num_classes": len(self.private_classes),
        }
        inputs = {"target": target, **({"prior": shared["prior"]} if attack.cls.needs_prior else {})}
        methods = (attack, *((self.experiment.prior,) if self.experiment.prior else ()), self.experiment.model)
        title = f"{attack.name} {label}/{seed}"
        inversion = self._stage("inversion", config, inputs, {}, title, methods, weight=20.0)
        judged = {"inversion": inversion, "evaluator": shared["evaluation"]}
        assert self.experiment.evaluation_model is not None
        judge = self._stage(
            "judge",
            {"original_classes": self.private_classes},
            judged,
            {"train": folds},
            f"judge {title}",
            (self.experiment.evaluation_model,),
        )
        return {f"inversion.clean.{attack.name}": inversion, f"judge.clean.{attack.name}": judge}

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
            "evaluation_classes": first.prepared.num_classes,
        }


def _with_inputs(stage: Stage, seen: set[str]) -> Iterator[Stage]:
    if stage.key in seen:
        return
    for upstream in stage.inputs.values():
        yield from _with_inputs(upstream, seen)
    seen.add(stage.key)
    yield stage
