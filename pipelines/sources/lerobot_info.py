"""What the `meta/info.json` of a LeRobot dataset declares: rate, features and where files lie.

Versions 3.0, 2.1 and 2.0 declare the same, and only the files tell which of them a folder follows.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.checks.quality import BadDataError
from storage_schemas.schema import check_field_names

TIME = "timestamp"
INDEX = frozenset((TIME, "frame_index", "episode_index", "index", "task_index"))
"""Features that say which frame a row is of."""
INSTRUCTION = re.compile(r"(.+\.)?(natural_)?language_instruction(_\d+)?")
"""Features of text that are instructions."""
_NUMBER = re.compile(r"(float|int|uint)(8|16|32|64)|bool(ean)?|double|float|int")
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
_MAX_DIM = 4096
_MAX_RATE = 1000.0
_DEPTH = ("is_depth_map", "video.is_depth_map")
_ACTIONS = ("action", "actions")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of numbers."""

    name: str
    axes: tuple[str, ...]
    """Names of the single numbers, as far as they fit."""
    dim: int
    is_integer: bool
    """Whether it is declared as integers, of which pandas makes floats where one is not known."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a dataset declares."""

    version: str
    fps: float
    numbers: Mapping[str, Feature]
    """By name, without those of `INDEX`."""
    actions: tuple[str, ...]
    """The numbers that are the action, in order."""
    videos: tuple[str, ...]
    images: tuple[str, ...]
    texts: tuple[str, ...]
    data_path: str
    video_path: str
    chunks: int
    """Episodes of a folder of version 2."""
    remarks: tuple[tuple[str, bool], ...]
    """What is odd, and whether it is read all the same."""

    @property
    def cameras(self) -> dict[str, str]:
        """Name of each camera by its feature: without `observation.images.`, where that leaves distinct names."""
        features = (*self.videos, *self.images)
        short = {feature: re.sub(r"^observation\.(images\.)?", "", feature) for feature in features}
        return short if len(set(short.values())) == len(short) else {feature: feature for feature in features}


def parse_info(raw: Mapping[str, Any]) -> Info:
    """Check what `info.json` says.

    Raises:
        BadDataError: "bad_metadata".
    """
    fps, features = raw.get("fps"), raw.get("features")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= _MAX_RATE:
        raise BadDataError("bad_metadata", f"fps is {str(fps)[:40]}, not a rate per second")
    if not isinstance(features, dict) or not all(isinstance(value, dict) for value in features.values()):
        raise BadDataError("bad_metadata", "it declares no features")
    numbers: dict[str, Feature] = {}
    kinds: dict[str, list[str]] = {"video": [], "image": [], "string": []}
    remarks: list[tuple[str, bool]] = []
    for name, feature in features.items():
        dtype = str(feature.get("dtype"))
        if dtype in ("video", "image") and _is_depth(feature):
            remarks.append((f"{name}: depth, which is no picture in colours", False))
        elif dtype in kinds:
            kinds[dtype].append(name)
        elif name in INDEX:
            continue
        elif _NUMBER.fullmatch(dtype):
            try:
                numbers[name] = _number(name, feature, remarks)
                check_field_names(list(numbers))
            except ValueError as error:
                numbers.pop(name, None)
                remarks.append((f"{name}: {error}", False))
        else:
            remarks.append((f"{name}: a feature of {dtype[:40]}", False))
    data, video = raw.get("data_path"), raw.get("video_path")
    return Info(
        version=str(raw.get("codebase_version") or ""),
        fps=float(fps),
        numbers=numbers,
        actions=_actions(numbers),
        videos=tuple(kinds["video"]),
        images=tuple(kinds["image"]),
        texts=tuple(kinds["string"]),
        data_path=data if isinstance(data, str) else "",
        video_path=video if isinstance(video, str) else "",
        chunks=raw["chunks_size"] if type(raw.get("chunks_size")) is int and raw["chunks_size"] > 0 else 1000,
        remarks=tuple(remarks),
    )


def _number(name: str, feature: Mapping[str, Any], remarks: list[tuple[str, bool]]) -> Feature:
    shape = feature.get("shape") or [1]
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise ValueError(f"a shape of {str(shape)[:40]}")
    dim = math.prod(shape)
    if dim > _MAX_DIM:
        raise ValueError(f"{dim} numbers a step, more than {_MAX_DIM}")
    axes = tuple(_flat(feature.get("names"), 0))
    if axes and len(axes) != dim:
        remarks.append((f"{name}: {len(axes)} names for {dim} numbers, which then have none", True))
    integer = str(feature.get("dtype")).startswith(("int", "uint", "bool"))
    return Feature(name=name, axes=axes if len(axes) == dim else (), dim=dim, is_integer=integer)


def _flat(names: Any, depth: int) -> Iterator[str]:
    """Names as a list, as a dictionary of lists, or of places: LeRobot has had them all."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, dict) and all(isinstance(place, int) for place in names.values()):
        yield from sorted(map(str, names), key=names.__getitem__)
    elif isinstance(names, dict | list) and depth < 8:
        for value in names.values() if isinstance(names, dict) else names:
            yield from _flat(value, depth + 1)


def _actions(numbers: Mapping[str, Feature]) -> tuple[str, ...]:
    """`action` or `actions`; where there is neither, all that is below one of them. Others are states."""
    for name in _ACTIONS:
        if name in numbers:
            return (name,)
    return tuple(name for name in numbers if name.startswith(tuple(f"{action}." for action in _ACTIONS)))


def _is_depth(feature: Mapping[str, Any]) -> bool:
    places = (feature, feature.get("info"), feature.get("video_info"))
    return any(bool(place.get(key)) for place in places if isinstance(place, dict) for key in _DEPTH)


def fill(template: str, **values: object) -> str:
    """A path of `info.json` with its fields filled in; unlike `str.format` it takes plain names only."""

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1])
        width = int(match[2] or 0)
        return str(found).zfill(width) if found is not None else match[0]

    return _FIELD.sub(value, template)
