"""What a search leaves in the store: a header, one record for each trial, and what was confirmed.

The records are the truth of a search. The sampler, the report and the tracked runs are made from them at any time, so
that a search that was killed goes on, and a search with more trials is the same search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from oakum.config import ConfigError
from oakum.records import CellRecord, MetricValue, RunRecord, StageRef
from oakum.search.protocol import BASELINE
from oakum.store import Store

SCHEMA = 1
TrialState = Literal["running", "complete", "stopped", "failed"]
SeedMetrics = dict[int, dict[str, MetricValue]]


@dataclass(frozen=True)
class SearchHeader:
    """What is searched, and how it is judged: everything that the search's key is hashed from, and the key.

    Attributes:
        name: chosen by the user, else `<experiment>-<defense>`.
        key: SHA-256 of all other fields, 64 hex digits.
        defense: name of the searched defense.
        space: the search space as plain data.
        experiment: the experiment as the user's file says it.
        trial: the experiment that a trial runs, without its setting: validation folds, search seeds, first judge.
        objectives, floors: as written (`min KEY`, `KEY >= NUMBER`).
        seeds: seed indices of every trial; those of repeats follow the last one.
        rungs: overrides (path -> value) of the cheaper forms that a trial passes first; () for none.
        notes: what a reader must know, such as a privacy cost that is not accounted.
        population: members of a generation in population-based training; 0: every trial is trained from its beginning.
        generations: number of epochs after which each generation is measured; the last one is the recipe's.
    """

    name: str
    key: str
    defense: str
    space: dict[str, Any]
    experiment: dict[str, Any]
    trial: dict[str, Any]
    objectives: tuple[str, ...]
    floors: tuple[str, ...]
    seeds: tuple[int, ...]
    rungs: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    population: int = 0
    generations: tuple[int, ...] = ()
    schema: int = SCHEMA

    def generation_of(self, number: int) -> int:
        """Return the generation of a trial, from 0; 0 where there is no population."""
        return number // self.population if self.population else 0

    def is_trained_to_the_end(self, number: int) -> bool:
        """Whether a trial trains all epochs: any, or in a population those of the last generation."""
        return not self.population or self.generation_of(number) == len(self.generations) - 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchHeader:
        """Restore a header.

        Raises:
            ConfigError: written by another schema.
        """
        if data.get("schema") != SCHEMA:
            raise ConfigError(f"search schema {data.get('schema')!r} cannot be read by this oakum (schema {SCHEMA})")
        sequences = ("objectives", "floors", "seeds", "rungs", "notes", "generations")
        return cls(**{**data, **{name: tuple(data.get(name, ())) for name in sequences}})


@dataclass(frozen=True)
class TrialRecord:
    """One setting of the searched defense and what was measured of it.

    Attributes:
        number: from 0, in the order of asking.
        point: path -> value; in a population those of its own generation.
        origin: `grid` for points of the paper's sweep, else the sampler's name.
        state: `stopped` at a lower rung, or at the end of a generation that is not the last; `failed` has an `error`;
            `running` was asked for and has no result yet.
        rung: the last rung that was measured; the search's last one for a complete trial.
        metrics: seed -> metric key -> value, measured at `rung`. Seeds beyond the header's are repeats.
        baseline: the same of `none` under the same seeds.
        values: of the objectives, as measured, means over the header's seeds; None unless measured at `rung`.
        violations: by how much each floor is missed, in its metric's unit, means over the header's seeds.
        lower: for each lower rung that was passed, {"values": [...], "violations": [...]}.
        stages: every stage of the trial, which the store then keeps.
        latency: wall seconds from asking to the result.
        stage_seconds: seconds of the stages that ran for it, summed over the longest chain that it waited for.
        package: digest of the code that measured it.
        memory: what the sampler noted of it.
        parent: number of the trial of the generation before that it goes on from; None for a first one.
    """

    number: int
    point: dict[str, Any]
    origin: str
    state: TrialState
    rung: int = 0
    metrics: SeedMetrics = field(default_factory=dict)
    baseline: SeedMetrics = field(default_factory=dict)
    values: tuple[float, ...] | None = None
    violations: tuple[float, ...] = ()
    lower: tuple[dict[str, Any], ...] = ()
    stages: tuple[StageRef, ...] = ()
    error: str = ""
    latency: float = 0.0
    stage_seconds: float = 0.0
    package: str = ""
    memory: dict[str, Any] = field(default_factory=dict)
    parent: int | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether the trial is complete and keeps every floor."""
        return self.state == "complete" and not any(self.violations)

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["metrics"], plain["baseline"] = _plain_metrics(self.metrics), _plain_metrics(self.baseline)
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialRecord:
        return cls(
            **{
                **data,
                "metrics": _metrics(data["metrics"]),
                "baseline": _metrics(data["baseline"]),
                "values": None if data["values"] is None else tuple(data["values"]),
                "violations": tuple(data["violations"]),
                "lower": tuple(data["lower"]),
                "stages": tuple(StageRef(**ref) for ref in data["stages"]),
            }
        )


@dataclass(frozen=True)
class Confirmation:
    """The confirmed settings of a search: measured on test folds, with fresh seeds and the other judge.

    Attributes:
        plan_key: of the confirmation's plan, an experiment of its own.
        settings: label in that experiment -> number of the trial.
        membership: number of the trial -> probability of being on the front, by a bootstrap over its seeds.
        record: the confirmation's numbers.
        baselines: label of a setting -> label of the undefended model under its conditions, where that is not `none`:
            settings that change more than the defense have a `none` of their own.
    """

    plan_key: str
    settings: dict[str, int]
    membership: dict[int, float]
    record: RunRecord
    baselines: dict[str, str] = field(default_factory=dict)

    def baseline_of(self, label: str) -> str:
        """Return the label of the undefended model that a setting is compared with; its own for an undefended one."""
        return label if label in self.baselines.values() else self.baselines.get(label, BASELINE)

    def baseline_cells(self, label: str) -> tuple[CellRecord, ...]:
        """Return the cells of the undefended model that a setting is compared with."""
        wanted = self.baseline_of(label)
        return tuple(cell for cell in self.record.cells if cell.setting == wanted)


@dataclass(frozen=True)
class SearchRecord:
    """Everything that is known of a search.

    Attributes:
        trials: by number.
        confirmation: None until the search was confirmed.
    """

    header: SearchHeader
    trials: tuple[TrialRecord, ...]
    confirmation: Confirmation | None = None

    @property
    def complete(self) -> tuple[TrialRecord, ...]:
        return tuple(trial for trial in self.trials if trial.state == "complete")


class SearchLog:
    """The documents of one search in a store."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self.key = key

    @classmethod
    def open(cls, store: Store, header: SearchHeader) -> SearchLog:
        """Begin a search or go on with it; its name belongs to it from then on.

        Raises:
            ConfigError: another search has the name.
        """
        log = cls(store, header.key)
        taken = store.get_document(_name_document(header.name))
        if taken is not None and taken["key"] != header.key:
            held = cls(store, taken["key"]).header()
            raise ConfigError(
                f"another search is called {header.name!r}: it has {_difference(held, header)}. Give this one its own "
                "name with --name"
            )
        if taken is None:
            store.put_document(f"searches/{header.key}/header", header.to_json())
            store.put_document(_name_document(header.name), {"key": header.key})
        return log

    @classmethod
    def named(cls, store: Store, name: str) -> SearchLog:
        """Return the log of the search that is called `name`.

        Raises:
            ConfigError: there is none; names those there are.
        """
        taken = store.get_document(_name_document(name))
        if taken is None:
            names = search_names(store)
            raise ConfigError(f"no search is called {name!r}; searches: {', '.join(names) or 'none yet'}")
        return cls(store, taken["key"])

    def header(self) -> SearchHeader:
        """Return the header.

        Raises:
            ConfigError: it is gone, or written by another schema.
        """
        found = self._store.get_document(f"searches/{self.key}/header")
        if found is None:
            raise ConfigError(f"search {self.key[:12]} has no header in this store")
        return SearchHeader.from_json(found)

    def put_trial(self, trial: TrialRecord) -> None:
        self._store.put_document(f"searches/{self.key}/trials/{trial.number:06d}", trial.to_json())

    def trials(self) -> tuple[TrialRecord, ...]:
        """Return all trials by number."""
        names = self._store.list_documents(f"searches/{self.key}/trials")
        found = (self._store.get_document(name) for name in names)
        return tuple(TrialRecord.from_json(document) for document in found if document is not None)

    def put_confirmation(self, confirmation: Confirmation) -> None:
        plain = {**vars(confirmation), "record": confirmation.record.to_json()}
        plain["membership"] = {str(number): share for number, share in confirmation.membership.items()}
        self._store.put_document(f"searches/{self.key}/confirmation", plain)

    def confirmation(self) -> Confirmation | None:
        """Return what was confirmed last, or None."""
        found = self._store.get_document(f"searches/{self.key}/confirmation")
        if found is None:
            return None
        return Confirmation(
            plan_key=found["plan_key"],
            settings=found["settings"],
            membership={int(number): share for number, share in found["membership"].items()},
            record=RunRecord.from_json(found["record"]),
            baselines=found.get("baselines", {}),
        )

    def record(self) -> SearchRecord:
        """Return everything that is known of the search."""
        return SearchRecord(self.header(), self.trials(), self.confirmation())


def search_names(store: Store) -> list[str]:
    """Return the names of all searches in a store."""
    return [name.removeprefix("search_names/") for name in store.list_documents("search_names")]


def _name_document(name: str) -> str:
    return f"search_names/{name}"


def _difference(held: SearchHeader, asked: SearchHeader) -> str:
    fields: Iterable[str] = (
        *("objectives", "floors", "seeds", "rungs", "defense", "space", "experiment"),
        *("population", "generations"),
    )
    differing = [name for name in fields if getattr(held, name) != getattr(asked, name)]
    return f"other {' and other '.join(differing)}" if differing else "another schema"


def _plain_metrics(metrics: SeedMetrics) -> dict[str, Any]:
    return {
        str(seed): {key: value.to_json() for key, value in values.items()} for seed, values in sorted(metrics.items())
    }


def _metrics(data: Mapping[str, Any]) -> SeedMetrics:
    return {
        int(seed): {key: MetricValue.from_json(value) for key, value in values.items()} for seed, values in data.items()
    }
