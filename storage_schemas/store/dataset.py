"""Datasets: open one at a version and read from it.

Reading is a pure function of an id and touches only the frames asked for. Local parts are read by
`pread`, remote ones by TensorStore's key-value store for sharded Zarr; nothing is opened before the
first read, so a `Dataset` is cheap to pickle and may be forked.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_schemas.catalog.quarantine import quarantined
from storage_schemas.catalog.rows import EpisodeTable
from storage_schemas.catalog.table import Snapshot
from storage_schemas.catalog.versions import Version, load_version
from storage_schemas.errors import DamagedError, UserError
from storage_schemas.location import Location, locate
from storage_schemas.schema import DatasetSpec, StoreSchema, shard_key
from storage_schemas.store.frames import decode_frames
from storage_schemas.store.remote import RemoteParts
from storage_schemas.store.shards import LocalParts, PartReader, ShardRead

Chunk = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """A dataset version in a few numbers; `lengths` in the order of ingestion, `bytes` of its parts."""

    version: int
    episodes: int
    steps: int
    lengths: tuple[int, ...]
    actions_available: int
    cameras: tuple[str, ...]
    bytes: int
    quarantined: int


def open_dataset(uri: str | os.PathLike[str], version: Version = None) -> "Dataset":
    """Open a dataset at a version, given by number or tag; the newest when `version` is None.

    Raises:
        UserError: when there is no such path, no dataset there, or no such version.
    """
    location = locate(uri)
    return Dataset(location, load_version(location, version))


def open_parts(folder: Location) -> PartReader:
    """Byte access to a folder of parts, for this process. Raises UserError when there is no driver for it."""
    return LocalParts(folder.path) if folder.is_local else RemoteParts(folder)


def summary(dataset: "Dataset") -> DatasetSummary:
    """Count what a dataset version holds, from the log alone."""
    episodes = dataset.episodes
    parts = dict(zip(episodes.column("part"), episodes.column("part_bytes"), strict=True))
    return DatasetSummary(
        version=dataset.version,
        episodes=len(episodes),
        steps=int(episodes.lengths.sum()),
        lengths=tuple(episodes.lengths.tolist()),
        actions_available=int(episodes.action_steps.sum()),
        cameras=dataset.spec.cameras,
        bytes=sum(parts.values()),
        quarantined=len(quarantined(dataset.uri, episodes)),
    )


class FrameRequest(NamedTuple):
    """Frames of one episode: steps that ascend, and views of one size, as numbers on the view axis."""

    episode: int
    steps: NDArray[np.int64]
    views: NDArray[np.int64]


class Dataset:
    """One version of a dataset. Immutable; picklable; may be forked and spawned into workers."""

    def __init__(self, location: Location, snapshot: Snapshot) -> None:
        """Use `open_dataset`."""
        self.location = location
        self.uri: str = location.uri
        self.snapshot = snapshot
        self.version: int = snapshot.version
        self.table_id: str = snapshot.table_id
        self.spec: DatasetSpec = snapshot.spec
        self.episodes: EpisodeTable = snapshot.episodes
        self._reader: PartReader | None = None
        self._schemas: dict[str, StoreSchema] = {}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def frames(self, episode: int, camera: str, steps: Sequence[int]) -> NDArray[np.uint8]:
        """Frames (n, H, W, 3) of some steps of a camera; a step that is asked for twice is decoded once.

        Raises:
            IndexError: when there is no such episode or step.
            KeyError: when the episode lacks the camera.
            UserError: when the dataset has no such camera.
            DamagedError: when stored bytes are missing or are no image of the right size.
        """
        view, once, which = self._wanted(episode, camera, steps)
        height, width = self.episodes.sizes[episode, view]
        pixels = np.empty((len(once), height, width, 3), np.uint8)
        self.decode(episode, self.chunks(episode, once, np.array([view])), pixels)
        return pixels[which]

    def encoded(self, episode: int, camera: str, steps: Sequence[int]) -> list[bytes]:
        """The stored bytes of some frames, as they are. Raises as `frames` does."""
        view, once, which = self._wanted(episode, camera, steps)
        chunks = self.chunks(episode, once, np.array([view]))
        return [bytes(chunks[i]) for i in which]

    def _wanted(
        self, episode: int, camera: str, steps: Sequence[int]
    ) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """The camera's place on the view axis, the steps once and ascending, and where each wanted step is in them."""
        length = self._length(episode)
        if camera not in self.spec.cameras:
            raise UserError(f"{self.uri} has no camera {camera!r}: its cameras are {self.spec.cameras}")
        view = self.spec.cameras.index(camera)
        if not self.episodes.sizes[episode, view, 0]:
            raise KeyError(f"episode {episode} has no camera {camera!r}")
        once, which = np.unique(np.asarray(steps, np.int64), return_inverse=True)
        if len(once) and not (once[0] >= 0 and once[-1] < length):
            raise IndexError(f"steps {once[0]} to {once[-1]} of episode {episode}, which has {length}")
        return view, once, which

    def array(self, episode: int, name: str) -> NDArray[Any]:
        """All T steps of `action`, `mask/action`, `mask/view` or `state/<field>`.

        Raises:
            IndexError: when there is no such episode.
            KeyError: when the episode has no such array.
            DamagedError: when stored bytes are missing.
        """
        return self._rows(episode, name, 0, self._length(episode))

    @property
    def is_local(self) -> bool:
        """Whether it lies on a mounted file system."""
        return self.location.is_local

    def schema(self, episode: int) -> StoreSchema:
        """The schema of the part that the episode lies in. Raises DamagedError."""
        part = self.episodes.parts[episode]
        if part not in self._schemas:
            try:
                self._schemas[part] = StoreSchema.parse(self.reader().whole(f"{part}/zarr.json"))
            except (FileNotFoundError, ValueError) as error:
                raise DamagedError(f"part {part}: {error}") from error
        return self._schemas[part]

    def reader(self) -> PartReader:
        """Byte access to the parts, opened in this process at the first call."""
        if self._reader is None:
            self._reader = open_parts(self.location / "parts")
        return self._reader

    def _length(self, episode: int) -> int:
        if not 0 <= episode < len(self.episodes):
            raise IndexError(f"episode {episode} of {len(self.episodes)}")
        return int(self.episodes.lengths[episode])

    def decode(
        self,
        episode: int,
        chunks: Sequence[Chunk],
        out: Iterable[NDArray[np.uint8]],
        least: tuple[int, int] | None = None,
    ) -> None:
        """Decode stored bytes of an episode's frames into one contiguous array (H, W, 3) each.

        Args:
            episode: that they belong to.
            chunks: from `fetch` or `chunks`.
            out: where the pixels go.
            least: height and width that a JPEG may be shrunk towards while it is decoded; see `scaled_size`,
                which gives the size that `out` must have then.

        Raises:
            DamagedError: when a chunk is no image of that size.
        """
        try:
            decode_frames(chunks, self.schema(episode).codec, out, least)
        except (ValueError, RuntimeError) as error:
            raise DamagedError(f"{self._named(episode)} has a frame that can't be decoded: {error}") from error

    def _named(self, episode: int) -> str:
        """What to call an episode in an error: where it is, and the raw file that it came from."""
        source: str = self.episodes.column("source_uri")[episode]
        return f"{self.uri}: episode {self.episodes.episode_ids[episode]} from {source}"

    def chunks(self, episode: int, steps: NDArray[np.int64], views: NDArray[np.int64]) -> list[Chunk]:
        """Stored bytes of frames, step by step and view by view; steps ascend, all views have one size."""
        return next(self.fetch([FrameRequest(episode, steps, views)]))

    def fetch(self, requests: Sequence["FrameRequest"]) -> Iterator[list[Chunk]]:
        """Stored bytes of the frames of many requests, one list for each, in their order.

        Remote reads are all under way when this returns; local ones happen as the result is walked.

        Raises:
            DamagedError: when a frame is missing or a shard is damaged, as the result is walked.
        """
        reads: list[ShardRead] = []
        counts = []
        for request in requests:
            of_request = self._shard_reads(request)
            reads.extend(of_request)
            counts.append(len(of_request))
        return self._gather(requests, counts, self.reader().stream(reads))

    def _gather(
        self,
        requests: Sequence["FrameRequest"],
        counts: Sequence[int],
        stream: Iterator[Sequence[bytes | memoryview | None]],
    ) -> Iterator[list[Chunk]]:
        for request, count in zip(requests, counts, strict=True):
            frames: list[Chunk] = []
            for chunks in islice(stream, count):
                present = [chunk for chunk in chunks if chunk is not None]
                if len(present) != len(chunks):
                    raise DamagedError(f"{self._named(request.episode)} lacks a frame")
                frames.extend(present)
            yield frames

    def _shard_reads(self, request: "FrameRequest") -> list[ShardRead]:
        """Where the frames of a request lie, shard by shard."""
        episode, steps, views = request
        if not len(steps) or not len(views):
            return []
        schema = self.schema(episode)
        height, width = self.episodes.sizes[episode, views[0]]
        array = schema.frame_array(height, width).name
        folder = f"{self.episodes.parts[episode]}/"
        entries = schema.shard_steps * len(schema.cameras)
        # the views of a step lie together: steps and views that ascend give ids that ascend
        ids = ((self.episodes.starts[episode] + steps)[:, None] * len(schema.cameras) + views).ravel()
        first, last = int(ids[0]) // entries, int(ids[-1]) // entries
        # nearly always, for a sample's frames are near each other: one read, and no copy of the ids for each shard
        if first == last:
            return [ShardRead(folder + shard_key(array, first), entries, ids - first * entries)]
        shards = ids // entries
        return [
            ShardRead(folder + shard_key(array, shard), entries, ids[shards == shard] - shard * entries)
            for shard in np.unique(shards).tolist()
        ]

    def actions(self, episode: int, step: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Actions (count, A) from `step` on, and which are known; zero where unknown or past the end."""
        action = np.zeros((count, self.spec.action_dim), np.float32)
        mask = np.zeros(count, np.bool_)
        length, known = int(self.episodes.lengths[episode]), int(self.episodes.action_steps[episode])
        inside = min(count, length - step)
        if known:
            action[:inside] = self._rows(episode, "action", step, inside)
            # most episodes know all actions or none: the mask is read only where it says more
            mask[:inside] = True if known == length else self._rows(episode, "mask/action", step, inside)
        return action, mask

    def state(self, episode: int, field: str, step: int, count: int) -> NDArray[Any] | None:
        """Steps (count, D) of a field of the state from `step` on, in its own type; None when the episode lacks it."""
        name = f"state/{field}"
        return self._rows(episode, name, step, count) if name in self.schema(episode).numbers else None

    def _rows(self, episode: int, name: str, step: int, count: int) -> NDArray[Any]:
        """Steps of an array of numbers, as one byte range."""
        schema = self.schema(episode)
        arrays = schema.numbers
        if name not in arrays:
            raise KeyError(f"episode {episode} has no {name!r}; it has {', '.join(arrays)}")
        array = arrays[name]
        if not array.row_bytes:
            return np.zeros(array.shape(count), array.dtype)
        start = (int(self.episodes.starts[episode]) + step) * array.row_bytes
        key = f"{self.episodes.parts[episode]}/{array.key}"
        total = schema.steps * array.row_bytes
        return array.parse(self.reader().numbers(key, start, count * array.row_bytes, total))


@contextmanager
def blaming(dataset: Dataset, episode: int) -> Iterator[None]:
    """Whatever is damaged within the block is said of an episode, the file that it came from, and the dataset."""
    try:
        yield
    except DamagedError as error:
        row = dataset.episodes.row(episode)
        raise DamagedError(
            f"episode {row.episode_id} of {dataset.uri}, from {row.source_uri}: {error}; `uwm verify` names all damage"
        ) from error
