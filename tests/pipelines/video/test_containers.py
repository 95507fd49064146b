"""A file that was cut is seen to be cut."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.checks.quality import BadDataError
from pipelines.video.containers import check_whole

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
