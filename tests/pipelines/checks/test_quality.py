"""Each check accepts what is good and names what is not."""

from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg

from pipelines.checks.quality import BadDataError, check_finite, check_flags, check_jpegs, check_lengths


def flags(*marked: int, steps: int = 4) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.isin(np.arange(steps), marked)


@pytest.mark.parametrize(("first", "last"), [((0,), (3,)), ((0,), ())])
def test_good_flags(first: tuple[int, ...], last: tuple[int, ...]) -> None:
    check_flags(flags(*first), flags(*last))


@pytest.mark.parametrize(("first", "last"), [((), (3,)), ((0, 2), (3,)), ((1,), (3,)), ((0,), (2,)), ((0,), (1, 3))])
def test_bad_flags(first: tuple[int, ...], last: tuple[int, ...]) -> None:
    with pytest.raises(BadDataError, match="bad_boundaries"):
        check_flags(flags(*first), flags(*last))


def test_one_step_is_first_and_last() -> None:
    check_flags(flags(0, steps=1), flags(0, steps=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite(value: float) -> None:
    values = np.zeros((5, 2), np.float32)
    check_finite({"good": values})
    bad = values.copy()
    bad[3, 1] = value
    with pytest.raises(BadDataError, match=r"non_finite: bad .* step 3"):
        check_finite({"good": values, "bad": bad})


def test_lengths() -> None:
    check_lengths({"a": 3, "b": 3}, 3)
    with pytest.raises(BadDataError, match="b has 2 entries for 3 steps"):
        check_lengths({"a": 3, "b": 2}, 3)


def jpeg(height: int = 16, width: int = 24, quality: int = 90, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality))


def test_good_jpegs() -> None:
    assert check_jpegs("cam", [jpeg(seed=0), jpeg(seed=1), jpeg(quality=50), jpeg(seed=2) + b"\0\0"]) == (16, 24)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("not_a_jpeg", lambda good: b""),
        ("truncated_jpeg", lambda good: good[:-40]),
        ("not_a_jpeg", lambda good: b"\x89PNG" + good),
        ("not_a_jpeg", lambda good: b"\xff\xd8\xff\xd9"),
        ("frame_size_mismatch", lambda good: jpeg(height=8)),
    ],
)
def test_bad_jpegs(reason: str, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadDataError) as caught:
        check_jpegs("cam", [jpeg(), jpeg(seed=1), change(jpeg())])
    assert caught.value.reason == reason
    assert "frame 2" in caught.value.detail


def test_first_frame_is_checked_too() -> None:
    with pytest.raises(BadDataError, match="not_a_jpeg"):
        check_jpegs("cam", [b"", jpeg()])
