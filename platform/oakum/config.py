"""Configuration: frozen pydantic models, plain YAML, and errors that say what to write instead.

Every method has a nested `Config` that derives from `FrozenConfig` here. YAML is data only (safe load). A key that a
model does not know is an error that names the key, its path and the nearest valid one.
"""

from __future__ import annotations

import copy
import datetime
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """The user's configuration is wrong. The message says where and what to do. The CLI exits with 2."""


class FrozenConfig(BaseModel):
    """Base of every configuration: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )


ConfigType = TypeVar("ConfigType", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader keeps the last of two equal keys without a word; this one refuses."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: missing file, bad YAML (with its line), or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        raise ConfigError(f"{path} is empty")
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping at the top level, not {type(data).__name__}")
    return data


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of `data` with `path.to.key=value` assignments applied; values are read as YAML.

    Parts of the path that are whole numbers index lists (`settings.1.defense.alpha=0.5`). Mappings on the way that
    do not exist, or are empty in the YAML, are made.

    Raises:
        ConfigError: an assignment without `=`, a value that is not YAML, or a path that leads through something
            that is not a mapping or list.
    """
    result = copy.deepcopy(data)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {override!r}: write path.to.key=value")
        try:
            value = yaml.load(text, Loader=_UniqueKeyLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override!r}: {text!r} is not valid YAML") from error
        try:
            _assign(result, path.split("."), value)
        except ConfigError as error:
            raise ConfigError(f"--set {override!r}: {error}") from error
    return result


def apply_values(data: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `data` with `path.to.key` -> value applied; see `apply_overrides`.

    Raises:
        ConfigError: a path leads through something that is not a mapping or list.
    """
    result = copy.deepcopy(data)
    for path, value in values.items():
        try:
            _assign(result, path.split("."), value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return result


def _assign(root: dict[str, Any], path: list[str], value: Any) -> None:
    node: Any = root
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(f"{part!r} is not an index of a list of {len(node)}")
            key: Any = int(part)
        elif isinstance(node, dict):
            key = part
            if not is_last and node.get(key) is None:
                node[key] = {}
        else:
            raise ConfigError(f"{'.'.join(path[:depth])!r} is neither a mapping nor a list")
        if is_last:
            node[key] = value
        else:
            node = node[key]


def validate(model: type[ConfigType], data: Any, where: str) -> ConfigType:
    """Validate plain data against a configuration model in strict mode.

    `where` names the place (`quickstart.yaml`, `quickstart.yaml: recipe`) and starts every line of the error.

    Raises:
        ConfigError: one line for each problem; misspelt keys name the nearest valid key.
    """
    try:
        return model.model_validate_json(json.dumps(data, default=_plain), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, item, where) for item in error.errors())) from error
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def _plain(value: Any) -> str:
    # YAML reads 2026-11-22 as a date; in a configuration it can only be meant as text.
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"{value!r} is a {type(value).__name__}, which no setting takes")


def _explain(model: type[BaseModel], item: Any, where: str) -> str:
    is_unknown_key = item["type"] == "extra_forbidden"
    *parents, last = item["loc"] or (None,)
    location, annotations = _locate(model, tuple(parents) if is_unknown_key else item["loc"])
    if is_unknown_key:
        location.append(str(last))
    place = f"{where}{'.' if ': ' in where else ': '}{'.'.join(location)}" if location else where
    if is_unknown_key:
        valid = sorted({name for annotation in annotations for name in _fields(annotation)})
        nearest = difflib.get_close_matches(str(last), valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid) or 'none'}"
        return f"{place}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{place}: this key is required"
    if item["type"] == "value_error":
        return f"{place}: {item['ctx']['error']}"
    value = item.get("input")
    if isinstance(value, str) and item["type"] in {"float_type", "int_type"}:
        number = _as_yaml_number(value, whole=item["type"] == "int_type")
        if number is not None:
            return f"{place}: YAML reads {value!r} as text, not as a number; write {number}"
    return f"{place}: {item['msg']} (got {value!r})"


def _locate(model: type[BaseModel], path: tuple[Any, ...]) -> tuple[list[str], list[Any]]:
    """Follow pydantic's error location; return the keys as they stand in the YAML, and what is allowed there.

    Pydantic puts the names of a union's members between the keys; those are left out.
    """
    keys: list[str] = []
    annotations: list[Any] = [model]
    for part in path:
        below = [inner for annotation in annotations for inner in _step(annotation, part)]
        if below:
            keys.append(str(part))
            annotations = below
    return keys, annotations


def _step(annotation: Any, part: Any) -> list[Any]:
    if part in _fields(annotation):
        return _members(_fields(annotation)[part])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return _members(arguments[1])
    if origin in (list, tuple) and isinstance(part, int):
        is_positional = origin is tuple and Ellipsis not in arguments and part < len(arguments)
        return _members(arguments[part if is_positional else 0])
    return []


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [inner for argument in get_args(annotation) for inner in _members(argument)]
    if hasattr(annotation, "__metadata__"):
        return _members(get_args(annotation)[0])
    return [annotation]


def _fields(annotation: Any) -> dict[str, Any]:
    """Return {key in the YAML: annotation} of a model, {} of anything else."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}


def _as_yaml_number(text: str, *, whole: bool) -> str | None:
    """Return how YAML writes the number that `text` shows (`1e-3` is text to it, `1.0e-3` is not), or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if whole:
        return str(int(number)) if number.is_integer() else None
    mantissa, exponent_sign, exponent = repr(number).partition("e")
    if not exponent_sign:
        return mantissa
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
