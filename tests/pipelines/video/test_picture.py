"""Frames are shown as they are meant to be seen: upright, and in their own shape when the video's size changes."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from painted import COLOURS, Pixels, corners_of, disc_is_round
from video_maker import Recipe, write

from pipelines.checks.quality import BadDataError
from pipelines.video.decode import probe, steady_frames


def decoded(path: Path) -> list[Pixels]:
    with path.open("rb") as file:
        info = probe(file)
        return list(steady_frames(file, info, rate=15, size=info.size(180), backend="pyav"))


def corners(height: int, width: int) -> Pixels:
    """A colour in each corner: R, G above B, W."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    high, wide = height // 4, width // 4
    for index, letter in enumerate("RGBW"):
        rows = slice(None, high) if index < 2 else slice(-high, None)
        pixels[rows, slice(None, wide) if index % 2 == 0 else slice(-wide, None)] = COLOURS[letter]
    return pixels


def disc(height: int, width: int) -> Pixels:
    pixels = np.full((height, width, 3), 40, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    pixels[np.hypot(rows - height / 2, columns - width / 2) < 0.3 * min(height, width)] = COLOURS["R"]
    return pixels


@pytest.mark.parametrize(
    ("format", "codec"), [("mp4", "libx264"), ("mov", "mjpeg"), ("matroska", "libx264"), ("3gp", "mpeg4")]
)
@pytest.mark.parametrize(("mirrored", "quarters"), list(product((False, True), range(4))))
def test_all_eight_orientations(tmp_path: Path, format: str, codec: str, mirrored: bool, quarters: int) -> None:  # noqa: A002
    recipe = Recipe(format=format, codec=codec, mirrored=mirrored, quarters=quarters)
    frames = decoded(write(tmp_path / "video", recipe, [corners(96, 128)] * 12))
    assert {frame.shape for frame in frames} == {(96, 128, 3)}
    assert {corners_of(frame) for frame in frames} == {"RGBW"}


@pytest.mark.parametrize(
    ("format", "codec"),
    [("h264", "libx264"), ("hevc", "libx265"), ("mpegts", "mpeg2video"), ("webm", "libvpx"), ("mjpeg", "mjpeg")],
)
@pytest.mark.parametrize("sizes", [((240, 426), (426, 240)), ((426, 240), (240, 426)), ((240, 320), (240, 240))])
def test_a_change_of_size_squeezes_nothing(
    tmp_path: Path,
    format: str,  # noqa: A002
    codec: str,
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    parts = [
        write(tmp_path / str(index), Recipe(format=format, codec=codec, size=size), [disc(*size)] * 20)
        for index, size in enumerate(sizes)
    ]
    (tmp_path / "both").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = decoded(tmp_path / "both")
    assert len(frames) >= 20
    assert len({frame.shape for frame in frames}) == 1
    assert all(disc_is_round(frame) for frame in frames)


def test_a_glued_file_that_the_decoder_cannot_go_on_with_is_named(tmp_path: Path) -> None:
    sizes = ((96, 128), (128, 96))
    data = [write(tmp_path / "x", Recipe(format="matroska", codec="libx264", size=size)).read_bytes() for size in sizes]
    (tmp_path / "x").write_bytes(data[0] + data[1])
    with pytest.raises(BadDataError, match=f"glued: another file glued to it at byte {len(data[0])}"):
        decoded(tmp_path / "x")
