"""The form of a data set on disk: one Parquet file of raw samples and a manifest that was written last.

`<data home>/<name>/samples.parquet` holds one row a sample: `pixels` (images, native size) or `features` (tabular),
both fixed-size binary of uint8 in C order; `label` int64; `part` string; `identity` int64 where there are persons.
`manifest.json` describes it. What is loaded is checked against the manifest's digest of the decoded content.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SkipValidation, ValidationError

from oakum.config import ConfigError, FrozenConfig
from oakum.records import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

SCHEMA_VERSION = 1
SAMPLES_FILE = "samples.parquet"
MANIFEST_FILE = "manifest.json"
Kind = Literal["image", "tabular"]
# Labels are digested by position: a new part goes to the end.
_PARTS = ("train", "test", "all", "val", "public")
_ROW_GROUP = 8192


class DataError(ConfigError):
    """A data set is missing, damaged or not what it claims to be. The message names the file and what to do."""


@dataclass(frozen=True)
class Content:
    """A data set as its source gave it, before it is written.

    Attributes:
        x: (N, C, H, W) uint8 pixels in native size, or (N, F) uint8 features.
        y: (N,) int64 class ids in [0, len(class_names)).
        part: (N,) "train", "test", "all", "val" or "public".
        identity: (N,) int64 ids of the persons shown, or None.
        class_names: one name a class.
        max_value: what uint8 value stands for 1.0 (255 for images, 1 for binary features).
        origin: where the bytes came from, for the manifest.
        matches_official: whether a checksum proved the source to be the published files; None when none could.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    part: NDArray[np.str_]
    identity: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    max_value: int
    origin: str
    matches_official: bool | None = None


@dataclass(frozen=True)
class Labels:
    """What the planner needs of a data set: everything but the pixels.

    Attributes:
        y: (N,) int64 class ids.
        part: (N,) "train", "test", "all", "val" or "public".
        identity: (N,) int64, or None.
    """

    y: NDArray[np.int64]
    part: NDArray[np.str_]
    identity: NDArray[np.int64] | None

    def __len__(self) -> int:
        return int(self.y.shape[0])


@dataclass(frozen=True)
class Samples(Labels):
    """A loaded data set.

    Attributes:
        x: (N, C, H, W) or (N, F) uint8.
        max_value: what uint8 value stands for 1.0.
    """

    x: NDArray[np.uint8]
    max_value: int

    def tensor(self, rows: NDArray[np.int64] | None = None) -> Tensor:
        """Return the rows (all of them for None) as a float32 tensor in [0, 1], of shape (len(rows), *dims)."""
        import torch

        chosen = self.x if rows is None else self.x[rows]
        return torch.tensor(chosen, dtype=torch.float32).div_(self.max_value)


class PreparedData(FrozenConfig):
    """The manifest of a prepared data set.

    Attributes:
        shape: native shape of one sample, (C, H, W) or (F,).
        parts: rows by part.
        digest: SHA-256 of the decoded content: samples, labels, parts and identities.
        labels_digest: SHA-256 of labels, parts and identities alone.
        samples_sha256: SHA-256 of the Parquet file.
        matches_official: the content is the published one, proved by a checksum; False: it differs; None: unknown.
        prepared_at: Unix time.
        folder: where it lies (not stored).
    """

    schema_version: Literal[1]
    name: str
    kind: Kind
    rows: int = Field(ge=1)
    shape: tuple[int, ...] = Field(min_length=1)
    class_names: tuple[str, ...] = Field(min_length=1)
    parts: dict[str, int]
    has_identities: bool
    max_value: int = Field(ge=1, le=255)
    digest: str
    labels_digest: str
    samples_bytes: int
    samples_sha256: str
    public: bool
    license_note: str
    source: str
    matches_official: bool | None
    prepared_at: float
    folder: SkipValidation[Path] = Field(exclude=True, default=Path())

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def input_shape(self, image_size: int | None) -> tuple[int, ...]:
        """Return the shape of one sample after loading at `image_size`.

        Raises:
            ConfigError: an image size for data that has no images.
        """
        if image_size is None:
            return self.shape
        if self.kind != "image":
            raise ConfigError(f"{self.name} has no images; remove image_size")
        return (self.shape[0], image_size, image_size)


def labels_digest(y: NDArray[np.int64], part: NDArray[np.str_], identity: NDArray[np.int64] | None) -> str:
    """Return the SHA-256 of labels, parts and identities."""
    digest = hashlib.sha256(canonical_json({"what": "oakum labels", "version": 1, "identities": identity is not None}))
    digest.update(np.ascontiguousarray(y, dtype="<i8").tobytes())
    digest.update(_part_codes(part).tobytes())
    if identity is not None:
        digest.update(np.ascontiguousarray(identity, dtype="<i8").tobytes())
    return digest.hexdigest()


def content_digest(x: NDArray[np.uint8], max_value: int, labels: str) -> str:
    """Return the SHA-256 of the samples (N, ...) together with the digest of their labels."""
    header = {"what": "oakum samples", "version": 1, "shape": x.shape, "max_value": max_value, "labels": labels}
    digest = hashlib.sha256(canonical_json(header))
    digest.update(np.ascontiguousarray(x).reshape(-1).data)
    return digest.hexdigest()


def write_samples(path: Path, content: Content) -> None:
    """Write the Parquet file and flush it to the disk.

    Columns are built from buffers: `pyarrow.array` would import pandas, which takes longer than the rest.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = len(content.y)
    flat = np.ascontiguousarray(content.x).reshape(rows, -1)
    columns = {
        _sample_column(content.x.ndim): _column(pa.binary(flat.shape[1]), flat),
        "label": _column(pa.int64(), content.y.astype(np.int64)),
        "part": pa.DictionaryArray.from_arrays(
            _column(pa.uint8(), _part_codes(content.part)),
            pa.StringArray.from_buffers(len(_PARTS), *(pa.py_buffer(buffer) for buffer in _text_buffers(_PARTS))),
        ),
    }
    if content.identity is not None:
        columns["identity"] = _column(pa.int64(), content.identity.astype(np.int64))
    pq.write_table(
        pa.table(columns), path, compression="zstd", use_dictionary=["part", "label"], row_group_size=_ROW_GROUP
    )
    _flush(path)


def _column(kind: pa.DataType, values: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _text_buffers(texts: tuple[str, ...]) -> tuple[bytes, bytes]:
    ends = np.cumsum([0, *(len(text) for text in texts)], dtype=np.int32)
    return ends.tobytes(), "".join(texts).encode("ascii")


def write_manifest(folder: Path, manifest: PreparedData) -> None:
    """Write the manifest into a folder that already holds the samples, and flush both."""
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True), encoding="utf-8")
    _flush(path)


def read_manifest(name: str, data_home: Path) -> PreparedData:
    """Read and check the manifest of a prepared data set; the samples are not opened.

    Raises:
        DataError: not prepared, or the manifest is damaged; the message names the command that helps.
    """
    folder = data_home / name
    path = folder / MANIFEST_FILE
    try:
        manifest = PreparedData.model_validate_json(path.read_bytes(), strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.exists():
            raise damaged(name, path, "the file is missing") from error
        raise DataError(f"data set {name!r} is not prepared; run: oakum data prepare {name}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the permissions of {data_home}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise damaged(name, path, f"{place}: {first['msg']}") from error
    if manifest.name != name:
        raise damaged(name, path, f"it describes {manifest.name!r}")
    return manifest.model_copy(update={"folder": folder})


def read_labels(prepared: PreparedData) -> Labels:
    """Read labels, parts and identities, verified against the manifest.

    Raises:
        DataError: the Parquet file is missing, damaged or differs from the manifest.
    """
    table = _read_table(prepared, with_samples=False)
    return _labels_of(prepared, table)


def read_samples(prepared: PreparedData) -> Samples:
    """Read everything in native size, verified against the manifest's digest.

    Raises:
        DataError: the Parquet file is missing, damaged or differs from the manifest.
    """
    table = _read_table(prepared, with_samples=True)
    labels = _labels_of(prepared, table)
    x = _binary_to_array(prepared, table.column(_sample_column(len(prepared.shape) + 1)))
    found = content_digest(x, prepared.max_value, prepared.labels_digest)
    if found != prepared.digest:
        reason = f"its content has digest {found}, the manifest says {prepared.digest}"
        raise damaged(prepared.name, prepared.folder / SAMPLES_FILE, reason)
    return Samples(labels.y, labels.part, labels.identity, x, prepared.max_value)


def damaged(name: str, path: Path, reason: str) -> DataError:
    """Return the error for a prepared data set that cannot be used as it lies there."""
    return DataError(f"data set {name!r} is damaged: {path}: {reason}; run: oakum data prepare {name} --force")


def _labels_of(prepared: PreparedData, table: pa.Table) -> Labels:
    try:
        y = _integers(table.column("label"))
        identity = _integers(table.column("identity")) if prepared.has_identities else None
        part = _texts(table.column("part"))
        found = labels_digest(y, part, identity)
    except (TypeError, ValueError, BufferError, AttributeError) as error:
        reason = f"label, part or identity have other types or missing values ({error})"
        raise damaged(prepared.name, prepared.folder / SAMPLES_FILE, reason) from error
    if len(y) != prepared.rows or found != prepared.labels_digest:
        reason = f"its {len(y)} labels differ from the manifest's {prepared.rows}"
        raise damaged(prepared.name, prepared.folder / SAMPLES_FILE, reason)
    return Labels(y, part, identity)


def _integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return an int64 column. DLPack, because pyarrow's `to_numpy` imports pandas, which takes longer than the rest."""
    values = np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])
    if values.dtype != np.int64:
        raise TypeError(f"{values.dtype} instead of int64")
    return values


def _texts(column: pa.ChunkedArray) -> NDArray[np.str_]:
    """Return a dictionary-encoded column of parts as fixed-width text."""
    return np.concatenate(
        [np.asarray(chunk.dictionary.to_pylist())[np.from_dlpack(chunk.indices)] for chunk in column.chunks]
    ).astype(np.str_)


def _read_table(prepared: PreparedData, *, with_samples: bool) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = prepared.folder / SAMPLES_FILE
    columns = ["label", "part"] + (["identity"] if prepared.has_identities else [])
    if with_samples:
        columns.append(_sample_column(len(prepared.shape) + 1))
    try:
        file = pq.ParquetFile(path, memory_map=True)
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise damaged(prepared.name, path, f"it has no column {missing[0]!r}")
        return file.read(columns)
    except FileNotFoundError as error:
        raise damaged(prepared.name, path, "the file is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise damaged(prepared.name, path, f"it is not readable Parquet ({str(error).splitlines()[0]})") from error


def _binary_to_array(prepared: PreparedData, column: pa.ChunkedArray) -> NDArray[np.uint8]:
    import pyarrow as pa

    width = int(np.prod(prepared.shape))
    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width != width or column.null_count:
        reason = f"its samples are {column.type}, the manifest says {width} bytes each"
        raise damaged(prepared.name, prepared.folder / SAMPLES_FILE, reason)
    x = np.empty((prepared.rows, width), dtype=np.uint8)
    start = 0
    for chunk in column.chunks:
        buffer = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
        first = chunk.offset * width
        x[start : start + len(chunk)] = buffer[first : first + len(chunk) * width].reshape(len(chunk), width)
        start += len(chunk)
    return x.reshape(prepared.rows, *prepared.shape)


def _sample_column(dimensions: int) -> str:
    return "pixels" if dimensions == 4 else "features"


def _part_codes(part: NDArray[np.str_]) -> NDArray[np.uint8]:
    codes = np.full(len(part), len(_PARTS), dtype=np.uint8)
    for code, name in enumerate(_PARTS):
        codes[part == name] = code
    if (codes == len(_PARTS)).any():
        raise ValueError(f"parts must be of {', '.join(_PARTS)}")
    return codes


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
