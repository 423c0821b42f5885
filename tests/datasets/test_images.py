"""Resizing is Pillow's, picture by picture; decoding errors name the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from oakum.datasets._images import decode, resize_square
from oakum.datasets._prepared import DataError


def resize_one_by_one(x: np.ndarray, size: int) -> np.ndarray:
    height, width = x.shape[2:]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    result = np.empty((*x.shape[:2], size, size), dtype=np.uint8)
    for i, channels in enumerate(x):
        picture = Image.fromarray(channels[0]) if len(channels) == 1 else Image.fromarray(channels.transpose(1, 2, 0))
        square = picture.crop((left, top, left + side, top + side))
        small = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
        result[i] = small if len(channels) == 1 else small.transpose(2, 0, 1)
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    channels=st.sampled_from([1, 3]),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    size=st.integers(4, 48),
)
def test_equals_pillow_for_every_picture(seed: int, channels: int, height: int, width: int, size: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, size=(3, channels, height, width), dtype=np.uint8)
    np.testing.assert_array_equal(resize_square(x, size), resize_one_by_one(x, size))


def test_many_pictures_do_not_mix() -> None:
    x = np.zeros((5000, 1, 8, 8), dtype=np.uint8)
    x[1::2] = 255
    small = resize_square(x, 5)
    assert (small[0::2] == 0).all()
    assert (small[1::2] == 255).all()


def test_native_size_changes_nothing() -> None:
    x = np.random.default_rng(0).integers(0, 256, size=(2, 3, 6, 6), dtype=np.uint8)
    np.testing.assert_array_equal(resize_square(x, 6), x)


def test_damaged_pictures_are_named() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(40, 40), dtype=np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    for bad in (b"", b"hello", whole[: len(whole) // 2], whole[:60] + b"\x00" * 40 + whole[100:]):
        with pytest.raises(DataError, match="face 7"):
            decode(bad, "L", "face 7")
    assert decode(whole, "L", "face 7").size == (40, 40)
