"""The command line. Heavy libraries are imported by the commands that need them, never here."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from oakum.cli_parser import METHOD_LISTS, build_parser
from oakum.config import ConfigError
from oakum.registry import KINDS, UnknownMethodError
from oakum.session_home import Home

EXIT_BAD_CONFIG = 2
EXIT_FAILED_STAGE = 3
_PLAIN_WIDTH = 120


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends the run as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 well, 2 bad configuration, 3 a stage failed, 4 a gate failed."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status: int = _COMMANDS[options.command](options)
    except (ConfigError, UnknownMethodError) as error:
        sys.stderr.write(f"oakum: {error}\n")
        return EXIT_BAD_CONFIG
    except _known_failures() as error:
        sys.stderr.write(f"oakum: {error}{_what_helps(error)}\n")
        return EXIT_FAILED_STAGE
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 0
    except KeyboardInterrupt as stop:
        _stop_now(stop)
    return status


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, as after `oakum list | head -1`."""
    try:
        sys.stdout.flush()
        watch = select.poll()
        watch.register(sys.stdout, 0)
    except BrokenPipeError:
        return True
    except OSError:  # a stream without a descriptor is no pipe
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0))


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


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def _run(options: argparse.Namespace) -> int:
    from oakum import session
    from oakum.report import terminal

    home = Home.of_environment()
    unknown = sorted({*options.only, *options.skip} - session.STAGE_KINDS - session.STAGE_PARTS)
    if unknown:
        parts, kinds = (", ".join(sorted(names)) for names in (session.STAGE_PARTS, session.STAGE_KINDS))
        raise ConfigError(f"unknown stage {unknown[0]!r}; parts: {parts}; kinds: {kinds}")
    # Ray writes its warnings to standard output, which is for results.
    with redirect_stdout(sys.stderr):
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
    from oakum import session, session_check

    home = Home.of_environment()
    request = session.RunOptions(file=options.file, overrides=options.overrides, seeds=options.seeds)
    summary = session_check.check(request, home)
    if options.json:
        _print_json(summary)
    else:
        sys.stdout.write(session_check.describe_check(summary))
    return 0


def _gate(options: argparse.Namespace) -> int:
    from oakum.cli_gate import gate

    return gate(options)


def _plan(options: argparse.Namespace) -> int:
    from oakum.cli_plan import run_plan

    return run_plan(options)


def _search(options: argparse.Namespace) -> int:
    from oakum.cli_search import run_search

    return run_search(options)


def _list(options: argparse.Namespace) -> int:
    from oakum.catalog import describe_methods

    kinds = METHOD_LISTS[options.what] if options.what else list(KINDS)
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
    from oakum.datasets.base import list_data

    entries = list_data(Home.of_environment().data)
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
    from oakum.datasets.base import prepare

    def show(text: str, fraction: float | None) -> None:
        sys.stderr.write(f"{text}\n" if fraction is None else f"{text} {fraction:.0%}\n")

    prepared = prepare(options.name, Home.of_environment().data, options.source, options.force, progress=show)
    sys.stdout.write(
        f"{prepared.name}: {prepared.rows} rows of shape {prepared.shape}, digest {prepared.digest[:16]}, "
        f"from {prepared.source}\n"
    )
    if prepared.matches_official is False:
        sys.stderr.write("oakum: these files differ from the official ones; results are not comparable with others'\n")
    return 0


def _data_verify(options: argparse.Namespace) -> int:
    from oakum.datasets.base import verify

    prepared = verify(options.name, Home.of_environment().data)
    sys.stdout.write(
        f"{prepared.name}: {prepared.rows} rows are as their manifest says (digest {prepared.digest[:16]})\n"
    )
    return 0


def _weights_list(options: argparse.Namespace) -> int:
    from oakum import cli_weights

    return cli_weights.list_all(as_json=options.json)


def _weights_prepare(options: argparse.Namespace) -> int:
    from oakum import cli_weights

    return cli_weights.prepare(options.name, options.source, force=options.force)


def _weights_verify(options: argparse.Namespace) -> int:
    from oakum import cli_weights

    return cli_weights.verify(options.name)


def _import_bido(options: argparse.Namespace) -> int:
    from oakum import cli_import

    return cli_import.run_import(options)


def _import_torchvision(options: argparse.Namespace) -> int:
    from oakum import cli_import

    return cli_import.run_torchvision_import(options)


def _audit(options: argparse.Namespace) -> int:
    from oakum.audit import run_audit
    from oakum.audit_inputs import AuditRequest, ModelFiles
    from oakum.audit_text import conclusions, describe

    shadow = [options.shadow_weights, options.shadow_members, options.shadow_nonmembers]
    if any(shadow) and not all(shadow):
        raise ConfigError("a shadow model needs all of --shadow-weights, --shadow-members and --shadow-nonmembers")
    request = AuditRequest(
        model=options.model,
        num_classes=options.num_classes,
        target=ModelFiles(options.weights, options.members, options.nonmembers),
        shadow=ModelFiles(*shadow) if all(shadow) else None,
        model_options=tuple(options.model_option),
        norm=options.norm,
        attacks=tuple(options.attacks),
        gradient_points=options.gradient_points,
        seed=options.seed,
    )
    found = run_audit(request, progress=lambda text: _show(f"oakum: {text}"))
    data = found.to_json() | {"conclusions": conclusions(found)}
    if options.output is not None:
        _write_audit(options.output, data)
    if options.json:
        _print_json(data)
    else:
        sys.stdout.write(describe(found))
    return 0


def _show(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _write_audit(folder: Path, data: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "audit.json").write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot write there: {error.strerror or error}") from error


def _report(options: argparse.Namespace) -> int:
    from oakum.cli_search import report_search, search_named
    from oakum.report import terminal
    from oakum.session_report import report_again

    home = Home.of_environment()
    if search_named(options.run, home):
        return report_search(options.run, home, as_json=options.json)
    record, path = report_again(options.run, home)
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

    from oakum.tracking import where_to_look

    command = where_to_look(Home.of_environment().folder)
    sys.stdout.write(command + "\n")
    if options.print_only or command.startswith("http"):
        return 0
    return subprocess.run(command, shell=True, check=False).returncode


def _sync(options: argparse.Namespace) -> int:
    from oakum.cli_search import sync_searches
    from oakum.store import Store
    from oakum.tracking import sync

    home = Home.of_environment()
    store = Store.open(home.store_uri)
    status = sync(store, home.folder)
    sys.stdout.write(f"delivered {status.delivered}, waiting {status.pending}\n")
    warnings = [status.warning, *sync_searches(store, home)]
    for warning in filter(None, warnings):
        sys.stderr.write(f"{warning}\n")
    return EXIT_FAILED_STAGE if status.pending or any(warnings[1:]) else 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "check": _check,
    "plan": _plan,
    "search": _search,
    "list": _list,
    "data_list": _data_list,
    "data_prepare": _data_prepare,
    "data_verify": _data_verify,
    "weights_list": _weights_list,
    "weights_prepare": _weights_prepare,
    "weights_verify": _weights_verify,
    "import_bido": _import_bido,
    "import_torchvision": _import_torchvision,
    "audit": _audit,
    "gate": _gate,
    "report": _report,
    "store_ls": _store_ls,
    "store_show": _store_show,
    "store_verify": _store_verify,
    "store_gc": _store_gc,
    "why": _why,
    "doctor": _doctor,
    "ui": _ui,
    "sync": _sync,
}


if __name__ == "__main__":
    sys.exit(main())
