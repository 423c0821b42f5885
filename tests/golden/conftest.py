"""Golden vectors: outputs of the published code, discovered in every npz of a folder.

The folder is $OAKUM_GOLDEN, by default `data/` here; another file of the same layout (more cases, other sizes) is
tested without a change. A test module states what it checks:

* OWNS: a regular expression for the keys that it answers for.
* RULES: (regular expression with a group `case`, check or None). The first rule that matches a key puts it under
  that case; one case is one test. None marks inputs, which get no test of their own.

A key that a module owns and no rule matches becomes a failing test that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile

FOLDER = Path(os.environ.get("OAKUM_GOLDEN") or Path(__file__).parent / "data")


@dataclass(frozen=True)
class GoldenCase:
    """One case: `name` is its prefix in the file, `groups` what its rule's pattern captured."""

    path: Path
    name: str
    groups: dict[str, str]
    check: Callable[[GoldenCase], None]

    def __getitem__(self, key: str) -> Any:
        """Return an array of the file by its full key."""
        return _load(self.path)[key]

    def __contains__(self, key: str) -> bool:
        return key in _load(self.path).files

    def at(self, suffix: str) -> Any:
        """Return the array at `<case>/<suffix>`."""
        return self[f"{self.name}/{suffix}"]

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a tensor by its full key."""
        return torch.from_numpy(np.asarray(self[key])).to(dtype)


@cache
def _load(path: Path) -> NpzFile:
    return np.load(path, allow_pickle=False)


def _unchecked(case: GoldenCase) -> None:
    pytest.fail(f"no check is written for {case.name}")


def _discover(module: Any) -> list[GoldenCase]:
    rules = [(re.compile(pattern), check) for pattern, check in module.RULES]
    cases: dict[tuple[Path, str], GoldenCase] = {}
    for path in sorted(FOLDER.glob("*.npz")):
        for key in _load(path).files:
            if not re.match(module.OWNS, key):
                continue
            found = next(((match, check) for rule, check in rules if (match := rule.fullmatch(key))), None)
            if found is None:
                cases[path, key] = GoldenCase(path, key, {}, _unchecked)
            elif found[1] is not None:
                name = found[0]["case"]
                cases.setdefault((path, name), GoldenCase(path, name, found[0].groupdict(), found[1]))
    return list(cases.values())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        cases = _discover(metafunc.module)
        metafunc.parametrize("golden_case", cases, ids=[f"{case.path.stem}:{case.name}" for case in cases])


def pytest_sessionstart(session: pytest.Session) -> None:
    if not list(FOLDER.glob("*.npz")):
        raise pytest.UsageError(
            f"no golden vectors (*.npz) in {FOLDER}; unset OAKUM_GOLDEN or point it to their folder"
        )
