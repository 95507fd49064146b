"""What the fields of an RLDS data set mean: a few lines of TOML, shipped for some sets and written by hand for others.

    fps = 5.0
    language = ["language_instruction"]

    [[cameras]]
    field = "observation/image_0"
    role = "exterior"

    [[action]]
    field = "action"
    start = 0
    name = "position"
    quantity = "position_delta"
    dim = 3

Fields are named without the leading `steps/`. Parts of the action and of states are declared as in
`storage_schemas.spaces`, and lie in the action in the order of the file. Letters: T steps.
"""

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.checks.quality import BadDataError
from pipelines.names import MAPPINGS
from storage_schemas.errors import UserError
from storage_schemas.location import locate
from storage_schemas.rotations import from_matrix, to_matrix
from storage_schemas.spaces import WIDTHS, Camera, Part, Representation, Role, Space, StateField

_MAX_BYTES = 1 << 20


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CameraField(_Model):
    """A field of images."""

    field: str = Field(min_length=1)
    name: str = ""
    """Of the camera; the last segment of the field when empty."""
    role: Role = "unknown"
    present: str = ""
    """Field of a record, such as `episode_metadata/has_image_1`, that is 0 where the images are stand-ins."""

    @property
    def camera(self) -> str:
        """The camera's name."""
        return self.name or self.field.rpartition("/")[2]


class RecordedPart(Part):
    """A part of the action, and where a record has it."""

    field: str = Field(min_length=1)
    start: int = Field(0, ge=0)
    """First number of the field that is this part's."""
    recorded: Representation = "vector"
    """How the record writes a rotation, when not as declared: it is converted."""

    @property
    def end(self) -> int:
        """Behind the last number of the field that is this part's."""
        return self.start + WIDTHS.get(self.recorded, self.dim)

    @property
    def part(self) -> Part:
        """The declaration alone."""
        return Part.model_validate(self.model_dump(include=set(Part.model_fields)))

    def values(self, field: NDArray[Any]) -> NDArray[np.float32]:
        """The part (T, dim) out of its field (T, D)."""
        values = field[:, self.start : self.end]
        if self.recorded != "vector":
            matrices = to_matrix(values.astype(np.float64), self.recorded).astype(np.float32)
            values = from_matrix(matrices, self.representation)
        return values.astype(np.float32)


class RecordedState(_Model):
    """A field that is kept as a state anyway, and what its numbers mean."""

    field: str = Field(min_length=1)
    parts: tuple[Part, ...] = Field(min_length=1)


class RldsMapping(_Model):
    """What the fields of a data set mean. All numeric fields are kept as states, declared or not."""

    fps: float = Field(gt=0)
    """Steps per second: records carry no time."""
    cameras: tuple[CameraField, ...] = Field(min_length=1)
    action: tuple[RecordedPart, ...] = Field(min_length=1)
    states: tuple[RecordedState, ...] = ()
    language: tuple[str, ...] = ()
    """Fields with instructions; all that are called `language_instruction` when there are none here."""
    recorded_path: Literal["droid"] | None = None
    """What `episode_metadata/file_path` tells: DROID's has laboratory, success and the episode's identity."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = [camera.camera for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"two cameras have the same name: {', '.join(names)}")
        taken: dict[str, set[int]] = {}
        for part in self.action:
            numbers = set(range(part.start, part.end))
            if numbers & taken.setdefault(part.field, set()):
                raise ValueError(f"two parts of the action have the same numbers of {part.field}")
            taken[part.field] |= numbers
        for name, numbers in taken.items():
            if numbers != set(range(len(numbers))):
                raise ValueError(f"the action leaves numbers of {name} out: declare them as other")
        _ = self.space, self.state_fields  # parts of one name are refused there
        return self

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of a step of each field that the action is made of."""
        return {part.field: max(p.end for p in self.action if p.field == part.field) for part in self.action}

    @property
    def space(self) -> Space:
        """Of the action."""
        return Space(parts=tuple(part.part for part in self.action), rate=self.fps)

    @property
    def state_fields(self) -> tuple[StateField, ...]:
        """The states that are declared."""
        return tuple(StateField(name=state.field, space=Space(parts=state.parts)) for state in self.states)

    @property
    def views(self) -> tuple[Camera, ...]:
        """The cameras of which the role is known."""
        return tuple(Camera(name=one.camera, role=one.role) for one in self.cameras if one.role != "unknown")

    def camera(self, field: str) -> str:
        """The name of the camera whose images a field holds, declared or not."""
        return next((one.camera for one in self.cameras if one.field == field), field.rpartition("/")[2])

    def action_of(self, numbers: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action (T, A) out of the fields of a record. Raises BadDataError "action_dim"."""
        for name, width in self.widths.items():
            if numbers[name].shape[1] != width:
                found = numbers[name].shape[1]
                raise BadDataError("action_dim", f"{name} has {found} numbers a step, the mapping says {width}")
        return np.concatenate([part.values(numbers[part.field]) for part in self.action], axis=1)


def load_mapping(name: str) -> RldsMapping:
    """A mapping that is shipped, by its name, or the one in a file.

    Raises:
        UserError: when there is none, or the file makes no sense.
    """
    try:
        if name in MAPPINGS:
            data = (resources.files("pipelines.sources") / "mappings" / f"{name}.toml").read_bytes()
        else:
            data = locate(name).read_bytes(0, _MAX_BYTES + 1)
    except FileNotFoundError as error:
        known = ", ".join(MAPPINGS)
        raise UserError(f"there is no mapping {name}: name one of {known}, or the path of a TOML file") from error
    if len(data) > _MAX_BYTES:
        raise UserError(f"the mapping {name} is larger than {_MAX_BYTES} bytes")
    try:
        # as JSON, for only there a strict model takes a list for a tuple
        return RldsMapping.model_validate_json(json.dumps(tomllib.loads(data.decode())))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        raise UserError(f"the mapping {name} makes no sense: {reason}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the mapping {name} is no TOML: {' '.join(str(error).split())}") from error
