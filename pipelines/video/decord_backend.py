"""The decord backend, which is wrong with some files and so decodes only what a check shows that it gets right.

Shown are the containers of `_PROVEN`, the time of every frame, and the pixels of the first frames beside PyAV's.
Letters: T frames, H, W height and width of the frames that come out.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.video.clock import TimedFrame

_PROVEN = ("mov", "matroska")
"""First names of FFmpeg's demuxers. Of WMV, ASF and MPEG-TS it returns other frames than it is asked for."""
_COMPARED = 60
"""Frames whose pixels are compared."""
_DIFFERENT = 8.0
"""Mean difference of two frames, of 255, that scaling and colour conversion don't explain."""


def decode_decord(
    file: BinaryIO, container: str, size: tuple[int, int], times: NDArray[np.float64], expected: Iterator[TimedFrame]
) -> Iterator[TimedFrame]:
    """Frames in order.

    Args:
        file: seekable.
        container: FFmpeg's name of the file's format.
        size: H and W.
        times: when the frames appear, (T,) in seconds, ascending.
        expected: the frames as PyAV decodes them.

    Raises:
        BadDataError: "unsupported_by_decord".
    """
    if not container.startswith(_PROVEN):
        raise _unsupported(f"{container} is no container that it is known to get right")
    from decord import VideoReader, logging

    logging.set_level(logging.QUIET)
    file.seek(0)
    name = getattr(file, "name", None)
    # a path when there is one that it can take: of a file object it reads all into memory
    plain = isinstance(name, str) and name.isprintable() and os.path.isabs(name)  # noqa: PTH117
    with _refusing("it can't open the file"):
        # with more threads it loses packets of VP9 ("Error sending packet")
        reader: Any = VideoReader(name if plain else file, height=size[0], width=size[1], num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), np.float64)[:, 0]
    if len(stamps) != len(times) or np.abs((stamps - stamps[:1]) - (times - times[:1])).max(initial=0) > 2e-3:
        raise _unsupported("it gives frames other times than the container")

    def pixels(index: int) -> NDArray[np.uint8]:
        with _refusing(f"it failed at frame {index}"):
            return np.asarray(reader[index].asnumpy(), np.uint8)

    for index, frame in zip(range(_COMPARED), expected, strict=False):
        shown, right = pixels(index), frame.pixels()
        if shown.shape != right.shape or np.abs(np.subtract(shown, right, dtype=np.int16)).mean() > _DIFFERENT:
            raise _unsupported(f"frame {index} is not the one that PyAV decodes")
    begins = 0.0 if not len(times) else float(times[0] - stamps[0])  # its clock does, the container's need not
    for index, time in enumerate(stamps.tolist()):
        yield TimedFrame(begins + time, partial(pixels, index))


def _unsupported(why: str) -> BadDataError:
    return BadDataError("unsupported_by_decord", f"{why}: use the pyav backend")


@contextmanager
def _refusing(why: str) -> Iterator[None]:
    from decord._ffi.base import DECORDError

    try:
        yield
    except DECORDError as error:
        raise _unsupported(f"{why} ({str(error).strip().splitlines()[-1][:80]})") from error
