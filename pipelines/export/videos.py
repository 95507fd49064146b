"""Write the frames of one camera into MP4 files that many episodes share.

Letters: H, W height and width of the frames in pixels.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from storage_schemas.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.video.stream import VideoStream

VideoCodec = Literal["h264", "hevc", "av1", "vp9"]
ENCODERS: dict[VideoCodec, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "18", "preset": "fast", "bf": "0"}),
    "hevc": ("libx265", {"crf": "20", "preset": "fast", "x265-params": "log-level=error:bframes=0"}),
    "av1": ("libsvtav1", {"crf": "24", "preset": "8"}),
    "vp9": ("libvpx-vp9", {"crf": "20", "b:v": "0", "deadline": "realtime", "cpu-used": "6"}),
}
"""FFmpeg's encoder of each codec, and settings at which frames look the same."""
KEY_FRAMES = 2
"""Distance of key frames: a loader reads any frame by decoding two at most."""
CHUNK = 1000
"""Files of a folder."""
_MAX_BYTES = 200 << 20
_MAX_SECONDS = 500.0
"""LeRobot's reader compares times as float32, whose steps beyond 1024 s are larger than its tolerance of 0.1 ms."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where the frames of an episode are."""

    chunk: int
    file: int
    start: float
    """Seconds from the beginning of the file."""
    end: float


class VideoFiles:
    """The videos of one camera.

    Args:
        folder: for `chunk-000/file-000.mp4` and those after it.
        size: H and W.
        fps: frames per second.
        codec: of all files.

    Raises:
        UserError: when the codec takes no frames of that size.
    """

    def __init__(self, folder: Path, size: tuple[int, int], fps: float, codec: VideoCodec) -> None:
        self._folder, self._size, self._codec = folder, size, codec
        self._rate = Fraction(fps).limit_denominator(1001)
        self._odd = any(side % 2 for side in size)
        if self._odd and codec in ("av1", "vp9"):
            raise UserError(f"{codec} takes no frames of {size[0]}x{size[1]} pixels, which are odd: use --codec h264")
        self._number = -1
        self._frames = self._bytes = 0
        self._container: OutputContainer | None = None
        self._stream: VideoStream

    def add(self, frames: Iterator[NDArray[np.uint8]]) -> Written:
        """Append the frames (H, W, 3) of an episode, in the next file when this one is large."""
        if self._container is None or self._is_large():
            self._next()
        first = self._frames
        for pixels in frames:
            self._encode(pixels, key=self._frames == first)
        return Written(
            chunk=self._number // CHUNK,
            file=self._number % CHUNK,
            start=float(first / self._rate),
            end=float(self._frames / self._rate),
        )

    def close(self) -> None:
        """Finish the last file."""
        if self._container is not None:
            self._mux(None)
            self._container.close()
            self._container = None

    def _path(self) -> Path:
        return self._folder / f"chunk-{self._number // CHUNK:03d}" / f"file-{self._number % CHUNK:03d}.mp4"

    def _is_large(self) -> bool:
        return self._bytes > _MAX_BYTES or self._frames / self._rate > _MAX_SECONDS

    def _next(self) -> None:
        import av

        self.close()
        self._number += 1
        self._frames = self._bytes = 0
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        encoder, settings = ENCODERS[self._codec]
        os.environ.setdefault("SVT_LOG", "1")  # errors only: it writes to stderr by itself
        self._container = av.open(str(path), "w")
        options = settings | {"g": str(KEY_FRAMES)}
        stream = cast("VideoStream", self._container.add_stream(encoder, rate=self._rate, options=options))
        stream.height, stream.width = self._size
        stream.pix_fmt = "yuv444p" if self._odd else "yuv420p"
        stream.codec_context.time_base = 1 / self._rate
        self._stream = stream

    def _encode(self, pixels: NDArray[np.uint8], *, key: bool) -> None:
        import av
        from av.video.frame import PictureType

        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        if key:
            frame.pict_type = PictureType.I
        self._mux(frame)
        if self._frames == 0 and self._codec == "av1":
            leave_real_time()
        self._frames += 1

    def _mux(self, frame: "VideoFrame | None") -> None:
        """Encode a frame, or what the encoder still holds back."""
        assert self._container is not None  # noqa: S101 - for the type checker
        for packet in self._stream.encode(frame):
            self._bytes += packet.size
            self._container.mux(packet)


def leave_real_time() -> None:
    """SVT-AV1, opened by root, puts its process at the highest real-time priority: all else would starve."""
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
