"""Verify a dataset version from end to end: what the log says against what the parts hold."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage_schemas.catalog.versions import Version
from storage_schemas.errors import DamagedError
from storage_schemas.location import Location, locate
from storage_schemas.schema import StoreSchema, part_metadata, shard_key
from storage_schemas.store.dataset import Dataset, open_dataset
from storage_schemas.store.frames import check_compressed, check_frame
from storage_schemas.store.shards import index_bytes, parse_index

_BLOCK = 256
"""Steps whose frames are held at once."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong. `episode_id` is empty when no single episode is concerned."""

    episode_id: str
    part: str
    what: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and what is wrong."""

    version: int
    episodes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    uri: str | os.PathLike[str],
    version: Version = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check every byte that a dataset version names.

    Per part: schema, metadata documents, checksums of shard indexes and number arrays. Per episode:
    its place in the part, masks and frame sizes against the row, every frame down to its last compressed
    byte, and the checksum of all its bytes.

    Args:
        uri: The dataset.
        version: By number or tag; None takes the newest.
        progress: Called with how many episodes are done, and of how many.

    Raises:
        UserError: when there is no such dataset or version.
    """
    dataset = open_dataset(uri, version)
    members: dict[str, list[int]] = {}
    for i, part in enumerate(dataset.episodes.parts):
        members.setdefault(part, []).append(i)
    problems = [
        Problem(episode_id=name, part="", what=f"{count} rows have this id")
        for name, count in Counter(dataset.episodes.episode_ids).items()
        if count > 1
    ]
    done = 0
    for part, episodes in members.items():
        checker = _PartChecker(dataset, part, episodes)
        problems.extend(checker.part_problems())
        for episode in episodes:
            problems.extend(checker.episode_problems(episode))
            done += 1
            if progress:
                progress(done, len(dataset))
    return VerifyReport(version=dataset.version, episodes=len(dataset), problems=tuple(problems))


class _PartChecker:
    """Checks one part and the episodes that a version has in it."""

    def __init__(self, dataset: Dataset, part: str, episodes: list[int]) -> None:
        self._dataset = dataset
        self._part = part
        self._folder: Location = locate(dataset.uri) / "parts" / part
        self._ids = dataset.episodes.episode_ids
        self._first = episodes[0]
        self._episodes = episodes
        self._shards: dict[str, str] = {}  # key -> what is wrong, empty when nothing is

    def part_problems(self) -> Iterator[Problem]:
        """What is wrong with the part as a whole."""
        try:
            schema = self._dataset.schema(self._first)
        except DamagedError:
            return  # every episode says so
        if (schema.cameras, schema.action_dim) != (self._dataset.spec.cameras, self._dataset.spec.action_dim):
            yield self._problem(None, "cameras or action dimension differ from the dataset's")
        for key, document in part_metadata(schema).items():
            if (what := self._document(key, document)) is not None:
                yield self._problem(None, what)
        yield from self._overlaps()
        for array in schema.numbers.values():
            if array.row_bytes and (what := self._numbers(array.key, array.row_bytes * schema.steps)) is not None:
                yield self._problem(None, what)

    def _overlaps(self) -> Iterator[Problem]:
        table = self._dataset.episodes
        end, last = 0, self._episodes[0]
        for episode in sorted(self._episodes, key=lambda i: int(table.starts[i])):
            if table.starts[episode] < end:
                yield self._problem(episode, f"its steps are also those of episode {self._ids[last]}")
            end, last = int(table.starts[episode] + table.lengths[episode]), episode

    def episode_problems(self, episode: int) -> Iterator[Problem]:
        """What is wrong with one episode: the first thing found of each kind."""
        try:
            schema = self._dataset.schema(episode)
            yield from (self._problem(episode, what) for what in self._check_row(episode, schema))
            checksum = self._checksum(episode, schema)
        except DamagedError as error:
            yield self._problem(episode, str(error))
        except (ValueError, KeyError) as error:
            yield self._problem(episode, f"a frame is damaged: {error}")
        else:
            if checksum != self._dataset.episodes.checksums[episode]:
                yield self._problem(episode, "the stored bytes do not match the checksum of the row")

    def _problem(self, episode: int | None, what: str) -> Problem:
        return Problem(episode_id="" if episode is None else self._ids[episode], part=self._part, what=what)

    def _document(self, key: str, expected: bytes) -> str | None:
        try:
            document = json.loads((self._folder / key).read_bytes())
        except FileNotFoundError:
            return f"{key} is missing"
        except ValueError:
            return f"{key} is not JSON"
        return None if document == json.loads(expected) else f"{key} is not what the schema says"

    def _numbers(self, key: str, size: int) -> str | None:
        try:
            data = (self._folder / key).read_bytes()
        except FileNotFoundError:
            return f"{key} is missing"
        if len(data) != size + 4:
            return f"{key} has {len(data)} bytes, not {size + 4}"
        good = google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")
        return None if good else f"{key} does not match its checksum"

    def _check_row(self, episode: int, schema: StoreSchema) -> Iterator[str]:
        table = self._dataset.episodes
        start, length = int(table.starts[episode]), int(table.lengths[episode])
        if start < 0 or length < 1 or start + length > schema.steps:
            raise DamagedError(f"the row names steps {start} to {start + length} of a part of {schema.steps}")
        if int(self._dataset.array(episode, "mask/action").sum()) != table.action_steps[episode]:
            yield f"mask/action does not have the {table.action_steps[episode]} known actions of the row"
        known = table.sizes[episode, :, 0] > 0
        if not (self._dataset.array(episode, "mask/view") == known).all():
            yield "mask/view does not agree with the cameras of the row"
        if table.splits[episode] not in ("train", "val"):
            yield f"the split is {table.splits[episode]!r}"

    def _checksum(self, episode: int, schema: StoreSchema) -> int:
        value = 0
        sizes = self._dataset.episodes.sizes[episode]
        for size in sorted({(int(h), int(w)) for h, w in sizes if h}):
            views = np.flatnonzero((sizes == size).all(axis=1))
            for chunk in self._frames(episode, schema, size, views):
                check_frame(chunk, schema.codec, *size)
                if schema.codec == "jpeg":
                    check_compressed(chunk)
                value = google_crc32c.extend(value, chunk)
        for name in schema.numbers:
            value = google_crc32c.extend(value, self._dataset.array(episode, name).tobytes())
        return int(value)

    def _frames(
        self, episode: int, schema: StoreSchema, size: tuple[int, int], views: NDArray[np.int64]
    ) -> Iterator[bytes]:
        table = self._dataset.episodes
        array = schema.frame_array(*size).name
        start, length = int(table.starts[episode]), int(table.lengths[episode])
        for shard in range(start // schema.shard_steps, (start + length - 1) // schema.shard_steps + 1):
            if what := self._shard(shard_key(array, shard), schema):
                raise DamagedError(what)
        for first in range(0, length, _BLOCK):
            steps = np.arange(first, min(first + _BLOCK, length))
            yield from map(bytes, self._dataset.chunks(episode, steps, views))

    def _shard(self, key: str, schema: StoreSchema) -> str:
        if key not in self._shards:
            self._shards[key] = self._check_index(key, index_bytes(schema.shard_steps * len(schema.cameras)))
        return self._shards[key]

    def _check_index(self, key: str, tail: int) -> str:
        location = self._folder / key
        try:
            size = location.size()
        except FileNotFoundError:
            return f"{key} is missing"
        if size < tail:
            return f"{key} is cut short"
        try:
            parse_index(location.read_bytes(size - tail, size), size)
        except DamagedError as error:
            return f"{key}: {error}"
        return ""
