"""Decoding and resizing of pictures; everything is uint8 and deterministic."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oakum.datasets._prepared import DataError

_PLANES_AT_ONCE = 4096


def decode(data: bytes, mode: str, where: str | Path) -> Image.Image:
    """Decode one picture to `mode` ("L" or "RGB"); `where` names it in the error.

    Raises:
        DataError: the bytes are not a whole picture.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{where} is not a readable picture ({error}); get the file again") from error
    return image.convert(mode)


def resize_square(x: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize pictures (N, C, H, W) uint8 to (N, C, size, size): centered square crop, then Pillow's bilinear filter.

    Bit-equal to `Image.resize((size, size), BILINEAR)` of every picture, but thousands of planes are resized by two
    calls: Pillow's horizontal pass treats rows independently, so the rows of many pictures form one tall picture; its
    result is rounded to uint8 before the vertical pass, which is run the same way on the transposed planes.
    """
    x = _center_square(x)
    count, channels, side, _ = x.shape
    if side == size:
        return np.ascontiguousarray(x)
    planes = x.reshape(count * channels, side, side)
    result = np.empty((count * channels, size, size), dtype=np.uint8)
    for start in range(0, len(planes), _PLANES_AT_ONCE):
        part = planes[start : start + _PLANES_AT_ONCE]
        narrow = _resize_rows(part, size)
        result[start : start + len(part)] = _resize_rows(narrow.transpose(0, 2, 1), size).transpose(0, 2, 1)
    return result.reshape(count, channels, size, size)


def _resize_rows(planes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    count, height, old_width = planes.shape
    tall = Image.fromarray(np.ascontiguousarray(planes).reshape(count * height, old_width))
    resized = tall.resize((width, count * height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(count, height, width)


def _center_square(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = x.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[:, :, top : top + side, left : left + side]
