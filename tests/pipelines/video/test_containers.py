"""A file that was cut is seen to be cut."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from painted import number_of
from video_maker import KINDS, Recipe, write

from pipelines.checks.quality import BadDataError
from pipelines.video.containers import check_whole
from pipelines.video.decode import probe, steady_frames

MADE = [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4")]


@pytest.mark.parametrize(("format", "codec"), MADE, ids=[name for name, _ in MADE])
def test_whole_and_cut(tmp_path: Path, write_video: Callable[..., Path], format: str, codec: str) -> None:  # noqa: A002
    data = write_video(tmp_path / "video", format=format, codec=codec).read_bytes()
    check_whole(io.BytesIO(data), len(data))
    check_whole(io.BytesIO(data + b"\0" * 4), len(data) + 4)
    for kept in (0.3, 0.8, 0.99):
        cut = data[: int(len(data) * kept)]
        with pytest.raises(BadDataError, match="truncated"):
            check_whole(io.BytesIO(cut), len(cut))


@pytest.mark.ground_truth
def test_real_videos_are_whole(video_truth: object) -> None:
    path: Path = video_truth.path  # type: ignore[attr-defined]
    with path.open("rb") as file:
        check_whole(file, path.stat().st_size)


def test_gif_without_a_trailer() -> None:
    check_whole(io.BytesIO(b"GIF89a 0123456789;"), 18)
    with pytest.raises(BadDataError, match="trailer"):
        check_whole(io.BytesIO(b"GIF89a 0123456789"), 17)


@pytest.mark.parametrize("head", [b"\0\0\0\3ftypisom", b"\x1a\x45\xdf\xa3\0", b"\x1a\x45\xdf\xa3"])
def test_nonsense_is_corrupt(head: bytes) -> None:
    with pytest.raises(BadDataError, match="corrupt"):
        check_whole(io.BytesIO(head + bytes(20) if head[-1:] == b"m" else head), 32)


@pytest.mark.parametrize("data", [b"", b"x", b"\x47" * 200, b"\0\0\1\xba" + bytes(50)])
def test_others_say_nothing(data: bytes) -> None:
    check_whole(io.BytesIO(data), len(data))


def test_a_flipped_bit_in_matroska_shows(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    data = bytearray(write_video(tmp_path / "video", format="matroska").read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(BadDataError, match="crc_mismatch"):
        check_whole(io.BytesIO(data), len(data))


def whole(path: Path) -> bool:
    with path.open("rb") as file:
        return check_whole(file, path.stat().st_size).whole


@pytest.mark.parametrize("format", ["mp4", "matroska", "avi", "asf", "flv", "ogg", "gif"])
def test_containers_that_show_by_their_bytes_that_they_are_whole(tmp_path: Path, format: str) -> None:  # noqa: A002
    codec = {"ogg": "libvpx", "gif": "gif", "asf": "wmv2", "flv": "flv"}.get(format, "mpeg4")
    path = write(tmp_path / "video", Recipe(format=format, codec=codec))
    assert whole(path)
    path.write_bytes(path.read_bytes()[:-200])
    if format == "ogg":  # a stream that was recorded may lack its last page
        assert not whole(path)
    else:
        with pytest.raises(BadDataError, match="truncated"):
            whole(path)


@pytest.mark.parametrize(
    "rest", [b"\0\0\1\0insv" + bytes(90), bytes(200), bytes(range(200)), b"8db42d694ccc418790edff439fe026bf"]
)
def test_bytes_behind_the_last_box_are_not_a_cut_box(tmp_path: Path, rest: bytes) -> None:
    path = write(tmp_path / "video", Recipe(format="mp4", codec="mpeg4"))
    path.write_bytes(path.read_bytes() + rest)
    assert whole(path)


def test_a_cut_box_behind_the_others_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "video", Recipe(format="mp4", codec="mpeg4"))
    path.write_bytes(path.read_bytes() + b"\0\0\1\0mdat" + bytes(9))
    with pytest.raises(BadDataError, match="truncated"):
        whole(path)


ONE_OF_EACH = {kind.partition("/")[0]: kind.partition("/")[2] for kind in KINDS}
STREAMS = set("gif h264 hevc m4v matroska mjpeg mpeg mpeg1video mpeg2video mpegts obu vob webm".split())  # noqa: SIM905
"""What may follow each other."""


@pytest.mark.parametrize("container", ONE_OF_EACH)
def test_of_files_that_were_glued_together_one_is_read_and_the_other_named(container: str, tmp_path: Path) -> None:
    kind = {"format": container, "codec": ONE_OF_EACH[container], "rate": Fraction(25)}
    data, more = (
        write(tmp_path / "video", Recipe(**kind, numbers=numbers)).read_bytes()  # type: ignore[arg-type]
        for numbers in (range(1, 31), range(101, 126))
    )
    assert check_whole(io.BytesIO(data), len(data)).left_out == ()
    file = io.BytesIO(data + more)
    info = probe(file)
    frames = steady_frames(file, info, rate=info.rate or 25, size=info.size(96), backend="pyav")
    both = [*range(1, 31), *range(101, 126)]
    assert [number_of(frame) for frame in frames] == (both if container in STREAMS else both[:30])
    assert info.left_out == (() if container in STREAMS else (f"another file glued to it at byte {len(data)}",))


def test_the_streams_of_an_ogg_are_no_other_files(tmp_path: Path) -> None:
    path = tmp_path / "two.ogv"
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
    with av.open(path, "w", format="ogg") as container:
        streams: list[Any] = [container.add_stream("libvpx", rate=5) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width = 48, 64
        for stream in streams:
            container.mux([*stream.encode(frame), *stream.encode()])
    data = path.read_bytes()
    assert check_whole(io.BytesIO(data), len(data)).left_out == ()
    assert check_whole(io.BytesIO(data * 2), 2 * len(data)).end == len(data)


def test_a_fragment_without_its_init_segment(tmp_path: Path) -> None:
    path = write(tmp_path / "video", Recipe(format="mp4", codec="mpeg4", mux={"movflags": "frag_keyframe+empty_moov"}))
    data = path.read_bytes()
    fragment = data[data.index(b"moof") - 4 :]
    with pytest.raises(BadDataError, match="no_init_segment"):
        check_whole(io.BytesIO(fragment), len(fragment))


def test_an_animated_webp_is_named() -> None:
    data = b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(40)
    with pytest.raises(BadDataError, match="animated WebP"):
        check_whole(io.BytesIO(data), len(data))
