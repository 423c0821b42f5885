"""The stages of inversion: evaluation models, priors, reconstructions, the no-target control, judgments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from oakum.config import ConfigError
from oakum.models.base import InputShape, same_architecture, same_up_to_sizes
from oakum.pipeline.experiment import ChosenAttack, Experiment, Method, fitting_priors, prior_for, resolve_method
from oakum.pipeline.folds import FoldSet
from oakum.pipeline.plan_models import ModelPlanner, Placement, StageMaker
from oakum.pipeline.stage import Stage
from oakum.seeding import derive_seed

CONTROL_FOLD = "control"


class WeightsFinder(Protocol):
    """Finds files in the folder of weights."""

    def __call__(self, name: str) -> str:
        """Return the SHA-256 of the weights of that name; raise `ConfigError` when they are not there."""


class InversionPlanner:
    """Plans everything that inversion attacks of one experiment need.

    Attributes:
        has_control: whether the no-target control is trained.
        warnings: what is allowed and yet doubtful; complete once `shared` was called.
    """

    def __init__(
        self,
        experiment: Experiment,
        make_stage: StageMaker,
        models: ModelPlanner,
        folds: dict[int, FoldSet],
        input_shape: list[int],
        weights: WeightsFinder,
    ) -> None:
        self.warnings: list[str] = []
        self._experiment = experiment
        self._file = experiment.file
        self._make = make_stage
        self._models = models
        self._folds = folds
        self._input_shape = input_shape
        self._weights = weights
        self._none = resolve_method("defenses", "none", "inversion")
        self._extractors = [
            {"method": each.document(), "weights": weights(each.cls.weights_name)} for each in experiment.extractors
        ]
        first = folds[0]
        self._private_classes = list(first.private_classes)
        count = self._file.attacks.identities or len(self._private_classes)
        if count > len(self._private_classes):
            raise ConfigError(f"attacks.identities asks for {count} of {len(self._private_classes)} private classes")
        self._attacked = list(range(count))
        self.has_control = bool(experiment.inversion) and CONTROL_FOLD in first.rows

    def _check(self) -> None:
        """Refuse what would fail, or mean nothing, only after models and priors were trained."""
        if len(self._private_classes) < 2:
            raise ConfigError("attacks.inversion needs 2 private classes or more: a model of one tells nothing of it")
        self._check_architectures()
        for fold, reader in (
            ("train", "reconstructions are compared with"),
            (self._evaluation_fold, "judges learn from"),
        ):
            self._require_attacked_classes(fold, reader)
        for attack in self._attacks():
            label = prior_for(attack, self._experiment.priors, "attacks.inversion")
            if label is not None:
                self._warn_of_other_priors(attack, label)
                attack.cls(attack.config).check(self._experiment.priors[label].config.latent_size)
                if not self._file.priors[label].weights:
                    self._refuse_private_classes("public")

    def _warn_of_other_priors(self, attack: ChosenAttack, taken: str) -> None:
        priors = self._experiment.priors
        like = [
            label
            for label in fitting_priors(attack, priors)
            if priors[label].cls.needs_target == priors[taken].cls.needs_target
        ]
        if attack.config.prior is None and len(like) > 1:
            self.warnings.append(
                f"attack {attack.label!r} searches prior {taken!r}, the first of {', '.join(like)}, which all have "
                "what it needs; name the one that you mean with `prior:`"
            )

    def _check_architectures(self) -> None:
        """Refuse judges that have, under whatever name, the network of the target or of each other.

        A judge with the target's architecture at another size is what papers on faces use: the plan warns of it.
        """
        shape = InputShape(tuple(self._input_shape))
        networks: dict[str, nn.Module] = {}
        chosen = {
            "the target": self._experiment.model,
            "evaluation.model": self._experiment.evaluation_model,
            "evaluation.second.model": self._experiment.second_model,
        }
        for place, method in chosen.items():
            if method is None:
                continue
            with torch.device("meta"):
                network = method.cls(method.config, shape, len(self._private_classes))
            for other, known in networks.items():
                if same_architecture(network, known):
                    raise ConfigError(
                        f"{place}: {method.name!r} is the same network as that of {other}; choose another architecture"
                    )
            if "the target" in networks and same_up_to_sizes(network, networks["the target"]):
                self.warnings.append(
                    f"{place}: {method.name!r} has the target's architecture at another size: it may err as the target "
                    "does, which flatters the attack accuracy; choose another architecture, or trust only what a judge "
                    "that has another one confirms"
                )
            networks[place] = network

    def _check_untrained(self) -> None:
        """Refuse judges that are neither trained nor imported."""
        for role, (model, training) in self._judges().items():
            if training.recipe.epochs:
                continue
            place = "evaluation" if role == "evaluation" else "evaluation.second"
            if model.config.initial_weights is None:
                raise ConfigError(
                    f"{place}: epochs 0 uses the model as it was imported, but {model.name!r} has no initial_weights; "
                    "set them (`oakum weights list`), or raise epochs"
                )

    def _require_attacked_classes(self, fold: str, reader: str) -> None:
        for folds in self._folds.values():
            attacked = [self._private_classes[index] for index in self._attacked]
            missing = np.setdiff1d(attacked, folds.labels.y[folds.require(fold)])
            if len(missing):
                raise ConfigError(
                    f"attacks.inversion: {reader} fold {fold!r}, which has no image of private class {missing[0]}; let "
                    "`folds.rules` take more rows, or lower attacks.identities"
                )

    def _refuse_private_classes(self, fold: str) -> None:
        """Refuse a public fold of private classes; where people are known, `folds` compares these instead."""
        first = self._folds[0]
        if first.labels.identity is not None:
            return
        shown = np.intersect1d(first.labels.y[first.require(fold)], self._private_classes)
        if len(shown):
            raise ConfigError(
                f"fold {fold!r} has images of private class {shown[0]}: a prior would be shown what its attack has to "
                "find out; let a rule of other classes take it"
            )

    @property
    def evaluation_labels(self) -> str:
        """`private` where evaluation models know the private classes alone, else `all`."""
        first = self._folds[0]
        seen = set(first.labels.y[first.require(self._evaluation_fold)].tolist())
        return "private" if seen <= set(self._private_classes) else "all"

    @property
    def evaluation_classes(self) -> int:
        """Outputs of an evaluation model."""
        if self._file.evaluation is None or self.evaluation_labels == "all":
            return self._folds[0].prepared.num_classes
        return len(self._private_classes)

    @property
    def _evaluation_fold(self) -> str:
        assert self._file.evaluation is not None
        return self._file.evaluation.fold

    def shared(self) -> dict[str, Stage]:
        """Return the stages that cells share: evaluation models, and priors that serve every target.

        Raises:
            ConfigError: attacks, priors, judges and folds do not fit together.
        """
        if self._experiment.inversion:
            self._check()
        self._check_untrained()
        stages: dict[str, Stage] = {}
        for name in self._judges():
            if self._evaluation_fold == "evaluation":
                stages[name] = self._evaluator(name, None)
            else:
                stages |= {f"{name}.{seed}": self._evaluator(name, seed) for seed in self._file.seeds}
        wanted = {prior_for(attack, self._experiment.priors, "attacks.inversion") for attack in self._attacks()}
        for label, prior in self._experiment.priors.items():
            if label in wanted and not prior.cls.needs_target:
                stages[f"prior.{label}"] = self._prior(label, None, "")
        return stages

    def cell(self, setting: str, seed: int, target: Stage, shared: dict[str, Stage]) -> dict[str, Stage]:
        """Return the stages of one cell: for each attack its reconstructions, the control's, and the judgment."""
        stages: dict[str, Stage] = {}
        attacks = [attack for attack in self._attacks() if attack.meets(setting, seed)]
        if not attacks:
            return stages
        undefended = self._models.model(self._none, self._placement("target", seed, f"none/{seed} clean")).stage
        control = self._control(seed) if self.has_control else None
        if control is not None:
            stages["control_target.clean"] = control
        for attack in attacks:
            against = undefended if attack.cls.prior_of == "undefended" else target
            title = f"{setting}/{seed}"
            prior = self._prior_of(attack, against, shared, title)
            own = self._reconstructions(attack, target, prior, seed, title)
            stages |= _roles(f"inversion.clean.{attack.label}", own)
            judged = _numbered("inversion", own)
            priors = {"clean": prior}
            if control is not None:
                priors["control"] = self._prior_of(attack, control, shared, f"control/{seed}")
                floor = self._reconstructions(attack, control, priors["control"], seed, f"control/{seed}")
                stages |= _roles(f"control.{attack.label}", floor)
                judged |= _numbered("control", floor)
            for of, stage in priors.items():
                if stage is not None and stage.inputs:
                    stages[f"prior.{of}.{attack.label}"] = stage
            judge = self._judge(judged, seed, shared, f"{attack.label} {title}")
            stages[f"judge.clean.{attack.label}"] = judge
        return stages

    def _attacks(self) -> tuple[ChosenAttack, ...]:
        return self._experiment.inversion

    def _judges(self) -> dict[str, tuple[Method, Any]]:
        """Return role -> (model, its training) of the evaluation models."""
        evaluation, experiment = self._file.evaluation, self._experiment
        judges: dict[str, tuple[Method, Any]] = {}
        if evaluation is not None and experiment.evaluation_model is not None:
            judges["evaluation"] = (experiment.evaluation_model, evaluation)
            if evaluation.second is not None and experiment.second_model is not None:
                judges["second"] = (experiment.second_model, evaluation.second)
        return judges

    def _evaluator(self, name: str, seed: int | None) -> Stage:
        model, training = self._judges()[name]
        folds, fold = self._folds[seed or 0], self._evaluation_fold
        if training.recipe.select == "best_val":
            folds.require("val")
        fold_of = {"train": fold, **({"val": "val"} if "val" in folds.rows else {})}
        role = (name,) if seed is None else (name, seed)
        config = {
            "model": model.document(),
            "defense": self._none.document(),
            "recipe": training.recipe.model_dump(mode="json"),
            "seed": derive_seed(self._file.experiment_seed, *role),
            "labels": self.evaluation_labels,
            "folds": fold_of,
            "num_classes": self.evaluation_classes,
            "input_shape": self._input_shape,
        }
        title = {"evaluation": "evaluation model", "second": "second evaluation model"}[name]
        return self._make(
            "train",
            config,
            {},
            dict.fromkeys(fold_of.values(), folds),
            title if seed is None else f"{title} {seed}",
            (model, self._none),
            part="evaluation",
            weight=5.0,
        )

    def _prior(self, label: str, target: Stage | None, title: str) -> Stage:
        prior = self._experiment.priors[label]
        if weights := self._file.priors[label].weights:
            return self._imported_prior(label, weights)
        self._folds[0].require("public")
        config = {
            "prior": prior.document(),
            "input_shape": self._input_shape,
            "seed": derive_seed(self._file.experiment_seed, "prior"),
            **({"num_classes": len(self._private_classes)} if target is not None else {}),
        }
        return self._make(
            "prior",
            config,
            {} if target is None else {"target": target},
            {"public": self._folds[0]},
            f"prior {label}{title and ' ' + title}",
            (prior,) if target is None else (prior, self._experiment.model),
            part="prior",
            weight=100.0 if target is None else 40.0,
            threads=self._file.priors[label].threads,
        )

    def _imported_prior(self, label: str, weights: dict[str, str]) -> Stage:
        prior = self._experiment.priors[label]
        config = {
            "prior": prior.document(),
            "input_shape": self._input_shape,
            "seed": derive_seed(self._file.experiment_seed, "prior"),
            "weights": {part: {"name": name, "sha256": self._weights(name)} for part, name in sorted(weights.items())},
        }
        self.warnings.append(
            f"priors.{label}: used as it was imported ({', '.join(weights.values())}); whether it learned from private "
            "images is not known here"
        )
        return self._make("prior", config, {}, {}, f"prior {label}", (prior,), part="prior")

    def _prior_of(self, attack: ChosenAttack, target: Stage, shared: dict[str, Stage], title: str) -> Stage | None:
        """Return the prior that an attack searches: the one of all cells, or one trained against this target."""
        label = prior_for(attack, self._experiment.priors, "attacks.inversion")
        if label is None:
            return None
        return shared.get(f"prior.{label}") or self._prior(label, target, title)

    def _placement(self, part: str, seed: int, title: str) -> Placement:
        fold_of = {"train": "train", "val": "val", "reference": "reference"}
        own = derive_seed(self._file.experiment_seed, "target", seed)
        return Placement(part, self._folds[seed], fold_of, own, title)

    def _control(self, seed: int) -> Stage:
        """Return an undefended model of people whom the attacks are not about, trained by the target's recipe.

        It has no validation images: with `select: best_val` its last epoch is released.
        """
        own = derive_seed(self._file.experiment_seed, "control", seed)
        folds = self._folds[seed]
        if len(folds.control_classes) != len(self._private_classes):
            raise ConfigError(
                f"fold {CONTROL_FOLD!r} has {len(folds.control_classes)} classes; the control needs as many as there "
                f"are private ones ({len(self._private_classes)})"
            )
        placement = Placement("evaluation", folds, {"train": CONTROL_FOLD}, own, f"control/{seed}", labels="control")
        stage = self._models.model(self._none, placement).stage
        if self._file.recipe.select == "last":
            return stage
        return replace(stage, config={**stage.config, "recipe": {**stage.config["recipe"], "select": "last"}})

    def _reconstructions(
        self, attack: ChosenAttack, target: Stage, prior_stage: Stage | None, seed: int, title: str
    ) -> list[Stage]:
        inputs = {"target": target, **({"prior": prior_stage} if prior_stage is not None else {})}
        size = self._file.attacks.classes_per_task or len(self._attacked)
        document = attack.document()
        # Which prior is searched is known by the stage's input.
        document.pop("prior", None)
        chunks = [self._attacked[first : first + size] for first in range(0, len(self._attacked), size)]
        prior = prior_for(attack, self._experiment.priors, "attacks.inversion")
        methods = (attack, *((self._experiment.priors[prior],) if prior else ()), self._experiment.model)
        stages = []
        for number, classes in enumerate(chunks):
            config = {
                "attack": document,
                "seed": derive_seed(self._file.experiment_seed, f"attack/{attack.cls.draws_of or attack.name}", seed),
                "classes": classes,
                "num_classes": len(self._private_classes),
            }
            label = f"{attack.label} {title}" + (f" part {number + 1}" if len(chunks) > 1 else "")
            stages.append(self._make("inversion", config, dict(inputs), {}, label, methods, part="attack", weight=20.0))
        return stages

    def _judge(self, judged: dict[str, Stage], seed: int, shared: dict[str, Stage], title: str) -> Stage:
        evaluation = self._file.evaluation
        assert evaluation is not None
        inputs = dict(judged)
        for name, role in (("evaluation", "evaluator"), ("second", "second")):
            found = shared.get(name) or shared.get(f"{name}.{seed}")
            if found is not None:
                inputs[role] = found
        labels = self.evaluation_labels
        config = {
            "evaluator_classes": self._private_classes if labels == "all" else list(range(len(self._private_classes))),
            "labels": labels,
            "real_per_class": evaluation.real_per_class,
            "extractors": self._extractors,
        }
        methods = tuple(model for model, _ in self._judges().values()) + self._experiment.extractors
        folds = {"train": self._folds[seed]}
        return self._make("judge", config, inputs, folds, f"judge {title}", methods, part="attack")


def _roles(role: str, tasks: list[Stage]) -> dict[str, Stage]:
    """Return the tasks of one attack by role; several are numbered."""
    return {role: tasks[0]} if len(tasks) == 1 else _numbered(role, tasks)


def _numbered(name: str, tasks: list[Stage]) -> dict[str, Stage]:
    return {f"{name}.{position}": task for position, task in enumerate(tasks)}
