"""The form on disk: round trip, digests, and every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from oakum.config import ConfigError
from oakum.datasets import _prepared, base
from oakum.datasets._prepared import Content, DataError


def content(rows: int = 20, identity: bool = True, tabular: bool = False) -> Content:
    generator = np.random.default_rng(rows)
    shape = (rows, 7) if tabular else (rows, 3, 4, 5)
    return Content(
        x=generator.integers(0, 2 if tabular else 256, size=shape, dtype=np.uint8),
        y=generator.integers(0, 3, size=rows),
        part=np.where(np.arange(rows) < rows // 2, "train", "test"),
        identity=generator.integers(0, 5, size=rows) if identity else None,
        class_names=("a", "b", "c"),
        max_value=1 if tabular else 255,
        origin="here",
    )


def digest_of(data: Content) -> str:
    labels = _prepared.labels_digest(data.y, data.part, data.identity)
    return _prepared.content_digest(data.x, data.max_value, labels)


def write(data_home: Path, data: Content, name: str = "toy") -> _prepared.PreparedData:
    folder = data_home / name
    folder.mkdir(parents=True)
    path = folder / "samples.parquet"
    _prepared.write_samples(path, data)
    manifest = _prepared.PreparedData(
        schema_version=1,
        name=name,
        kind="image" if data.x.ndim == 4 else "tabular",
        rows=len(data.y),
        shape=data.x.shape[1:],
        class_names=data.class_names,
        parts={},
        has_identities=data.identity is not None,
        max_value=data.max_value,
        digest=digest_of(data),
        labels_digest=_prepared.labels_digest(data.y, data.part, data.identity),
        samples_bytes=path.stat().st_size,
        samples_sha256=base.sha256_of(path),
        public=False,
        license_note="",
        source="here",
        matches_official=None,
        prepared_at=1.0,
    )
    _prepared.write_manifest(folder, manifest)
    return _prepared.read_manifest(name, data_home)


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("tabular", [True, False])
@pytest.mark.parametrize("rows", [1, 20, 8192 + 3])
def test_round_trip(data_home: Path, rows: int, identity: bool, tabular: bool) -> None:
    data = content(rows, identity, tabular)
    prepared = write(data_home, data)
    samples = _prepared.read_samples(prepared)
    assert samples.x.dtype == np.uint8
    assert samples.y.dtype == np.int64
    np.testing.assert_array_equal(samples.x, data.x)
    np.testing.assert_array_equal(samples.y, data.y)
    np.testing.assert_array_equal(samples.part, data.part)
    assert (samples.identity is None) == (data.identity is None)
    if data.identity is not None:
        np.testing.assert_array_equal(samples.identity, data.identity)
    labels = _prepared.read_labels(prepared)
    np.testing.assert_array_equal(labels.y, data.y)
    assert len(labels) == len(samples) == rows


def test_tensor_is_float_in_unit_range(data_home: Path) -> None:
    samples = _prepared.read_samples(write(data_home, content()))
    rows = np.array([3, 0, 3])
    tensor = samples.tensor(rows)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 3, 4, 5)
    np.testing.assert_array_equal(tensor.numpy(), samples.x[rows].astype(np.float32) / np.float32(255))
    assert samples.tensor().shape == (20, 3, 4, 5)
    binary = _prepared.read_samples(write(data_home, content(tabular=True), "binary"))
    assert set(binary.tensor().unique().tolist()) == {0.0, 1.0}


def test_tensor_is_a_copy(data_home: Path) -> None:
    samples = _prepared.read_samples(write(data_home, content()))
    before = samples.x.copy()
    samples.tensor().zero_()
    np.testing.assert_array_equal(samples.x, before)


def test_digest_sees_every_part_of_the_content() -> None:
    data = content()
    assert data.identity is not None
    other_x = data.x.copy()
    other_x[-1, -1, -1, -1] ^= 1
    changed = [
        Content(other_x, data.y, data.part, data.identity, data.class_names, 255, "here"),
        Content(data.x, data.y[::-1], data.part, data.identity, data.class_names, 255, "here"),
        Content(data.x, data.y, data.part[::-1], data.identity, data.class_names, 255, "here"),
        Content(data.x, data.y, data.part, data.identity + 1, data.class_names, 255, "here"),
        Content(data.x, data.y, data.part, None, data.class_names, 255, "here"),
        Content(data.x.reshape(20, 3, 5, 4), data.y, data.part, data.identity, data.class_names, 255, "here"),
        Content(data.x, data.y, data.part, data.identity, data.class_names, 254, "here"),
    ]
    digests = {digest_of(item) for item in [data, *changed]}
    assert len(digests) == len(changed) + 1
    elsewhere = Content(data.x, data.y, data.part, data.identity, ("x", "y", "z"), 255, "elsewhere")
    assert digest_of(elsewhere) == digest_of(data)


@pytest.mark.parametrize("position", [0, 100, -5, 0.3, 0.6, 0.9])
def test_changed_byte_is_found(data_home: Path, position: float) -> None:
    prepared = write(data_home, content())
    path = prepared.folder / "samples.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[int(position * len(damaged)) if isinstance(position, float) else position] ^= 0xFF
    path.write_bytes(damaged)
    try:
        samples = _prepared.read_samples(prepared)
    except DataError as error:
        assert str(path) in str(error)
        assert "oakum data prepare toy --force" in str(error)
    else:
        np.testing.assert_array_equal(samples.x, content().x)
    assert base.sha256_of(path) != prepared.samples_sha256


def test_cut_or_missing_or_foreign_samples(data_home: Path) -> None:
    prepared = write(data_home, content())
    path = prepared.folder / "samples.parquet"
    whole = path.read_bytes()
    for bad in (b"", b"PAR1", whole[: len(whole) // 2], b"not parquet at all"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="--force"):
            _prepared.read_samples(prepared)
    path.unlink()
    with pytest.raises(DataError, match=r"samples\.parquet.*missing.*--force"):
        _prepared.read_labels(prepared)


@pytest.mark.parametrize(
    "table",
    [
        {"label": [0, 1]},
        {"label": [0, None], "part": ["all", "all"], "identity": [0, 1], "pixels": [b"a", b"b"]},
        {"label": ["a", "b"], "part": ["all", "all"], "identity": [0, 1], "pixels": [b"a", b"b"]},
        {"label": [0.0, 1.0], "part": ["all", "all"], "identity": [0, 1], "pixels": [b"a", b"b"]},
        {"label": [0, 1], "part": ["all", None], "identity": [0, 1], "pixels": [b"a", b"b"]},
        {"label": [0, 1], "part": [1, 2], "identity": [0, 1], "pixels": [b"a", b"b"]},
        {"label": [0, 1], "part": ["all", "bad"], "identity": [0, 1], "pixels": [b"a", b"b"]},
    ],
)
def test_foreign_parquet(data_home: Path, table: dict[str, list[object]]) -> None:
    prepared = write(data_home, content())
    pq.write_table(pa.table(table), prepared.folder / "samples.parquet")
    with pytest.raises(DataError, match="oakum data prepare toy --force"):
        _prepared.read_samples(prepared)


def test_samples_of_another_width(data_home: Path) -> None:
    prepared = write(data_home, content())
    path = prepared.folder / "samples.parquet"
    table = pq.read_table(path)
    pixels = pa.array([b"abc"] * 20, type=pa.binary(3))
    pq.write_table(table.set_column(table.schema.get_field_index("pixels"), "pixels", pixels), path)
    with pytest.raises(DataError, match=r"60 bytes.*--force"):
        _prepared.read_samples(prepared)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"name": "other"},
        {"rows": 19},
        {"rows": "20"},
        {"digest": "0" * 64},
        {"labels_digest": "0" * 64},
        {"shape": [3, 5, 4]},
        {"shape": []},
        {"max_value": 254},
        {"surprise": 1},
        {"kind": "sound"},
        {"has_identities": False},
    ],
)
def test_wrong_manifest(data_home: Path, change: dict[str, object]) -> None:
    prepared = write(data_home, content())
    path = prepared.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="oakum data prepare toy --force") as caught:
        _prepared.read_samples(_prepared.read_manifest("toy", data_home))
    assert str(prepared.folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_manifest_that_is_no_json(data_home: Path, text: str) -> None:
    prepared = write(data_home, content())
    (prepared.folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json.*--force"):
        _prepared.read_manifest("toy", data_home)


def test_not_prepared_is_an_error_of_the_user(data_home: Path) -> None:
    with pytest.raises(ConfigError, match=r"data set 'mnist' is not prepared; run: oakum data prepare mnist$"):
        base.load_samples("mnist", data_home)


def test_image_size_needs_images(data_home: Path) -> None:
    prepared = write(data_home, content(tabular=True))
    assert prepared.input_shape(None) == (7,)
    with pytest.raises(ConfigError, match="remove image_size"):
        prepared.input_shape(16)
    assert write(data_home, content(), "pictures").input_shape(16) == (3, 16, 16)


def test_verify_sees_a_file_that_was_written_again(data_home: Path, digits_csv: Path) -> None:
    prepared = base.prepare("digits", data_home, digits_csv)
    path = prepared.folder / "samples.parquet"
    table = pq.read_table(path, read_dictionary=["part"])
    pq.write_table(table, path, compression="none")
    base.load_samples("digits", data_home)
    with pytest.raises(DataError, match=r"SHA-256 differs.*--force"):
        base.verify("digits", data_home)
