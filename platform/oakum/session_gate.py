"""The release gate: finds what a model's name stands for in the store, and holds it against bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from oakum.config import ConfigError
from oakum.pipeline.collect import collect
from oakum.pipeline.executor import stale_input
from oakum.records import CellRecord, RunRecord
from oakum.search.card import recommended
from oakum.search.gate import Bound, Verdict, judge, parse_bound
from oakum.search.records import SearchLog, search_names
from oakum.session_home import Home
from oakum.store import Manifest, Store

_TRIAL = "trial-"
_SHORTEST_KEY = 8


@dataclass(frozen=True)
class GateResult:
    """What the gate says of a setting.

    Attributes:
        model: name of the search or run.
        setting: its label; None if a search has confirmed none and none was asked for.
        verdicts: one for each bound.
        note: what a reader should know of how the name was understood, or "".
    """

    model: str
    setting: str | None
    verdicts: tuple[Verdict, ...]
    note: str = ""

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        bounds = [verdict.to_json() for verdict in self.verdicts]
        return {"model": self.model, "setting": self.setting, "passed": self.passed, "bounds": bounds}


@dataclass(frozen=True)
class _Candidate:
    """A setting, its cells, and why no number of it may pass."""

    setting: str | None
    cells: tuple[CellRecord, ...]
    doubts: tuple[str, ...]
    note: str = ""


def run_gate(model: str, maxima: Sequence[str], minima: Sequence[str], home: Home) -> GateResult:
    """Hold a setting against bounds.

    Args:
        model: `NAME` or `NAME:SETTING`; the name is a search's, else an experiment's (its latest plan), else the
            beginning of a plan key.
        maxima, minima: `KEY<=NUMBER` and `KEY>=NUMBER`.

    Raises:
        ConfigError: no bound or a wrong one, an unknown name or setting, or several settings that may be meant.
    """
    bounds = [parse_bound(text, "max") for text in maxima] + [parse_bound(text, "min") for text in minima]
    if not bounds:
        raise ConfigError("a gate needs a bound: add --max KEY<=NUMBER or --min KEY>=NUMBER")
    store = Store.open(home.store_uri)
    name, _, setting = model.partition(":")
    find = _in_search if name in search_names(store) else _in_run
    candidate = find(name, setting, store)
    return GateResult(name, candidate.setting, _judge_all(bounds, candidate), candidate.note)


def _judge_all(bounds: Iterable[Bound], candidate: _Candidate) -> tuple[Verdict, ...]:
    return tuple(judge(bound, candidate.cells, candidate.doubts) for bound in bounds)


def _in_search(name: str, setting: str, store: Store) -> _Candidate:
    log = SearchLog.named(store, name)
    confirmation = log.confirmation()
    labels = confirmation.settings if confirmation is not None else {}
    label = setting if setting in labels else _label_of_trial(setting, labels)
    if setting and label is None:
        _require_trial(log, name, setting, labels)
        return _Candidate(setting, (), (f"{setting} was not confirmed: it was measured on validation folds alone",))
    if confirmation is None:
        return _Candidate(None, (), ("the search was not confirmed: it was measured on validation folds alone",))
    confirmed = [cell for cell in confirmation.record.cells if cell.setting in labels]
    if label is None and (best := recommended(log.record())) is not None and len(labels) > 1:
        return _candidate(confirmation.record, best, store, f"{best} is what search {name!r} recommends")
    return _candidate(confirmation.record, label or _only_setting(name, confirmed), store)


def _label_of_trial(setting: str, labels: dict[str, int]) -> str | None:
    return next((label for label, number in labels.items() if setting == f"{_TRIAL}{number}"), None)


def _require_trial(log: SearchLog, name: str, setting: str, labels: dict[str, int]) -> None:
    """Refuse a setting that is none of the search's trials.

    Raises:
        ConfigError: names the confirmed settings.
    """
    trials = {f"{_TRIAL}{trial.number}" for trial in log.trials()}
    if setting not in trials:
        raise ConfigError(
            f"search {name!r} has no setting {setting!r}; confirmed: {', '.join(labels) or 'none yet'}; or write "
            f"{name}:trial-N for one of its {len(trials)} trials"
        )


def _in_run(name: str, setting: str, store: Store) -> _Candidate:
    plans = _plans(name, store)
    record = max(plans, key=lambda plan: _created(plan, store))
    labels = dict.fromkeys(cell.setting for cell in record.cells)
    if setting and setting not in labels:
        raise ConfigError(f"run {name!r} has no setting {setting!r}; its settings: {', '.join(labels)}")
    note = f"{len(plans)} plans are called {name!r}; this is the latest, {record.plan_key[:12]}"
    label = setting or _only_setting(name, record.cells)
    return _candidate(record, label, store, note if len(plans) > 1 else "")


def _plans(name: str, store: Store) -> list[RunRecord]:
    """Return the records of all plans of an experiment, else of those whose key begins so.

    Raises:
        ConfigError: there is none; names what there is.
    """
    documents = [store.get_document(document) for document in store.list_documents("plans")]
    plans = [plan for plan in documents if plan is not None]
    found = [plan for plan in plans if plan["name"] == name]
    if not found and len(name) >= _SHORTEST_KEY:
        found = [plan for plan in plans if plan["skeleton"]["plan_key"].startswith(name)]
    if not found:
        runs = ", ".join(sorted({plan["name"] for plan in plans})) or "none yet"
        searches = ", ".join(search_names(store)) or "none yet"
        raise ConfigError(f"no search or run is called {name!r}; searches: {searches}; runs: {runs}")
    return [collect(plan["skeleton"], store) for plan in found]


def _created(record: RunRecord, store: Store) -> float:
    """Return when the last stage of a plan was stored."""
    manifests = store.manifests(ref for cell in record.cells for ref in cell.stages.values())
    return max((manifest.created for manifest in manifests.values()), default=0.0)


def _only_setting(name: str, cells: Iterable[CellRecord]) -> str:
    """Return the one setting that is a defense's.

    Raises:
        ConfigError: there are several or none; lists them.
    """
    all_labels = dict.fromkeys(cell.setting for cell in cells)
    defended = dict.fromkeys(cell.setting for cell in cells if cell.defense != "none")
    if len(defended) != 1:
        raise ConfigError(f"which setting of {name!r}? Write {name}:SETTING with one of: {', '.join(all_labels)}")
    return next(iter(defended))


def _candidate(record: RunRecord, setting: str, store: Store, note: str = "") -> _Candidate:
    cells = tuple(cell for cell in record.cells if cell.setting == setting)
    held = _held(record, cells, store)
    return _Candidate(setting, cells, (*_incomplete(cells, held), *_chosen_by(held)), note)


def _held(record: RunRecord, cells: Iterable[CellRecord], store: Store) -> dict[str, Manifest]:
    """Return the stored manifests of some cells and of what all cells share, by key."""
    refs = {ref for cell in cells for ref in cell.stages.values()} | {item.stage for item in record.shared}
    return {ref.key: manifest for ref, manifest in store.manifests(refs).items()}


def _incomplete(cells: Iterable[CellRecord], held: dict[str, Manifest]) -> list[str]:
    """Return what is said of stages that are not stored, or were made from other inputs than those stored now."""
    stages = [(f"{role} of seed {cell.seed}", ref.key) for cell in cells for role, ref in cell.stages.items()]
    missing = [name for name, key in stages if key not in held]
    stale = [name for name, key in stages if key in held and stale_input(held[key], held)]
    doubts = [f"{len(missing)} stages are missing, such as {missing[0]}; run it to its end"] if missing else []
    return doubts + ([f"{len(stale)} stages are out of date, such as {stale[0]}; run it again"] if stale else [])


def _chosen_by(held: dict[str, Manifest]) -> list[str]:
    """Return a doubt where membership attacks met the fold by which settings are chosen.

    A record's configuration does not say so: the stages do.
    """
    attacks = [manifest for manifest in held.values() if manifest.kind == "membership"]
    folds = {attack.key_document["config"].get("nonmembers", "an unknown fold") for attack in attacks}
    others = ", ".join(sorted(folds - {"test"}))
    return [f"not confirmed: attacks took non-members from {others}, not from test"] if others else []
