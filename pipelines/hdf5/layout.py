"""What an HDF5 file holds, as the child process that looked into it says, and the rules for what is looked at."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.checks.quality import BadDataError

MAX_OBJECTS = 200_000
"""Groups and datasets of a file; more are taken for an attack or a mistake."""
MAX_DEPTH = 12
MAX_NAME = 512
"""Bytes of a path inside a file."""
MAX_TEXT = 32 << 10
"""Characters of an attribute that is told; a longer one, such as a simulator's model, only counts in the digest."""
MAX_VALUES = 64
"""Numbers of an attribute that is told."""
MAX_NUMBERS = 1 << 30
"""Bytes of an array of numbers that is read whole."""
BLOCK = 32 << 20
"""Bytes that are read at once."""

NUMERIC: frozenset[str] = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)
"""Types that are read. Objects (references, strings and arrays of any length) and records are not."""

Attribute = str | float | int | bool
Attributes = Mapping[str, Attribute]


@dataclass(frozen=True, kw_only=True)
class Array:
    """One dataset of a file."""

    shape: tuple[int, ...]
    dtype: str
    """One of `NUMERIC`, "text", or "other" for what is not read."""
    digest: str = ""
    """Hash of the content; of samples where it is large. Empty when nobody asked for it."""
    refused: str = ""
    """Why it can't be read, in the words of a reason and a detail; empty when it can."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of its numbers, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def is_images(self) -> bool:
        """Whether it is RGB images, uint8 (T, H, W, 3)."""
        return self.dtype == "uint8" and len(self.shape) == 4 and self.shape[3] == 3


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What lies in a group, by paths relative to it."""

    arrays: Mapping[str, Array]
    groups: Mapping[str, Attributes]
    """Attributes of each group; "" is the group itself."""
    attribute_digests: Mapping[str, str]
    """Hash of all attributes of each group, those included that are not told."""
    links: Mapping[str, str]
    """Links that are not followed, and what kind they are."""

    def below(self, group: str) -> "Layout":
        """What lies in one of the groups. Raises KeyError when there is no such group."""
        prefix = f"{group}/"
        if group not in self.groups:
            raise KeyError(group)

        def cut(paths: Mapping[str, Any]) -> dict[str, Any]:
            inside = {path.removeprefix(prefix): value for path, value in paths.items() if path.startswith(prefix)}
            return ({"": paths[group]} if group in paths else {}) | inside

        return Layout(
            arrays={path: value for path, value in cut(self.arrays).items() if path},
            groups=cut(self.groups),
            attribute_digests=cut(self.attribute_digests),
            links=cut(self.links),
        )

    def children(self, group: str = "") -> list[str]:
        """Names of the groups in a group."""
        prefix = f"{group}/" if group else ""
        return [
            path.removeprefix(prefix)
            for path in self.groups
            if path and path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        ]

    @property
    def attributes(self) -> Attributes:
        """Those of the group itself."""
        return self.groups[""]

    @property
    def fingerprint(self) -> str:
        """Hash of all that lies in the group, of samples where it is large."""
        digest = hashlib.sha256()
        for path, array in sorted(self.arrays.items()):
            digest.update(f"{path}\0{array.shape}\0{array.dtype}\0{array.digest}\0".encode())
        for path, text in sorted(self.attribute_digests.items()):
            digest.update(f"{path}\0{text}\0".encode())
        return digest.hexdigest()[:32]

    def check_links(self) -> None:
        """Nothing in it is a link to elsewhere. Raises BadDataError "link"."""
        for path, kind in self.links.items():
            raise BadDataError("link", f"{path or 'it'} is {kind}, which is not followed")

    def array(self, path: str) -> Array:
        """A dataset that must be there. Raises BadDataError "missing_field"."""
        if path not in self.arrays:
            raise BadDataError("missing_field", f"there is no {path}")
        return self.arrays[path]


def to_lines(entries: Iterable[tuple[str, str, Any]]) -> Iterator[bytes]:
    """Kind, path and facts of each object, as JSON lines of a layout that is sent."""
    for kind, path, facts in entries:
        yield json.dumps([kind, path, facts]).encode() + b"\n"


def parse_lines(data: bytes) -> Layout:
    """The layout in the lines that the child sent, of which nothing is trusted.

    Raises:
        ValueError: when they are no layout.
    """
    arrays: dict[str, Array] = {}
    groups: dict[str, Attributes] = {}
    digests: dict[str, str] = {}
    links: dict[str, str] = {}
    for line in data.splitlines():
        kind, path, facts = json.loads(line)
        if kind == "array":
            shape = tuple(int(size) for size in facts["shape"])
            dtype = facts["dtype"] if facts["dtype"] in NUMERIC or facts["dtype"] == "text" else "other"
            arrays[path] = Array(shape=shape, dtype=dtype, digest=facts["digest"], refused=facts["refused"])
        elif kind == "group":
            groups[path], digests[path] = facts["attributes"], facts["digest"]
        else:
            links[path] = str(facts)
    return Layout(arrays=arrays, groups=groups, attribute_digests=digests, links=links)
