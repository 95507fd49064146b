"""Frames at given times: the right ones of every container, without what comes before them."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.checks.quality import BadDataError
from pipelines.video.decode import frame_times, probe
from pipelines.video.seek import frames_at

SIZE, FRAMES = (64, 96), 240


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    total = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.total += len(data)
        return data


def noisy(path: Path, codec: str, options: dict[str, str]) -> bytes:
    """A video whose frames have a brightness of their own, and noise that makes them large."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(FRAMES):
            pixels = np.clip(60 + 40 * (index % 4) + rng.normal(0, 12, (*SIZE, 3)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def level(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 60) / 40)


CODED = {
    "mp4": ("libx264", {"g": "20", "bf": "3", "crf": "8"}),
    "mkv": ("libx264", {"g": "20", "x264-params": "open-gop=1:bframes=3", "crf": "8"}),
    "webm": ("libvpx-vp9", {"g": "20", "crf": "8", "b:v": "0", "deadline": "realtime", "cpu-used": "8"}),
    "ts": ("mpeg2video", {"g": "20", "bf": "2", "qmin": "2", "qmax": "3"}),
}


@pytest.mark.parametrize("suffix", CODED)
def test_frames_are_those_of_the_times(tmp_path: Path, suffix: str) -> None:
    data = noisy(tmp_path / f"clip.{suffix}", *CODED[suffix])
    info, times = probe(io.BytesIO(data)), frame_times(io.BytesIO(data))
    assert len(times) == FRAMES
    for wanted in ([0, 1, 2], [117, 118, 118, 123], [200, 239], [239]):
        shown = list(frames_at(io.BytesIO(data), info, times[wanted], SIZE))
        assert [level(frame) for frame in shown] == [number % 4 for number in wanted]


def test_what_comes_before_is_not_read(tmp_path: Path) -> None:
    data = noisy(tmp_path / "clip.mp4", *CODED["mp4"])
    info, times, file = probe(io.BytesIO(data)), frame_times(io.BytesIO(data)), Counting(data)
    assert len(list(frames_at(file, info, times[-4:], SIZE))) == 4
    assert file.total < len(data) / 3


def test_a_time_without_a_frame_is_said(tmp_path: Path) -> None:
    data = noisy(tmp_path / "clip.mp4", *CODED["mp4"])
    info = probe(io.BytesIO(data))
    for times in ([2.02], [500.0]):
        with pytest.raises(BadDataError, match="missing_frame"):
            list(frames_at(io.BytesIO(data), info, np.array(times), SIZE))
