"""Times, sizes and damage of videos; both decoders agree."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.checks.quality import BadDataError
from pipelines.options import Backend
from pipelines.video.decode import TimedFrame, VideoInfo, _resample, probe, steady_frames

Make = Callable[..., Path]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Truth(Protocol):
    path: Path
    expected: Any


def ticks(times: Sequence[float], native: float, rate: float) -> list[int]:
    """Which frame is taken at each tick."""

    def frame(index: int, time: float) -> TimedFrame:
        return TimedFrame(time, lambda: np.full((1, 1, 3), index, np.uint8))

    frames = (frame(index, time) for index, time in enumerate(times))
    return [int(pixels[0, 0, 0]) for pixels in _resample(frames, native, rate)]


@given(st.lists(st.floats(0.01, 0.5), max_size=60), st.floats(1, 60))
def test_each_tick_shows_the_latest_frame(gaps: list[float], rate: float) -> None:
    times = np.cumsum([0.0, *gaps]).tolist()
    slack = 0.1 / 30
    taken = ticks(times, 30, rate)
    for tick, index in enumerate(taken):
        assert times[index] <= tick / rate + slack + 1e-9
        if index + 1 < len(times):
            assert times[index + 1] >= tick / rate + slack - 1e-9
    assert abs(len(taken) - (times[-1] * rate + 1)) <= 1


@given(st.integers(1, 100), st.sampled_from([5, 10, 14.985, 15]), st.floats(0, 100))
def test_a_slower_video_keeps_every_frame(frames: int, rate: float, start: float) -> None:
    rounded = [round(start + index / rate, 3) for index in range(frames)]  # as Matroska rounds
    assert ticks(rounded, rate, rate) == list(range(frames))


def test_every_other_frame_of_twice_the_rate() -> None:
    assert ticks([index / 30 for index in range(9)], 30, 15) == [0, 2, 4, 6, 8]
    assert ticks([round(index * 1001 / 30000, 3) for index in range(7)], 29.97, 15) == [0, 2, 4, 6]


def test_broken_clocks_end() -> None:
    assert ticks([0, 0.1, 1e12, 1e12 + 0.1], 10, 10) == [0, 1, 2, 3]
    assert ticks([0, 0.1, 0.05, -5, -4.9], 10, 10) == [0, 1, 2, 3, 4]
    assert ticks([3.0], 10, 10) == [0]
    assert ticks([], 10, 10) == []


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 300))
def test_size_keeps_the_aspect_and_never_grows(height: int, width: int, short: int) -> None:
    info = VideoInfo(codec="", rate=1, duration=None, coded=(height, width), rotation=0, display=(height, width))
    out = info.size(short)
    assert min(out) == min(short, height, width)
    assert max(out) <= max(height, width)
    assert abs(out[0] * width - out[1] * height) <= max(height, width)  # half a pixel on either side


@pytest.mark.ground_truth
def test_header_and_upright_size(video_truth: Truth) -> None:
    expected = video_truth.expected
    with video_truth.path.open("rb") as file:
        info = probe(file)
    aspect = float(Fraction(expected["sar"]))
    height, width = expected["height"], expected["width"] * aspect
    assert info.coded == (expected["height"], expected["width"])
    assert info.rotation == expected["rotation"]
    assert info.display == pytest.approx((width, height) if expected["rotation"] % 180 else (height, width))
    if expected["avg_rate"] != "None":
        assert info.rate == pytest.approx(float(Fraction(expected["avg_rate"])))


@pytest.mark.ground_truth
def test_frames_and_colours(video_truth: Truth) -> None:
    expected = video_truth.expected
    with video_truth.path.open("rb") as file:
        info = probe(file)
        size = info.size(96)
        frames = list(steady_frames(file, info, rate=info.rate, size=size, backend="pyav"))
    seconds = expected["last_pts_s"] - expected["first_pts_s"]
    assert len(frames) == pytest.approx(seconds * info.rate + 1, abs=1.01)
    assert {frame.shape for frame in frames} == {(*size, 3)}
    for frame, key in ((frames[0], "mean_first_rgb"), (frames[-1], "mean_last_rgb")):
        np.testing.assert_allclose(frame.mean(axis=(0, 1)), expected[key], atol=2.5)


@pytest.mark.ground_truth
def test_backends_agree_on_h264(h264_truth: Truth) -> None:
    with h264_truth.path.open("rb") as file:
        info = probe(file)
        settings: Any = {"rate": min(15.0, info.rate), "size": info.size(120)}
        one, other = (list(steady_frames(file, info, **settings, backend=backend)) for backend in get_args(Backend))
    assert len(one) == len(other)
    differences = [float(np.abs(np.subtract(a, b, dtype=np.int16)).mean()) for a, b in zip(one, other, strict=True)]
    assert max(differences) < 4
    assert float(np.mean(differences)) < 2.5


@pytest.mark.ground_truth
def test_decord_names_the_alternative(av1_truth: Truth) -> None:
    with av1_truth.path.open("rb") as file, pytest.raises(BadDataError, match=r"unsupported_codec: .*pyav"):
        list(steady_frames(file, probe(file), rate=15, size=(90, 160), backend="decord"))


@pytest.mark.ground_truth
def test_decord_refuses_edit_lists(cut_truth: Truth) -> None:
    with cut_truth.path.open("rb") as file, pytest.raises(BadDataError, match=r"unsupported_edit_list: .*pyav"):
        list(steady_frames(file, probe(file), rate=15, size=(90, 160), backend="decord"))


@pytest.mark.parametrize("backend", get_args(Backend))
def test_variable_rate(tmp_path: Path, write_video: Make, backend: Any) -> None:
    """Frames 0-4 at 10 Hz, then a second of frame 4, then 5-9."""
    times = [*range(0, 4500, 900), *range(13500, 18000, 900)]
    path = write_video(tmp_path / "x.mp4", frames=10, rate=10, times=times)
    with path.open("rb") as file:
        info = probe(file)
        frames = list(steady_frames(file, info, rate=10, size=(48, 64), backend=backend))
    assert len(frames) == 20
    for tick in range(5, 15):
        np.testing.assert_array_equal(frames[tick], frames[4])
    assert (frames[15] != frames[4]).any()


def outcome(path: Path) -> str:
    with path.open("rb") as file:
        try:
            info = probe(file)
            return str(len(list(steady_frames(file, info, rate=info.rate, size=(48, 64), backend="pyav"))))
        except BadDataError as error:
            return error.reason


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_a_cut_file_is_not_taken_for_a_short_one(tmp_path: Path, write_video: Make, format: str) -> None:  # noqa: A002
    path = write_video(tmp_path / "x", frames=60, format=format)
    assert outcome(path) == "60"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert outcome(path) in ("truncated", "corrupt", "not_a_video")


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"]
)
def test_playlists_open_no_other_file(tmp_path: Path, write_video: Make, text: str) -> None:
    write_video(tmp_path / "secret.mp4")
    (tmp_path / "list.mp4").write_text(text.format("secret.mp4"))
    assert outcome(tmp_path / "list.mp4") == "not_a_video"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_video_or_not(data: bytes) -> None:
    with pytest.raises(BadDataError):
        probe(io.BytesIO(data))
