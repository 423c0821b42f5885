"""What is asked of a search, checked before anything runs: its options, its header, its space, its confirmation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.config import ConfigError, apply_values, read_yaml, validate
from oakum.datasets.base import ensure_prepared
from oakum.records import canonical_json, sha256_hex
from oakum.search.objectives import Objective, parse_floor, parse_objective
from oakum.search.population import DEFAULT_MEMBERS, POPULATION, check_population
from oakum.search.protocol import (
    FIRST_SEARCH_SEED,
    PROTOCOL_PATHS,
    confirmation_experiment,
    confirmed_name,
    trial_experiment,
)
from oakum.search.records import SearchHeader
from oakum.search.sampler import GRID, SAMPLERS
from oakum.search.space import SearchSpace
from oakum.session import RunOptions, make_plan, read_request
from oakum.session_home import Home
from oakum.session_trials import plan_trial

if TYPE_CHECKING:
    from oakum.training.recipe import Recipe

UNACCOUNTED = (
    "epsilon is that of one training. Choosing among the trials looked at the private validation data again, and that "
    "loss of privacy is not accounted for."
)


@dataclass(frozen=True)
class SearchOptions:
    """What the command line asks of a search.

    Attributes:
        trials: in all, those of earlier processes included; or, with `more`, beside those.
        sampler: one of `SAMPLERS`.
        seed: of the sampler.
        seeds_per_trial: seeds that every trial is measured under.
        repeats: further seeds for candidates of the front.
        confirm: settings that are confirmed at most; 0: none.
        rungs: each a mapping from paths to values: the cheaper forms that a trial passes first.
        concurrency: trials at a time; None: as many as the machine has CPUs.
        population: members of a generation, of the sampler `population` alone; None: `DEFAULT_MEMBERS`.
    """

    file: Path
    space: Path
    objectives: tuple[str, ...]
    floors: tuple[str, ...] = ()
    overrides: list[str] = field(default_factory=list)
    name: str | None = None
    trials: int = 30
    more: bool = False
    sampler: str = "tpe"
    seed: int = 0
    grid_first: bool = False
    seeds_per_trial: int = 1
    repeats: int = 2
    confirm: int = 3
    rungs: tuple[dict[str, Any], ...] = ()
    concurrency: int | None = None
    population: int | None = None
    executor: str = "ray"
    max_cpus: float | None = None
    max_gpus: float | None = None
    track: bool = True

    def run_options(self) -> RunOptions:
        """Return the options by which an executor is started."""
        return RunOptions(
            file=self.file, executor=self.executor, max_cpus=self.max_cpus, max_gpus=self.max_gpus
        )  # fmt: skip


def make_header(options: SearchOptions, space: SearchSpace, home: Home) -> SearchHeader:
    """Check what is asked for and return the search's header.

    Raises:
        ConfigError: see `protocol.trial_experiment`; or no objective, no trials, an unknown sampler.
    """
    _check_options(options, space)
    experiment = read_request(RunOptions(file=options.file, overrides=options.overrides))
    experiment.pop("description", None)
    objectives = [parse_objective(text) for text in options.objectives]
    floors = [parse_floor(text) for text in options.floors]
    _refuse_paths_of_the_protocol(options, space)
    seeds = tuple(range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + options.seeds_per_trial))
    classes, recipe = _target(experiment, options.file.name, home)
    used = range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + options.seeds_per_trial + options.repeats)
    trial = {**trial_experiment(experiment, objectives, floors, tuple(used), classes), "seeds": list(seeds)}
    content: dict[str, Any] = {
        "defense": space.defense,
        "space": {**read_yaml(options.space), "defense": space.defense},
        "experiment": experiment,
        "trial": trial,
        "objectives": tuple(objective.text for objective in objectives),
        "floors": tuple(floor.text for floor in floors),
        "seeds": seeds,
        "rungs": options.rungs,
        "notes": (UNACCOUNTED,) if space.defense == "dpsgd" else (),
        **_population(options, space, objectives, recipe),
    }
    name = options.name or f"{experiment['name']}-{space.defense}"
    return SearchHeader(name=name, key=sha256_hex(canonical_json({"name": name, **content})), **content)


def check_trials(header: SearchHeader, space: SearchSpace, home: Home, where: str) -> None:
    """Hold the bounds of the experiment's own paths against its schema, and plan one point at every rung.

    Raises:
        ConfigError: a point of the space could not be run.
    """
    from oakum.pipeline.experiment import ExperimentFile

    middle = _middle(space)
    for path, parameter in space.parameters.items():
        for value in parameter.extremes() if space.changes({path: None}) else ():
            changed = apply_values(header.trial, space.changes({**middle, path: value}))
            validate(ExperimentFile, changed, where)
    for rung in range(len(header.rungs) + 1):
        plan_trial(header, space, [middle] * max(1, len(header.generations)), home, where, rung)


def check_confirmation(header: SearchHeader, space: SearchSpace, home: Home, where: str) -> None:
    """Plan a confirmation, so that what would fail after all trials fails before the first.

    Raises:
        ConfigError: it could not be run.
    """
    middle = _middle(space)
    settings = {"trial-0": space.settings(middle)}
    data = confirmation_experiment(header.experiment, confirmed_name(header.name), settings, trial=header.trial)
    make_plan(apply_values(data, space.changes(middle)), where, home, None)


def _check_options(options: SearchOptions, space: SearchSpace) -> None:
    if not options.objectives:
        raise ConfigError("say what to search for, for example: --objective 'min membership/loss/auc'")
    if options.sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler {options.sampler!r}; samplers: {', '.join(SAMPLERS)}")
    if options.sampler == GRID and not space.grid:
        raise ConfigError(f"{options.space.name} has no grid; choose another sampler or add `grid:`")
    if options.trials < 1:
        raise ConfigError("--trials must be 1 or more (write +N for N more than there are)")
    if options.seeds_per_trial < 1:
        raise ConfigError("--seeds-per-trial must be 1 or more")
    if min(options.repeats, options.confirm, (options.concurrency or 1) - 1) < 0:
        raise ConfigError("--repeats and --confirm must be 0 or more, --concurrency 1 or more")
    if not space.parameters and options.sampler != GRID:
        raise ConfigError(f"{options.space.name} has a grid and nothing to sample; use --sampler grid")
    if options.population is not None and options.sampler != POPULATION:
        raise ConfigError("--population is the size of a population; add --sampler population")


def _population(
    options: SearchOptions, space: SearchSpace, objectives: list[Objective], recipe: Recipe
) -> dict[str, Any]:
    """Return what a population adds to the header; nothing where there is none."""
    if options.sampler != POPULATION:
        return {}
    if options.rungs:
        raise ConfigError("rungs and a population both train in parts; remove --rung, or choose another sampler")
    if options.grid_first:
        raise ConfigError("the first generation of a population is drawn at random; remove --grid-first")
    if options.more:
        raise ConfigError("a population's trials are set when it begins; write --trials without +, and another --name")
    if recipe.stop_after is not None:
        raise ConfigError("a population trains all epochs of its recipe; remove recipe.stop_after or lower epochs")
    members = DEFAULT_MEMBERS if options.population is None else options.population
    ends = check_population(space, objectives, members, options.trials, recipe.epochs)
    return {"population": members, "generations": ends}


def _refuse_paths_of_the_protocol(options: SearchOptions, space: SearchSpace) -> None:
    """Refuse paths by which a space or a rung would undo what keeps trials and confirmation apart."""
    spaces = {path for point in (space.parameters, space.fixed, *space.grid) for path in space.changes(dict(point))}
    for path in sorted({*spaces, *(path for rung in options.rungs for path in rung)}):
        if any(path == own or path.startswith(f"{own}.") for own in PROTOCOL_PATHS):
            raise ConfigError(f"{path} may not be changed by a search: it decides what trials and confirmation may see")
    for path in sorted(spaces):
        if path.startswith(("attacks.inversion.", "attacks.membership.")):
            raise ConfigError(f"{path} may not be searched: a confirmation must meet the attacks that the trials met")


def _middle(space: SearchSpace) -> dict[str, Any]:
    """Return a point by which a request is checked before anything starts."""
    if not space.parameters:
        return next(space.grid_points())
    return {**next(space.grid_points(), {}), **space.draw(lambda path, parameter: parameter.at(0.5))}


def _target(experiment: dict[str, Any], where: str, home: Home) -> tuple[int, Recipe]:
    """Return how many classes the target has, and its recipe."""
    from oakum.pipeline.experiment import resolve_experiment
    from oakum.pipeline.folds import Selection, plan_folds

    file = resolve_experiment(experiment, where).file
    ensure_prepared(file.data.name, home.data)
    folds = file.folds.model_dump(mode="json", by_alias=True)
    selection = Selection(file.data.name, file.data.image_size, folds, file.experiment_seed, 0)
    return len(plan_folds(selection, home.data).private_classes), file.recipe
