"""Frames of an episode as a small video that every browser plays."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage_schemas.store.dataset import Dataset

_AT_ONCE = 64
"""Frames that are in memory together."""


def write_video(dataset: Dataset, row: int, camera: str, path: Path) -> None:
    """Write one view of an episode as MP4 (H.264), a frame a step.

    Raises:
        KeyError: when the episode lacks the camera.
        DamagedError: when a frame can't be decoded.
    """
    import av

    episode = dataset.episodes.row(row)
    rate = Fraction(episode.fps).limit_denominator(1000)
    temporary = path.with_suffix(".part")
    with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
        stream.pix_fmt = "yuv420p"
        view = dataset.spec.cameras.index(camera)
        height, width = dataset.episodes.sizes[row, view].tolist()
        stream.height, stream.width = height + height % 2, width + width % 2
        for frame in _frames(dataset, row, camera, episode.length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


def _frames(dataset: Dataset, row: int, camera: str, length: int) -> Iterator[NDArray[np.uint8]]:
    """The frames (H, W, 3), with the last row or column twice where a size is odd, for 4:2:0 has even ones."""
    for start in range(0, length, _AT_ONCE):
        for frame in dataset.frames(row, camera, range(start, min(start + _AT_ONCE, length))):
            yield np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
