"""The experiment: what one YAML says, validated, with the methods' own configurations filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from oakum import registry
from oakum.config import ConfigError, FrozenConfig, validate
from oakum.datasets._canaries import CanaryPart
from oakum.datasets._folds import FoldsConfig
from oakum.training.recipe import Recipe

MethodEntry = str | dict[str, Any]
LABEL_ONLY = "label_only"


class DataConfig(FrozenConfig):
    """Which prepared data set, and at which size its images are used."""

    name: str
    image_size: int | None = Field(default=None, ge=4, description="images are resized to this many pixels a side")


class ExecutionConfig(FrozenConfig):
    """How the work is placed. `threads` changes the last bits of results and is part of stage keys."""

    threads: int = Field(default=1, ge=1, description="CPU threads of every stage")
    workers: int = Field(default=1, ge=1, description="processes that train one model together, under Ray Train")
    min_workers: int | None = Field(
        default=None, ge=1, description="with how few of `workers` a training may go on (default: with all of them)"
    )
    gpus: float = Field(default=0.0, ge=0, description="GPUs of every training and inversion stage")

    @model_validator(mode="after")
    def _check_workers(self) -> ExecutionConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, but workers only {self.workers}")
        return self


class CanaryConfig(FrozenConfig):
    """Crafted points for the worst-case audit; half of them go into training by a seeded coin.

    Attributes:
        fold: the candidates.
        part: which of them are planted: all, or one of two halves that are equal under every seed. A search sets it, so
            that no candidate that scored a trial scores the confirmation; `folds.sealed` must list the fold.
    """

    fold: str = "canary"
    part: CanaryPart = "all"

    @model_serializer(mode="wrap")
    def _leave_out_all(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say nothing of parts where all candidates are planted."""
        data: dict[str, Any] = plain(self)
        if self.part == "all":
            data.pop("part", None)
        return data


class ModelTraining(FrozenConfig):
    """A model and how it is trained; with `initial_weights` and 0 epochs it is used as it was imported."""

    model: MethodEntry
    recipe: Recipe = Recipe()

    @field_validator("recipe")
    @classmethod
    def _refuse_options_of_no_training(cls, value: Recipe) -> Recipe:
        others = [name for name in value.changed if name != "epochs"]
        if value.epochs == 0 and others:
            raise ValueError(f"epochs 0 trains nothing, so these have no effect: {', '.join(others)}; remove them")
        return value


class EvaluationConfig(ModelTraining):
    """Who judges reconstructions. Values are comparable only between runs that say the same here.

    Attributes:
        model, recipe: the evaluation model, of another architecture than the target.
        fold: what evaluation models learn from. `evaluation` are images of their own; `train` are the target's own
            training images, as most papers on faces do: more accurate where identities have few images.
        second: a second evaluation model of a third architecture, trained alike: what only one of them recognizes
            is doubtful.
        extractors: independent feature networks (`oakum list extractors`); they add distances of their own.
        real_per_class: compare with so many training images of each class (None: all).
    """

    fold: Literal["evaluation", "train"] = "evaluation"
    second: ModelTraining | None = None
    extractors: tuple[MethodEntry, ...] = ()
    real_per_class: int | None = Field(default=None, ge=1)


class PriorTraining(FrozenConfig):
    """A generator trained on the public fold: shared by all cells, unless its method needs the target.

    Attributes:
        method: settings of the prior; its `name` may be left out where the entry's own name is that of a method.
        weights: network of the method (`generator`, `critic`) -> weights that were imported for it. All of them are
            used as they are, and nothing is trained; not for methods that are trained against the target.
    """

    method: MethodEntry = Field(default={})
    weights: dict[str, str] = Field(default={})
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the prior; default: execution.threads")

    @model_serializer(mode="wrap")
    def _leave_out_no_weights(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say nothing of imported networks where there are none."""
        data: dict[str, Any] = plain(self)
        if not self.weights:
            data.pop("weights", None)
        return data


class AttacksConfig(FrozenConfig):
    """Which attacks every cell meets.

    Attributes:
        nonmembers: the fold that membership attacks take non-members from: `test` for results,
            `val` to choose settings.
        gradient_points: attacks on gradients ask about so many points of each fold (None: all); they cost one
            backward pass for each.
        inversion: beside its own settings an entry may say `as` (the name of its metrics, to list an attack twice),
            and `settings` and `seeds` (the only cells that meet it).
        identities: inversion attacks rebuild the first so many private classes (None: all).
        classes_per_task: classes of one inversion task; tasks run in parallel and are resumed one by one (None: one
            task for all).
    """

    membership: tuple[MethodEntry, ...] = ()
    inversion: tuple[MethodEntry, ...] = ()
    nonmembers: Literal["test", "val"] = "test"
    gradient_points: int | None = Field(default=None, ge=1)
    identities: int | None = Field(default=None, ge=1)
    classes_per_task: int | None = Field(default=None, ge=1)


class ExperimentFile(FrozenConfig):
    """The top level of an experiment's YAML."""

    name: str = Field(min_length=1, max_length=100)
    description: str = ""
    data: DataConfig
    folds: FoldsConfig
    model: MethodEntry
    recipe: Recipe = Recipe()
    settings: dict[str, MethodEntry] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    experiment_seed: int = Field(default=0, ge=0)
    canaries: CanaryConfig | None = None
    attacks: AttacksConfig = AttacksConfig()
    evaluation: EvaluationConfig | None = None
    priors: dict[str, PriorTraining] = Field(default={})
    execution: ExecutionConfig = ExecutionConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not all(character.isalnum() or character in "-_." for character in value) or value.startswith("."):
            raise ValueError("use letters, digits, '-', '_' and '.' in the experiment's name")
        return value

    @field_validator("recipe")
    @classmethod
    def _targets_are_trained(cls, value: Recipe) -> Recipe:
        if value.epochs == 0:
            raise ValueError("epochs 0 is for evaluation models with initial_weights; targets need 1 or more")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return value


class _Choice(FrozenConfig):
    """What an entry under `attacks.inversion` may say beside the attack's own settings."""

    as_: str | None = Field(default=None, alias="as", pattern=r"^[A-Za-z0-9_-]+$")
    settings: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @classmethod
    def entry_keys(cls) -> set[str]:
        return {field.alias or name for name, field in cls.model_fields.items()}


@dataclass(frozen=True)
class Method:
    """A method chosen in the YAML: its class and its configuration with defaults filled."""

    kind: str
    name: str
    cls: type[Any]
    config: Any

    def parameters(self) -> dict[str, Any]:
        """Return what is particular to the method, for tables: settings that all its kind have only if not default."""
        plain: dict[str, Any] = self.config.model_dump(mode="json")
        common: dict[str, Any] = {}
        for cls in type(self.config).__mro__:
            if cls.__module__.endswith(".base"):
                common |= getattr(cls, "model_fields", {})
        return {key: value for key, value in plain.items() if key not in common or value != common[key].default}

    def document(self) -> dict[str, Any]:
        """Return the plain JSON form that stage keys contain."""
        return {"name": self.name, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class ChosenAttack(Method):
    """An inversion attack and the cells that meet it.

    Attributes:
        label: its name in metric keys.
        settings, seeds: the only cells that meet it; None: all.
    """

    label: str = ""
    settings: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def meets(self, setting: str, seed: int) -> bool:
        """Whether this cell is attacked."""
        return (self.settings is None or setting in self.settings) and (self.seeds is None or seed in self.seeds)

    def entry(self) -> dict[str, Any]:
        """Return the plain form that a YAML would hold."""
        where = {"settings": self.settings, "seeds": self.seeds}
        return {
            **self.document(),
            **({"as": self.label} if self.label != self.name else {}),
            **{key: list(value) for key, value in where.items() if value is not None},
        }


@dataclass(frozen=True)
class Experiment:
    """A validated experiment.

    Attributes:
        file: the YAML's content.
        settings: label -> defense.
    """

    file: ExperimentFile
    model: Method
    settings: dict[str, Method]
    membership: tuple[Method, ...]
    inversion: tuple[ChosenAttack, ...]
    evaluation_model: Method | None
    second_model: Method | None
    extractors: tuple[Method, ...]
    priors: dict[str, Method]

    def document(self) -> dict[str, Any]:
        """Return the resolved experiment as plain JSON data."""
        plain = self.file.model_dump(mode="json", by_alias=True)
        plain["model"] = self.model.document()
        plain["settings"] = {label: method.document() for label, method in self.settings.items()}
        plain["attacks"] |= {
            "membership": [method.document() for method in self.membership],
            "inversion": [attack.entry() for attack in self.inversion],
        }
        if self.evaluation_model is not None:
            plain["evaluation"]["model"] = self.evaluation_model.document()
            plain["evaluation"]["extractors"] = [method.document() for method in self.extractors]
        if self.second_model is not None:
            plain["evaluation"]["second"]["model"] = self.second_model.document()
        for label, prior in self.priors.items():
            plain["priors"][label]["method"] = prior.document()
        return plain


def resolve_experiment(data: dict[str, Any], where: str) -> Experiment:
    """Validate plain data and load every method that it names.

    Raises:
        ConfigError: unknown keys or methods, wrong types or ranges, or parts that do not fit together.
    """
    file = validate(ExperimentFile, data, where)
    settings = {
        label: resolve_method("defenses", entry, f"{where}: settings.{label}") for label, entry in file.settings.items()
    }
    membership = _methods("attacks.membership", file.attacks.membership, f"{where}: attacks.membership")
    if membership and any(method.cls.masks_output for method in settings.values()):
        membership = _with_label_only(membership)
    experiment = Experiment(
        file=file,
        model=resolve_method("models", file.model, f"{where}: model"),
        settings=settings,
        membership=membership,
        inversion=_inversion_attacks(file, f"{where}: attacks.inversion"),
        evaluation_model=(
            resolve_method("models", file.evaluation.model, f"{where}: evaluation.model") if file.evaluation else None
        ),
        second_model=(
            resolve_method("models", file.evaluation.second.model, f"{where}: evaluation.second.model")
            if file.evaluation and file.evaluation.second
            else None
        ),
        extractors=(
            _methods("extractors", file.evaluation.extractors, f"{where}: evaluation.extractors")
            if file.evaluation
            else ()
        ),
        priors={
            label: resolve_method("priors", _named(prior.method, label), f"{where}: priors.{label}.method")
            for label, prior in file.priors.items()
        },
    )
    _check_parts(experiment, where)
    return experiment


def _with_label_only(attacks: tuple[Method, ...]) -> tuple[Method, ...]:
    """Add the label-only attack: a defense that masks its scores must not be judged by scores alone."""
    if any(method.name == LABEL_ONLY for method in attacks):
        return attacks
    return (*attacks, resolve_method("attacks.membership", LABEL_ONLY, "attacks.membership"))


def _methods(kind: str, entries: tuple[MethodEntry, ...], where: str) -> tuple[Method, ...]:
    methods = tuple(resolve_method(kind, entry, f"{where}.{i}") for i, entry in enumerate(entries))
    names = [method.name for method in methods]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{where}: {', '.join(repeated)} is listed twice")
    return methods


def _named(entry: MethodEntry, name: str) -> MethodEntry:
    return entry if isinstance(entry, str) else {"name": name, **entry}


def _inversion_attacks(file: ExperimentFile, where: str) -> tuple[ChosenAttack, ...]:
    """Return the chosen inversion attacks; their names in metric keys are distinct."""
    attacks = []
    for i, entry in enumerate(file.attacks.inversion):
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        chosen = validate(
            _Choice, {key: options.pop(key) for key in _Choice.entry_keys() if key in options}, f"{where}.{i}"
        )
        method = resolve_method("attacks.inversion", options, f"{where}.{i}")
        unknown = [label for label in chosen.settings or () if label not in file.settings]
        if unknown:
            raise ConfigError(f"{where}.{i}.settings: no setting {unknown[0]!r}; settings: {', '.join(file.settings)}")
        label = chosen.as_ or method.name
        attacks.append(ChosenAttack(**vars(method), label=label, settings=chosen.settings, seeds=chosen.seeds))
    cells = [(setting, seed) for setting in file.settings for seed in file.seeds]
    for place, attack in enumerate(attacks):
        for other in attacks[:place]:
            if attack.label == other.label and any(attack.meets(*cell) and other.meets(*cell) for cell in cells):
                raise ConfigError(
                    f"{where}: {attack.label} is listed twice for the same cells; give one of them another name with "
                    "`as:`, or other `settings` or `seeds`"
                )
    return tuple(attacks)


def resolve_method(kind: str, entry: MethodEntry, where: str) -> Method:
    """Return the method that a YAML entry (a name, or a mapping with `name`) chooses, its configuration validated.

    Raises:
        ConfigError: an unknown method or setting; the message begins with `where`.
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: write `name:` with one of {', '.join(registry.available(kind))}")
    try:
        name = registry.canonical_name(kind, name)
    except registry.UnknownMethodError as error:
        raise ConfigError(f"{where}: {error}") from error
    cls = registry.load(kind, name)
    return Method(kind=kind, name=name, cls=cls, config=validate(cls.Config, options, where))


def _check_parts(experiment: Experiment, where: str) -> None:
    file = experiment.file
    if file.canaries and file.canaries.part != "all" and file.canaries.fold not in file.folds.sealed:
        raise ConfigError(
            f"{where}: canaries.part: {file.canaries.part!r} is half of a fold that is drawn anew for every seed, so "
            f"halves would overlap; add {file.canaries.fold!r} to folds.sealed"
        )
    judges = {"evaluation.model": experiment.evaluation_model, "evaluation.second.model": experiment.second_model}
    for place, judge in judges.items():
        if judge is not None and judge.name == experiment.model.name:
            raise ConfigError(
                f"{where}: {place}: an evaluation model must have another architecture than the target "
                f"({experiment.model.name!r}), else it shares the target's blind spots"
            )
    if (
        experiment.second_model is not None
        and experiment.evaluation_model is not None
        and experiment.second_model.name == experiment.evaluation_model.name
    ):
        raise ConfigError(
            f"{where}: evaluation.second.model: two evaluation models of one architecture err alike; choose another "
            f"than {experiment.second_model.name!r}"
        )
    if experiment.inversion and file.evaluation is None:
        raise ConfigError(f"{where}: attacks.inversion needs an evaluation model; add `evaluation:`")
    for label, prior in experiment.priors.items():
        _check_imported(prior, file.priors[label].weights, f"{where}: priors.{label}.weights")
    for attack in experiment.inversion:
        prior_for(attack, experiment.priors, f"{where}: attacks.inversion")


def _check_imported(prior: Method, weights: dict[str, str], place: str) -> None:
    if not weights:
        return
    if prior.cls.needs_target:
        raise ConfigError(
            f"{place}: {prior.name!r} is trained against the model that it attacks, so an imported one would be that "
            "of another target; remove weights"
        )
    if set(weights) != set(prior.cls.network_names):
        raise ConfigError(f"{place}: give weights for each of {', '.join(prior.cls.network_names)}, and nothing else")


def prior_for(attack: Method, priors: dict[str, Method], where: str) -> str | None:
    """Return the label of the prior that an inversion attack searches, or None for an attack without a prior.

    It is the one that the attack's `prior` names, else the first that has the networks the attack needs, priors that
    serve every target first.

    Raises:
        ConfigError: there is none.
    """
    if not attack.cls.needs_prior:
        return None
    needed = set(attack.cls.prior_networks)
    fitting = fitting_priors(attack, priors)
    wanted = attack.config.prior
    if wanted is not None and wanted not in fitting:
        reason = "has no " + ", ".join(sorted(needed)) if wanted in priors else "is not under `priors`"
        raise ConfigError(f"{where}: attack {attack.name!r}: prior {wanted!r} {reason}")
    if not fitting:
        able = [
            name for name in registry.available("priors") if needed <= set(registry.load("priors", name).network_names)
        ]
        raise ConfigError(
            f"{where}: attack {attack.name!r} searches a prior with {' and '.join(sorted(needed))}; add one under "
            f"`priors:`, for example `{able[0] if able else 'mine'}: {{}}`"
        )
    return wanted or fitting[0]


def fitting_priors(attack: Method, priors: dict[str, Method]) -> list[str]:
    """Return the labels of the priors with the networks that an attack needs, those that serve every target first."""
    needed = set(attack.cls.prior_networks)
    fitting = [label for label, prior in priors.items() if needed <= set(prior.cls.network_names)]
    return sorted(fitting, key=lambda label: priors[label].cls.needs_target)
