"""The experiment: what one YAML says, validated, with the methods' own configurations filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from oakum import registry
from oakum.config import ConfigError, FrozenConfig, validate
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
    gpus: float = Field(default=0.0, ge=0, description="GPUs of every training and inversion stage")


class CanaryConfig(FrozenConfig):
    """Crafted points for the worst-case audit; half of the fold goes into training by a seeded coin."""

    fold: str = "canary"


class ModelTraining(FrozenConfig):
    """A model and how it is trained."""

    model: MethodEntry
    recipe: Recipe = Recipe()


class PriorTraining(FrozenConfig):
    """A generator trained on the public fold and shared by all cells."""

    method: MethodEntry = "wgan_gp"
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the prior; default: execution.threads")


class AttacksConfig(FrozenConfig):
    """Which attacks every cell meets.

    Attributes:
        nonmembers: the fold that membership attacks take non-members from: `test` for results,
            `val` to choose settings.
        gradient_points: attacks on gradients ask about so many points of each fold (None: all); they cost one
            backward pass for each.
    """

    membership: tuple[MethodEntry, ...] = ()
    inversion: tuple[MethodEntry, ...] = ()
    nonmembers: Literal["test", "val"] = "test"
    gradient_points: int | None = Field(default=None, ge=1)


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
    evaluation: ModelTraining | None = None
    prior: PriorTraining | None = None
    execution: ExecutionConfig = ExecutionConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not all(character.isalnum() or character in "-_." for character in value) or value.startswith("."):
            raise ValueError("use letters, digits, '-', '_' and '.' in the experiment's name")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return value


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
    inversion: tuple[Method, ...]
    evaluation_model: Method | None
    prior: Method | None

    def document(self) -> dict[str, Any]:
        """Return the resolved experiment as plain JSON data."""
        plain = self.file.model_dump(mode="json", by_alias=True)
        plain["model"] = self.model.document()
        plain["settings"] = {label: method.document() for label, method in self.settings.items()}
        plain["attacks"] = {
            "membership": [method.document() for method in self.membership],
            "inversion": [method.document() for method in self.inversion],
        }
        if self.evaluation_model is not None:
            plain["evaluation"]["model"] = self.evaluation_model.document()
        if self.prior is not None:
            plain["prior"]["method"] = self.prior.document()
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
        inversion=_methods("attacks.inversion", file.attacks.inversion, f"{where}: attacks.inversion"),
        evaluation_model=(
            resolve_method("models", file.evaluation.model, f"{where}: evaluation.model") if file.evaluation else None
        ),
        prior=resolve_method("priors", file.prior.method, f"{where}: prior.method") if file.prior else None,
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
    evaluation = experiment.evaluation_model
    if evaluation is not None and evaluation.name == experiment.model.name:
        raise ConfigError(
            f"{where}: evaluation.model: the evaluation model must have another architecture than the target "
            f"({experiment.model.name!r}), else it shares the target's blind spots"
        )
    if experiment.inversion:
        if file.evaluation is None:
            raise ConfigError(f"{where}: attacks.inversion needs an evaluation model; add `evaluation:`")
        needy = [method.name for method in experiment.inversion if method.cls.needs_prior]
        if needy and file.prior is None:
            raise ConfigError(f"{where}: attack {needy[0]!r} searches a prior; add `prior:`")
