from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oakum.datasets import base
from oakum.datasets.synthetic_texas import SyntheticTexas


def test_the_data_set_is_generated_and_says_so(data_home: Path) -> None:
    prepared = base.ensure_prepared("synthetic_texas", data_home)
    samples = base.load_samples("synthetic_texas", data_home)
    assert samples.x.shape == (8_000, 6_169)
    assert samples.x.max() == 1
    assert 0.05 < samples.x.mean() < 0.1, "sparse, as hospital records are"
    assert np.bincount(samples.y).tolist() == [80] * 100
    assert prepared.matches_official
    assert prepared.public
    assert prepared.source == "generated, seed 6169"
    for text in (prepared.license_note, SyntheticTexas.summary, SyntheticTexas.source.title):
        assert "synthetic" in text.lower()


def test_a_source_is_refused(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(base.DataError, match="synthetic data is generated; leave out --source"):
        base.prepare("synthetic_texas", data_home, tmp_path)
