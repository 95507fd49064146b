"""Frames as they are meant to be seen: upright, with square pixels, in one size.

Letters: H, W height and width of the frames that come out, in pixels.
"""

import math
import struct
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.sidedata.sidedata import SideData
    from av.video.reformatter import VideoReformatter

_TILT = 10
"""Degrees by which a display matrix may miss a right angle and still mean it."""
_SAME_SHAPE = 0.02
"""Relative difference of two aspects that is rounding, such as 1088 coded lines of which 1080 are shown."""


class Orientation(NamedTuple):
    """What makes a coded frame upright: first mirroring left and right, then turning."""

    mirrored: bool = False
    rotation: int = 0
    """Degrees counterclockwise, a multiple of 90."""


def orientation(frame: "VideoFrame") -> Orientation:
    """What the display matrix of a frame says.

    The matrix is (a b u; c d v; x y w) in fixed point, and takes a pixel (x, y) to (a x + c y, b x + d y); where on
    the canvas that is does not matter here.

    Raises:
        BadDataError: "unsupported_rotation", when it is far from a right angle.
    """
    from av.sidedata.sidedata import SideDataContainer, Type

    # `frame.side_data` is a circle of references: hundreds of frames would wait in memory for Python's collector
    container = SideDataContainer(frame)  # type: ignore[call-arg]
    data = cast("SideData | None", container.get(Type.DISPLAYMATRIX))
    if data is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("5i", bytes(data)[:20])
    if not a * d - b * c:  # flattens all pixels, so it can't be meant
        return Orientation()
    mirrored = a * d - b * c < 0
    angle = math.degrees(math.atan2(b, -a) if mirrored else math.atan2(-b, a))
    if abs(angle - round(angle / 90) * 90) > _TILT:
        raise BadDataError("unsupported_rotation", f"the frames are to be turned by {angle:.0f} degrees")
    return Orientation(mirrored, round(angle / 90) * 90 % 360)


def display_size(frame: "VideoFrame", aspect: float) -> tuple[float, float]:
    """Height and width of an upright frame with square pixels, given the aspect of its coded pixels."""
    width = frame.width * aspect
    return (width, frame.height) if orientation(frame).rotation % 180 else (frame.height, width)


def upright(
    frame: "VideoFrame",
    convert: "VideoReformatter",
    size: tuple[int, int],
    aspect: float,
    shape: tuple[float, float],
) -> NDArray[np.uint8]:
    """The frame in RGB, (H, W, 3). One of another shape than the video's keeps it, between black bars.

    Args:
        frame: as decoded.
        convert: one for all frames of a video; each makes tables of its own.
        size: H and W.
        aspect: width of a coded pixel, over its height.
        shape: display size of the video's first frame, which `size` fits.

    Raises:
        BadDataError: "corrupt".
    """
    import av

    mirrored, rotation = orientation(frame)
    height, width = _fitting(display_size(frame, aspect), size, shape)
    across, down = (height, width) if rotation % 180 else (width, height)
    try:
        # one thread: others would be started for every video, and fail where a machine allows no more
        rgb = convert.reformat(frame, across, down, "rgb24", interpolation="BILINEAR", threads=1)
        pixels = rgb.to_ndarray()
    except av.FFmpegError as error:
        raise BadDataError("corrupt", f"a frame can't be converted to RGB: {error.strerror}") from error
    turned = np.rot90(pixels[:, ::-1] if mirrored else pixels, rotation // 90)
    if (height, width) == size:
        return np.ascontiguousarray(turned, np.uint8)
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = turned
    return canvas


def _fitting(display: tuple[float, float], size: tuple[int, int], shape: tuple[float, float]) -> tuple[int, int]:
    """The largest height and width within `size` that have the aspect of `display`; `size` when it is the video's."""
    if abs(display[0] * shape[1] / (display[1] * shape[0]) - 1) <= _SAME_SHAPE:
        return size
    scale = min(size[0] / display[0], size[1] / display[1])
    return tuple(max(1, min(most, round(side * scale))) for most, side in zip(size, display, strict=True))  # type: ignore[return-value]
