"""The tree keeps its promises: one direction of imports, light entry points, no method without its parts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from oakum.registry import KINDS, Source, available, load
from oakum.search.space import load_space

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "platform" / "oakum"
MODULES = sorted(PACKAGE.rglob("*.py"))

FOUNDATION = {"config", "faults", "packages", "records", "registry", "seeding", "store", "weights"}
SCIENCE = FOUNDATION | {"datasets", "metrics", "models", "training"}
METHODS = SCIENCE | {"attacks", "defenses"}
# What each part of the package may import, beside itself and `oakum.__version__`.
MAY_IMPORT = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    "metrics": FOUNDATION,
    "models": FOUNDATION,
    "datasets": FOUNDATION,
    "training": SCIENCE,
    "attacks": SCIENCE,
    "defenses": SCIENCE,
    "pipeline": METHODS,
    "tracking": FOUNDATION | {"search"},
    "report": METHODS | {"pipeline", "search"},
    "distributed": METHODS | {"pipeline"},
    "catalog": FOUNDATION,
    "progress": METHODS | {"pipeline", "tracking"},
    "session": METHODS | {"pipeline", "tracking", "report", "distributed", "progress", "search"},
    "audit": METHODS,
    "published": METHODS,
    "search": FOUNDATION,
    "inspection": FOUNDATION | {"session"},
    "doctor": FOUNDATION | {"session", "tracking"},
    "cli": FOUNDATION
    | {"datasets", "tracking", "report", "session", "inspection", "doctor", "catalog", "audit", "published", "search"},
    "main": {"cli"},
}
LIGHT = [
    *FOUNDATION,
    "catalog",
    "cli",
    "doctor",
    "inspection",
    "progress",
    "report",
    "session",
    "tracking",
]


@cache
def imports(file: Path) -> frozenset[str]:
    """Dotted names of everything that a file imports anywhere: inside functions and for type checkers too."""
    return frozenset(name for node in ast.walk(ast.parse(file.read_text())) for name in _names(node))


def top_level_imports(file: Path) -> frozenset[str]:
    """Dotted names of what is imported as soon as the file is."""
    return frozenset(_top_level(ast.parse(file.read_text())))


def _top_level(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        yield from _names(child)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _names(other)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _top_level(child)


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module and not node.level, f"line {node.lineno}: relative import"
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(file: Path) -> str:
    """`defenses/bido.py` -> `defenses`; `_store_work.py` -> `store`; the package's own `__init__.py` -> ``."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else _part(first)


def parts_imported(file: Path) -> set[str]:
    own = {name.split(".")[1] for name in imports(file) if name.startswith("oakum.")}
    return {_part(name) for name in own - {"__version__"}}


def _part(top_level_name: str) -> str:
    return top_level_name.strip("_").split("_")[0]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    if not part:
        assert not parts_imported(file)
        return
    assert part in MAY_IMPORT, f"{name_of(file)} belongs to no layer: place it in MAY_IMPORT, after docs/design.md"
    wrong = parts_imported(file) - MAY_IMPORT[part] - {part}
    assert not wrong, f"{name_of(file)} imports oakum.{', oakum.'.join(sorted(wrong))}"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_ray_and_mlflow_stay_in_their_places(file: Path) -> None:
    packages = {name.split(".")[0] for name in imports(file)}
    assert "ray" not in packages or part_of(file) == "distributed"
    assert "mlflow" not in packages or part_of(file) == "tracking"


@pytest.mark.parametrize("file", [file for file in MODULES if part_of(file) in LIGHT], ids=name_of)
def test_entry_points_do_not_import_heavy_packages_at_the_top(file: Path) -> None:
    top_level = {name.split(".")[0] for name in top_level_imports(file)}
    assert not top_level & {"torch", "torchvision", "ray", "mlflow", "sklearn"}


def test_light_modules_load_without_torch_ray_or_mlflow() -> None:
    names = [f"oakum.{part}" for part in LIGHT]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(sorted({{"torch", "ray", "mlflow"}} & set(sys.modules)))
"""
    assert run_python(code, PACKAGE.parent) == "[]"


def test_the_source_root_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import platform; assert platform.system(); import ray, torch; print(platform.__file__)"
    assert not Path(run_python(code, ROOT)).is_relative_to(ROOT / "platform")


def run_python(code: str, first_on_path: Path) -> str:
    """Run code in a fresh interpreter that looks into one folder before all others; return what it prints."""
    script = f"import sys; sys.path.insert(0, {str(first_on_path)!r})\n{code}"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


BUILT_IN = [(kind, name) for kind in KINDS for name, module in available(kind).items() if module.startswith("oakum.")]


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_method_says_where_it_comes_from(kind: str, name: str) -> None:
    source = load(kind, name).source
    if (kind, name) == ("defenses", "none"):
        assert source is None
        return
    assert isinstance(source, Source), f"{kind} {name}: source = Source(...) is missing"
    assert source.title and source.authors and source.venue
    assert 1950 < source.year < 2100
    assert not source.link or source.link.startswith(("https://", "arXiv:")), source.link


@pytest.mark.parametrize("name", [name for kind, name in BUILT_IN if kind == "defenses" and name != "none"])
def test_a_defense_comes_with_a_test_and_a_search_space(name: str) -> None:
    assert (ROOT / "tests" / "defenses" / f"test_{name}.py").exists()
    space = ROOT / "search_spaces" / f"{name}.yaml"
    assert space.exists() == load("defenses", name).searchable, (
        f"{name}: write {name_of(space)}, or declare searchable = False, not both"
    )


@pytest.mark.parametrize("name", [name for kind, name in BUILT_IN if kind.startswith("attacks")])
def test_an_attack_comes_with_a_test(name: str) -> None:
    assert list((ROOT / "tests").rglob(f"test_{name}.py"))


def test_no_search_space_is_left_without_its_defense() -> None:
    for file in (ROOT / "search_spaces").glob("*.yaml"):
        assert load_space(file).defense in available("defenses")


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_files_have_names_that_say_something(file: Path) -> None:
    assert not set(file.stem.strip("_").split("_")) & {
        "utils",
        "util",
        "helpers",
        "helper",
        "common",
        "misc",
        "manager",
    }


def test_job_entry_points_are_short() -> None:
    for file in (ROOT / "jobs").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 15, name_of(file)
