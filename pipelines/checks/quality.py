"""Checks of what a source claims; each failure has a reason that the quarantine counts by.

Letters: T steps. All checks raise `BadDataError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 26
"""Larger images are taken for damage: 64 megapixels."""

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_MAX_HEADER = 4096
"""Bytes compared with the first frame's; headers of one encoder are equal up to the scan, and shorter than this."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A piece of a source that can't become an episode, and why."""

    source_uri: str
    fingerprint: str
    reason: str
    """A short stable slug, to count by: "crc_mismatch", "truncated", ..."""
    detail: str
    """One line to read."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a source holds and is not read, though nothing is wrong with it: it is counted and named."""

    source_uri: str
    what: str
    """A few words, such as "3 files *.json"."""
    tolerated: bool = False
    """It is read all the same: a fault of the source that harms no number and no frame."""

    @property
    def label(self) -> str:
        """What became of it, in two words at most."""
        return "tolerated" if self.tolerated else "left out"


class BadDataError(Exception):
    """A source is not what it says. Whoever knows which one was read turns it into a `Rejection`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = " ".join(detail.split())


def check_finite(values: Mapping[str, NDArray[Any]]) -> None:
    """No field holds NaN or infinity, reason "non_finite"."""
    for name, array in values.items():
        if not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            raise BadDataError("non_finite", f"{name} is NaN or infinite at step {bad[0]} ({len(bad)} steps in all)")


def check_lengths(lengths: Mapping[str, int], steps: int) -> None:
    """All fields have one entry per step, reason "length_mismatch"."""
    for name, length in lengths.items():
        if length != steps:
            raise BadDataError("length_mismatch", f"{name} has {length} entries for {steps} steps")


def check_flags(is_first: NDArray[np.bool_], is_last: NDArray[np.bool_]) -> None:
    """`is_first` (T,) marks the first step only, `is_last` (T,) no step but the last; reason "bad_boundaries".

    An episode that was cut marks no last step, and is good up to the cut.
    """
    for name, flags, expected in (("is_first", is_first, 0), ("is_last", is_last, len(is_last) - 1)):
        marked = np.flatnonzero(flags).tolist()
        if marked != [expected] and (marked or flags is is_first):
            shown = ", ".join(map(str, marked[:4])) or "no step"
            raise BadDataError("bad_boundaries", f"{name} marks {shown}, not step {expected} alone")


def check_jpegs(camera: str, jpegs: Sequence[bytes]) -> tuple[int, int]:
    """Every frame is a whole JPEG, down to its last compressed byte, and all have one size.

    The frames of one encoder share their header, so only the first, and those whose header differs, are parsed.

    Returns:
        Height and width in pixels.

    Raises:
        BadDataError: "not_a_jpeg", "truncated_jpeg", "not_rgb", "frame_size_mismatch", "too_large", "corrupt".
    """
    from storage_schemas.store.frames import check_compressed

    size, header = (0, 0), b""
    for step, jpeg in enumerate(jpegs):
        if not jpeg.endswith(_EOI) and not jpeg.rstrip(b"\0").endswith(_EOI):
            reason = "truncated_jpeg" if jpeg.startswith(_SOI) else "not_a_jpeg"
            raise BadDataError(reason, f"{camera}: frame {step} of {len(jpeg)} bytes has no JPEG end marker")
        if not header or not jpeg.startswith(header):
            frame_size, header = _jpeg_size(camera, step, jpeg)
            if step and frame_size != size:
                raise BadDataError("frame_size_mismatch", f"{camera}: frame {step} is {frame_size}, frame 0 is {size}")
            size = frame_size
        try:
            check_compressed(jpeg)
        except ValueError as error:
            raise BadDataError("corrupt", f"{camera}: frame {step} can't be decoded: {error}") from error
    return size


def _jpeg_size(camera: str, step: int, jpeg: bytes) -> tuple[tuple[int, int], bytes]:
    """The size of a frame and the bytes, up to the compressed scan, that fix it."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise BadDataError("not_a_jpeg", f"{camera}: frame {step}: {error}") from error
    if height * width > MAX_PIXELS:
        raise BadDataError("too_large", f"{camera}: frame {step} is {height} x {width} pixels")
    if space in ("CMYK", "YCCK"):
        raise BadDataError("not_rgb", f"{camera}: frame {step} is {space}")
    scan = jpeg.find(b"\xff\xda", 0, _MAX_HEADER)
    return (height, width), jpeg[: scan + 2] if scan > 0 else b""
