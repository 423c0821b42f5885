"""Every experiment in jobs/experiments fits the code: its options, its methods, and how they go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from oakum.pipeline.experiment import resolve_experiment
from oakum.session import RunOptions, read_request

FILES = sorted((Path(__file__).parents[2] / "jobs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_bundled_experiment_resolves(file: Path) -> None:
    experiment = resolve_experiment(read_request(RunOptions(file)), file.name)
    assert experiment.file.name == file.stem.replace("_", "-") and experiment.file.description
    assert "none" in {method.name for method in experiment.settings.values()}, "nothing to compare defenses with"
    assert experiment.membership or experiment.inversion
    document = experiment.document()
    assert resolve_experiment(document, "again").document() == document
