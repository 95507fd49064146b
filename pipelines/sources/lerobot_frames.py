"""Which frames of a shared video are an episode's, when the times that its list states can't be trusted.

Recorders sum up durations that containers round, so the stated start of an episode drifts away from its first frame.
What can't drift is the count: where the episodes of a file are as long as the file, each begins where those before end.
Letters: N frames of a file, T steps of an episode.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.video.clock import native_rate

_SAME_RATE = 0.02
"""Relative difference of two rates that are the same."""
_SHARP = 0.45
"""Share of a frame's time by which a stated time may miss a frame and still mean it."""
_NOTED = 1e-3
"""Seconds of drift that rounding does not explain."""


class Slot(NamedTuple):
    """An episode in a video."""

    episode: int
    length: int
    start: float | None
    """Seconds from the beginning of the file; None when nothing is stated."""
    end: float | None


def locate_frames(
    times: NDArray[np.float64], clock: NDArray[np.float64], slots: Sequence[Slot], episode: int, fps: float
) -> tuple[NDArray[np.int64], list[str]]:
    """Which frame of the file belongs to each step, (T,), and what is odd about it.

    Args:
        times: when the frames of the file appear, (N,) in seconds, ascending.
        clock: when the steps of the episode are, (T,) in seconds from its start.
        slots: all episodes of the file, in order.
        episode: which of them it is.
        fps: steps per second.

    Raises:
        BadDataError: "length_mismatch" when the file has too few frames; "frames_misplaced" when it can't be told which
            are the episode's.
    """
    if not len(times):
        raise BadDataError("no_frames", "the video has no frame with a time")
    rate = native_rate(times.tolist(), (fps,)) or fps
    if abs(rate / fps - 1) > _SAME_RATE:
        return _by_time(times, clock, slots, episode, fps, rate)
    place = next(index for index, slot in enumerate(slots) if slot.episode == episode)
    counted = sum(slot.length for slot in slots) == len(times) and _follow(slots, fps)
    first, remarks = _by_count(times, slots, place) if counted else _by_start(times, slots, place, fps)
    if first + len(clock) > len(times):
        raise BadDataError("length_mismatch", f"{max(0, len(times) - first)} frames for {len(clock)} steps")
    even = np.arange(len(clock))
    if np.abs(clock * fps - even).max() < _SHARP:
        return first + even, remarks
    if counted:
        return first + even, [*remarks, "uneven timestamps: frames were counted"]
    return first + _offsets(clock * fps, len(times) - first), [*remarks, "uneven timestamps: frames by their time"]


def _follow(slots: Sequence[Slot], fps: float) -> bool:
    """Whether the stated starts go up by about what each episode lasts: then they drift, and their order is right."""
    starts = [slot.start for slot in slots]
    if None in starts:
        return all(start is None for start in starts)
    steps = np.diff(np.array(starts, np.float64)) * fps
    lengths = np.array([slot.length for slot in slots[:-1]], np.float64)
    return bool((np.abs(steps - lengths) <= np.maximum(0.25 * lengths, 1.5)).all())


def _offsets(ticks: NDArray[np.float64], frames: int) -> NDArray[np.int64]:
    """Which frame from the first on each step is, by its time in frames.

    Raises:
        BadDataError: "frames_misplaced", when a step lies between two frames or before the first; "length_mismatch".
    """
    offsets = np.rint(ticks).astype(np.int64)
    if np.abs(ticks - offsets).max() > _SHARP or offsets.min() < 0 or (np.diff(offsets) < 0).any():
        raise BadDataError("frames_misplaced", "timestamps that lead to no frames")
    if offsets.max() >= frames:
        raise BadDataError("length_mismatch", f"{frames} frames for a last step that is number {offsets.max()}")
    return offsets


def _by_count(times: NDArray[np.float64], slots: Sequence[Slot], place: int) -> tuple[int, list[str]]:
    """The first frame of an episode where every frame of the file is one of some episode."""
    first, start = sum(slot.length for slot in slots[:place]), slots[place].start
    drift = 0.0 if start is None else abs(float(times[first] - times[0]) - start)
    return first, [f"a start that drifts by {drift:.3f} s: frames were counted"] if drift > _NOTED else []


def _by_start(times: NDArray[np.float64], slots: Sequence[Slot], place: int, fps: float) -> tuple[int, list[str]]:
    """The frame at the stated start."""
    slot = slots[place]
    if slot.start is None:
        if len(slots) > 1:
            raise BadDataError("frames_misplaced", f"no start is stated, and its {len(times)} frames are not all told")
        more = len(times) - slot.length
        return 0, [f"a video of {len(times)} frames for {slot.length} steps"] if more > 0 else []
    first, drift = _nearest(times, slot.start)
    if slot.start > times[-1] + 0.5 / fps:
        raise BadDataError("length_mismatch", f"the video ends at {times[-1]:.3f} s, before {slot.start:.3f} s")
    if drift * fps > _SHARP:
        raise BadDataError("frames_misplaced", f"no frame within {drift:.3f} s of its start, {slot.start:.3f} s")
    if slot.end is not None and abs((slot.end - slot.start) * fps - slot.length) > 0.5:
        stated = f"{slot.start:.3f} to {slot.end:.3f} s"
        raise BadDataError("frames_misplaced", f"{stated} for {slot.length} steps at {fps:g} a second")
    begins = {
        index: _nearest(times, one.start)[0]
        for index, one in enumerate(slots)
        if one.start is not None and one.start <= times[-1]
    }
    before, after = begins.get(place - 1), begins.get(place + 1)
    overlap = place - 1 if before is not None and before + slots[place - 1].length > first else None
    overlap = place + 1 if after is not None and first + slot.length > after else overlap
    if overlap is not None:
        raise BadDataError("frames_misplaced", f"its frames overlap those of episode {slots[overlap].episode}")
    return first, [f"a start that misses its frame by {drift:.3f} s"] if drift > _NOTED else []


def _nearest(times: NDArray[np.float64], time: float) -> tuple[int, float]:
    index = int(np.abs(times - time).argmin())
    return index, abs(float(times[index]) - time)


def _by_time(
    times: NDArray[np.float64],
    clock: NDArray[np.float64],
    slots: Sequence[Slot],
    episode: int,
    fps: float,
    rate: float,
) -> tuple[NDArray[np.int64], list[str]]:
    """The frame that is on screen at each step, of a video with a rate of its own."""
    slot = next(slot for slot in slots if slot.episode == episode)
    if slot.start is None and len(slots) > 1:
        raise BadDataError("frames_misplaced", f"a video of {rate:.4g} frames a second that states no start")
    wanted = clock + (times[0] if slot.start is None else slot.start)
    slack = 0.25 / max(rate, fps)
    found = np.searchsorted(times, wanted + slack, side="right") - 1
    shown = wanted - times[np.maximum(found, 0)]
    if found.min() < 0 or shown.max() > 1 / rate + slack:
        known = int(((found >= 0) & (shown <= 1 / rate + slack)).sum())
        raise BadDataError("length_mismatch", f"frames for {known} of {len(clock)} steps")
    return found.astype(np.int64), [f"a video of {rate:.4g} frames a second for {fps:g} steps a second"]
