"""The command line. Heavy libraries are imported by the commands that need them, never here."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from oakum import __version__
from oakum.config import ConfigError
from oakum.registry import KINDS, UnknownMethodError

EXIT_BAD_CONFIG = 2
EXIT_FAILED_STAGE = 3
_PLAIN_WIDTH = 120

_LISTS = {
    "defenses": ["defenses"],
    "attacks": ["attacks.membership", "attacks.inversion"],
    "datasets": ["datasets"],
    "models": ["models"],
    "priors": ["priors"],
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends the run as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 well, 2 bad configuration, 3 a stage failed, 4 a gate failed."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command_function"):
        parser.print_help()
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status: int = options.command_function(options)
    except (ConfigError, UnknownMethodError) as error:
        sys.stderr.write(f"oakum: {error}\n")
        return EXIT_BAD_CONFIG
    except _known_failures() as error:
        sys.stderr.write(f"oakum: {error}{_what_helps(error)}\n")
        return EXIT_FAILED_STAGE
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt as stop:
        _stop_now(stop)
    return status


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _stop_now(stop: KeyboardInterrupt) -> NoReturn:
    """Leave at once: a stage may still run in a thread of this process; its checkpoint stands in the store."""
    sys.stderr.write("\noakum: stopped; the same command goes on where this run left off\n")
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(143 if isinstance(stop, _Terminated) else 130)


def _known_failures() -> tuple[type[Exception], ...]:
    from oakum.store import DamagedEntryError, StoreError

    return (StoreError, DamagedEntryError)


def _what_helps(error: Exception) -> str:
    from oakum.store import DamagedEntryError

    return "; it was set aside: run the experiment again" if isinstance(error, DamagedEntryError) else ""


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
    _add_list(commands)
    _add_data(commands)
    _add_report(commands)
    _add_store(commands)
    _add_small(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = _command(
        commands, "run", _run, "train, attack and compare: run an experiment (what is stored is not run again)"
    )
    _experiment_arguments(run)
    run.add_argument(
        "--executor",
        choices=["ray", "serial"],
        default="ray",
        help="ray (default): in parallel; serial: in this process",
    )
    run.add_argument(
        "--max-cpus",
        type=_positive,
        default=os.environ.get("OAKUM_MAX_CPUS"),
        metavar="N",
        help="CPUs that the cluster's autoscaler may reach (default: $OAKUM_MAX_CPUS, else what is there)",
    )
    run.add_argument(
        "--max-gpus",
        type=_positive,
        default=os.environ.get("OAKUM_MAX_GPUS"),
        metavar="N",
        help="GPUs that the cluster's autoscaler may reach (default: $OAKUM_MAX_GPUS, else what is there)",
    )
    run.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KIND",
        help="run only stages of this kind (train, prior, ...); may be repeated",
    )
    run.add_argument(
        "--skip", action="append", default=[], metavar="KIND", help="do not run stages of this kind; may be repeated"
    )
    run.add_argument(
        "--max-hours", type=_positive, metavar="H", help="start nothing more after this time; run again to go on"
    )
    run.add_argument(
        "--checkpoint-seconds",
        type=_not_negative,
        default=20.0,
        metavar="S",
        help="keep unfinished training at most this often (default 20)",
    )
    run.add_argument("--no-tracking", action="store_true", help="do not write to MLflow")
    run.add_argument("--json", action="store_true", help="print the results as JSON on standard output")


def _add_check(commands: Any) -> None:
    check = _command(
        commands, "check", _check, "show what an experiment would do: resolved settings, stages, what is stored"
    )
    _experiment_arguments(check)
    check.add_argument("--json", action="store_true", help="print as JSON")


def _add_list(commands: Any) -> None:
    listing = _command(commands, "list", _list, "show the installed defenses, attacks, data sets, models and priors")
    listing.add_argument("what", nargs="?", choices=sorted(_LISTS), help="one kind (default: all)")
    listing.add_argument("--json", action="store_true", help="print as JSON: name, kind, summary, source")


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="get and check data sets")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = _command(actions, "list", _data_list, "show data sets and whether they are prepared")
    listing.add_argument("--json", action="store_true")
    prepare = _command(actions, "prepare", _data_prepare, "get a data set, check it, and store it as Parquet")
    prepare.add_argument("name")
    prepare.add_argument("--source", type=Path, help="file or folder that you already have, in the official layout")
    prepare.add_argument("--force", action="store_true", help="prepare again even if it is there")
    verify = _command(actions, "verify", _data_verify, "read a prepared data set and check every checksum")
    verify.add_argument("name")


def _add_report(commands: Any) -> None:
    report = _command(commands, "report", _report, "write the HTML report again and print the table")
    report.add_argument("run", help="experiment name, or the beginning of a plan key")
    report.add_argument("--json", action="store_true", help="print the results as JSON on standard output")


def _add_store(commands: Any) -> None:
    store = commands.add_parser("store", help="look into the store, check it, clean it")
    actions = store.add_subparsers(required=True, metavar="ACTION")
    listing = _command(actions, "ls", _store_ls, "list stored stages")
    listing.add_argument("kind", nargs="?", help="only this kind (train, prior, membership, ...)")
    listing.add_argument("--json", action="store_true")
    show = _command(actions, "show", _store_show, "print one entry's manifest")
    show.add_argument("key", help="key or its beginning")
    verify = _command(actions, "verify", _store_verify, "check every stored byte against its checksum")
    verify.add_argument("kind", nargs="?")
    gc = _command(
        actions, "gc", _store_gc, "remove what no plan, pin or registered model needs (shows only, unless --delete)"
    )
    gc.add_argument("--delete", action="store_true", help="really remove")
    gc.add_argument(
        "--min-age-hours", type=_not_negative, default=24.0, metavar="H", help="keep anything younger (default 24)"
    )
    gc.add_argument("--json", action="store_true")


def _add_small(commands: Any) -> None:
    why = _command(
        commands, "why", _why, "say which part of a stage's key differs from its nearest relative in the store"
    )
    why.add_argument("key", help="key or its beginning, of a stored stage")
    _command(commands, "doctor", _doctor, "check Python, Ray, store, MLflow, disk, threads and GPU")
    _command(commands, "ui", _ui, "print the command that opens the MLflow UI, and run it").add_argument(
        "--print", action="store_true", dest="print_only", help="only print it"
    )
    _command(commands, "sync", _sync, "deliver to MLflow what an earlier run could not")


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command_function=function)
    return parser


def _experiment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="experiment YAML")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="PATH=VALUE",
        help="change one value (settings.relaxloss.alpha=0.5)",
    )
    parser.add_argument("--seeds", type=_seeds, metavar="N-M", help="seeds to run: 0-4 or 0,3,7")


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write 0-4 or 0,3,7") from error
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} names no seed")
    return seeds


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def _run(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.report import terminal

    home = session.Home.of_environment()
    unknown = sorted({*options.only, *options.skip} - session.STAGE_KINDS)
    if unknown:
        raise ConfigError(f"unknown stage kind {unknown[0]!r}; kinds: {', '.join(sorted(session.STAGE_KINDS))}")
    result = session.run(
        session.RunOptions(
            file=options.file,
            overrides=options.overrides,
            seeds=options.seeds,
            executor=options.executor,
            max_cpus=options.max_cpus,
            max_gpus=options.max_gpus,
            only=tuple(options.only),
            skip=tuple(options.skip),
            max_hours=options.max_hours,
            track=not options.no_tracking,
            checkpoint_seconds=options.checkpoint_seconds,
        ),
        home,
    )
    if options.json:
        _print_json(
            terminal.summary(result.record)
            | {"report": str(result.report), "failed": [f.stage.label for f in result.failures]}
        )
    else:
        _print_table(result.record)
        _print_places(result, home)
    return _explain_failures(result)


def _print_table(record: Any) -> None:
    from oakum.report import terminal

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(terminal.render(record))
    else:
        sys.stdout.write(terminal.plain_text(record, width=_PLAIN_WIDTH))


def _print_places(result: Any, home: Any) -> None:
    from oakum.tracking import where_to_look

    lines = [f"report:  {result.report}"] if result.report else []
    lines.append(f"MLflow:  {where_to_look(home.folder)}")
    if not result.ran and not result.failures and not result.skipped:
        lines.append("everything was stored already; nothing was run")
    sys.stdout.write("\n".join(lines) + "\n")
    if result.tracking is not None and result.tracking.warning:
        sys.stderr.write(result.tracking.warning + "\n")


def _explain_failures(result: Any) -> int:
    for failure in result.failures:
        sys.stderr.write(
            f"\noakum: stage failed: {failure.stage.label} ({failure.stage.kind} {failure.stage.key[:12]})\n"
        )
        sys.stderr.write(f"  {failure.error}\n")
        sys.stderr.write("".join(f"  | {line}\n" for line in failure.trace.rstrip().splitlines()[-8:]))
    if result.failures:
        waiting = f"; {len(result.skipped)} stages that need it were not run" if result.skipped else ""
        sys.stderr.write(f"oakum: everything else is stored{waiting}. Mend the cause and run the same command again.\n")
        return EXIT_FAILED_STAGE
    if result.skipped:
        sys.stderr.write(
            f"oakum: {len(result.skipped)} stages were not run (--only, --skip or --max-hours); run again to go on\n"
        )
    return 0


def _check(options: argparse.Namespace) -> int:
    from oakum import session

    home = session.Home.of_environment()
    request = session.RunOptions(file=options.file, overrides=options.overrides, seeds=options.seeds)
    summary = session.check(request, home)
    if options.json:
        _print_json(summary)
    else:
        sys.stdout.write(session.describe_check(summary))
    return 0


def _list(options: argparse.Namespace) -> int:
    from oakum.catalog import describe_methods

    kinds = _LISTS[options.what] if options.what else list(KINDS)
    methods = [entry for kind in kinds for entry in describe_methods(kind)]
    if options.json:
        _print_json(methods)
        return 0
    width = max((len(entry["name"]) for entry in methods), default=0)
    for kind in kinds:
        sys.stdout.write(f"{kind}\n")
        for entry in (each for each in methods if each["kind"] == kind):
            cited = (
                f"  [{entry['source']['authors']}, {entry['source']['venue']} {entry['source']['year']}]"
                if entry["source"]
                else ""
            )
            sys.stdout.write(f"  {entry['name']:<{width}}  {entry['summary']}{cited}\n")
    return 0


def _data_list(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.datasets.base import list_data

    entries = list_data(session.Home.of_environment().data)
    if options.json:
        _print_json(
            [
                {
                    "name": e.name,
                    "summary": e.summary,
                    "kind": e.kind,
                    "public": e.public,
                    "prepared": e.prepared is not None,
                    "problem": e.problem,
                }
                for e in entries
            ]
        )
        return 0
    for entry in entries:
        state = (
            "prepared"
            if entry.prepared
            else "comes with a package"
            if entry.embedded
            else f"oakum data prepare {entry.name}"
        )
        sys.stdout.write(f"{entry.name:<12} {entry.summary}\n{'':<12} {entry.problem or state}\n")
    return 0


def _data_prepare(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.datasets.base import prepare

    def show(text: str, fraction: float | None) -> None:
        sys.stderr.write(f"{text}\n" if fraction is None else f"{text} {fraction:.0%}\n")

    prepared = prepare(options.name, session.Home.of_environment().data, options.source, options.force, progress=show)
    sys.stdout.write(
        f"{prepared.name}: {prepared.rows} rows of shape {prepared.shape}, digest {prepared.digest[:16]}, "
        f"from {prepared.source}\n"
    )
    if prepared.matches_official is False:
        sys.stderr.write("oakum: these files differ from the official ones; results are not comparable with others'\n")
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.datasets.base import verify

    prepared = verify(options.name, session.Home.of_environment().data)
    sys.stdout.write(
        f"{prepared.name}: {prepared.rows} rows are as their manifest says (digest {prepared.digest[:16]})\n"
    )
    return 0


def _report(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.report import terminal

    home = session.Home.of_environment()
    record, path = session.report_again(options.run, home)
    if options.json:
        _print_json(terminal.summary(record) | {"report": str(path)})
        return 0
    _print_table(record)
    sys.stdout.write(f"report:  {path}\n")
    return 0


def _store_ls(options: argparse.Namespace) -> int:
    from oakum import inspection

    return inspection.list_entries(options.kind, as_json=options.json)


def _store_show(options: argparse.Namespace) -> int:
    from oakum import inspection

    return inspection.show_entry(options.key)


def _store_verify(options: argparse.Namespace) -> int:
    from oakum import inspection

    return inspection.verify_entries(options.kind)


def _store_gc(options: argparse.Namespace) -> int:
    from oakum import inspection

    return inspection.collect_garbage(delete=options.delete, min_age_hours=options.min_age_hours, as_json=options.json)


def _why(options: argparse.Namespace) -> int:
    from oakum import inspection

    return inspection.explain_key(options.key)


def _doctor(options: argparse.Namespace) -> int:
    from oakum.doctor import examine

    return examine()


def _ui(options: argparse.Namespace) -> int:
    import subprocess

    from oakum import session
    from oakum.tracking import where_to_look

    command = where_to_look(session.Home.of_environment().folder)
    sys.stdout.write(command + "\n")
    if options.print_only or command.startswith("http"):
        return 0
    return subprocess.run(command, shell=True, check=False).returncode


def _sync(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.store import Store
    from oakum.tracking import sync

    home = session.Home.of_environment()
    status = sync(Store.open(home.store_uri), home.folder)
    sys.stdout.write(f"delivered {status.delivered}, waiting {status.pending}\n")
    if status.warning:
        sys.stderr.write(status.warning + "\n")
    return EXIT_FAILED_STAGE if status.pending else 0


if __name__ == "__main__":
    sys.exit(main())
