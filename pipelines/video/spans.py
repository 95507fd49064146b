"""A span of a video, decoded from the key frame before it and not from the beginning."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipelines.checks.quality import BadDataError
from pipelines.video.clock import TimedFrame

_EARLIER = (0.0, 10.0)
"""Seconds before a span to which to seek for a key frame; where none leads to it, decoding starts at the beginning."""


class Span(NamedTuple):
    """A piece of a video, in seconds after its first frame or on its clock."""

    start: float = 0.0
    end: float | None = None
    """Before which the frames appear; the end of the video when None."""

    def after(self, first: float) -> "Span":
        """On the clock of a video whose first frame appears at `first`."""
        return Span(first + self.start, None if self.end is None else first + self.end)


def within(frames: Iterator[TimedFrame], span: Span, native: float) -> Iterator[TimedFrame]:
    """The frame that is on screen when a span starts, as if it appeared then, and those that follow before its end.

    Args:
        frames: in the order in which they appear.
        span: on their clock.
        native: their usual rate per second.
    """
    shown: TimedFrame | None = None
    near = 0.1 / native  # what rounding explains; a frame that appears so soon after another counts as a broken clock
    for frame in frames:
        if span.end is not None and frame.time >= span.end - near:
            break
        if frame.time <= span.start + near:
            shown = frame
            continue
        if shown is not None:
            yield shown._replace(time=span.start)
            shown = None
        yield frame
    if shown is not None:
        yield shown._replace(time=span.start)


def nearest(
    decode: Callable[[float | None], Iterator[TimedFrame]], span: Span, native: float, *, seekable: bool
) -> Iterator[TimedFrame]:
    """The frames of a span, decoded from the nearest place that leads to it.

    Args:
        decode: the frames from the key frame at or before a time on, or all of them.
        span: on the video's clock.
        native: the usual frames per second.
        seekable: whether the file has times to seek for.

    Raises:
        BadDataError: "beyond_end", and what `decode` raises.
    """
    places = [max(0.0, span.start - earlier) for earlier in _EARLIER] if seekable and span.start else []
    for place in (*places, None):
        frames = within(decode(place), span, native)
        try:
            first = next(frames, None)
        except BadDataError:
            if place is None:
                raise
            continue  # behind a key frame that does not stand alone decoders lack what came before it
        if place is None or (first is not None and first.time <= span.start):
            yield from until_end(_chain(first, frames), span, native)
            return


def _chain(first: TimedFrame | None, rest: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    if first is not None:
        yield first
    yield from rest


def until_end(frames: Iterator[TimedFrame], span: Span, native: float) -> Iterator[TimedFrame]:
    """The frames of a span. Raises BadDataError "beyond_end" when they end well before it does, or are none."""
    last: float | None = None
    for frame in frames:
        last = frame.time
        yield frame
    seconds = 0.0 if span.end is None else span.end - span.start
    least = span.start + seconds - max(0.5, 0.1 * seconds) if seconds else span.start
    if last is None or last + 1.5 / native < least:
        wanted = f"{seconds:g} s are asked for" if seconds else "a span is asked for"
        shown = "no frame appears" if last is None else f"no frame follows after {last - span.start:.1f} s"
        raise BadDataError("beyond_end", f"{wanted}, {shown}")
