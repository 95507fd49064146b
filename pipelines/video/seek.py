"""Frames of a video at given times, decoded from the nearest key frame on and not from the beginning."""

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.video.clock import REORDERED, TimedFrame, in_order
from pipelines.video.containers import first_file
from pipelines.video.decode import VideoInfo, open_video, pixel_aspect
from pipelines.video.picture import upright

_EARLIER = (0.0, 10.0)
"""Seconds before the first wanted frame to which to seek; where none leads to it, decoding starts at the beginning."""


def frames_at(
    file: BinaryIO, info: VideoInfo, times: NDArray[np.float64], size: tuple[int, int]
) -> Iterator[NDArray[np.uint8]]:
    """The upright frame (H, W, 3) that appears at each of the times.

    Args:
        file: seekable.
        info: what `probe` found.
        times: (N,) in seconds, ascending, each the time of a frame as `frame_times` gives it; may repeat.
        size: H and W.

    Raises:
        BadDataError: "missing_frame" when no frame appears then; "corrupt" and others as `steady_frames` does.
    """
    near = 0.25 / (info.rate or 25)
    done = 0
    for before in (*_EARLIER, None):
        start = None if before is None else float(times[0]) - before
        try:
            for pixels in _from(file, info, times[done:], size, start, near):
                yield pixels
                done += 1
            return
        except BadDataError:
            # behind a key frame that does not stand alone decoders lack what came before it
            if before is None or done:
                raise


def _from(
    file: BinaryIO,
    info: VideoInfo,
    times: NDArray[np.float64],
    size: tuple[int, int],
    start: float | None,
    near: float,
) -> Iterator[NDArray[np.uint8]]:
    wanted = iter(times.tolist())
    time = next(wanted, None)
    for frame in _decode(file, info, size, start):
        if time is None:
            return
        if frame.time > time + near:
            break
        if frame.time < time - near:
            continue
        pixels = frame.pixels()
        while time is not None and abs(frame.time - time) <= near:
            yield pixels
            time = next(wanted, None)
    if time is not None:
        raise BadDataError("missing_frame", f"no frame appears at {time:.3f} s")


def _decode(file: BinaryIO, info: VideoInfo, size: tuple[int, int], start: float | None) -> Iterator[TimedFrame]:
    """Frames in order, from the key frame at or before `start` on."""
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter()
    native = info.rate or 25.0
    with open_video(first_file(file, info.end)) as (container, stream):
        if start is not None and stream.time_base:
            container.seek(int(max(0.0, start - 0.5 / native) / stream.time_base), stream=stream)

        def frames() -> Iterator[tuple[float | None, partial[NDArray[np.uint8]]]]:
            aspect: Fraction | None = None
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BadDataError("corrupt", f"the decoder marks the frame at {frame.time} s as damaged")
                aspect = aspect or stream.codec_context.sample_aspect_ratio
                yield frame.time, partial(upright, frame, convert, size, pixel_aspect(stream, aspect), info.display)

        yield from in_order(frames(), native, lambda: REORDERED if stream.codec_context.has_b_frames else 0)
