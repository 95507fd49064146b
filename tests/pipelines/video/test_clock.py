"""At each tick of a steady rate the frame that is on screen, whatever the order and the gaps of the times."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.video.clock import REORDERED, TimedFrame, in_order, native_rate, resample


def ticks(times: Sequence[float], native: float, rate: float) -> list[int]:
    """Which frame is taken at each tick."""

    def frame(index: int, time: float) -> TimedFrame:
        return TimedFrame(time, lambda: np.full((1, 1, 3), index, np.uint8))

    frames = (frame(index, time) for index, time in enumerate(times))
    return [int(pixels[0, 0, 0]) for pixels in resample(frames, native, rate)]


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
    assert ticks([0, 0.1, 20.1, 20.2], 10, 10) == [0, *[1] * 200, 2, 3]
    assert ticks([0, 0.1, 0.05, -5, -4.9], 10, 10) == [0, 1, 2, 3, 4]
    assert ticks([3.0], 10, 10) == [0]
    assert ticks([], 10, 10) == []


def ordered(times: Sequence[float | None], native: float = 30) -> list[tuple[float, Any]]:
    """Times and indices of the frames after ordering."""
    frames = ((time, lambda index=index: index) for index, time in enumerate(times))
    return [(frame.time, frame.pixels()) for frame in in_order(frames, native)]


@given(st.integers(1, 80), st.integers(1, REORDERED), st.floats(0.05, 60), st.floats(0, 100))
def test_times_in_the_order_of_storage(count: int, group: int, rate: float, start: float) -> None:
    """The last frame of every group was stored first, as AVI stores B frames."""
    times: list[float] = []
    for first in range(0, count, group + 1):
        members = list(range(first, min(first + group + 1, count)))
        times += [start + index / rate for index in [*members[1:], members[0]]]
    result = ordered(times)
    assert [index for _, index in result] == list(range(count))
    assert [time for time, _ in result] == pytest.approx([start + index / rate for index in range(count)])


@given(st.lists(st.floats(0, 1000) | st.none(), max_size=100))
def test_no_frame_is_lost_or_moved(times: list[float | None]) -> None:
    assert [index for _, index in ordered(times)] == list(range(len(times)))


def test_a_clock_that_begins_anew() -> None:
    times = [index / 30 for index in range(40)]
    result = ordered([*times, *times])
    assert [time for time, _ in result] == [*times, *times]
    assert [index for _, index in result] == list(range(80))


def test_frames_without_times_follow_each_other() -> None:
    times = [time for time, _ in ordered([None] * 5, 10)]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [time for time, _ in ordered([1.0, None, 1.2], 10)] == pytest.approx([1, 1.1, 1.2])


@given(st.floats(0.01, 240), st.integers(2, 300), st.floats(0, 1e5))
def test_the_rate_of_a_steady_clock(rate: float, count: int, start: float) -> None:
    rounded = [round(start + index / rate, 3) for index in range(count)]
    assert native_rate([start + index / rate for index in range(count)], []) == pytest.approx(rate, rel=1e-3)
    if rate <= 60 and count >= 20:
        assert native_rate(rounded, [25.0, rate, 90000.0]) == rate or abs(25 / rate - 1) < 0.01


def test_the_rate_is_that_of_the_usual_interval() -> None:
    moving = [index / 30 for index in range(60)]
    assert native_rate([*moving, *(moving[-1] + 3 + time for time in moving)], [12.1]) == pytest.approx(30)
    assert native_rate([0, 20, 40, 60], [0.05]) == 0.05
    assert native_rate([], [30.0, 25.0]) == 30
    assert native_rate([5.0], []) is None
    assert native_rate([0, 0, 0], [0.0, 1e9]) is None


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=40), st.sampled_from([0.05, 1.0, 15.0]))
def test_any_gap_is_kept(gaps: list[float], rate: float) -> None:
    times = np.cumsum([0.0, *gaps]).tolist()
    taken = ticks(times, 1000, rate)
    assert abs(len(taken) - (times[-1] * rate + 1)) <= 1
    assert all(a <= b for a, b in pairwise(taken))
