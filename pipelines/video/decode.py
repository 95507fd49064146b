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
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import MAX_PIXELS, BadDataError
from pipelines.options import Backend
from pipelines.video.clock import REORDERED, TimedFrame, in_order, native_rate, resample
from pipelines.video.containers import Outline, check_whole, first_file
from pipelines.video.picture import Orientation, display_size, orientation, upright
from pipelines.video.spans import Span, nearest, until_end, within

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream


_RAW = frozenset("h264 hevc vvc h261 h263 obu mjpeg dirac vc1 cavsvideo".split())  # noqa: SIM905
"""Bare streams of a codec. They have no clock: what FFmpeg says without being told counts 25 frames per second."""

_DEMUXERS = ",".join(
    (
        *sorted(_RAW),
        "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,ogg,gif,apng,webp,flv,asf,ivf,mxf,gxf,rm,ivr,dv,nut,nsv,yuv4mpegpipe,wtv,dhav,amv",
        "vc1test,mpjpeg,smjpeg,av1",
    )
)
"""Formats that hold their own data. Playlists are not among them: they would open other files and addresses."""

_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "max_pixels": str(MAX_PIXELS)}
"""Decoders rather fail than hide damage, and allocate nothing for a frame of absurd size."""

_MAX_ASPECT = 32
"""Of a frame that is `short_side` high; one that is longer is made smaller, for it would be huge."""

_PROBED = 300
"""Packets that are read to learn the rate."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video's header, its first frame and the times of its first packets say."""

    container: str
    """FFmpeg's name of the format."""
    codec: str
    rate: float | None
    """Usual frames per second; None when the file does not say."""
    timed: bool
    """Whether its frames have times."""
    rounding: float
    """Seconds to which times are rounded."""
    frames: int | None
    """How many there are, None when there are many."""
    start: float = 0.0
    """When the first frame appears, in seconds on the file's clock."""
    duration: float | None
    """Seconds of the video stream, or where it ends; None when the container does not say."""
    whole: bool
    """Whether the container shows by its bytes that nothing was cut off."""
    left_out: tuple[str, ...]
    """What else the file holds that is not decoded."""
    end: int | None
    """Bytes of the first of several files that were glued together; None when there is one."""
    joined: str
    """Another file that is decoded as a part of this one, as far as the decoder can."""
    coded: tuple[int, int]
    """Height and width as coded."""
    orientation: Orientation
    display: tuple[float, float]
    """Height and width of an upright frame with square pixels."""

    def size(self, short_side: int) -> tuple[int, int]:
        """H and W: the display's aspect, the short side at most `short_side`, never enlarged."""
        short, long = sorted(self.display)
        scale = min(1.0, short_side / short, short_side * _MAX_ASPECT / long)
        height, width = (max(1, round(side * scale)) for side in self.display)
        return height, width

    def steps_per_second(self, fps: float, least: int) -> float:
        """At most `fps`; a video that would be over before `least` steps keeps all of its frames."""
        if self.rate is None:
            return fps
        short = self.frames is not None and self.frames * fps < least * self.rate and self.frames >= least
        return self.rate if short else min(fps, self.rate)


def probe(file: BinaryIO, *, whole: bool = True) -> VideoInfo:
    """Read the header, the first frame and the first packets; and the whole structure, unless a part is enough.

    Raises:
        BadDataError: "not_a_video", "no_video_stream", "no_frames", "corrupt", "truncated", "too_large", ...
    """
    outline = check_whole(file, file.seek(0, os.SEEK_END)) if whole else Outline()
    with open_video(first_file(file, outline.end)) as (container, stream):
        times: list[float | None] = []
        first: VideoFrame | None = None
        packets = container.demux(stream)
        for packet in packets:
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.size and not packet.is_discard:
                times.append(_time(packet, packet.pts if packet.dts is None else packet.dts))
            if first is not None and len(times) == _PROBED:
                break
        if first is None:
            raise BadDataError("no_frames", "the video stream holds no frame")
        return _info(
            container,
            stream,
            first,
            [time for time in times if time is not None],
            frames=len(times) if len(times) < _PROBED else None,
            outline=outline,
        )


def frame_times(file: BinaryIO) -> NDArray[np.float64]:
    """When the frames appear, (T,) in seconds, ascending; nothing is decoded.

    Raises:
        BadDataError: "not_a_video", "no_video_stream", "corrupt", "truncated", ...
    """
    outline = check_whole(file, file.seek(0, os.SEEK_END))
    with open_video(first_file(file, outline.end)) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        times = (_time(packet, packet.dts if packet.pts is None else packet.pts) for packet in packets)
        return np.sort([time for time in times if time is not None])


def steady_frames(
    file: BinaryIO,
    info: VideoInfo,
    *,
    rate: float,
    size: tuple[int, int],
    backend: Backend,
    span: Span | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Upright frames (H, W, 3), `rate` per second: at each tick the frame that is on screen.

    Args:
        file: seekable, read from its start.
        info: what `probe` found.
        rate: ticks per second; at most `info.rate`, or frames repeat.
        size: H and W.
        backend: the decoder.
        span: what of the video is decoded, from the key frame before it on; all of it when None.

    Raises:
        BadDataError: "corrupt", "truncated", "unsupported_rotation", "beyond_end" when the video is over before a span
            is, and "unsupported_by_decord"; frames that came before are not to be used.
    """
    native = info.rate or rate
    if backend == "decord":
        from pipelines.video.decord_backend import decode_decord

        if info.orientation.mirrored or (info.orientation.rotation and not info.container.startswith("mov")):
            raise BadDataError("unsupported_by_decord", "it would not turn the frames: use the pyav backend")
        times = frame_times(file)
        if len(times):
            _check_end(info, times[0], times[-1] + 1 / native)
        timed = decode_decord(file, info.container, size, times, _decode_pyav(file, info, native, size))
        if span is not None:
            timed = until_end(within(timed, span.after(info.start), native), span.after(info.start), native)
    elif span is not None:
        decode = partial(_decode_pyav, file, info, native, size)
        timed = nearest(decode, span.after(info.start), native, seekable=info.timed)
    else:
        timed = _decode_pyav(file, info, native, size)
    return resample(timed, native, rate, info.rounding)


def every_frame(file: BinaryIO, info: VideoInfo, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """All upright frames (H, W, 3) in order, whenever they appear, for files whose clock somebody else keeps.

    Args:
        file: seekable, read from its start.
        info: what `probe` found.
        size: H and W.

    Raises:
        BadDataError: as `steady_frames` does.
    """
    yield from (frame.pixels() for frame in _decode_pyav(file, info, info.rate or 1.0, size))


def _check_end(info: VideoInfo, first: float, end: float) -> None:
    """A stream that ends well before its header says was cut. Headers say when it ends, or how long it is.

    Raises:
        BadDataError: "truncated".
    """
    if info.whole or info.duration is None:
        return
    seconds = end if 0 < first < info.duration + 2 / (info.rate or 25) else end - first
    # headers round, and count in the last frame's own time
    if info.duration - seconds > max(0.5, 0.1 * info.duration):
        raise BadDataError("truncated", f"frames up to {seconds:.1f} s where the header says {info.duration:.1f} s")


@contextmanager
def open_video(file: BinaryIO) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The container of a video and the track to decode, strict about damage.

    Raises:
        BadDataError: "not_a_video", "no_video_stream", "unsupported_codec"; "corrupt" when the decoder stops.
    """
    import av

    file.seek(0)
    try:
        container = av.open(file, "r", options={"format_whitelist": _DEMUXERS}, metadata_errors="replace")
    except av.ArgumentError as error:  # not among _DEMUXERS
        raise BadDataError("not_a_video", "a picture, a playlist or another format that is no video") from error
    except (av.FFmpegError, OSError) as error:
        raise BadDataError("not_a_video", f"no decoder knows this file: {_reason(error)}") from error
    with container:
        stream = _best(container)
        stream.codec_context.options = _STRICT
        # with slice threads decoders lose track of damage, and what they make of it differs from run to run
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        try:
            yield container, stream
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise BadDataError("corrupt", f"the decoder stopped: {_reason(error)}") from error


def _videos(container: "InputContainer") -> list["VideoStream"]:
    """The tracks that show something; a picture of the cover is none."""
    from av.stream import Disposition

    return [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]


def _best(container: "InputContainer") -> "VideoStream":
    videos = _videos(container)
    best = cast("VideoStream | None", container.streams.best("video"))
    if not videos:
        raise BadDataError("no_video_stream", f"the file holds no video{' but a cover picture' if best else ''}")
    stream = best if best in videos else videos[0]
    if stream is None or stream.codec_context is None:
        raise BadDataError("unsupported_codec", "no decoder knows the codec of the video stream")
    return stream


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _time(packet: "Packet[VideoStream]", stamp: int | None) -> float | None:
    return None if stamp is None or packet.time_base is None else float(stamp * packet.time_base)


def _info(
    container: "InputContainer",
    stream: "VideoStream",
    frame: "VideoFrame",
    times: list[float],
    *,
    frames: int | None,
    outline: Outline,
) -> VideoInfo:
    if frame.width * frame.height > MAX_PIXELS:
        raise BadDataError("too_large", f"frames of {frame.width} x {frame.height} pixels")
    # a decoder that puts MPEG-1 in order loses a frame's time at the start
    raw = container.format.name in _RAW or (container.format.name, stream.codec.name) == ("mpegvideo", "mpeg1video")
    coded = stream.codec_context.framerate
    times = [] if raw else times
    rates = [coded] if raw else [stream.average_rate, stream.guessed_rate, coded]
    rate = native_rate(times, [float(rate) for rate in rates if rate])
    more = (f"video track {other.index}" for other in _videos(container) if other.index != stream.index)
    unit = float(stream.time_base or 0)
    exact = not rate or not unit or abs(1 / rate / unit - round(1 / rate / unit)) < 1e-3  # a frame takes whole units
    return VideoInfo(
        container=container.format.name,
        codec=stream.codec_context.name,
        rate=rate,
        timed=bool(times),
        rounding=0.0 if exact else unit,
        frames=frames,
        start=(frame.time or 0.0) if times else 0.0,
        duration=_duration(container, stream),
        whole=outline.whole,
        left_out=(*outline.left_out, *more),
        end=outline.end,
        joined=outline.joined,
        coded=(frame.height, frame.width),
        orientation=orientation(frame),
        display=display_size(frame, pixel_aspect(stream)),
    )


def pixel_aspect(stream: "VideoStream", before: Fraction | None = None) -> float:
    """Width over height of a pixel; the container's word counts until the codec's is not what it was before."""
    coded = stream.codec_context.sample_aspect_ratio
    aspect = (stream.sample_aspect_ratio if before in (None, coded) else None) or coded or Fraction(1)
    return float(aspect if 0.1 < aspect < 10 else 1)


def _duration(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Of the video stream alone: sound may go on for longer."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def _decoded(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    """The frames of a stream, by the decoder that its container chose unless another one is known to be better.

    FFmpeg's own decoder of VP8 says nothing when the data of a frame end early, and leaves in the rest of the picture
    what lay in that memory before, so that damaged files change from run to run. That of libvpx fills or refuses it.
    Its decoder of MJPEG does so too; there libjpeg reads every frame besides.
    """
    if stream.codec.name == "mjpeg":
        yield from _decoded_jpegs(container, stream)
        return
    if stream.codec.name != "vp8":
        yield from container.decode(stream)
        return
    from av import VideoCodecContext

    codec = VideoCodecContext.create("libvpx", "r")
    codec.options, codec.thread_count = _STRICT, 1
    for packet in container.demux(stream):
        yield from codec.decode(packet)


def _decoded_jpegs(container: "InputContainer", stream: "VideoStream") -> Iterator["VideoFrame"]:
    """The frames of MJPEG, each of them whole; a stream of which libjpeg can't read any is left to FFmpeg alone."""
    from storage_schemas.store.frames import check_compressed

    known, doubt = False, ""
    for number, packet in enumerate(container.demux(stream)):
        if packet.size:
            try:
                check_compressed(bytes(packet))
                known = True
            except ValueError as error:
                doubt = doubt or f"frame {number} can't be decoded: {error}"
            if known and doubt:
                raise BadDataError("corrupt", doubt)
        yield from packet.decode()


def _decode_pyav(
    file: BinaryIO, info: VideoInfo, native: float, size: tuple[int, int], start: float | None = None
) -> Iterator[TimedFrame]:
    """Frames in order, from the key frame at or before `start` on; at the end it is checked that it is the end."""
    import av
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter()
    with open_video(first_file(file, info.end)) as (container, stream):
        first = end = 0.0
        if start is not None and stream.time_base:
            container.seek(int(start / stream.time_base), stream=stream)

        def frames() -> Iterator[tuple[float | None, Callable[[], NDArray[np.uint8]]]]:
            nonlocal first, end
            aspect: Fraction | None = None
            for number, frame in enumerate(_decoded(container, stream)):
                time = frame.time if info.timed else None
                if frame.is_corrupt:
                    raise BadDataError("corrupt", f"the decoder marks frame {number} as damaged")
                aspect = aspect or stream.codec_context.sample_aspect_ratio
                shown = partial(upright, frame, convert, size, pixel_aspect(stream, aspect), info.display)
                if time is not None:
                    base = frame.time_base
                    first = min(first, time) if number else time
                    end = max(end, time + (float(frame.duration * base) if frame.duration and base else 1 / native))
                yield time, shown
            if info.timed and start is None:
                _check_end(info, first, end)

        try:
            yield from in_order(frames(), native, lambda: REORDERED if stream.codec_context.has_b_frames else 0)
        except av.FFmpegError as error:
            if not info.joined:
                raise
            raise BadDataError("glued", f"{info.joined}, which the decoder can't go on with") from error
