"""Every k-th step of an action sequence: what a robot is told in k steps, as one.

An absolute part takes the last command of a stride, moves are summed, turns are composed, and a rate per second becomes
the mean. Effort and numbers of which nothing is known have no such sum: they refuse.

Letters: S strides, k steps of each, D numbers of a step.
"""

import numpy as np
from numpy.typing import NDArray

from storage_schemas.conversions import step_angles, step_factor
from storage_schemas.rotations import from_matrix, scaled, to_matrix
from storage_schemas.spaces import ROTATIONS, Part, Space

_ABSOLUTE = frozenset(("position", "rotation", "joint_position", "gripper_position"))
_DELTAS = frozenset(("position_delta", "joint_delta", "gripper_delta", "rotation_delta"))


def strided(space: Space, stride: int) -> Space:
    """The space of every k-th step: the same parts at a lower rate."""
    return space if stride == 1 or space.rate is None else space.model_copy(update={"rate": space.rate / stride})


def unsummable(part: Part) -> str:
    """Why the steps of a part can't be told as one; empty when they can."""
    if part.quantity in _ABSOLUTE:
        return ""
    if part.quantity in ROTATIONS:
        if part.unit == "unknown":
            return f"{part.name} has no unit"
        return f"{part.name} has no frame" if part.frame == "unknown" else ""
    if part.quantity in _DELTAS or part.unit.endswith(("/step", "/s")):
        return ""
    return f"{part.name} is {part.quantity.replace('_', ' ')} in {part.unit}"


def stride_steps(
    values: NDArray[np.float32], known: NDArray[np.bool_], space: Space, stride: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What each stride of k steps does.

    Args:
        values: (S k, D) of the space.
        known: (S k,).
        space: of the values, at its own rate.
        stride: k.

    Returns:
        (S, D) and (S,): a stride is known when all of its steps are; zero where not.

    Raises:
        ValueError: when a part has no such sum (see `unsummable`), or the steps are no whole number of strides.
    """
    if reasons := [reason for part in space.parts if (reason := unsummable(part))]:
        raise ValueError(reasons[0])
    steps = np.asarray(values, np.float64).reshape(-1, stride, space.dim)
    whole = np.logical_and.reduce(np.asarray(known, np.bool_).reshape(-1, stride), axis=1)
    out: NDArray[np.float32] = np.zeros((len(steps), space.dim), np.float32)
    for part in space.parts if whole.any() else ():
        place = space.place(part.name)
        out[whole, place] = _one(steps[whole][:, :, place], part, space.rate)
    return out, whole


def _one(steps: NDArray[np.float64], part: Part, rate: float | None) -> NDArray[np.float64]:
    """(S, k, D) of one part -> (S, D)."""
    if part.quantity in _ABSOLUTE:
        return steps[:, -1]
    if part.quantity in ROTATIONS:
        return _turned(steps, part, rate)
    total: NDArray[np.float64] = steps.sum(axis=1)
    return total / steps.shape[1] if part.unit.endswith("/s") else total


def _turned(steps: NDArray[np.float64], part: Part, rate: float | None) -> NDArray[np.float64]:
    """Turns one after the other: in the base's frame a later one comes from the left, in the tool's from the right."""
    count, stride, width = steps.shape
    seconds = part.unit.endswith("/s")
    if seconds and rate is None:
        raise ValueError(f"{part.name} is told per second in a space without a rate")
    before = step_factor(part, rate)
    after = step_factor(part, rate / stride if rate else None)
    angles = step_angles(part)
    turns = scaled(to_matrix(steps.reshape(-1, width), part.representation), before, angles)
    turns = turns.reshape(count, stride, 3, 3)
    composed = turns[:, 0]
    for index in range(1, stride):
        composed = composed @ turns[:, index] if part.frame == "tool" else turns[:, index] @ composed
    return from_matrix(scaled(composed, 1 / after, angles), part.representation)
