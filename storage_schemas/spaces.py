"""What the numbers of an action or of a state mean: ordered named parts, as a dataset declares them.

Nothing here is guessed from a count of dimensions: what a source does not say is `other`, and is kept as it is.
Quantities carry the names that DROID and LeRobot give them. `storage_schemas.conversions` goes from one space to
another.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quantity = Literal[
    "position",
    "position_delta",
    "linear_velocity",
    "rotation",
    "rotation_delta",
    "angular_velocity",
    "joint_position",
    "joint_delta",
    "joint_velocity",
    "joint_effort",
    "gripper_position",
    "gripper_delta",
    "gripper_velocity",
    "other",
]
"""What a part is. Position and rotation are those of the end effector; a delta is a move in one step."""

Representation = Literal["vector", "euler_xyz", "euler_XYZ", "axis_angle", "quaternion_xyzw", "quaternion_wxyz", "6d"]
"""How a rotation is written: Euler angles extrinsic (xyz) or intrinsic (XYZ), axis times angle, a quaternion with its
order, or the first two rows of its matrix (Zhou et al. 2019, arXiv 1812.07035). All else is a vector."""

Angles = Literal["euler_xyz", "euler_XYZ", "axis_angle"]
Unit = Literal["m", "m/step", "m/s", "rad", "rad/step", "rad/s", "Nm", "1", "unknown"]
Frame = Literal["base", "tool", "world", "unknown"]
Role = Literal["exterior", "wrist", "unknown"]

ROTATIONS: frozenset[str] = frozenset(("rotation", "rotation_delta", "angular_velocity"))
GRIPPERS: frozenset[str] = frozenset(("gripper_position", "gripper_delta", "gripper_velocity"))
WIDTHS = {
    "euler_xyz": 3,
    "euler_XYZ": 3,
    "axis_angle": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "6d": 6,
}
"""Numbers of each representation of a rotation."""
_UNITS: dict[str, tuple[Unit, ...]] = {
    "position": ("m",),
    "position_delta": ("m/step",),
    "linear_velocity": ("m/s", "m/step"),
    "rotation": ("rad",),
    "rotation_delta": ("rad/step",),
    "angular_velocity": ("rad/s", "rad/step"),
    "joint_position": ("rad", "m"),
    "joint_delta": ("rad/step", "m/step"),
    "joint_velocity": ("rad/s", "rad/step", "m/s", "m/step"),
    "joint_effort": ("Nm",),
    "gripper_position": ("1", "m"),
    "gripper_delta": ("1", "m/step"),
    "gripper_velocity": ("1", "m/s", "m/step"),
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Part(_Model):
    """Some consecutive numbers of a vector that mean one thing.

    Raises:
        ValueError: when representation, unit or width does not go with the quantity.
    """

    name: str = Field(min_length=1)
    """Under which sources and people know it, such as `cartesian_velocity` or `gripper_position`."""
    quantity: Quantity
    dim: int = Field(gt=0, le=4096)
    representation: Representation = "vector"
    unit: Unit = "unknown"
    scale: float = Field(1.0, gt=0)
    """What a stored 1 is, in the unit: DROID's velocity of 1 moves 0.075 m in a step."""
    scaled: Angles | None = None
    """The angles that `scale` multiplies, where the representation has none of its own."""
    frame: Frame = "unknown"
    open: float | None = None
    """Value of a gripper that is open."""
    closed: float | None = None
    """Value of a gripper that is closed."""
    axes: tuple[str, ...] = ()
    """Names of the single numbers, such as a joint's; none, or one for each."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        rotation = self.quantity in ROTATIONS
        if rotation != (self.representation != "vector"):
            raise ValueError(f"{self.name}: {self.quantity} can't be written as {self.representation}")
        if rotation and self.dim != WIDTHS[self.representation]:
            raise ValueError(f"{self.name}: {self.representation} has {WIDTHS[self.representation]} numbers")
        if self.quantity in ("position", "position_delta", "linear_velocity") and self.dim != 3:
            raise ValueError(f"{self.name}: {self.quantity} has 3 numbers, not {self.dim}")
        if self.unit not in (*_UNITS.get(self.quantity, ()), "unknown") and self.quantity != "other":
            raise ValueError(f"{self.name}: {self.quantity} is not in {self.unit}")
        if self.scaled and (not rotation or self.representation in ("euler_xyz", "euler_XYZ", "axis_angle")):
            raise ValueError(f"{self.name}: {self.representation} needs no angles that the scale is of")
        if (self.open is None) != (self.closed is None) or (self.open is not None and self.open == self.closed):
            raise ValueError(f"{self.name}: a gripper's open and closed are two different numbers")
        if self.open is not None and self.quantity not in GRIPPERS:
            raise ValueError(f"{self.name}: only a gripper is open or closed")
        if self.axes and len(self.axes) != self.dim:
            raise ValueError(f"{self.name}: {len(self.axes)} names for {self.dim} numbers")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each number."""
        if self.axes:
            return self.axes
        if self.dim == 1:
            return (self.name,)
        letters = "xyz" if self.dim == 3 else ()
        return tuple(f"{self.name}.{letters[index] if letters else index}" for index in range(self.dim))

    @property
    def text(self) -> str:
        """The part in a line to read."""
        words = [self.quantity.replace("_", " ")]
        words += [] if self.representation == "vector" else [f"as {self.representation}"]
        if self.unit != "unknown":
            words += [f"in {self.unit}" if self.scale == 1 else f"x {self.scale:g} {self.unit}"]
        words += [] if self.frame == "unknown" else [f"in the {self.frame}'s frame"]
        words += [] if self.open is None else [f"open {self.open:g}, closed {self.closed:g}"]
        return f"{self.name} ({self.dim}): {', '.join(words)}"


class Space(_Model):
    """What a vector of numbers means, part by part.

    Raises:
        ValueError: when two parts have the same name.
    """

    parts: tuple[Part, ...] = Field(min_length=1)
    rate: float | None = Field(None, gt=0)
    """Steps per second that the numbers are meant for; None when the source does not say."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"two parts have the same name: {', '.join(names)}")
        return self

    @property
    def dim(self) -> int:
        """How many numbers it has."""
        return sum(part.dim for part in self.parts)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each number."""
        return tuple(label for part in self.parts for label in part.labels)

    @property
    def lines(self) -> tuple[str, ...]:
        """A line to read for each part."""
        return tuple(part.text for part in self.parts)

    def place(self, name: str) -> slice:
        """Where a part lies in the vector. Raises KeyError."""
        start = 0
        for part in self.parts:
            if part.name == name:
                return slice(start, start + part.dim)
            start += part.dim
        raise KeyError(name)

    def part(self, name: str) -> Part:
        """The part of that name. Raises KeyError."""
        return next((part for part in self.parts if part.name == name), None) or _missing(name)


def _missing(name: str) -> Part:
    raise KeyError(name)


def undeclared(name: str, dim: int, axes: Sequence[str] = (), rate: float | None = None) -> Space:
    """The space of numbers of which a source says nothing but their names."""
    return Space(parts=(Part(name=name, quantity="other", dim=dim, axes=tuple(axes)),), rate=rate)


class StateField(_Model):
    """What a field of the state means."""

    name: str = Field(min_length=1)
    """Of the array, without `state/`."""
    space: Space


class Camera(_Model):
    """What is known of a camera beside its name."""

    name: str = Field(min_length=1)
    role: Role = "unknown"
    intrinsics: tuple[float, ...] = ()
    """fx, fy, cx, cy in pixels of an image of the size that follows: width, height."""
    extrinsics: tuple[float, ...] = ()
    """The camera's pose in the robot's base frame: x, y, z in metres and a quaternion xyzw."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.intrinsics) not in (0, 6) or len(self.extrinsics) not in (0, 7):
            raise ValueError(f"camera {self.name}: intrinsics are 6 numbers and extrinsics 7")
        return self
