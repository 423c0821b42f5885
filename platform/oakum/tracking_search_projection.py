"""What a search looks like in MLflow: its records as parts, each of which a call writes to its runs.

A part is known by the digest of what it is made from, so that only what changed is delivered again.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from oakum.records import CellRecord, MetricValue, StageRef, canonical_json, sha256_hex
from oakum.search.card import (
    complete_mean,
    confirmed_cells,
    confirmed_means,
    front_numbers,
    front_probability,
    leakage_card,
    parameter_names,
    progress,
    readme,
    recommended,
)
from oakum.search.objectives import parse_objective
from oakum.search.population import phases
from oakum.search.records import Confirmation, SearchRecord, SeedMetrics, TrialRecord
from oakum.store import Manifest, Store, StoreError
from oakum.tracking_delivery import parent_params, pretty
from oakum.tracking_runs import flatten
from oakum.tracking_search_runs import SearchRuns

# Part of every part's digest: a change of what is shown, and SCHEMA with it, delivers every search anew.
SCHEMA = 1
_STATUS = {"running": "RUNNING", "complete": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Part:
    """Something to deliver.

    Attributes:
        content: plain JSON that it is made from.
        write: may be called again.
    """

    name: str
    content: Any
    write: Callable[[SearchRuns], None]

    @property
    def digest(self) -> str:
        return sha256_hex(canonical_json([SCHEMA, self.content]))


class Projection:
    """One search, as it was read from the store."""

    def __init__(self, store: Store, record: SearchRecord) -> None:
        self._store = store
        self._record = record
        self._header = record.header
        self._objectives = [parse_objective(text) for text in record.header.objectives]
        self._names = parameter_names(record)
        self._recommended = recommended(record)

    def parts(self) -> Iterator[Part]:
        """Yield the search, its trials, its confirmed settings and its model, in the order of delivery."""
        record, front = self._record, front_numbers(self._objectives, self._record.trials)
        results = [[trial.number, trial.state, trial.values, trial.violations] for trial in record.trials]
        yield Part("search", [asdict(self._header), results, self._recommended], self._write_search)
        for trial in record.trials:
            content = [trial.to_json(), trial.number in front, self._names]
            yield Part(f"trial {trial.number}", content, partial(self._write_trial, trial, trial.number in front))
        if record.confirmation is None:
            return
        for label in confirmed_cells(record.confirmation):
            content = [leakage_card(record, label), self._names]
            name = f"confirmed {label} of {record.confirmation.plan_key}"
            yield Part(name, content, partial(self._write_confirmed, record.confirmation, label))
        if self._recommended is None:
            yield Part("model", None, SearchRuns.recommend_none)
        else:
            card = leakage_card(record, self._recommended)
            yield Part("model", card, partial(self._write_model, record.confirmation, self._recommended, card))

    def _write_search(self, runs: SearchRuns) -> None:
        header, trials = self._header, self._record.trials
        run_id = runs.search(self._begin(trials[0]) if trials else None)
        runs.params(run_id, parent_params(header.experiment))
        runs.text(run_id, pretty(header.to_json()), "search.json")
        states: Counter[str] = Counter(trial.state for trial in trials)
        counts = {f"trials/{state}": states[state] for state in _STATUS}
        ended = {"step": len(trials) - states["running"], **counts}
        runs.history(run_id, [ended, *progress(self._objectives, trials)], "", runs.started(run_id))
        asked = f"Searches settings of {header.defense}: {'; '.join((*header.objectives, *header.floors))}."
        tags = {
            "mlflow.note.content": "\n\n".join((asked, *header.notes)),
            "oakum.defense": header.defense,
            "oakum.search.key": header.key,
            "oakum.search.objectives": "; ".join(header.objectives),
            "oakum.search.floors": "; ".join(header.floors),
            "oakum.search.seeds": ", ".join(map(str, header.seeds)),
            "oakum.search.notes": "\n".join(header.notes),
            "oakum.search.recommended": self._recommended,
            "oakum.code.package": ", ".join(sorted({trial.package for trial in trials} - {""})),
        }
        runs.retag(run_id, tags)
        # That of the last trial which came to any: reading those of all would cost more with every trial.
        stages = next((trial.stages for trial in reversed(trials) if trial.stages), ())
        end = self._stored(stages) or runs.started(run_id)
        runs.settle(run_id, "RUNNING" if states["running"] else "FINISHED", end)

    def _write_trial(self, trial: TrialRecord, is_on_front: bool, runs: SearchRuns) -> None:
        run_id = runs.below("trial", str(trial.number), f"trial {trial.number}", self._begin(trial))
        end = self._stored(trial.stages) or runs.started(run_id) + trial.latency
        runs.params(run_id, self._params(trial))
        if trial.state != "running":
            prefix = self._prefix(trial)
            cost = {
                "trial/latency": MetricValue(trial.latency),
                "trial/stage_seconds": MetricValue(trial.stage_seconds),
            }
            means = _means(trial.metrics, self._header.seeds) | self._sums(trial.values or ())
            runs.values(run_id, {f"{prefix}{name}": value for name, value in self._first(means).items()} | cost, end)
            runs.history(run_id, _seed_rows(trial.metrics), prefix, end)
            self._write_curve(run_id, trial, runs)
        kinds = dict.fromkeys(ref.kind for ref in trial.stages)
        keys = {kind: ", ".join(ref.key for ref in trial.stages if ref.kind == kind) for kind in kinds}
        tags = {
            "oakum.trial.number": trial.number,
            "oakum.trial.state": trial.state,
            "oakum.trial.origin": trial.origin,
            "oakum.trial.rung": trial.rung,
            "oakum.trial.parent": trial.parent,
            "oakum.trial.feasible": str(trial.is_feasible).lower() if trial.state == "complete" else "",
            "oakum.trial.on_front": str(is_on_front).lower(),
            "oakum.trial.error": trial.error,
            "oakum.code.package": trial.package,
            **{f"oakum.stages.{kind}": text for kind, text in keys.items()},
        }
        runs.retag(run_id, tags)
        runs.settle(run_id, _STATUS[trial.state], end)

    def _write_curve(self, run_id: str, trial: TrialRecord, runs: SearchRuns) -> None:
        training = self._training(trial)
        if training is not None and "history.json" in training.files:
            rows = json.loads(self._store.read(training, "history.json"))["epochs"]
            runs.history(run_id, rows, "", training.created)

    def _write_confirmed(self, confirmation: Confirmation, label: str, runs: SearchRuns) -> None:
        cells, number = confirmed_cells(confirmation)[label], confirmation.settings.get(label)
        stored = self._stored(ref for cell in cells for ref in cell.stages.values())
        run_id = runs.below(*_place(confirmation, label), stored or time.time())
        end = stored or runs.started(run_id)
        for trial in self._record.trials:
            if trial.number == number:
                runs.params(run_id, self._params(trial))
        metrics = {cell.seed: cell.metrics for cell in cells}
        sums = self._sums(confirmed_means(self._header, cells))
        runs.values(run_id, self._first(_means(metrics, tuple(metrics)) | sums), end)
        runs.history(run_id, _seed_rows(metrics), "", end)
        tags = {
            "oakum.setting": label,
            "oakum.trial.number": number,
            "oakum.confirmation.plan_key": confirmation.plan_key,
            "oakum.confirmation.front_probability": front_probability(confirmation, label),
            "oakum.stages.target": ", ".join(_target(cell).key for cell in cells),
            **flatten(confirmation.record.code, "oakum.code"),
        }
        runs.retag(run_id, tags)
        runs.settle(run_id, "FINISHED", end)

    def _write_model(self, confirmation: Confirmation, label: str, card: Mapping[str, Any], runs: SearchRuns) -> None:
        cell = confirmed_cells(confirmation)[label][0]
        stage = _target(cell)
        manifest = self._store.manifest(stage.kind, stage.key)
        if manifest is None:
            raise StoreError(f"the store does not hold the weights of {label} any more: run the search again")
        weights = {"file": _WEIGHTS, "seed": cell.seed, "stage": asdict(stage), **manifest.files[_WEIGHTS]}
        texts = {
            "leakage_card.json": pretty({**card, "weights": weights}),
            "README.md": readme(self._header, label, cell.seed),
        }
        files = [self._store.fetch(manifest, name) for name in (_WEIGHTS, "config.json")]
        runs.put_model(runs.below(*_place(confirmation, label), manifest.created), files, texts)

    def _prefix(self, trial: TrialRecord) -> str:
        """Return what keeps values of a cheaper form or a shorter training out of the columns of the whole."""
        if not self._header.is_trained_to_the_end(trial.number):
            return f"generation_{self._header.generation_of(trial.number)}/"
        return "" if trial.rung == len(self._header.rungs) else f"rung_{trial.rung}/"

    def _params(self, trial: TrialRecord) -> dict[str, str]:
        """Return a trial's settings; of a schedule those of its last phase as numbers, and the whole as text."""
        found = phases(self._header, trial, {each.number: each for each in self._record.trials})
        schedule = {phase.begin: self._named(phase.point) for phase in found}
        return flatten(self._named(trial.point)) | ({"schedule": json.dumps(schedule)} if len(schedule) > 1 else {})

    def _named(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return {self._names[path]: value for path, value in point.items()}

    def _first(self, metrics: dict[str, MetricValue]) -> dict[str, MetricValue]:
        """Return the metrics with the objectives first: MLflow's compare page preselects the first metric."""
        sums = [key for key in metrics if key.startswith("objective/")]
        own = [key for objective in self._objectives for key in objective.keys]
        return {key: metrics[key] for key in [*sums, *own] if key in metrics} | metrics

    def _sums(self, values: Iterable[float | None]) -> dict[str, MetricValue]:
        """Return the values of weighted objectives, which are no metrics of their own, by number from 1."""
        numbered = enumerate(zip(self._objectives, values, strict=False), 1)
        return {
            f"objective/{number}": MetricValue(value)
            for number, (objective, value) in numbered
            if objective.terms != ((1.0, objective.keys[0]),)
        }

    def _manifests(self, refs: Iterable[StageRef]) -> list[Manifest]:
        return list(self._store.manifests(refs).values())

    def _stored(self, refs: Iterable[StageRef]) -> float | None:
        """Return when the last of some stages was stored, in Unix seconds."""
        return max((manifest.created for manifest in self._manifests(refs)), default=None)

    def _begin(self, trial: TrialRecord) -> float:
        end = None if trial.state == "running" else self._stored(trial.stages)
        return time.time() if end is None else end - trial.latency

    def _training(self, trial: TrialRecord) -> Manifest | None:
        """Return the training of the first seed's target at the last rung.

        A trial's stages have no roles; they stand in the order of rungs and seeds. Targets are trained with the
        searched defense on the fold `train`, teachers on other rows or with another defense.
        """
        targets = []
        for manifest in self._manifests(ref for ref in trial.stages if ref.kind in {"train", "snapshot"}):
            config = manifest.key_document.get("config", {})
            of_defense = config.get("defense", {}).get("name") == self._header.defense
            if of_defense and config.get("folds", {}).get("train") == "train" and "rows" not in config:
                targets.append((config.get("seed"), manifest))
        of_first_seed = [manifest for seed, manifest in targets if seed == targets[0][0]]
        return of_first_seed[-1] if of_first_seed else None


def _means(metrics: SeedMetrics, seeds: Sequence[int]) -> dict[str, MetricValue]:
    """Return the means over seeds by metric key; without a value where a seed has none."""
    keys = sorted({key for values in metrics.values() for key in values})
    none = MetricValue(None)
    return {
        key: MetricValue(complete_mean(metrics.get(seed, {}).get(key, none).value for seed in seeds)) for key in keys
    }


def _seed_rows(metrics: SeedMetrics) -> list[dict[str, Any]]:
    """Return a row for every seed, whose step is the seed's number."""
    return [
        {"step": seed, **{f"seeds/{key}": value.value for key, value in values.items()}}
        for seed, values in sorted(metrics.items())
    ]


def _place(confirmation: Confirmation, label: str) -> tuple[str, str, str]:
    return "confirmed", f"{confirmation.plan_key}|{label}", f"confirmed {label}"


def _target(cell: CellRecord) -> StageRef:
    return cell.stages["target.clean"]
