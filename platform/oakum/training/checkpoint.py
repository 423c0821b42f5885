"""Checkpoints of unfinished training: safetensors for tensors, JSON for the rest; nothing that can execute code.

A checkpoint holds named parts (modules, optimizers, schedulers) and a small record. Loading is strict: another
architecture, a missing part or a wrong shape is an error, never a silent partial load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TENSORS_FILE = "state.safetensors"
RECORD_FILE = "state.json"


# What damaged records and states make the parts' own loaders raise.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or does not fit what it is loaded into."""


def save_parts(folder: Path, parts: dict[str, Any], record: dict[str, Any]) -> None:
    """Write the parts' states and the record (plain JSON data) into an existing folder."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, part in parts.items():
        plain[name] = _extract(part.state_dict(), f"{name}/", tensors)
    save_file({key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()}, folder / TENSORS_FILE)
    (folder / RECORD_FILE).write_text(json.dumps({"parts": plain, "record": record}))


def load_parts(folder: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """Load the states of all `parts` from a folder written by `save_parts`; return its record.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to other parts or another architecture; nothing is
            loaded then into modules whose names or shapes differ.
    """
    tensors = _load_tensors(folder / TENSORS_FILE)
    try:
        return _load_record(json.loads((folder / RECORD_FILE).read_text()), tensors, parts, folder)
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(f"the checkpoint in {folder} is damaged ({type(error).__name__}: {error})") from error


def _load_record(
    document: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    if set(document["parts"]) != set(parts):
        raise CheckpointError(
            f"the checkpoint in {folder} holds {sorted(document['parts'])}, needed are {sorted(parts)}"
        )
    for name, part in parts.items():
        state = _restore(document["parts"][name], tensors)
        if isinstance(part, nn.Module):
            load_strictly(part, state, where=f"{folder}: {name}")
        else:
            part.load_state_dict(state)
    record: dict[str, Any] = document["record"]
    return record


def load_strictly(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load a state dict whose names and shapes must equal the module's.

    Raises:
        CheckpointError: names the first missing, unexpected or misshapen tensor; the module is not changed.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    misshapen = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        parts = []
        if missing:
            parts.append(f"missing {missing[0]!r} (and {len(missing) - 1} more)")
        if unexpected:
            parts.append(f"unexpected {unexpected[0]!r} (and {len(unexpected) - 1} more)")
        if misshapen:
            name = misshapen[0]
            parts.append(f"{name!r} has shape {tuple(state[name].shape)}, the model needs {tuple(own[name].shape)}")
        raise CheckpointError(f"{where}: this is a checkpoint of another architecture: {'; '.join(parts)}")
    module.load_state_dict(state)


def save_module(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers as safetensors."""
    save_file({name: value.detach().contiguous().cpu().clone() for name, value in module.state_dict().items()}, path)


def load_module(module: nn.Module, path: Path) -> nn.Module:
    """Load safetensors strictly into `module` and return it.

    Raises:
        CheckpointError: another architecture, or no safetensors file: a pickle is refused whatever its name says.
    """
    load_strictly(module, _load_tensors(path), where=path.name)
    return module


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error})") from error


def _extract(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors inside nested state by references, collecting them; keys of mappings keep their type."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        items = [[key, _extract(item, f"{path}{key}/", tensors)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, list | tuple):
        entries = [_extract(item, f"{path}{i}/", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": entries}
    return {"value": value}


def _restore(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "items" in node:
        return {key: _restore(item, tensors) for key, item in node["items"]}
    if "list" in node:
        return [_restore(item, tensors) for item in node["list"]]
    if "tuple" in node:
        return tuple(_restore(item, tensors) for item in node["tuple"])
    return node["value"]
