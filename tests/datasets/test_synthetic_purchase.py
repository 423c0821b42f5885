"""The generator of synthetic rows, and the data set in the shape of Purchase100."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from oakum.datasets import base
from oakum.datasets._synthetic import Process, generate
from oakum.datasets.synthetic_purchase import SyntheticPurchase

SMALL = Process(
    rows=50,
    features=30,
    num_classes=4,
    popularity=(0.05, 0.9),
    exchanged=0.5,
    typicality_draws=2,
    seed=3,
)


def naive_rows(process: Process) -> tuple[list[list[int]], list[int]]:
    """The documented process, one number at a time and in floating point."""
    stream = np.random.RandomState(process.seed)
    low, high = process.popularity
    ratio = (high / low) ** (1 / (process.features - 1))
    spread = [int(low * ratio**j * 2**16) / 2**16 for j in range(process.features)]
    popularity = [spread[j] for j in stream.permutation(process.features)]
    classes = []
    for _ in range(process.num_classes):
        own = list(popularity)
        chosen = list(stream.permutation(process.features))[: round(process.exchanged * process.features)]
        for place, value in zip(chosen, [own[chosen[k]] for k in stream.permutation(len(chosen))], strict=True):
            own[place] = value
        classes.append(own)
    y = [int(row) % process.num_classes for row in stream.permutation(process.rows)]
    draws = stream.randint(0, 257, size=(process.rows, process.typicality_draws), dtype=np.int32)
    uniform = stream.randint(0, 2**16, size=(process.rows, process.features), dtype=np.uint16) / 2**16
    x = []
    for i, label in enumerate(y):
        typicality = max(draws[i].tolist()) / 256
        probability = [p + typicality * (q - p) for p, q in zip(popularity, classes[label], strict=True)]
        x.append([int(uniform[i, j] < np.floor(probability[j] * 2**16) / 2**16) for j in range(process.features)])
    return x, y


def test_rows_follow_the_documented_process() -> None:
    x, y = generate(SMALL)
    expected_x, expected_y = naive_rows(SMALL)
    assert y.tolist() == expected_y
    assert x.tolist() == expected_x
    assert x.dtype == np.uint8 and y.dtype == np.int64


def test_equal_seeds_give_equal_rows() -> None:
    first, again = generate(SMALL), generate(SMALL)
    other = generate(dataclasses.replace(SMALL, seed=4))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_without_exchange_classes_are_alike() -> None:
    alike = generate(dataclasses.replace(SMALL, rows=8000, exchanged=0.0))
    different = generate(dataclasses.replace(SMALL, rows=8000, exchanged=1.0))

    def spread(x: np.ndarray, y: np.ndarray) -> float:
        means = np.stack([x[y == label].mean(axis=0) for label in range(4)])
        return float(np.ptp(means, axis=0).max())

    assert spread(*alike) < 0.1
    assert spread(*different) > 0.3


def test_more_draws_make_rows_more_typical() -> None:
    process = dataclasses.replace(SMALL, rows=8000, exchanged=1.0)
    distances = []
    for draws in (1, 8):
        x, y = generate(dataclasses.replace(process, typicality_draws=draws))
        means = np.stack([x[y == label].mean(axis=0) for label in range(4)])
        distances.append(np.abs(means - means.mean(axis=0)).mean())
    # The mean typicality is 1/2 for one draw and 8/9 for eight.
    assert distances[1] / distances[0] == pytest.approx(16 / 9, rel=0.05)


def test_the_data_set_is_generated_and_says_so(data_home: Path) -> None:
    prepared = base.ensure_prepared("synthetic_purchase", data_home)
    samples = base.load_samples("synthetic_purchase", data_home)
    assert samples.x.shape == (20_000, 600)
    assert set(np.unique(samples.x)) == {0, 1}
    assert np.bincount(samples.y).tolist() == [200] * 100
    assert len(np.unique(samples.x, axis=0)) == 20_000
    assert prepared.matches_official
    assert prepared.public
    assert prepared.source == "generated, seed 600"
    for text in (prepared.license_note, SyntheticPurchase.summary, SyntheticPurchase.source.title, __doc__):
        assert "synthetic" in text.lower()
    assert all(name.startswith("synthetic") for name in prepared.class_names)


def test_some_rows_are_hard_for_the_best_linear_rule(data_home: Path) -> None:
    """What makes membership visible: classes can be told apart, but not for every row."""
    samples = base.load_samples(base.ensure_prepared("synthetic_purchase", data_home).name, data_home)
    x, y = samples.x.astype(np.float64), samples.y
    fitted = [x[:15_000][y[:15_000] == label] for label in range(100)]
    rate = np.stack([(rows.sum(axis=0) + 1) / (len(rows) + 2) for rows in fitted])
    scores = x[15_000:] @ np.log(rate).T + (1 - x[15_000:]) @ np.log1p(-rate).T
    accuracy = (scores.argmax(axis=1) == y[15_000:]).mean()
    assert 0.75 < accuracy < 0.97


def test_a_source_is_refused(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(base.DataError, match="synthetic data is generated; leave out --source"):
        base.prepare("synthetic_purchase", data_home, tmp_path)
