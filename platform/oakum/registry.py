"""Methods are found by scanning the package folders: a new file is a new method, and no list is edited.

The name of a method in YAML is its file's stem (`defenses/bido.py` is `bido`; `defenses/base.py` is the
undefended baseline `none`). Files that start with `_` are shared code. Third-party packages add methods with
entry points of the groups `oakum.defenses`, `oakum.attacks.membership`, ...; code named in a YAML is never run.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from oakum.config import ConfigError, shortened

PACKAGE_FOLDER = Path(__file__).parent

KINDS: dict[str, str] = {
    "defenses": "oakum.defenses",
    "attacks.membership": "oakum.attacks.membership",
    "attacks.inversion": "oakum.attacks.inversion",
    "datasets": "oakum.datasets",
    "models": "oakum.models",
    "priors": "oakum.models.priors",
    "extractors": "oakum.models.extractors",
}
_BASELINE_NAMES = {"defenses": "none"}
_ALIASES = {"defenses": {"vanilla": "none", "reg": "none"}}


@dataclass(frozen=True)
class Source:
    """Where a method comes from: facts for citation, shown by `oakum list` and in docs/methods.md."""

    title: str
    authors: str
    venue: str
    year: int
    link: str = ""


class UnknownMethodError(ConfigError):
    """A name that no installed method carries; the message lists the nearest ones."""


@cache
def available(kind: str) -> dict[str, str]:
    """Return {name: dotted module path} for every method of `kind`, sorted by name.

    `kind` is a key of `KINDS`. Nothing is imported: built-in methods are read from the folder's file names.
    """
    package = KINDS[kind]
    folder = PACKAGE_FOLDER.joinpath(*package.split(".")[1:])
    found = {}
    for file in sorted(folder.glob("*.py")):
        if file.stem.startswith("_"):
            continue
        if file.stem == "base":
            if kind in _BASELINE_NAMES:
                found[_BASELINE_NAMES[kind]] = f"{package}.base"
            continue
        found[file.stem] = f"{package}.{file.stem}"
    for entry in entry_points(group=f"oakum.{kind}"):
        found.setdefault(entry.name, entry.value.split(":")[0])
    return dict(sorted(found.items()))


def canonical_name(kind: str, name: str) -> str:
    """Return the registered name for `name` (aliases resolved).

    Raises:
        UnknownMethodError: no such method; names the nearest.
    """
    name = _ALIASES.get(kind, {}).get(name, name)
    names = available(kind)
    if name not in names:
        nearest = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise UnknownMethodError(
            f"unknown {_singular(kind)} {shortened(repr(name))}{hint} (available: {', '.join(names)})"
        )
    return name


def load(kind: str, name: str) -> type[Any]:
    """Import and return the method's class: the one public class with a nested `Config` that its module defines.

    Raises:
        UnknownMethodError: no such method.
        TypeError: the module does not hold exactly one such class.
    """
    module = importlib.import_module(available(kind)[canonical_name(kind, name)])
    classes = [
        member
        for member_name, member in vars(module).items()
        if inspect.isclass(member)
        and member.__module__ == module.__name__
        and not member_name.startswith("_")
        and inspect.isclass(getattr(member, "Config", None))
    ]
    if len(classes) != 1:
        raise TypeError(
            f"{module.__name__} must define exactly one public class with a nested Config, found {len(classes)}"
        )
    return classes[0]


def _singular(kind: str) -> str:
    return {
        "defenses": "defense",
        "attacks.membership": "membership attack",
        "attacks.inversion": "inversion attack",
        "datasets": "data set",
        "models": "model",
        "priors": "prior",
        "extractors": "extractor",
    }[kind]
