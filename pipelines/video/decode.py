"""Decode any video into upright frames with square pixels at a steady rate, one frame in memory at a time.

Two backends behind one interface, PyAV (all codecs) and decord; both hand out frames with their times, and the rest is
shared. Letters: H, W height and width of the frames that come out, in pixels.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import MAX_PIXELS, BadDataError
from pipelines.options import Backend
from pipelines.video.containers import check_whole

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


_DEMUXERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,ogg,gif,apng,webp_pipe,flv,asf,ivf,mxf,rm,dv,nut,h264,hevc,m4v,y4m"
"""Formats that hold their own data. Playlists are not among them: they would open other files and addresses."""

_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "max_pixels": str(MAX_PIXELS)}
"""Decoders rather fail than hide damage, and allocate nothing for a frame of absurd size."""

_MAX_ASPECT = 32
"""Of the longer to the shorter side; beyond, frames would stay huge when their shorter side is small."""

_MAX_GAP = 10.0
"""Seconds that a frame may stay on screen; a longer gap is a broken clock and counts as one frame."""


class TimedFrame(NamedTuple):
    """A frame and when it appears, in seconds; the pixels (H, W, 3) are only made when asked for."""

    time: float
    pixels: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video's header and its first frame say."""

    codec: str
    rate: float
    """Average frames per second."""
    duration: float | None
    """Seconds of the video stream, None when the container does not say."""
    coded: tuple[int, int]
    """Height and width as coded."""
    rotation: int
    """Degrees counterclockwise, a multiple of 90, that turn a coded frame upright."""
    display: tuple[float, float]
    """Height and width of an upright frame with square pixels."""

    def size(self, short_side: int) -> tuple[int, int]:
        """H and W: the display's aspect, the short side at most `short_side`, never enlarged."""
        height, width = self.display
        scale = min(1.0, short_side / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def probe(file: BinaryIO) -> VideoInfo:
    """Read the header and the first frame.

    Raises:
        BadDataError: "not_a_video", "no_video_stream", "no_frames", "corrupt", "truncated", "too_large".
    """
    check_whole(file, file.seek(0, os.SEEK_END))
    with _open(file) as (container, stream):
        for frame in container.decode(stream):
            return _info(container, stream, frame)
    raise BadDataError("no_frames", "the video stream holds no frame")


def frame_times(file: BinaryIO) -> NDArray[np.float64]:
    """When the frames appear, (T,) in seconds, ascending; nothing is decoded.

    Raises:
        BadDataError: "not_a_video", "no_video_stream", "corrupt".
    """
    with _open(file) as (container, stream):
        base = float(stream.time_base or 0)
        packets = (packet for packet in container.demux(stream) if packet.size)
        return np.sort([packet.pts * base for packet in packets if packet.pts is not None and not packet.is_discard])


def steady_frames(
    file: BinaryIO, info: VideoInfo, *, rate: float, size: tuple[int, int], backend: Backend
) -> Iterator[NDArray[np.uint8]]:
    """Upright frames (H, W, 3), `rate` per second: at each tick the frame that is on screen.

    Args:
        file: seekable, read from its start.
        info: what `probe` found.
        rate: ticks per second; at most `info.rate`, or frames repeat.
        size: H and W.
        backend: the decoder.

    Raises:
        BadDataError: "corrupt", "truncated", and from decord "unsupported_codec", "unsupported_edit_list",
            "undecodable"; frames that came before are not to be used.
    """
    timed = _decode_pyav(file, size) if backend == "pyav" else _decode_decord(file, info, size)
    return _resample(_checked(timed, info), info.rate, rate)


def _resample(frames: Iterator[TimedFrame], native: float, rate: float) -> Iterator[NDArray[np.uint8]]:
    """Latest frame at or before each tick. Clocks of containers round, so a frame may be a little late."""
    slack = 0.1 / native
    clock, ticks = 0.0, 0
    before: TimedFrame | None = None
    for frame in frames:
        if before is not None:
            gap = frame.time - before.time
            clock += gap if 0 < gap <= _MAX_GAP else 1 / native
            if ticks / rate < clock - slack:
                pixels = before.pixels()
                while ticks / rate < clock - slack:
                    yield pixels
                    ticks += 1
        before = frame
    if before is not None and ticks / rate <= clock + slack:
        yield before.pixels()


def _checked(frames: Iterator[TimedFrame], info: VideoInfo) -> Iterator[TimedFrame]:
    """The same frames; a stream that ends well before its header says was cut."""
    first = last = None
    for frame in frames:
        first = frame.time if first is None else first
        last = frame.time
        yield frame
    if first is None or last is None:
        raise BadDataError("no_frames", "the video stream holds no frame")
    seconds = last - first + 1 / info.rate
    if info.duration is not None and info.duration - seconds > max(0.5, 0.1 * info.duration):
        raise BadDataError("truncated", f"{seconds:.1f} s of frames where the header says {info.duration:.1f} s")


@contextmanager
def _open(file: BinaryIO) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    import av

    file.seek(0)
    try:
        container = av.open(file, "r", options={"format_whitelist": _DEMUXERS}, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise BadDataError("not_a_video", f"no decoder knows this file: {_reason(error)}") from error
    with container:
        best = container.streams.best("video")
        if best is None:
            raise BadDataError("no_video_stream", "the file holds no video stream")
        stream = cast("VideoStream", best)
        if stream.codec_context is None:
            raise BadDataError("unsupported_codec", "no decoder knows the codec of the video stream")
        stream.codec_context.options = _STRICT
        # with slice threads decoders lose track of damage, and what they make of it differs from run to run
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        try:
            yield container, stream
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise BadDataError("corrupt", f"the decoder stopped: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _info(container: "InputContainer", stream: "VideoStream", frame: "VideoFrame") -> VideoInfo:
    sides = sorted((frame.width, frame.height))
    if frame.width * frame.height > MAX_PIXELS or sides[1] > _MAX_ASPECT * sides[0]:
        raise BadDataError("too_large", f"frames of {frame.width} x {frame.height} pixels")
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    width = frame.width * float(aspect if 0.1 < aspect < 10 else 1)
    rotation = round(frame.rotation / 90) * 90 % 360
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return VideoInfo(
        codec=stream.codec_context.name,
        rate=float(rate) if rate and 0.1 <= rate <= 1000 else 25.0,
        duration=_duration(container, stream),
        coded=(frame.height, frame.width),
        rotation=rotation,
        display=(width, float(frame.height)) if rotation in (90, 270) else (float(frame.height), width),
    )


def _duration(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Of the video stream alone: sound may go on for longer."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def _decode_pyav(file: BinaryIO, size: tuple[int, int]) -> Iterator[TimedFrame]:
    with _open(file) as (container, stream):
        time = 0.0
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise BadDataError("corrupt", f"the decoder marks the frame at {time:.2f} s as damaged")
            time = frame.time if frame.time is not None else time
            yield TimedFrame(time, partial(_upright, frame, size))


def _upright(frame: "VideoFrame", size: tuple[int, int]) -> NDArray[np.uint8]:
    import av

    quarters = round(frame.rotation / 90) % 4
    height, width = size if quarters % 2 == 0 else size[::-1]
    try:
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BILINEAR")
    except av.FFmpegError as error:
        raise BadDataError("corrupt", f"a frame can't be converted to RGB: {_reason(error)}") from error
    return np.ascontiguousarray(np.rot90(pixels, quarters), np.uint8)


def _decode_decord(file: BinaryIO, info: VideoInfo, size: tuple[int, int]) -> Iterator[TimedFrame]:
    from decord import VideoReader, logging

    logging.set_level(logging.QUIET)
    file.seek(0)
    name = getattr(file, "name", None)
    # a path when there is one that it can take: of a file object it reads all into memory
    plain = isinstance(name, str) and name.isprintable() and os.path.isabs(name)  # noqa: PTH117
    # with more threads it loses packets of VP9 ("Error sending packet")
    with _decord_errors("unsupported_codec", f"decord can't open {info.codec}: use the pyav backend"):
        reader: Any = VideoReader(name if plain else file, height=size[0], width=size[1], num_threads=1)
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].tolist()
    if times and min(times) < 0:  # its times count the frames that an edit list cuts off, its indices don't
        raise BadDataError("unsupported_edit_list", "decord misplaces its frames: use the pyav backend")

    def pixels(index: int) -> NDArray[np.uint8]:
        with _decord_errors("undecodable", f"decord failed at frame {index} of {info.codec}: try the pyav backend"):
            return np.asarray(reader[index].asnumpy(), np.uint8)

    for index, time in enumerate(times):
        yield TimedFrame(time, partial(pixels, index))


@contextmanager
def _decord_errors(reason: str, detail: str) -> Iterator[None]:
    from decord._ffi.base import DECORDError

    try:
        yield
    except DECORDError as error:
        raise BadDataError(reason, detail) from error
