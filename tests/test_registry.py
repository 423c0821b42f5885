"""Methods are found by their files' names, and loaded by the one class that their module defines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from oakum import registry
from oakum.config import ConfigError
from oakum.registry import UnknownMethodError, available, canonical_name, load


@pytest.fixture(autouse=True)
def _fresh_listing() -> Iterator[None]:
    available.cache_clear()
    yield
    available.cache_clear()


@pytest.fixture
def method_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `somewhere.defenses` that stands in for the built-in one."""
    folder = tmp_path / "somewhere" / "defenses"
    folder.mkdir(parents=True)
    (folder / "base.py").write_text("class Base:\n    class Config: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", tmp_path / "somewhere")
    monkeypatch.setitem(registry.KINDS, "defenses", "somewhere.defenses")
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "somewhere"]:
        del sys.modules[name]


def test_none_is_the_base_class_of_defenses() -> None:
    assert available("defenses")["none"] == "oakum.defenses.base"
    assert load("defenses", "none").__name__ == "Defense"


@pytest.mark.parametrize("alias", ["vanilla", "reg"])
def test_other_names_of_the_baseline_are_accepted(alias: str) -> None:
    assert canonical_name("defenses", alias) == "none"
    assert load("defenses", alias) is load("defenses", "none")


@pytest.mark.parametrize("kind", sorted(registry.KINDS))
def test_every_method_loads(kind: str) -> None:
    for name in available(kind):
        assert load(kind, name).Config.model_config["extra"] == "forbid", f"{kind} {name}"


@pytest.mark.parametrize("kind", sorted(set(registry.KINDS) - {"defenses"}))
def test_only_defenses_have_a_baseline(kind: str) -> None:
    assert not {"none", "base"} & set(available(kind))


def test_a_new_file_is_a_new_method(method_folder: Path) -> None:
    (method_folder / "mine.py").write_text(
        "from somewhere.defenses.base import Base\n"
        "class _Shared(Base): pass\n"
        "class Result: pass\n"
        "class Mine(_Shared):\n    class Config: pass\n"
    )
    (method_folder / "_shared.py").write_text("raise RuntimeError('shared code is not a method')\n")
    assert list(available("defenses")) == ["mine", "none"]
    assert load("defenses", "mine").__name__ == "Mine"


def test_listing_imports_nothing(method_folder: Path) -> None:
    (method_folder / "broken.py").write_text("raise RuntimeError('imported')\n")
    assert "broken" in available("defenses")
    with pytest.raises(RuntimeError, match="imported"):
        load("defenses", "broken")


@pytest.mark.parametrize(
    "code", ["x = 1\n", "class A:\n    class Config: pass\nclass B:\n    class Config: pass\n"], ids=["no class", "two"]
)
def test_a_module_must_define_exactly_one_method(method_folder: Path, code: str) -> None:
    (method_folder / "wrong.py").write_text(code)
    with pytest.raises(TypeError, match="exactly one public class"):
        load("defenses", "wrong")


def test_an_unknown_name_is_a_configuration_error_that_names_the_nearest(method_folder: Path) -> None:
    (method_folder / "relaxloss.py").write_text("")
    with pytest.raises(UnknownMethodError, match=r"unknown defense 'RelaxLos'; did you mean 'relaxloss'\?") as caught:
        canonical_name("defenses", "RelaxLos")
    assert isinstance(caught.value, ConfigError)
    with pytest.raises(UnknownMethodError, match=r"unknown defense 'zzz' \(available: none, relaxloss\)"):
        canonical_name("defenses", "zzz")


def test_installed_packages_add_methods_but_replace_none(method_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (method_folder / "mine.py").write_text("class Mine:\n    class Config: pass\n")
    (method_folder.parent / "plugin.py").write_text("class Theirs:\n    class Config: pass\n")

    def entry_points(group: str) -> list[EntryPoint]:
        assert group == "oakum.defenses"
        return [EntryPoint(name, "somewhere.plugin:Theirs", group) for name in ("theirs", "mine")]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert load("defenses", "theirs").__name__ == "Theirs"
    assert load("defenses", "mine").__name__ == "Mine"
