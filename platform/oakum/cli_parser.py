"""The parser of the command line: every command, option and help text."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from oakum import __version__
from oakum.cli_arguments import experiment_arguments, not_negative, positive, whole
from oakum.cli_gate import add_gate
from oakum.cli_import import add_import
from oakum.cli_plan import add_plan
from oakum.cli_search import add_search

METHOD_LISTS = {
    "defenses": ["defenses"],
    "attacks": ["attacks.membership", "attacks.inversion"],
    "datasets": ["datasets"],
    "models": ["models"],
    "priors": ["priors"],
    "extractors": ["extractors"],
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="oakum",
        description="Train privacy-defended models, attack them, and compare what leaks with what it costs.",
        epilog="Start with: oakum run jobs/experiments/quickstart.yaml",
    )
    parser.add_argument("--version", action="version", version=f"oakum {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_check(commands)
    add_plan(commands)
    add_search(commands)
    _add_list(commands)
    _add_data(commands)
    _add_weights(commands)
    add_import(commands)
    _add_audit(commands)
    add_gate(commands)
    _add_report(commands)
    _add_store(commands)
    _add_small(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = _command(
        commands, "run", "run", "train, attack and compare: run an experiment (what is stored is not run again)"
    )
    experiment_arguments(run)
    run.add_argument(
        "--executor",
        choices=["ray", "serial"],
        default="ray",
        help="ray (default): in parallel; serial: in this process",
    )
    run.add_argument(
        "--max-cpus",
        type=positive,
        default=os.environ.get("OAKUM_MAX_CPUS"),
        metavar="N",
        help="CPUs that the cluster's autoscaler may reach (default: $OAKUM_MAX_CPUS, else what is there)",
    )
    run.add_argument(
        "--max-gpus",
        type=positive,
        default=os.environ.get("OAKUM_MAX_GPUS"),
        metavar="N",
        help="GPUs that the cluster's autoscaler may reach (default: $OAKUM_MAX_GPUS, else what is there)",
    )
    run.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="STAGES",
        help="run only this part (target, shadow, attack, evaluation, prior) or kind (train, ...); may be repeated",
    )
    run.add_argument(
        "--skip", action="append", default=[], metavar="STAGES", help="do not run this part or kind; may be repeated"
    )
    run.add_argument(
        "--max-hours", type=positive, metavar="H", help="start nothing more after this time; run again to go on"
    )
    run.add_argument(
        "--checkpoint-seconds",
        type=not_negative,
        default=20.0,
        metavar="S",
        help="keep unfinished training at most this often (default 20)",
    )
    run.add_argument("--no-tracking", action="store_true", help="do not write to MLflow")
    run.add_argument("--json", action="store_true", help="print the results as JSON on standard output")


def _add_check(commands: Any) -> None:
    check = _command(
        commands, "check", "check", "show what an experiment would do: resolved settings, stages, what is stored"
    )
    experiment_arguments(check)
    check.add_argument("--json", action="store_true", help="print as JSON")


def _add_list(commands: Any) -> None:
    listing = _command(
        commands, "list", "list", "show the installed defenses, attacks, data sets, models, priors, extractors"
    )
    listing.add_argument("what", nargs="?", choices=sorted(METHOD_LISTS), help="one kind (default: all)")
    listing.add_argument("--json", action="store_true", help="print as JSON: name, kind, summary, source")


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="get and check data sets")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = _command(actions, "list", "data_list", "show data sets and whether they are prepared")
    listing.add_argument("--json", action="store_true")
    prepare = _command(actions, "prepare", "data_prepare", "get a data set, check it, and store it as Parquet")
    prepare.add_argument("name")
    prepare.add_argument("--source", type=Path, help="file or folder that you already have, in the official layout")
    prepare.add_argument("--force", action="store_true", help="prepare again even if it is there")
    verify = _command(actions, "verify", "data_verify", "read a prepared data set and check every checksum")
    verify.add_argument("name")


def _add_weights(commands: Any) -> None:
    weights = commands.add_parser("weights", help="get and check the published weights of feature networks")
    actions = weights.add_subparsers(required=True, metavar="ACTION")
    listing = _command(actions, "list", "weights_list", "show feature networks and whether their weights are there")
    listing.add_argument("--json", action="store_true")
    prepare = _command(actions, "prepare", "weights_prepare", "get published weights, check them, and convert them")
    prepare.add_argument("name", help="an extractor (`oakum list extractors`)")
    prepare.add_argument("--source", type=Path, help="the published file or package that you already have")
    prepare.add_argument("--force", action="store_true", help="prepare again even if they are there")
    verify = _command(actions, "verify", "weights_verify", "read weights and check their checksum")
    verify.add_argument("name")


def _add_audit(commands: Any) -> None:
    audit = _command(
        commands, "audit", "audit", "attack a model that you already have: can its training samples be recognized?"
    )
    audit.add_argument("--model", required=True, metavar="NAME", help="its architecture (`oakum list models`)")
    audit.add_argument(
        "--model-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the architecture (width=8, mean=[0.5]); may be repeated",
    )
    audit.add_argument(
        "--norm",
        choices=["model", "group"],
        default="model",
        help="group: batch normalization was replaced by group normalization",
    )
    audit.add_argument("--num-classes", type=whole, required=True, metavar="K", help="its number of classes")
    audit.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="its state dict: .safetensors, or saved by torch"
    )
    audit.add_argument(
        "--members",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npz with x and y: a random sample of what it was trained on",
    )
    audit.add_argument(
        "--nonmembers",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npz with x and y of the same distribution that it has never seen",
    )
    for name in ("weights", "members", "nonmembers"):
        audit.add_argument(
            f"--shadow-{name}", type=Path, metavar="FILE", help=f"{name} of a shadow model, trained alike on other data"
        )
    audit.add_argument(
        "--attacks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="(default: all of `oakum list attacks` that these files allow)",
    )
    audit.add_argument(
        "--gradient-points",
        type=whole,
        metavar="N",
        help="attacks on gradients take the first N samples of each file (default: all)",
    )
    audit.add_argument("--seed", type=int, default=0, metavar="N", help="of the attacks and intervals (default 0)")
    audit.add_argument("--output", type=Path, metavar="FOLDER", help="write audit.json there")
    audit.add_argument("--json", action="store_true", help="print the results as JSON on standard output")


def _add_report(commands: Any) -> None:
    report = _command(commands, "report", "report", "write the HTML report again and print the table")
    report.add_argument("run", help="experiment name, or the beginning of a plan key")
    report.add_argument("--json", action="store_true", help="print the results as JSON on standard output")


def _add_store(commands: Any) -> None:
    store = commands.add_parser("store", help="look into the store, check it, clean it")
    actions = store.add_subparsers(required=True, metavar="ACTION")
    listing = _command(actions, "ls", "store_ls", "list stored stages")
    listing.add_argument("kind", nargs="?", help="only this kind (train, prior, membership, ...)")
    listing.add_argument("--json", action="store_true")
    show = _command(actions, "show", "store_show", "print one entry's manifest")
    show.add_argument("key", help="key or its beginning")
    verify = _command(actions, "verify", "store_verify", "check every stored byte against its checksum")
    verify.add_argument("kind", nargs="?")
    gc = _command(
        actions, "gc", "store_gc", "remove what no plan, pin or registered model needs (shows only, unless --delete)"
    )
    gc.add_argument("--delete", action="store_true", help="really remove")
    gc.add_argument(
        "--min-age-hours", type=not_negative, default=24.0, metavar="H", help="keep anything younger (default 24)"
    )
    gc.add_argument("--json", action="store_true")


def _add_small(commands: Any) -> None:
    why = _command(
        commands, "why", "why", "say which part of a stage's key differs from its nearest relative in the store"
    )
    why.add_argument("key", help="key or its beginning, of a stored stage")
    _command(commands, "doctor", "doctor", "check Python, Ray, store, MLflow, disk, threads and GPU")
    _command(commands, "ui", "ui", "print the command that opens the MLflow UI, and run it").add_argument(
        "--print", action="store_true", dest="print_only", help="only print it"
    )
    _command(commands, "sync", "sync", "deliver to MLflow what an earlier run could not")


def _command(commands: Any, name: str, command: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser
