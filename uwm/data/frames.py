"""Stored frames in the size that a run works with.

Dimension letters: n frames, H and W a stored frame's size, H0 and W0 the loader's.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from storage_schemas.store.dataset import Dataset
from storage_schemas.store.frames import scaled_size
from uwm.config import DataConfig


def fit_frames(frames: NDArray[np.uint8], size: tuple[int, int], fit: str = "cover") -> Tensor:
    """Bring frames to one size, antialiased; frames of that size pass through.

    Args:
        frames: (n, H, W, 3).
        size: H0, W0.
        fit: `cover` keeps the aspect and cuts what stands out evenly on both sides; `stretch` cuts nothing.

    Returns:
        (n, 3, H0, W0) uint8.
    """
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # channels last in memory
    height, width = images.shape[-2:]
    if fit == "cover":
        scale = max(size[0] / height, size[1] / width)
        rows = min(height, max(1, round(size[0] / scale)))
        columns = min(width, max(1, round(size[1] / scale)))
        top, left = (height - rows) // 2, (width - columns) // 2
        images = images[..., top : top + rows, left : left + columns]
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def decode_fitted(
    dataset: Dataset,
    episode: int,
    chunks: Sequence[bytes | memoryview],
    size: tuple[int, int],
    config: DataConfig,
) -> NDArray[np.uint8]:
    """Decode stored frames of one size and bring them to the run's.

    Args:
        dataset: that they come from.
        episode: that they belong to.
        chunks: n stored frames.
        size: H, W.
        config: `resize`, `fit` and `decode`.

    Returns:
        (n, H0, W0, 3).

    Raises:
        DamagedError: when a chunk is no image of that size.
    """
    decoded_size, least = size, None
    if config.decode == "scaled":
        needed = _least(size, config)
        decoded_size = scaled_size(size, needed, dataset.schema(episode).codec)
        least = needed if decoded_size != size else None
    pixels = np.empty((len(chunks), *decoded_size, 3), np.uint8)
    dataset.decode(episode, chunks, pixels, least)
    return np.asarray(fit_frames(pixels, config.resize, config.fit).permute(0, 2, 3, 1).numpy())


def _least(size: tuple[int, int], config: DataConfig) -> tuple[int, int]:
    """The least size of a whole frame that still has a pixel for each that the run looks at."""
    if config.fit == "stretch":
        return config.resize
    scale = max(config.resize[0] / size[0], config.resize[1] / size[1])
    return max(config.resize[0], round(size[0] * scale)), max(config.resize[1], round(size[1] * scale))
