"""The command `oakum search`: settings of a defense, searched on measured leakage."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oakum.config import ConfigError, apply_overrides
from oakum.search.population import DEFAULT_MEMBERS
from oakum.search.protocol import BASELINE
from oakum.search.records import Confirmation, SearchLog, SearchRecord, search_names
from oakum.session_home import Home
from oakum.store import Store

if TYPE_CHECKING:
    from oakum.session_search import SearchResult

EXIT_FAILED_STAGE = 3
_WIDTH = 120


def add_search(commands: Any) -> None:
    """Add the command to the parser."""
    search = commands.add_parser(
        "search",
        help="find the settings of a defense that leak least for the accuracy they keep",
        epilog=(
            "Example: oakum search jobs/experiments/mnist5k_bido.yaml search_spaces/bido.yaml --trials 40 "
            "--objective 'min inversion/gmi/top1' --keep 'utility/val_accuracy >= 0.93'"
        ),
    )
    search.set_defaults(command="search")
    search.add_argument(
        "file", type=Path, metavar="EXPERIMENT", help="the experiment (YAML); its settings are not used"
    )
    search.add_argument("space", type=Path, metavar="SPACE", help="the search space (YAML), see search_spaces/")
    search.add_argument(
        "--objective",
        dest="objectives",
        action="append",
        default=[],
        metavar="TEXT",
        help="`min KEY` or `max KEY`; several make a Pareto front; `min 0.5*KEY + 0.5*KEY` is a weighted sum",
    )
    search.add_argument(
        "--keep",
        dest="floors",
        action="append",
        default=[],
        metavar="TEXT",
        help="a bound: `KEY >= NUMBER`, or relative to the undefended model: `KEY >= none - NUMBER`; may be repeated",
    )
    search.add_argument(
        "--trials", default="30", metavar="N", help="trials in all (default 30); +N: N more than there are"
    )
    search.add_argument(
        "--sampler",
        default="tpe",
        help="tpe (default), nsga2, random, grid: the space's own grid, or population: settings that change while a "
        "model trains",
    )
    search.add_argument(
        "--population",
        type=int,
        metavar="N",
        help=f"members of a generation, with --sampler population (default {DEFAULT_MEMBERS}); --trials is a multiple",
    )
    search.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampler (default 0)")
    search.add_argument("--grid-first", action="store_true", help="try the space's grid before anything is sampled")
    search.add_argument(
        "--rung",
        dest="rungs",
        action="append",
        default=[],
        metavar="PATH=VALUE ...",
        help="a cheaper form that a trial must pass first, such as recipe.epochs=5: the better third goes on; may be "
        "repeated, the cheapest first",
    )
    search.add_argument("--seeds-per-trial", type=int, default=1, metavar="N", help="seeds of every trial (default 1)")
    search.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="further seeds for candidates of the front (default 2)"
    )
    search.add_argument(
        "--confirm",
        type=int,
        default=3,
        metavar="N",
        help="confirm so many settings with the test folds, fresh seeds and the second judge (default 3; 0: none)",
    )
    search.add_argument("--name", help="name of the search (default: EXPERIMENT-DEFENSE)")
    search.add_argument("--concurrency", type=int, metavar="N", help="trials at a time (default: one for each CPU)")
    search.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE")
    search.add_argument("--executor", choices=["ray", "serial"], default="ray")
    search.add_argument("--max-cpus", type=float, default=os.environ.get("OAKUM_MAX_CPUS"), metavar="N")
    search.add_argument("--max-gpus", type=float, default=os.environ.get("OAKUM_MAX_GPUS"), metavar="N")
    search.add_argument("--no-tracking", action="store_true", help="do not write to MLflow")
    search.add_argument("--json", action="store_true", help="print the result as JSON on standard output")


def run_search(options: argparse.Namespace) -> int:
    """Run or continue a search; return 0, or 3 when every trial or a part of the confirmation failed."""
    from oakum import session_search
    from oakum.session_search_request import SearchOptions
    from oakum.session_trials import SharedStageError

    home = Home.of_environment()
    trials, more = _trials(options.trials)
    try:
        # Ray writes its warnings to standard output, which is for results.
        with redirect_stdout(sys.stderr):
            result = session_search.search(
                SearchOptions(
                    file=options.file,
                    space=options.space,
                    objectives=tuple(options.objectives),
                    floors=tuple(options.floors),
                    overrides=options.overrides,
                    name=options.name,
                    trials=trials,
                    more=more,
                    sampler=options.sampler,
                    seed=options.seed,
                    grid_first=options.grid_first,
                    seeds_per_trial=options.seeds_per_trial,
                    repeats=options.repeats,
                    confirm=options.confirm,
                    rungs=tuple(_rung(text) for text in options.rungs),
                    concurrency=options.concurrency,
                    population=options.population,
                    executor=options.executor,
                    max_cpus=float(options.max_cpus) if options.max_cpus else None,
                    max_gpus=float(options.max_gpus) if options.max_gpus else None,
                    track=not options.no_tracking,
                ),
                home,
            )
    except SharedStageError as error:
        sys.stderr.write(
            f"oakum: a stage that every trial needs failed: {error}\n"
            "oakum: no trial was recorded as failed for it. Mend the cause and run the same command again.\n"
        )
        return EXIT_FAILED_STAGE
    if options.json:
        _print_json(result.record, result.report)
    else:
        from oakum.tracking import where_to_look

        _print_table(result.record)
        sys.stdout.write(f"report:  {result.report}\nMLflow:  {where_to_look(home.folder)}\n")
    if result.warning:
        sys.stderr.write(result.warning + "\n")
    return _status(result)


def search_named(name: str, home: Home) -> bool:
    """Whether a search of this name is in the store."""
    return name in search_names(Store.open(home.store_uri))


def report_search(name: str, home: Home, *, as_json: bool) -> int:
    """Write a search's report again and print what it found."""
    from oakum.session_report import write_search_report

    record = SearchLog.named(Store.open(home.store_uri), name).record()
    report = write_search_report(record, home)
    if as_json:
        _print_json(record, report)
    else:
        _print_table(record)
        sys.stdout.write(f"report:  {report}\n")
    return 0


def sync_searches(store: Store, home: Home) -> list[str | None]:
    """Deliver every search to MLflow; return the warnings."""
    names = search_names(store)
    if not names:
        return []
    from oakum.tracking_search import deliver_search

    return [deliver_search(store, home.folder, SearchLog.named(store, name).key).warning for name in names]


def _print_json(record: SearchRecord, report: Path) -> None:
    sys.stdout.write(json.dumps(_summary(record, report), indent=2, allow_nan=False) + "\n")


def _print_table(record: SearchRecord) -> None:
    from oakum.report import search_terminal

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(search_terminal.render(record))
    else:
        sys.stdout.write(search_terminal.plain_text(record, width=_WIDTH))


def _summary(record: SearchRecord, report: Path) -> dict[str, Any]:
    confirmation = record.confirmation
    return {
        "name": record.header.name,
        "key": record.header.key,
        "objectives": record.header.objectives,
        "floors": record.header.floors,
        "trials": [
            {
                "number": trial.number,
                "origin": trial.origin,
                "state": trial.state,
                "point": trial.point,
                "parent": trial.parent,
                "values": trial.values,
                "violations": trial.violations,
                "latency": trial.latency,
                "stage_seconds": trial.stage_seconds,
                "error": trial.error,
            }
            for trial in record.trials
        ],
        "confirmed": None if confirmation is None else _confirmed(confirmation),
        "report": str(report),
    }


def _confirmed(confirmation: Confirmation) -> dict[str, Any]:
    """Return label -> trial, probability of being on the front, and every metric of every seed."""
    labels = dict.fromkeys((BASELINE, *confirmation.baselines.values(), *confirmation.settings))
    trials = {label: confirmation.settings.get(label) for label in labels}
    return {
        label: {
            "trial": number,
            "none": confirmation.baseline_of(label),
            "on_front": None if number is None else confirmation.membership[number],
            "seeds": {
                str(cell.seed): {key: metric.to_json() for key, metric in cell.metrics.items()}
                for cell in confirmation.record.cells
                if cell.setting == label
            },
        }
        for label, number in trials.items()
    }


def _status(result: SearchResult) -> int:
    from oakum.session_search import nearest_misses

    trials = result.record.trials
    if trials and all(trial.state == "failed" for trial in trials):
        sys.stderr.write(f"oakum: all {len(trials)} trials failed; the first: {trials[0].error}\n")
        return EXIT_FAILED_STAGE
    nearest = nearest_misses(result.record)
    if nearest:
        sys.stderr.write("oakum: no trial keeps every bound; the nearest:\n")
        for trial in nearest:
            missed = ", ".join(
                f"{text} missed by {violation:.4g}"
                for text, violation in zip(result.record.header.floors, trial.violations, strict=True)
                if violation
            )
            sys.stderr.write(f"  trial {trial.number} {trial.point}: {missed}\n")
    for failure in result.failures:
        sys.stderr.write(f"oakum: stage failed: {failure.stage.label}: {failure.error}\n")
    return EXIT_FAILED_STAGE if result.failures else 0


def _trials(text: str) -> tuple[int, bool]:
    number = text.removeprefix("+")
    if not number.isdecimal():
        raise ConfigError(f"--trials {text!r}: write a number, or +N for N more than there are")
    return int(number), text.startswith("+")


def _rung(text: str) -> dict[str, Any]:
    rung: dict[str, Any] = {}
    for assignment in text.split():
        path = assignment.partition("=")[0]
        value = apply_overrides({}, [f"value={assignment.partition('=')[2]}"]).get("value")
        if "=" not in assignment:
            raise ConfigError(f"--rung {text!r}: write PATH=VALUE, for example recipe.epochs=5")
        rung[path] = value
    return rung
