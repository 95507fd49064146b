"""Times, sizes and damage of videos; both decoders agree."""

import gc
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_maker import Recipe, write

from pipelines.checks.quality import BadDataError
from pipelines.options import Backend
from pipelines.video.clock import REORDERED
from pipelines.video.decode import VideoInfo, probe, steady_frames
from pipelines.video.picture import Orientation

Make = Callable[..., Path]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Truth(Protocol):
    path: Path
    expected: Any


def header(**changes: Any) -> VideoInfo:
    facts: dict[str, Any] = {
        "container": "", "codec": "", "rate": 1.0, "timed": True, "rounding": 0.0, "frames": None, "duration": None,
        "whole": False, "left_out": (), "end": None, "joined": "",
        "coded": (48, 64), "orientation": Orientation(), "display": (48.0, 64.0),
    }  # fmt: skip
    return VideoInfo(**facts | changes)


@pytest.mark.parametrize(
    ("rate", "frames", "kept"),
    [(30.0, None, 15), (30.0, 60, 15), (30.0, 8, 30), (30.0, 4, 15), (10.0, 8, 10), (None, 8, 15), (0.05, 6, 0.05)],
)
def test_a_video_that_would_be_too_short_keeps_its_rate(rate: float | None, frames: int | None, kept: float) -> None:
    assert header(rate=rate, frames=frames).steps_per_second(15, 5) == kept


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 300))
def test_size_keeps_the_aspect_and_never_grows(height: int, width: int, short: int) -> None:
    out = header(display=(height, width)).size(short)
    strip = max(height, width) > 32 * min(height, width)
    assert min(out) == min(short, height, width) or strip
    assert max(out) <= min(max(height, width), 32 * short)
    assert abs(out[0] * width - out[1] * height) <= max(height, width)  # half a pixel on either side


@pytest.mark.ground_truth
def test_header_and_upright_size(video_truth: Truth) -> None:
    expected = video_truth.expected
    with video_truth.path.open("rb") as file:
        info = probe(file)
    aspect = float(Fraction(expected["sar"]))
    height, width = expected["height"], expected["width"] * aspect
    assert info.coded == (expected["height"], expected["width"])
    assert info.orientation == (False, expected["rotation"])
    assert info.display == pytest.approx((width, height) if expected["rotation"] % 180 else (height, width))
    if expected["avg_rate"] != "None":
        average = float(Fraction(expected["avg_rate"]))
        assert info.rate
        assert info.rate > average or info.rate == pytest.approx(average)  # one that pauses is faster than its average


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
    with av1_truth.path.open("rb") as file, pytest.raises(BadDataError, match=r"unsupported_by_decord: .*pyav"):
        list(steady_frames(file, probe(file), rate=15, size=(90, 160), backend="decord"))


@pytest.mark.ground_truth
def test_decord_refuses_edit_lists(cut_truth: Truth) -> None:
    with cut_truth.path.open("rb") as file, pytest.raises(BadDataError, match=r"unsupported_by_decord: .*pyav"):
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


def test_only_frames_in_hand_are_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "video", Recipe(format="mp4", codec="libx264", numbers=range(1, 61)))

    def alive() -> int:
        return sum(type(one).__name__ == "VideoFrame" for one in gc.get_objects())

    with path.open("rb") as file:
        info = probe(file)
        gc.collect()
        gc.disable()
        try:
            before = alive()
            most = max(alive() - before for _ in steady_frames(file, info, rate=30, size=(48, 64), backend="pyav"))
        finally:
            gc.enable()
    assert most <= 2 * REORDERED  # those that wait for their order, and those that the decoder gives at its end
