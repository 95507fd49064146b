"""Images side by side, and as files and URLs."""

import base64
import io

import numpy as np
from PIL import Image

from storage_schemas.images import data_url, encoded, tiled


def plain(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_rows_of_images_become_one() -> None:
    image = tiled([[plain(2, 3, 1), plain(2, 4, 2)], [plain(5, 7, 3)]])
    assert image.shape == (7, 7, 3)
    assert (image[:2, :3] == 1).all()
    assert (image[:2, 3:] == 2).all()
    assert (image[2:] == 3).all()


def test_gaps_lie_between_and_around() -> None:
    image = tiled(np.zeros((2, 3, 4, 5, 3), np.uint8), gap=1)
    assert image.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    assert (image[[0, 5, 10]] == 255).all()
    assert (image[:, [0, 6, 12, 18]] == 255).all()
    assert (image[1:5, 1:6] == 0).all()


def test_a_png_keeps_every_pixel_and_a_url_every_byte() -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    url = data_url(encoded(image), "image/png")
    assert url.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))), image)
    assert encoded(image, "JPEG").startswith(b"\xff\xd8")
