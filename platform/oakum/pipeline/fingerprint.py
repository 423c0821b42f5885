"""Fingerprints of code: which part of oakum a stage's numbers depend on.

A fingerprint is the SHA-256 of the syntax trees, without comments and docstrings, of a module and of everything
that it imports inside oakum. Modules that carry no science (configuration, registry, store, records, faults) are
left out: they decide how bytes move, not which.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from oakum.records import sha256_hex
from oakum.registry import PACKAGE_FOLDER

_WITHOUT_SCIENCE = frozenset(
    {
        *("oakum", "oakum.config", "oakum.registry", "oakum.store", "oakum.records", "oakum.faults"),
        *("oakum.weights", "oakum.packages"),
    }
)


def fingerprint(*modules: str) -> str:
    """Return the fingerprint of dotted modules and of what they import inside oakum."""
    closure: set[str] = set()
    for module in modules:
        _collect(module, closure)
    parts = [f"{name}:{_tree_digest(name)}" for name in sorted(closure)]
    return sha256_hex("\n".join(parts).encode())


def package_digest() -> str:
    """Return a digest of every source file of the package, comments included; cheap, for caches of plans."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE_FOLDER.rglob("*.py")):
        digest.update(str(file.relative_to(PACKAGE_FOLDER)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _collect(module: str, closure: set[str]) -> None:
    if module in closure or module in _WITHOUT_SCIENCE or _source_file(module) is None:
        return
    closure.add(module)
    for imported in _imports(module):
        _collect(imported, closure)


@cache
def _source_file(module: str) -> Path | None:
    if module.split(".")[0] == "oakum":
        base = PACKAGE_FOLDER.joinpath(*module.split(".")[1:])
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
        return None
    found = importlib.util.find_spec(module)
    return Path(found.origin) if found is not None and found.origin else None


@cache
def _tree(module: str) -> ast.Module:
    file = _source_file(module)
    assert file is not None
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _imports(module: str) -> tuple[str, ...]:
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "oakum":
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names if alias.name.split(".")[0] == "oakum")
    return tuple(sorted(names))


@cache
def _tree_digest(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return sha256_hex(_canonical(tree).encode())


def _canonical(node: object) -> str:
    """Return a text form of a syntax tree that Python versions share: fields that are empty are left out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(item) for item in node)}]"
    return repr(node)
