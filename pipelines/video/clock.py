"""When the frames of a video appear, and which of them a steady rate shows. Letters: N packets or frames."""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REORDERED = 16
"""Most frames that a decoder holds back to put them in order; H.264 and H.265 allow no more."""
_MAX_RATE = 1000.0
_MAX_GAP = 3600.0
"""Seconds that a frame may stay on screen; a longer gap is a broken clock and counts as one frame."""


class TimedFrame(NamedTuple):
    """A frame and when it appears, in seconds; the pixels (H, W, 3) are only made when asked for."""

    time: float
    pixels: Callable[[], NDArray[np.uint8]]


def native_rate(times: Sequence[float], stated: Sequence[float]) -> float | None:
    """Frames per second of a video, None when nothing tells.

    The usual interval between frames decides, not the average: a recording of a screen shows a frame for seconds when
    nothing moves. Containers round times, so a stated rate that is near the interval is more exact than the interval.

    Args:
        times: seconds of the first N packets as they lie in the file.
        stated: rates that container and codec state, the most trusted first.
    """
    rates = [rate for rate in stated if 0 < rate <= _MAX_RATE]
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not len(steps):
        return next(iter(rates), None)
    usual = np.sort(steps)[len(steps) // 4]  # in a recording of a screen most intervals may be pauses
    rate = float(1 / steps[np.abs(steps - usual) < 0.5 * usual].mean())
    return next((one for one in rates if abs(one - rate) < 0.005 * rate), min(rate, _MAX_RATE))


def in_order(
    frames: Iterator[tuple[float | None, Callable[[], NDArray[np.uint8]]]],
    native: float,
    reordered: Callable[[], int] = lambda: REORDERED,
) -> Iterator[TimedFrame]:
    """Frames with ascending times, as long as the clock does not begin anew.

    Decoders hand out frames in the order in which they appear. But AVI and ASF know the order of storage only, so that
    the time of a frame is that of another one near it: of those that are near, the earliest is the first frame's.

    Args:
        frames: times in seconds, None where the file does not say, and pixels.
        native: frames per second, for times that are not known.
        reordered: how many frames the decoder may hold back, which it learns as it decodes.
    """
    waiting: deque[Callable[[], NDArray[np.uint8]]] = deque()
    times: list[float] = []
    given, last = -math.inf, -1 / native
    for known, pixels in frames:
        last = known if known is not None else last + 1 / native
        restarted = last < given  # then all that waits comes before
        while len(waiting) > reordered() or (restarted and waiting):
            given = heapq.heappop(times)
            yield TimedFrame(given, waiting.popleft())
        given = -math.inf if restarted else given
        heapq.heappush(times, last)
        waiting.append(pixels)
    while waiting:
        yield TimedFrame(heapq.heappop(times), waiting.popleft())


def resample(
    frames: Iterator[TimedFrame], native: float, rate: float, rounding: float = 0.0
) -> Iterator[NDArray[np.uint8]]:
    """The latest frame at or before each of `rate` ticks per second, from the first frame on.

    Args:
        frames: in the order in which they appear.
        native: their usual rate per second.
        rate: at most `native`, or frames repeat.
        rounding: seconds by which the container rounds times; a frame may be late by that and still be taken.
    """
    # a frame that is late by less than this is on time; by half a frame it would be shown twice
    slack = min(0.4 / native, 0.1 / native + rounding)
    clock, ticks = 0.0, 0
    before: TimedFrame | None = None
    for frame in frames:
        if before is not None:
            gap = frame.time - before.time
            # times that repeat, run backwards or leap for hours tell nothing: then a frame takes its usual time
            clock += gap if 0.05 / native < gap <= _MAX_GAP else 1 / native
            if ticks / rate < clock - slack:
                pixels = before.pixels()
                while ticks / rate < clock - slack:
                    yield pixels
                    ticks += 1
        before = frame
    if before is not None and ticks / rate <= clock + slack:
        yield before.pixels()
