"""Pictures on pages: images tiled into one, encoded, and as URLs that need no other file."""

import base64
import io
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

JPEG_QUALITY = 70
_WHITE = 255


def tiled(rows: Iterable[Iterable[NDArray[np.uint8]]], *, gap: int = 0) -> NDArray[np.uint8]:
    """Rows of images (H, W, 3) as one image, with white lines of `gap` pixels between and around them.

    The images of a row have one height, and all rows come to one width.
    """
    padded = [[_padded(image, after=gap) for image in row] for row in rows]
    return _padded(np.concatenate([np.concatenate(row, axis=1) for row in padded]), before=gap)


def _padded(image: NDArray[np.uint8], *, before: int = 0, after: int = 0) -> NDArray[np.uint8]:
    return np.pad(image, ((before, after), (before, after), (0, 0)), constant_values=_WHITE)


def encoded(image: NDArray[np.uint8], format: Literal["PNG", "JPEG"] = "PNG") -> bytes:  # noqa: A002 - Pillow's word
    """An image (H, W, 3) as the bytes of a small file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format, quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def data_url(content: bytes, media_type: str) -> str:
    """A file's content as a URL that carries it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
