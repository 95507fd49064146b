"""What a dataset (schema version 2) and its parts (version 1) hold, and the Zarr v3 metadata that follows from it.

A part is a Zarr v3 group. Frames lie in one array per image size, `rgb` when a part has one size,
`rgb_{H}x{W}` otherwise; arrays of numbers lie uncompressed in a single chunk, so that any run of
steps is one byte range. Dimension letters as in `episode.py`.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from storage_schemas.episode import StateType
from storage_schemas.errors import UserError
from storage_schemas.spaces import Camera, Role, Space, StateField

Codec = Literal["jpeg", "lossless"]
SHARD_STEPS = 512
ATTRIBUTE = "uwm"
"""Key of the schema in the attributes of a part's Zarr group."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DatasetSpec(_Model):
    """What all episodes of a dataset share; fixed when the dataset is created.

    Datasets of schema version 1 declare neither what their numbers mean nor what their cameras are; they open with
    `action` None.

    Raises:
        ValueError: when a value makes no sense.
    """

    cameras: tuple[str, ...]
    """Canonical cameras, in the order of the view axis."""
    action_dim: int
    val_percent: int = 10
    """Share of episodes, by the hash of their id, that is held out."""
    schema_version: Literal[1, 2] = 2
    action: Space | None = None
    """What the numbers of an action mean; None when nobody said it."""
    states: tuple[StateField, ...] = ()
    """What the fields of the state mean, as far as the source declares it."""
    views: tuple[Camera, ...] = ()
    """What is known of some cameras beside their names."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras) or not all(self.cameras):
            raise ValueError(f"cameras must be distinct names, not {self.cameras}")
        if self.action_dim < 1 or not 0 <= self.val_percent <= 100:
            raise ValueError(f"action_dim {self.action_dim} or val_percent {self.val_percent} is out of range")
        if self.action is not None and self.action.dim != self.action_dim:
            raise ValueError(f"an action of {self.action_dim} numbers is declared with {self.action.dim}")
        fields = [field.name for field in self.states]
        check_field_names(fields)
        if strange := {view.name for view in self.views} - set(self.cameras):
            raise ValueError(f"views of cameras that there are not: {', '.join(sorted(strange))}")
        return self

    def role(self, camera: str) -> Role:
        """Whether a camera looks from outside or from the wrist, as far as that is declared."""
        return next((view.role for view in self.views if view.name == camera), "unknown")

    def state(self, name: str) -> Space | None:
        """What a field of the state means; None when it is not declared."""
        return next((field.space for field in self.states if field.name == name), None)

    @property
    def is_declared(self) -> bool:
        """Whether it says more than version 1 could."""
        return self.action is not None or bool(self.states) or bool(self.views)

    def to_json(self) -> str:
        """The spec as JSON; as version 1 wrote it when it declares nothing."""
        shown = self.model_dump(mode="json", exclude_defaults=True) | {"val_percent": self.val_percent}
        version = {"schema_version": 2} if self.is_declared else {}
        return json.dumps({k: v for k, v in shown.items() if k != "schema_version"} | version, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse `to_json`. Raises ValueError when `text` is not a spec."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a dataset spec: {text[:200]}") from error


class FrameArray(_Model):
    """One array of frames, uint8 (T, V, H, W, 3)."""

    name: str
    height: int = Field(gt=0, le=65500)
    width: int = Field(gt=0, le=65500)


class StateArray(_Model):
    """One field of numbers (T, D) at `state/<name>`."""

    name: str
    dim: int = Field(ge=0)
    dtype: StateType = "float32"

    @model_serializer(mode="wrap")
    def _without_the_usual_dtype(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was written before there were integers, so that older parts are what their schema says."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if (key, value) != ("dtype", "float32")}


class StoreSchema(_Model):
    """What lies in one part; its JSON is in the attributes of the Zarr group."""

    schema_version: Literal[1] = 1
    codec: Codec
    steps: int = Field(gt=0)
    shard_steps: int = Field(SHARD_STEPS, gt=0)
    cameras: tuple[str, ...] = Field(min_length=1)
    action_dim: int = Field(gt=0)
    frames: tuple[FrameArray, ...]
    state: tuple[StateArray, ...]

    @model_validator(mode="after")
    def _names_are_paths_inside(self) -> Self:
        check_field_names([field.name for field in self.state])
        return self

    def frame_array(self, height: int, width: int) -> FrameArray:
        """The array of that frame size. Raises KeyError when the part has none."""
        for array in self.frames:
            if (array.height, array.width) == (height, width):
                return array
        raise KeyError(f"{height}x{width}")

    @cached_property
    def numbers(self) -> dict[str, "NumberArray"]:
        """All arrays of numbers by name, in the order of the checksum."""
        arrays = [
            NumberArray(name="action", dtype=np.dtype("<f4"), width=self.action_dim),
            NumberArray(name="mask/action", dtype=np.dtype(bool), width=None),
            NumberArray(name="mask/view", dtype=np.dtype(bool), width=len(self.cameras)),
            *(
                NumberArray(name=f"state/{s.name}", dtype=np.dtype(s.dtype).newbyteorder("<"), width=s.dim)
                for s in self.state
            ),
        ]
        return {array.name: array for array in arrays}

    @classmethod
    def parse(cls, group: bytes) -> Self:
        """The schema in the bytes of a part's `zarr.json`. Raises ValueError when there is none."""
        try:
            return cls.model_validate_json(json.dumps(json.loads(group)["attributes"][ATTRIBUTE]))
        except (KeyError, TypeError, ValidationError) as error:
            raise ValueError(f"no schema of version 1 in the attributes: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, kw_only=True)
class NumberArray:
    """One array of numbers, (T, width), or (T,) when width is None."""

    name: str
    dtype: np.dtype[Any]
    width: int | None

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one step."""
        return self.dtype.itemsize * (1 if self.width is None else self.width)

    @cached_property
    def key(self) -> str:
        """Where the single chunk lies in the part."""
        return f"{self.name}/c/0" if self.width is None else f"{self.name}/c/0/0"

    def shape(self, steps: int) -> tuple[int, ...]:
        """Shape of the values of that many steps."""
        return (steps,) if self.width is None else (steps, self.width)

    def parse(self, data: bytes) -> NDArray[Any]:
        """Values of whole steps."""
        return np.frombuffer(data, self.dtype).reshape(self.shape(len(data) // self.row_bytes if self.row_bytes else 0))


def check_field_names(names: list[str]) -> None:
    """Refuse names of state fields that can't be paths of arrays inside a part.

    Raises:
        ValueError: for an empty or dotted segment, a reserved name, or a field inside another.
    """
    for name in names:
        for segment in name.split("/"):
            if segment in ("", ".", "..", "zarr.json", "c") or segment.startswith("__") or "\0" in segment:
                raise ValueError(f"state field {name!r} can't be stored: {segment!r} is no name of an array")
        if any(other.startswith(f"{name}/") for other in names):
            raise ValueError(f"state field {name!r} is also the folder of another field")
    if len(set(names)) != len(names):
        raise ValueError("two state fields have the same name")


def shard_key(array: str, shard: int) -> str:
    """Where the shard of steps `shard` * shard_steps lies in the part."""
    return f"{array}/c/{shard}/0/0/0/0"


def part_metadata(schema: StoreSchema) -> dict[str, bytes]:
    """All `zarr.json` documents of a part by key."""
    attributes = {ATTRIBUTE: schema.model_dump(mode="json")}
    documents = {"zarr.json": _group(attributes)}
    for name, array in schema.numbers.items():
        documents[f"{name}/zarr.json"] = _number_array(array, schema.steps)
    for frames in schema.frames:
        documents[f"{frames.name}/zarr.json"] = _frame_array(frames, schema)
    for name in list(documents):
        for depth in range(1, name.count("/")):
            documents.setdefault("/".join(name.split("/")[:depth]) + "/zarr.json", _group({}))
    return {key: json.dumps(document, indent=1).encode() for key, document in documents.items()}


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(shape: list[int], chunk: list[int], dtype: str, fill: Any, codecs: Any, names: list[str]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "dimension_names": names,
        "attributes": {},
    }


_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def _number_array(array: NumberArray, steps: int) -> dict[str, Any]:
    shape = list(array.shape(steps))
    kind = array.dtype.name
    fill = array.dtype.type(0).item()
    bytes_codec = {"name": "bytes"} if kind == "bool" else _LITTLE
    names = ["step", "view" if array.name == "mask/view" else "d"][: len(shape)]
    return _array(shape, [max(1, n) for n in shape], kind, fill, [bytes_codec, {"name": "crc32c"}], names)


def _frame_array(frames: FrameArray, schema: StoreSchema) -> dict[str, Any]:
    views = len(schema.cameras)
    image = [frames.height, frames.width, 3]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, 1, *image],
            "codecs": frame_codecs(schema.codec),
            "index_codecs": [_LITTLE, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    shape, chunk = [schema.steps, views, *image], [schema.shard_steps, views, *image]
    return _array(shape, chunk, "uint8", 0, [sharding], ["step", "view", "y", "x", "c"])


def frame_codecs(codec: Codec) -> list[dict[str, Any]]:
    """Zarr codecs of one frame: the registered JPEG codec, or Zarr's own bytes and LZ4."""
    if codec == "jpeg":
        return [{"name": "uwm.jpeg", "configuration": {}}]
    lz4 = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}
    return [{"name": "bytes"}, {"name": "blosc", "configuration": lz4}]


def size_text(height: int, width: int) -> str:
    """`HxW`, as the episode table and the names of arrays spell it."""
    return f"{height}x{width}"


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `size_text`; (0, 0) for the empty text of a missing camera.

    Raises:
        UserError: when the text is neither.
    """
    if not text:
        return 0, 0
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise UserError(f"the episode table holds {text!r} where a frame size belongs: it is damaged")
    return int(height), int(width)
