"""What `oakum audit` reads: weights and points from files of the user, without ever executing what they hold."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from oakum import registry
from oakum.config import ConfigError, parse_yaml, validate
from oakum.models._normalization import batch_to_group_norm
from oakum.models.base import Classifier, InputShape
from oakum.training.checkpoint import CheckpointError, load_strictly
from oakum.training.loop import LabeledData

_PARALLEL_PREFIX = "module."
# What torch's restricted reader raises on damaged files; it documents none of it.
_BAD_WEIGHTS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    OSError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)
_BAD_ARCHIVE = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_HOW_TO_SAVE = (
    "save the weights alone where the model can be loaded: `torch.save(model.state_dict(), FILE)`, or "
    "`safetensors.torch.save_file(model.state_dict(), FILE)` with the ending .safetensors"
)


@dataclass(frozen=True)
class ModelFiles:
    """A model and points whose membership in its training set is known."""

    weights: Path
    members: Path
    nonmembers: Path


@dataclass(frozen=True)
class AuditRequest:
    """What to audit.

    Attributes:
        model: name of the architecture.
        num_classes: K.
        target: the model in question.
        shadow: a model of the same architecture on other data, or None.
        model_options: settings of the architecture as `key=value`.
        norm: `group` where batch normalization was replaced, see `Defense.Config`.
        attacks: names; none: every attack that can run without a shadow model, or with it where there is one.
        gradient_points: attacks on gradients ask about the first so many points of each file; None: all.
        seed: of the order of the points, the attacks' draws and the bootstrap.
    """

    model: str
    num_classes: int
    target: ModelFiles
    shadow: ModelFiles | None = None
    model_options: tuple[str, ...] = ()
    norm: str = "model"
    attacks: tuple[str, ...] = ()
    gradient_points: int | None = None
    seed: int = 0


def build_classifier(request: AuditRequest, input_shape: tuple[int, ...]) -> Classifier:
    """Return the untrained classifier that weights are loaded into; `input_shape` is that of one sample.

    Raises:
        ConfigError: no such model or setting, or it does not take such samples.
    """
    cls = registry.load("models", request.model)
    config = validate(cls.Config, _settings(request.model_options), f"--model-option of {request.model}")
    classifier: Classifier = cls(config, InputShape(input_shape), request.num_classes)
    if request.norm == "group":
        batch_to_group_norm(classifier)
    return classifier


def _settings(options: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for option in options:
        key, separator, text = option.partition("=")
        if not separator or not key:
            raise ConfigError(f"--model-option {option!r}: write key=value")
        if key in settings:
            raise ConfigError(f"--model-option {key} is given twice")
        try:
            settings[key] = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--model-option {option!r}: {text!r} is not valid YAML") from error
    return settings


def load_weights(module: Classifier, path: Path, option: str) -> list[str]:
    """Load a state dict strictly into `module`; return what a reader must know of it.

    A file with the ending .safetensors is read as such, any other by torch's reader for weights alone. Names and
    shapes must be the module's; only the prefix `module.` of a data-parallel wrapper, if every name has it, is taken
    off. Half-precision weights are widened.

    Raises:
        ConfigError: missing or damaged file, anything but tensors by name (which is not loaded, because loading it
            could execute code), other names or shapes, or weights that are not finite.
    """
    state = _state_dict(path, option)
    notes = []
    if state and all(name.startswith(_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(_PARALLEL_PREFIX): value for name, value in state.items()}
        notes.append(f"{option}: the prefix {_PARALLEL_PREFIX!r} of a data-parallel wrapper was taken off every name")
    try:
        load_strictly(module, state, where=f"{option} {path}")
    except CheckpointError as error:
        raise ConfigError(
            f"{error}; --model, --model-option, --norm, --num-classes and the shape of the samples must be those of "
            "the training"
        ) from error
    broken = [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ConfigError(f"{option} {path}: {broken[0]!r} is not finite; choose a checkpoint from before it diverged")
    return notes


def _state_dict(path: Path, option: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"{option} {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except _BAD_WEIGHTS as error:
        raise ConfigError(
            f"{option} {path}: refused: the file is damaged, or holds Python objects beside tensors, and those could "
            f"execute code ({_reason(error)}); {_HOW_TO_SAVE}"
        ) from error
    if not isinstance(found, dict) or not all(_is_weight(name, value) for name, value in found.items()):
        inside = f"keys {', '.join(map(repr, [*found][:5]))}" if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"{option} {path}: not a plain state dict (name -> tensor) but {inside}; {_HOW_TO_SAVE}")
    return found


def _is_weight(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _reason(error: Exception) -> str:
    """Say what happened without torch's advice to load the file unsafely."""
    return "it asks for Python objects" if "GLOBAL" in str(error) else type(error).__name__


def read_points(path: Path, option: str, num_classes: int) -> LabeledData:
    """Read `x` and `y` of an .npz file.

    Args:
        path: x is (N, C, H, W) uint8 or floating in [0, 1], or rows (N, F) bool or floating in [0, 1]; y is (N,) of any
            integer type, in [0, num_classes).
        option: of the command, for messages.
        num_classes: K.

    Raises:
        ConfigError: missing or damaged file, Python objects inside, no points, or another shape, type or range.
    """
    arrays = _arrays(path, option)
    where = f"{option} {path}"
    x, y = _samples(arrays["x"], where), arrays["y"]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError(f"{where}: y must hold one whole number for each sample, not {y.dtype} of shape {y.shape}")
    if len(x) != len(y) or not len(x):
        raise ConfigError(
            f"{where}: x has {len(x)} samples and y {len(y)} labels; equal numbers are needed, at least 1"
        )
    if y.min() < 0 or y.max() >= num_classes:
        raise ConfigError(
            f"{where}: labels run from {y.min()} to {y.max()}, but --num-classes {num_classes} allows 0 to "
            f"{num_classes - 1}; renumber them as in the training"
        )
    return LabeledData(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)))


def _arrays(path: Path, option: str) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise ConfigError(f"{option} {path}: there is no such file")
    how = "write it with `numpy.savez(FILE, x=x, y=y)`"
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ConfigError(f"{option} {path}: a single array, not an .npz archive; {how}")
        with archive:
            missing = {"x", "y"} - set(archive.files)
            if missing:
                found = ", ".join(archive.files) or "nothing"
                raise ConfigError(f"{option} {path}: there is no {min(missing)!r} inside (found: {found}); {how}")
            return {name: archive[name] for name in ("x", "y")}
    except ConfigError:
        raise
    except _BAD_ARCHIVE as error:
        raise ConfigError(
            f"{option} {path}: refused: no .npz archive of plain arrays, or damaged ({type(error).__name__}); {how}"
        ) from error


def _samples(x: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Return x as float32 in [0, 1].

    Raises:
        ConfigError: another layout, type or range.
    """
    if x.ndim not in (2, 4):
        raise ConfigError(f"{where}: x must be images (N, C, H, W) or rows (N, F), not of shape {x.shape}")
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        raise ConfigError(f"{where}: x has shape {x.shape}; put the channels second: `x.transpose(0, 3, 1, 2)`")
    if x.dtype == np.uint8 and x.ndim == 4:
        if x.size and x.max() <= 1:
            raise ConfigError(f"{where}: uint8 images hold 0 to 255, these only 0 and 1; use `x.astype('float32')`")
        return x.astype(np.float32) / np.float32(255)
    if x.dtype.kind not in "bf":
        kinds = "uint8 or floating" if x.ndim == 4 else "bool or floating (`x.astype('float32')`)"
        raise ConfigError(f"{where}: x is {x.dtype}; {'images' if x.ndim == 4 else 'rows'} must be {kinds}")
    values = x.astype(np.float32)
    if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
        raise ConfigError(
            f"{where}: x must lie in [0, 1]; undo the normalization, and give it with --model-option mean=... and "
            "--model-option std=..."
        )
    # Zero has two signs, which would make equal samples look different.
    return values + np.float32(0)
