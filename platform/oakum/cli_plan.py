"""The command `oakum plan`: what an experiment would take on other machines, without running anything."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import Any

from oakum.cli_arguments import experiment_arguments
from oakum.config import ConfigError
from oakum.session_home import Home

# docs/scale.md says where the defaults come from.
_DRIVER_SECONDS = 0.01
_GANG_SECONDS = 30.0
_MLFLOW_RATE = 57.0


def add_plan(commands: Any) -> None:
    """Add the command to the subparsers of `oakum`."""
    text = "say how long an experiment would take on so many machines, and what bounds it; nothing is run"
    parser = commands.add_parser(
        "plan",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="Durations are those of stages in the store that are like the planned ones; for kinds that were never "
        "run give --seconds. Example: oakum plan jobs/experiments/quickstart.yaml --seeds 0-19 --simulate 4",
    )
    parser.set_defaults(command="plan")
    experiment_arguments(parser)
    parser.add_argument("--simulate", type=_count, required=True, metavar="NODES", help="number of equal machines")
    parser.add_argument(
        "--cpus-per-node",
        type=_count,
        default=_cpus_here(),
        metavar="N",
        help="CPUs of each (default: as many as this machine has)",
    )
    parser.add_argument("--gpus-per-node", type=_count_or_none, default=0, metavar="N", help="GPUs of each (default 0)")
    parser.add_argument(
        "--seconds",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND=S",
        help="seconds of a stage of this kind (train=60), or of this kind and method (train/dpsgd=600), instead of "
        "what the store says",
    )
    parser.add_argument("--from-scratch", action="store_true", help="as if nothing were stored yet")
    parser.add_argument(
        "--delay",
        type=_seconds,
        default=_DRIVER_SECONDS,
        metavar="S",
        help=f"seconds of the driver for each stage (default {_DRIVER_SECONDS})",
    )
    parser.add_argument(
        "--gang-delay",
        type=_seconds,
        default=_GANG_SECONDS,
        metavar="S",
        help=f"seconds that a training with several workers takes to start (default {_GANG_SECONDS:g})",
    )
    parser.add_argument(
        "--mlflow-rate",
        type=_rate,
        default=_MLFLOW_RATE,
        metavar="N",
        help=f"calls that MLflow takes a second from one thread (default {_MLFLOW_RATE:g})",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON on standard output")


def run_plan(options: argparse.Namespace) -> int:
    """Print what a run would take and return 0.

    Raises:
        ConfigError: see `simulate_experiment`; also `--seconds` that are no number.
    """
    from oakum.session import RunOptions
    from oakum.session_simulation import Delays, Nodes, SimulationRequest, simulate_experiment

    request = SimulationRequest(
        nodes=Nodes(options.simulate, options.cpus_per_node, options.gpus_per_node),
        seconds=_given(options.seconds),
        from_scratch=options.from_scratch,
        delays=Delays(stage=options.delay, gang=options.gang_delay),
        calls_per_second=options.mlflow_rate,
    )
    run = RunOptions(file=options.file, overrides=options.overrides, seeds=options.seeds)
    summary = simulate_experiment(run, request, Home.of_environment())
    sys.stdout.write(json.dumps(summary, indent=2, allow_nan=False) + "\n" if options.json else describe(summary))
    return 0


def describe(summary: dict[str, Any]) -> str:
    """Return the text form of a simulated run."""
    nodes, todo = summary["nodes"], summary["stages"] - summary["stored"]
    node = f"{_number(nodes['cpus'], 'CPU')} and {_number(nodes['gpus'], 'GPU')}"
    lines = [
        f"{summary['name']} on {_number(nodes['count'], 'node')} of {node}",
        f"{summary['stages']} stages: {summary['stored']} stored, {todo} to run",
    ]
    if not todo:
        return "\n".join([*lines, "nothing to do; --from-scratch simulates all of it"]) + "\n"
    lines += [
        "",
        f"makespan       {_time(summary['makespan_seconds'])}",
        f"work           {summary['cpu_hours']:.3g} CPU hours, {summary['gpu_hours']:.3g} GPU hours",
        f"critical path  {_time(summary['critical_path']['seconds'])}, {summary['critical_path']['stages']} stages, "
        "the longest:",
        *(f"    {each['seconds']:>9.1f} s  {each['label']}" for each in summary["critical_path"]["longest"]),
        "",
        "busy, in per cent, by tenths of the makespan",
        *_trace("CPUs", summary["busy_cpus"]),
        *(_trace("GPUs", summary["busy_gpus"]) if nodes["gpus"] else []),
        "",
        f"{'kind':<12}{'stages':>8}{'seconds':>12}{'median':>10}",
    ]
    for kind, row in summary["kinds"].items():
        lines.append(f"{kind:<12}{row['stages']:>8}{row['seconds']:>12.1f}{row['median_seconds']:>10.2f}")
    known = ", ".join(f"{count} by {basis}" for basis, count in summary["durations"].items())
    lines += [f"durations are known: {known}", *(f"note: {text}" for text in summary["notes"])]
    return "\n".join([*lines, "", *_traffic(summary), "", *_bounds(summary)]) + "\n"


def _traffic(summary: dict[str, Any]) -> list[str]:
    store, tracking = summary["store"], summary["tracking"]
    unknown, requests = store["entries_of_unknown_size"], store["requests"]
    verdict = "keeps up" if tracking["keeps_up"] else "falls behind: the rest is delivered after the last stage"
    return [
        f"store    {store['entries']:,} entries, {store['bytes'] / 1e6:,.1f} MB"
        + (f" (and {unknown:,} entries of unknown size)" if unknown else ""),
        f"         about {sum(requests.values()):,} requests: {requests['workers']:,} of workers, "
        f"{requests['driver']:,} of the driver, {requests['tracking']:,} of tracking",
        f"MLflow   {tracking['writes']:,} writes and {tracking['reads']:,} reads, {_time(tracking['seconds'])} at "
        f"{tracking['calls_per_second']:g} calls/s: {verdict}",
    ]


def _bounds(summary: dict[str, Any]) -> list[str]:
    makespan = summary["makespan_seconds"]
    rows = [
        f"    {name:<14}{_time(seconds):>14}" + (f"{seconds / makespan:>7.0%} of the makespan" if makespan else "")
        for name, seconds in sorted(summary["bounds"].items(), key=lambda item: -item[1])
        if seconds
    ]
    bound = f"bound by: {summary['stages_bound_by']}"
    return ["each by itself takes", *rows, bound + ("" if summary["tracking"]["keeps_up"] else ", then by tracking")]


def _trace(name: str, busy: dict[str, Any]) -> list[str]:
    tenths = "".join(f"{100 * part:>5.0f}" for part in busy["by_tenth"])
    return [f"{name}{tenths}   mean {100 * busy['mean']:.0f}"]


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def _given(texts: list[str]) -> dict[str, float]:
    """Return `<kind>` or `<kind>/<method>` -> seconds."""
    given: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            seconds = float(number)
        except ValueError:
            seconds = math.nan
        if not name or not 0 <= seconds < math.inf:
            raise ConfigError(f"--seconds {text}: write KIND=SECONDS, such as train=60 or train/dpsgd=600")
        given[name] = seconds
    return given


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number of at least 1")
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _rate(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value
