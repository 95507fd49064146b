"""Where one scene ends and the next begins. Letters: H, W height and width of a frame in pixels."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.content import sketch

CUT = 30.0
"""Mean change of brightness, of 255, over the blocks of a frame's sketch (`pipelines.checks.content`) from one step to
the next, at which a scene ends. Movement changes few blocks by much, or all by little; a cut nearly all. At 15 steps a
second quiet videos stay below 6 and one whose camera follows cyclists below 25; cuts were measured from 37 on. Fades
and dissolves are spread over many steps and are no cuts."""


def clips(frames: Iterable[NDArray[np.uint8]], most: int, *, scenes: bool = False) -> Iterator[list[NDArray[np.uint8]]]:
    """Consecutive frames (H, W, 3) in pieces.

    Args:
        frames: in order.
        most: frames of a piece.
        scenes: whether a piece ends where a scene does, too.
    """
    clip: list[NDArray[np.uint8]] = []
    before: NDArray[np.float32] | None = None
    for frame in frames:
        look = sketch(frame[None], [0])[0] if scenes else None
        is_cut = look is not None and before is not None and float(np.abs(look - before).mean()) >= CUT
        if clip and (is_cut or len(clip) == most):
            yield clip
            clip = []
        clip.append(frame)
        before = look
    if clip:
        yield clip
