"""No golden vector is left out: each key is answered for by a module of this folder or listed as excluded."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def owned_patterns() -> list[re.Pattern[str]]:
    patterns = []
    for file in sorted(HERE.glob("test_*_vectors.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "OWNS":
                patterns.append(re.compile(ast.literal_eval(node.value)))
    return patterns


@pytest.mark.parametrize("file", sorted((HERE / "data").glob("*.npz")), ids=lambda file: file.stem)
def test_every_key_has_an_owner(file: Path) -> None:
    owners = owned_patterns()
    keys = np.load(file, allow_pickle=False).files
    assert keys and owners
    assert [key for key in keys if not any(owner.match(key) for owner in owners)] == []
