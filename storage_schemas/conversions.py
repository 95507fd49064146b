"""From one action or state space to another, number for number, with the inverse.

What is converted is the way in which the same thing is written: units, scales, representations of rotations, a
gripper's sign and range, a velocity against a move in one step. A pose is not a move, a joint is no end effector, and a
move in the tool's frame is none in the base's: such parts do not convert. `moves` and `poses` go between a whole
sequence of poses and its moves.

Letters: T steps, D and E numbers of the source's and of the target's part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_schemas.rotations import from_matrix, scaled, to_matrix
from storage_schemas.spaces import GRIPPERS, ROTATIONS, Angles, Part, Space

_KINDS = {
    "position_delta": "translation",
    "linear_velocity": "translation",
    "rotation_delta": "turn",
    "angular_velocity": "turn",
    "joint_delta": "joint_move",
    "joint_velocity": "joint_move",
    "gripper_delta": "gripper_move",
    "gripper_velocity": "gripper_move",
}
"""Quantities that are the same thing under two names; all others are only themselves."""


def converts(source: Part, target: Part, *, rates: tuple[float | None, float | None] = (None, None)) -> bool:
    """Whether every value of one part can be told as the other, and back.

    Args:
        source: what there is.
        target: what is asked for.
        rates: steps per second of both spaces, which values per second need.
    """
    if source == target:
        return True
    if _kind(source) != _kind(target) or "other" in (source.quantity, target.quantity):
        return False
    if source.quantity in GRIPPERS:
        same_range = None not in (source.open, target.open)
        return source.dim == target.dim and (same_range or _unit(source) == _unit(target))
    if source.frame != target.frame or "unknown" in (source.unit, target.unit):
        return False
    if source.dim != target.dim and source.quantity not in ROTATIONS:
        return False
    if source.quantity.startswith("joint") and (source.unit[0] != target.unit[0] or source.axes != target.axes):
        return False
    seconds = ("/s" in source.unit[-2:], "/s" in target.unit[-2:])
    return all(rate is not None for rate, timed in zip(rates, seconds, strict=True) if timed)


def convert(
    values: ArrayLike, source: Part, target: Part, *, rates: tuple[float | None, float | None] = (None, None)
) -> NDArray[np.float32]:
    """Values (T, D) of one part as the other writes them, (T, E).

    Raises:
        ValueError: when the parts do not convert.
    """
    if not converts(source, target, rates=rates):
        raise ValueError(f"{source.text} can't be told as {target.text}")
    array = np.asarray(values, np.float64).reshape(-1, source.dim)
    if source == target:
        return array.astype(np.float32)
    if source.quantity in GRIPPERS and source.open is not None:
        return _gripper(array, source, target).astype(np.float32)
    factors = step_factor(source, rates[0]), step_factor(target, rates[1])
    if source.quantity in ROTATIONS:
        matrices = scaled(to_matrix(array, source.representation), factors[0], step_angles(source))
        matrices = scaled(matrices, 1 / factors[1], step_angles(target))
        return from_matrix(matrices, target.representation).astype(np.float32)
    return (array * (factors[0] / factors[1])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Route:
    """How one part of a target space is filled."""

    target: Part
    place: slice
    """Where the part lies in the target's vector."""
    source: Part | None
    """The part of the source that it is converted from; None when there is none."""
    origin: slice
    """Where that lies in the source's vector."""

    @property
    def how(self) -> Literal["same", "converted", "missing"]:
        """What happens to the part."""
        return "missing" if self.source is None else "same" if self.source == self.target else "converted"


def routes(source: Space, target: Space) -> tuple[Route, ...]:
    """For every part of the target the part of the source that it is told by: equal, of the same name, or the only one.

    No part of the source is used twice.
    """
    rates = source.rate, target.rate
    free = list(source.parts)
    chosen: dict[str, Part] = {}
    rules: tuple[Callable[[Part, Part], bool], ...] = (
        lambda part, other: part == other,
        lambda part, other: part.name == other.name and converts(other, part, rates=rates),
        lambda part, other: converts(other, part, rates=rates),
    )
    for rule in rules:
        for part in target.parts:
            if part.name in chosen:
                continue
            candidates = [other for other in free if rule(part, other)]
            if len(candidates) == 1:  # of two arms' poses neither is meant by an unnamed one
                chosen[part.name] = candidates[0]
                free.remove(candidates[0])
    nowhere = slice(0, 0)
    return tuple(
        Route(
            target=part,
            place=target.place(part.name),
            source=chosen.get(part.name),
            origin=source.place(chosen[part.name].name) if part.name in chosen else nowhere,
        )
        for part in target.parts
    )


def dropped(source: Space, chosen: tuple[Route, ...]) -> tuple[Part, ...]:
    """The parts of the source that no route uses."""
    used = {route.source.name for route in chosen if route.source is not None}
    return tuple(part for part in source.parts if part.name not in used)


def union(spaces: Sequence[Space]) -> Space:
    """A space that loses no part of any: those of the first, then what the others have that does not convert to it.

    Raises:
        ValueError: when there is none, or two parts of one name mean different things.
    """
    if not spaces:
        raise ValueError("a union of no space")
    whole = spaces[0]
    for space in spaces[1:]:
        more = dropped(space, routes(space, whole))
        if clash := {part.name for part in more} & {part.name for part in whole.parts}:
            raise ValueError(f"{min(clash)} means different things in different datasets")
        whole = Space(parts=(*whole.parts, *more), rate=whole.rate)
    return whole


def moves(positions: ArrayLike) -> NDArray[np.float64]:
    """The moves (T - 1, D) between positions (T, D) that follow each other."""
    return np.diff(np.asarray(positions, np.float64), axis=0)


def positions(start: ArrayLike, deltas: ArrayLike) -> NDArray[np.float64]:
    """The positions (T + 1, D) that moves (T, D) lead to from a start (D,): the inverse of `moves`."""
    first = np.asarray(start, np.float64)[None]
    return np.concatenate([first, first + np.cumsum(np.asarray(deltas, np.float64), axis=0)])


def turns(matrices: ArrayLike, frame: Literal["base", "tool"] = "base") -> NDArray[np.float64]:
    """The turns (T - 1, 3, 3) between rotations (T, 3, 3), told in the base's frame or in the tool's own."""
    array = np.asarray(matrices, np.float64)
    before, after = array[:-1], array[1:]
    return after @ before.swapaxes(1, 2) if frame == "base" else before.swapaxes(1, 2) @ after


def rotations(start: ArrayLike, turned: ArrayLike, frame: Literal["base", "tool"] = "base") -> NDArray[np.float64]:
    """The rotations (T + 1, 3, 3) that turns (T, 3, 3) lead to from a start (3, 3): the inverse of `turns`."""
    poses = [np.asarray(start, np.float64)]
    for turn in np.asarray(turned, np.float64):
        poses.append(turn @ poses[-1] if frame == "base" else poses[-1] @ turn)
    return np.stack(poses)


def _kind(part: Part) -> str:
    return _KINDS.get(part.quantity, part.quantity)


def _unit(part: Part) -> tuple[str, float]:
    return part.unit, part.scale


def step_angles(part: Part) -> Angles:
    """The angles that the scale of a rotation multiplies."""
    own = part.representation in ("euler_xyz", "euler_XYZ", "axis_angle")
    return cast(Angles, part.representation) if own else part.scaled or "axis_angle"


def step_factor(part: Part, rate: float | None) -> float:
    """What a stored 1 is in metres or radians: of a move, in one step."""
    return part.scale / rate if part.unit.endswith("/s") and rate else part.scale


def _gripper(values: NDArray[np.float64], source: Part, target: Part) -> NDArray[np.float64]:
    """By how far it is closed; a move has no zero point."""
    if source.open is None or source.closed is None or target.open is None or target.closed is None:
        raise ValueError("a gripper without a range")
    spans = source.closed - source.open, target.closed - target.open
    if _kind(source) == "gripper_move":
        return values * (spans[1] / spans[0])
    return target.open + (values - source.open) * (spans[1] / spans[0])
