from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from oakum.datasets import base


def test_equals_scikit_learn(data_home: Path) -> None:
    prepared = base.prepare("digits", data_home)
    samples = base.load_samples("digits", data_home)
    expected = load_digits()
    np.testing.assert_array_equal(samples.y, expected.target)
    np.testing.assert_array_equal(samples.x[:, 0], np.floor(expected.images * 255 / 16 + 0.5))
    assert prepared.matches_official
    assert prepared.public
    assert (samples.x.min(), samples.x.max()) == (0, 255)
    assert prepared.parts == {"all": 1797}
    assert samples.identity is None


def test_users_file(data_home: Path, digits_csv: Path) -> None:
    prepared = base.prepare("digits", data_home, digits_csv.parent)
    assert prepared.rows == 30
    assert prepared.matches_official is False
    assert base.load_samples("digits", data_home, 16).x.shape == (30, 1, 16, 16)


@pytest.mark.parametrize("text", ["", "1,2,3", ",".join(["17"] * 64 + ["1"]), ",".join(["1"] * 64 + ["10"]), "a,b"])
def test_wrong_file(data_home: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "digits.csv"
    file.write_text(text)
    with pytest.raises(base.DataError, match=r"digits\.csv"):
        base.prepare("digits", data_home, file)


def test_cut_gzip(data_home: Path, digits_csv: Path) -> None:
    digits_csv.write_bytes(digits_csv.read_bytes()[:200])
    with pytest.raises(base.DataError, match=r"digits\.csv\.gz is not a whole gzip file"):
        base.prepare("digits", data_home, digits_csv)
