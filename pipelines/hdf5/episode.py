"""From arrays of a file to the fields of an episode. Letters: T steps, H, W height and width in pixels."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import MAX_PIXELS, BadDataError, check_finite, check_lengths
from storage_schemas.episode import EncodedFrames
from storage_schemas.store.frames import encode_frames

_LARGEST_SIDE = 65500
"""Of a JPEG, in pixels."""


def state_fields(
    arrays: Mapping[str, NDArray[Any]], steps: int, keep64: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """Arrays (T, ...) as state fields (T, D): integers and truth values int64, all else float32.

    Args:
        arrays: as recorded.
        steps: T.
        keep64: fields that stay float64.

    Raises:
        BadDataError: "length_mismatch", "non_finite" or "out_of_range".
    """
    check_lengths({name: len(values) for name, values in arrays.items()}, steps)
    fields: dict[str, NDArray[Any]] = {}
    for name, values in arrays.items():
        flat = values.reshape(steps, -1)
        if flat.dtype.kind == "u" and flat.size and int(flat.max()) > np.iinfo(np.int64).max:
            raise BadDataError("out_of_range", f"{name} holds integers above 63 bits")
        kind = np.int64 if flat.dtype.kind in "biu" else np.float64 if name in keep64 else np.float32
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which is refused below
            fields[name] = flat.astype(kind)
    check_finite(fields)
    return fields


def check_size(camera: str, height: int, width: int) -> None:
    """Images can be stored. Raises BadDataError "too_large" or "bad_shape"."""
    if height * width > MAX_PIXELS or max(height, width) > _LARGEST_SIDE:
        raise BadDataError("too_large", f"{camera}: frames of {height} x {width} pixels")
    if not height * width:
        raise BadDataError("bad_shape", f"{camera}: frames of {height} x {width} pixels")


def encoded(blocks: Iterable[NDArray[np.uint8]]) -> EncodedFrames:
    """Frames in blocks (N, H, W, 3), upright RGB, encoded as the store would.

    At most a block of pixels
    is in memory, however long the episode. Raises BadDataError "frame_size_mismatch".
    """
    jpegs: list[bytes] = []
    height = width = 0
    for block in blocks:
        if jpegs and block.shape[1:3] != (height, width):
            raise BadDataError("frame_size_mismatch", f"frame {len(jpegs)} is {block.shape[1:3]}, not {height, width}")
        height, width = block.shape[1:3]
        jpegs += encode_frames(block, "jpeg")
    return EncodedFrames(height=height, width=width, jpegs=tuple(jpegs))
