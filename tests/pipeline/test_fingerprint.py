from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oakum import registry
from oakum.pipeline import fingerprint as module
from oakum.pipeline.fingerprint import fingerprint, package_digest


@pytest.fixture
def of_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return the fingerprint of a module with this source; each is a module of another package's folder."""
    folders = iter(range(100))

    def compute(source: str, below: str = "") -> str:
        folder = tmp_path / str(next(folders))
        (folder / "oakum").mkdir(parents=True)
        (folder / "oakum" / "method.py").write_text(source)
        (folder / "oakum" / "below.py").write_text(below)
        (folder / "oakum" / "config.py").write_text(below)
        monkeypatch.setattr(module, "PACKAGE_FOLDER", folder / "oakum")
        for cached in (module._source_file, module._tree, module._imports, module._tree_digest):
            cached.cache_clear()
        return fingerprint("oakum.method")

    yield compute
    monkeypatch.undo()
    for cached in (module._source_file, module._tree, module._imports, module._tree_digest):
        cached.cache_clear()


PLAIN = "def score(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\ndef score(x):\n    # why\n    return x + 1\n",
        '"""A docstring."""\ndef score(x):\n    """Another."""\n    return x + 1\n',
        "def score(x):\n\n    return (x+1)\n",
    ],
    ids=["comments", "docstrings", "layout"],
)
def test_what_computes_nothing_does_not_count(of_source, same: str) -> None:
    assert of_source(PLAIN) == of_source(same)


@pytest.mark.parametrize("other", [PLAIN.replace("1", "2"), PLAIN + "score = abs\n", PLAIN.replace("x", "y")])
def test_what_computes_counts(of_source, other: str) -> None:
    assert of_source(PLAIN) != of_source(other)


@pytest.mark.parametrize("line", ["from oakum.below import a", "from oakum import below", "import oakum.below"])
@pytest.mark.parametrize("place", ["{line}\n", "def late():\n    {line}\n"], ids=["at the top", "inside a function"])
def test_what_is_imported_counts(of_source, line: str, place: str) -> None:
    source = place.format(line=line)
    assert of_source(source, below="a = 1\n") != of_source(source, below="a = 2\n")


def test_configuration_and_what_is_not_imported_do_not_count(of_source) -> None:
    source = "from oakum.config import a\n"
    assert of_source(source, below="a = 1\n") == of_source(source, below="a = 2\n")


def test_modules_of_other_packages_have_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_third_party_defense.py").write_text("from oakum.defenses.base import Defense\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint("a_third_party_defense") != fingerprint("oakum.defenses.base")
    assert "a_third_party_defense" not in sys.modules


def test_a_fingerprint_does_not_depend_on_order() -> None:
    names = ["oakum.defenses.bido", "oakum.models.mlp"]
    assert fingerprint(*names) == fingerprint(*reversed(names)) != fingerprint(names[0])


@pytest.mark.parametrize("kind", ["train", "answers", "membership", "prior", "inversion", "judge"])
def test_no_stage_depends_on_what_only_shows_it(kind: str) -> None:
    closure: set[str] = set()
    module._collect(f"oakum.pipeline.stages.{kind}", closure)
    shown = {"cli", "session", "tracking", "report", "distributed", "progress", "inspection", "store", "catalog"}
    assert not {name.split(".")[1] for name in closure} & shown
    assert not {name for name in closure if name.startswith(("oakum.defenses.", "oakum.attacks.inversion."))}


def test_the_package_digest_sees_every_file() -> None:
    assert package_digest() == package_digest() and len(package_digest()) == 64
    assert registry.PACKAGE_FOLDER.is_dir()
