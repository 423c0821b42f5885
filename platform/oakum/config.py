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
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin
from urllib.parse import parse_qsl, unquote

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

# Nobody writes so much by hand. Aliases count as often as they are used: nine lines can stand for a billion values.
_MOST_VALUES = 100_000
_LONGEST_KEY = 200
_LARGEST_BITS = 64
_DEEPEST_PATH = 50
_SHOWN_CHARACTERS = 200
# An address is shown only when nothing in it can be taken for a part of a password.
_PLAIN_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://(?:[^/?#]*@)?(?P<host>(?:[\w.-]*|\[[\da-fA-F:.]+\])(?::\d+)?)(?P<path>/[^?#@]*)?"
    r"(?:[?#][^@]*)?"
)
_SECRET_FIELD = re.compile(r"pass|pwd|secret|token|key|credential|signature", re.IGNORECASE)
_FEWEST_SECRET_CHARACTERS = 4


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


class _RefusedError(yaml.YAMLError):
    """YAML that the loader cannot read, or that no configuration needs."""


def parse_yaml(text: str) -> Any:
    """Return what YAML text holds: mappings with text as keys, lists, text (dates too), numbers, booleans, None.

    Raises:
        YAMLError: not YAML, a tag that asks for an object, an alias bomb, or values that no setting takes.
    """
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return _plain_data(loader.construct_document(node), "")
    except RecursionError as error:
        raise _RefusedError("it is nested too deeply") from error
    except (ValueError, LookupError, AttributeError) as error:
        # PyYAML lets through what int(), float() and date() raise, and stumbles over tags that do not fit their text.
        raise _RefusedError(f"a number, date or tag in it cannot be read ({shortened(str(error))})") from error
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for once its aliases are written out; `known` holds those of nodes.

    Raises:
        YAMLError: too many, or a node contains itself.
    """
    if known.setdefault(id(node), 0):
        return known[id(node)]
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    total = 1
    for part in parts:
        if known.get(id(part)) == 0:
            raise _RefusedError(f"an alias refers to what it is a part of{part.start_mark}")
        total += _count_values(part, known)
        if total > _MOST_VALUES:
            raise _RefusedError(f"with its aliases written out it holds more than {_MOST_VALUES:,} values")
    known[id(node)] = total
    return total


def _plain_data(value: Any, where: str) -> Any:
    """Return YAML's value as plain data; `where` is its dotted path. Objects (bytes, sets) stay for the schema."""
    if isinstance(value, dict):
        return {(name := _plain_key(key, where)): _plain_data(item, f"{where}.{name}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(item, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise _RefusedError(f"{_path(where)}: a number beyond {_LARGEST_BITS} bits")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise _RefusedError(f"{_path(where)}: half of a surrogate pair is no character")
    return value


def require_plain(value: Any, where: str, path: tuple[str, ...] = ()) -> None:
    """Refuse what has no JSON form: a request is hashed before its parts are validated.

    Args:
        where: the file's name, for the message.
        path: the keys that lead to the value.

    Raises:
        ConfigError: NaN or infinity, bytes, a set.
    """
    place = f"{where}: {'.'.join(path)}"
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            require_plain(item, where, (*path, str(key)))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place}: {value} is not a finite number")
    elif value is not None and not isinstance(value, str | int | float):
        raise ConfigError(f"{place}: a {type(value).__name__}, which no setting takes")


def _plain_key(key: Any, where: str) -> str:
    if key is not None and not isinstance(key, str | int | float):
        raise _RefusedError(f"{_path(where)}: a {type(key).__name__} as a key; write text")
    name = key if isinstance(key, str) else json.dumps(key)
    problem = _key_problem(name)
    if problem:
        raise _RefusedError(f"{_path(where)}: the key {shortened(ascii(name))} {problem}")
    return name


def _key_problem(name: str) -> str:
    """Return why text may not be a key, or "". Keys become labels: of tables, of tracked runs, on the terminal."""
    if not name.isprintable():
        return "has control or invisible characters; use visible ones"
    if len(name) > _LONGEST_KEY:
        return f"has {len(name):,} characters; at most {_LONGEST_KEY} are allowed"
    return ""


def _path(where: str) -> str:
    return where.removeprefix(".") or "the top level"


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
        data = parse_yaml(text)
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
            raise ConfigError(f"--set {shortened(repr(override))}: write path.to.key=value")
        try:
            value = parse_yaml(text)
        except _RefusedError as error:
            raise ConfigError(f"--set {shortened(repr(override))}: {error}") from error
        except yaml.YAMLError as error:
            shown = f"--set {shortened(repr(override))}: {shortened(repr(text))}"
            raise ConfigError(f"{shown} is not valid YAML") from error
        try:
            _assign(result, path.split("."), value)
        except ConfigError as error:
            raise ConfigError(f"--set {shortened(repr(override))}: {error}") from error
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
    if len(path) > _DEEPEST_PATH:
        raise ConfigError(f"a path of {len(path):,} parts; no setting lies deeper than {_DEEPEST_PATH}")
    for depth, part in enumerate(path):
        if problem := _key_problem(part):
            raise ConfigError(f"the key {shortened(ascii(part))} {problem}")
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
        ConfigError: one line for each problem; misspelled keys name the nearest valid key.
    """
    try:
        return model.model_validate_json(json.dumps(data, default=_plain), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, item, where) for item in error.errors())) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {shortened(str(error))}") from error


def shortened(text: str) -> str:
    """Return text for a message, cut when it is long."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text):,} characters)"


def without_credentials(uri: str) -> str:
    """Return an address without user, password and query, for messages, logs and reports.

    Where a password is written so that its end cannot be told (an unescaped `/`, `?` or `#` in it), only the scheme is
    shown. Text that is no URI is returned as it is.
    """
    if "://" not in uri:
        return uri
    found = _PLAIN_ADDRESS.fullmatch(uri)
    if found is None:
        return f"{uri.partition('://')[0]}://(not shown: its credentials cannot be told from its host)"
    return f"{found['scheme']}://{found['host']}{found['path'] or ''}"


def hide_credentials(text: str, uri: str) -> str:
    """Return a message without the credentials of the address that it is about, however a library repeats them."""
    text = re.sub(r"://[^/\s@'\"]*@", "://", text.replace(uri, without_credentials(uri)))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(uri: str) -> set[str]:
    query = uri.partition("?")[2]
    user, separator, password = uri.partition("://")[2].rpartition("@")[0].partition(":")
    # A user without a password is a token.
    found = {password if separator else user}
    found |= {value for name, value in parse_qsl(query) if _SECRET_FIELD.search(name)}
    return {form for each in found for form in (each, unquote(each)) if len(form) >= _FEWEST_SECRET_CHARACTERS}


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
    return f"{place}: {item['msg']} (got {shortened(repr(value))})"


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
