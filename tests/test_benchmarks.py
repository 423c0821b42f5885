"""Benchmarks with a short form still run; what they compare is asserted to be equal in there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
QUICK = sorted(file for file in BENCHMARKS.glob("*.py") if '"--quick"' in file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("file", QUICK, ids=lambda file: file.stem)
def test_the_short_form_of_a_benchmark_works(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "card.json"
    command = [sys.executable, str(file), "--quick", "--rounds", "1", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert answer.returncode == 0, answer.stderr
    card = json.loads(out.read_text())
    assert card["benchmark"] == f"{file.stem} (quick)" and card["results"] and card == json.loads(answer.stdout)


def test_the_benchmark_of_inversion_has_a_short_form() -> None:
    assert "inversion" in {file.stem for file in QUICK}
