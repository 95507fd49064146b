"""What the records of an RLDS folder hold: as `features.json` declares it, or as the records themselves show.

Letters: T steps, D dimensions of a field. Names are without the leading `steps/`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks.quality import BadDataError
from pipelines.tfrecord import Example
from storage_schemas.schema import check_field_names

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_MAX_DIM = 1 << 20
_INSTRUCTION = re.compile(r"(steps|episode_metadata)/(.+/)?(natural_)?language_instruction(_\d+)?")
_BIT_DEPTH = 24
"""Where a PNG says how many bits a channel has."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Fields under `steps`."""

    cameras: tuple[str, ...] = ()
    """Image fields, such as `observation/wrist_image_left`."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Name of each numeric field and its D."""
    texts: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Name of each field of images that are no pictures, and what they are."""
    declared: bool = False
    """Whether every record must have all of them, as tensorflow-datasets writes them."""

    def check(self, example: Example) -> None:
        """All fields of a record are known, so that a damaged declaration loses none of them. Raises BadDataError."""
        known = {f"steps/{name}" for name in (*self.cameras, *self.numbers, *self.texts, *self.left_out)}
        if strange := [key for key in example.names() if key.startswith("steps/") and key not in known]:
            raise BadDataError("undeclared_field", f"the record has {strange[0]}, which features.json does not declare")

    def of(self, example: Example, names: Iterable[str]) -> list[str]:
        """Those of the names that a record has, or must have."""
        return [name for name in names if self.declared or f"steps/{name}" in example]


def declared_fields(features: dict[str, Any]) -> Fields:
    """The fields that `features.json` declares.

    Raises:
        BadDataError: "bad_metadata", when a feature is of no known kind or has no possible shape or name.
    """
    cameras, numbers, texts, left_out = [], {}, [], {}
    try:
        for key, node in _leaves(features, ""):
            name = key.removeprefix("steps/")
            if name == key:
                continue
            if "image" in node:
                dtype = str(node["image"].get("dtype") or "uint8")
                if dtype == "uint8":
                    cameras.append(name)
                else:
                    left_out[name] = f"images of {dtype}"
            elif "text" in node or node["tensor"]["dtype"] in ("string", "object"):
                texts.append(name)
            else:
                numbers[name] = _dim(node["tensor"].get("shape", {}).get("dimensions", []))
        check_field_names(list(numbers))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadDataError("bad_metadata", f"a feature makes no sense: {type(error).__name__}: {error}") from error
    if not numbers:
        raise BadDataError("bad_metadata", "it declares no number under steps")
    return Fields(cameras=tuple(cameras), numbers=numbers, texts=tuple(texts), left_out=left_out, declared=True)


def _dim(dimensions: list[Any]) -> int:
    dim = math.prod(int(size) for size in dimensions)
    if not 0 <= dim <= _MAX_DIM:
        raise ValueError(f"a shape of {dimensions}")
    return dim


def _leaves(node: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{key}/{name}" if key else name)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], key)
    else:
        yield key, node


def fields_of(examples: Iterable[Example]) -> Fields:
    """The fields that any of the records has; a number has the D that most of them give it."""
    kinds: dict[str, str] = {}
    dims: dict[str, Counter[int]] = {}
    for example in examples:
        steps = len(example.numbers("steps/is_first")) if "steps/is_first" in example else 0
        for key in example.names():
            name = key.removeprefix("steps/")
            if name == key or not steps:
                continue
            strings = example.byte_strings(key)
            if strings:
                kinds[name] = max(kinds.get(name, ""), _kind(strings), key=_KINDS.index)
            else:
                dims.setdefault(name, Counter())[len(example.numbers(key)) // steps] += 1
    by_kind = {kind: tuple(name for name in kinds if kinds[name] == kind) for kind in _KINDS}
    return Fields(
        cameras=by_kind["picture"],
        numbers={name: counts.most_common(1)[0][0] for name, counts in dims.items() if name not in kinds},
        texts=by_kind["text"],
        left_out=dict.fromkeys(by_kind["depth"], "16-bit images"),
    )


_KINDS = ("", "text", "depth", "picture")
"""What strings may be; a field that is one thing here and another there is the last of these."""


def _kind(strings: tuple[bytes, ...]) -> str:
    images = [text for text in strings if text.startswith((JPEG, PNG))]
    if not images:
        return "text"
    return (
        "depth"
        if all(image.startswith(PNG) and image[_BIT_DEPTH : _BIT_DEPTH + 1] == b"\x10" for image in images)
        else "picture"
    )


def numbers_of(example: Example, fields: Fields, steps: int) -> dict[str, NDArray[Any]]:
    """All numeric fields of a record, each (T, D), float32 or int64 as it is recorded.

    Raises:
        BadDataError: "missing_field" or "length_mismatch".
    """
    values = {}
    for name in fields.of(example, fields.numbers):
        flat, dim = example.numbers(f"steps/{name}"), fields.numbers[name]
        if len(flat) != steps * dim:
            raise BadDataError("length_mismatch", f"{name} has {len(flat)} numbers for {steps} steps of {dim}")
        values[name] = flat.reshape(steps, dim)
    return values


def instructions_of(example: Example, *fields: str) -> tuple[str, ...]:
    """The distinct instructions of an episode; slots may be missing or empty. Raises BadDataError.

    Args:
        example: the record.
        fields: that hold them; all that are called `language_instruction` when there are none.
    """
    named = (name if name.startswith("episode_metadata/") else f"steps/{name}" for name in fields)
    slots = [key for key in (named if fields else example.names()) if key in example]
    slots = slots if fields else [key for key in slots if _INSTRUCTION.fullmatch(key)]
    raw = dict.fromkeys(text for key in slots for text in dict.fromkeys(example.byte_strings(key)))
    try:
        return tuple(dict.fromkeys(text for text in (value.decode().strip() for value in raw) if text))
    except UnicodeDecodeError as error:
        raise BadDataError("invalid_utf8", f"a language instruction is not UTF-8: {error.reason}") from error


def pixels_of(camera: str, images: tuple[bytes, ...]) -> NDArray[np.uint8]:
    """PNG images of one size as pixels (T, H, W, 3).

    Raises:
        BadDataError: "not_a_png", "depth_image", "too_large" or "frame_size_mismatch".
    """
    import io

    from PIL import Image

    from pipelines.checks.quality import MAX_PIXELS

    frames = []
    for step, data in enumerate(images):
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadDataError("too_large", f"{camera}: frame {step} is {image.height} x {image.width} pixels")
                if image.mode.startswith(("I", "F")):
                    raise BadDataError(
                        "depth_image", f"{camera}: frame {step} is a 16-bit image, no picture in colours"
                    )
                frames.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadDataError("not_a_png", f"{camera}: frame {step} of {len(data)} bytes: {error}") from error
        if frames[-1].shape != frames[0].shape:
            size, first = frames[-1].shape[:2], frames[0].shape[:2]
            raise BadDataError("frame_size_mismatch", f"{camera}: frame {step} is {size}, frame 0 is {first}")
    return np.stack(frames)
