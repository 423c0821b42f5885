"""Tiny data in the official layouts, written by the tests."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def data_home(tmp_path: Path) -> Path:
    return tmp_path / "home" / "data"


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of packed files beside the checkout; the test is skipped where it is absent."""
    if not (SHARED_DATA / "location30.npz").is_file():
        pytest.skip(f"the packed data sets are not at {SHARED_DATA}")
    monkeypatch.setenv("OAKUM_SHARED_DATA", str(SHARED_DATA))
    return SHARED_DATA


@pytest.fixture
def no_shared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packed files anywhere."""
    monkeypatch.setattr("oakum.datasets._download._packed_candidates", lambda file_name, source: [])


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist_files() -> dict[str, bytes]:
    """The four idx files with 40 training and 20 test digits."""
    generator = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, size=(count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files[f"{prefix}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(labels)
    return files


@pytest.fixture
def write_mnist(mnist_files: dict[str, bytes]) -> Callable[..., Path]:
    def write(folder: Path, *, packed: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in mnist_files.items():
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
        return folder

    return write


@pytest.fixture
def digits_csv(tmp_path: Path) -> Path:
    """A file like scikit-learn's with 30 lines."""
    generator = np.random.default_rng(1)
    rows = [[*generator.integers(0, 17, size=64).tolist(), i % 10] for i in range(30)]
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))
    return path
