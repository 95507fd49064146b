"""Writing parts: complete, synced and never changed after."""

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from storage_schemas.catalog.rows import EpisodeRow, split_of
from storage_schemas.catalog.statistics import episode_statistics
from storage_schemas.catalog.table import dataset_spec
from storage_schemas.episode import EncodedFrames, Episode, StateType, frame_size
from storage_schemas.local_files import make_folder, sync_folder
from storage_schemas.location import Location, locate, storage_errors
from storage_schemas.schema import (
    Codec,
    DatasetSpec,
    FrameArray,
    StateArray,
    StoreSchema,
    part_metadata,
    shard_key,
    size_text,
)
from storage_schemas.store.frames import check_frame, decode_frames, encode_frames
from storage_schemas.store.shards import shard_pieces

Chunk = bytes | None
_SYNCS = 16


def write_part(
    uri: str | os.PathLike[str],
    episodes: Sequence[Episode],
    *,
    run_id: str,
    codec: Codec = "jpeg",
    spec: DatasetSpec | None = None,
) -> list[EpisodeRow]:
    """Write episodes as new parts and return the rows that `commit` makes visible, in the same order.

    Episodes with the same state fields share a part, so that a field is never filled up with zeros.
    Nothing is visible until the rows are committed; a crash before leaves an orphan that no row names.

    Args:
        uri: An existing dataset.
        episodes: At least one; held in memory together with their encoded frames.
        run_id: The ingestion run, for lineage.
        codec: How frames are kept that are not JPEG already. In a lossless part JPEG frames are decoded.
        spec: The dataset's, when it is known; otherwise it is read.

    Raises:
        UserError: when there is no dataset at `uri`.
        ValueError: when an episode does not fit the dataset or its JPEG frames are not what it says.
    """
    location = locate(uri)
    spec = spec or dataset_spec(location)
    for episode in episodes:
        check_fits(episode, spec)
    layouts: dict[tuple[StateArray, ...], list[int]] = {}
    for i, episode in enumerate(episodes):
        layout = tuple(
            StateArray(name=name, dim=values.shape[1], dtype=cast(StateType, values.dtype.name))
            for name, values in sorted(episode.state.items())
        )
        layouts.setdefault(layout, []).append(i)
    rows: dict[int, EpisodeRow] = {}
    for layout, members in layouts.items():
        written = _PartWriter(location, spec, codec, layout).write([episodes[i] for i in members], run_id)
        rows |= dict(zip(members, written, strict=True))
    return [rows[i] for i in range(len(episodes))]


def check_fits(episode: Episode, spec: DatasetSpec) -> None:
    """Whether a dataset can take an episode. Raises ValueError."""
    name = episode.meta.episode_id
    if strange := set(episode.frames) - set(spec.cameras):
        raise ValueError(f"episode {name!r} has cameras {sorted(strange)} that the dataset does not: {spec.cameras}")
    if episode.action.shape[1] != spec.action_dim:
        raise ValueError(f"episode {name!r} has {episode.action.shape[1]}-dim actions, the dataset {spec.action_dim}")
    for field in spec.states:
        found = episode.state.get(field.name)
        if found is not None and found.shape[1] != field.space.dim:
            declared = field.space.dim
            raise ValueError(f"episode {name!r}: {field.name} has {found.shape[1]} numbers, the dataset {declared}")


def _encode(episode: Episode, camera: str, codec: Codec) -> Sequence[bytes]:
    """The camera's frames as the part keeps them."""
    frames = episode.frames[camera]
    if not isinstance(frames, EncodedFrames):
        return encode_frames(frames, codec)
    for jpeg in frames.jpegs:
        check_frame(jpeg, "jpeg", frames.height, frames.width)
    return frames.jpegs if codec == "jpeg" else _transcode(frames)


def _transcode(frames: EncodedFrames) -> list[bytes]:
    pixels = np.empty((len(frames), frames.height, frames.width, 3), np.uint8)
    decode_frames(frames.jpegs, "jpeg", pixels)
    return encode_frames(pixels, "lossless")


@dataclass(frozen=True, kw_only=True)
class _EpisodeBytes:
    """What goes into the part of one episode, and its checksum."""

    chunks: Mapping[tuple[int, int], list[Chunk]]  # frame size -> T * V chunks, views of a step together
    numbers: Mapping[str, NDArray[Any]]
    checksum: int


class _PartWriter:
    """Writes one part."""

    def __init__(self, dataset: Location, spec: DatasetSpec, codec: Codec, state: tuple[StateArray, ...]) -> None:
        self._part = uuid.uuid4().hex
        self._folder = dataset / "parts" / self._part
        self._spec = spec
        self._codec = codec
        self._state = state
        self._bytes = 0
        self._unsynced: list[Path] = []

    def write(self, episodes: Sequence[Episode], run_id: str) -> list[EpisodeRow]:
        """Write all files, bring them to disk, and return one row per episode; nothing is left when that fails."""
        try:
            with storage_errors(self._folder):
                return self._write(episodes, run_id)
        except BaseException:
            if self._folder.is_local:  # what is left on an object store is an orphan, which `uwm gc` finds
                shutil.rmtree(self._folder.path, ignore_errors=True)
            raise

    def _write(self, episodes: Sequence[Episode], run_id: str) -> list[EpisodeRow]:
        schema = self._schema(episodes)
        numbers: dict[str, list[NDArray[Any]]] = {name: [] for name in schema.numbers}
        pending = _Pending(schema)
        rows: list[EpisodeRow] = []
        now = datetime.now(UTC)
        for episode in episodes:
            encoded = self._encode(episode, schema)
            rows.append(self._row(episode, pending.steps, encoded.checksum, run_id, now))
            for name, values in encoded.numbers.items():
                numbers[name].append(values)
            for key, shard in pending.push(encoded.chunks, len(episode)):
                self._put(key, *shard)
        for key, shard in pending.flush():
            self._put(key, *shard)
        self._put_numbers(schema, numbers)
        for key, document in part_metadata(schema).items():
            self._put(key, document)
        self._sync()
        return [replace(row, part_bytes=self._bytes) for row in rows]

    def _schema(self, episodes: Sequence[Episode]) -> StoreSchema:
        sizes = sorted({frame_size(frames) for episode in episodes for frames in episode.frames.values()})
        names = ["rgb"] if len(sizes) == 1 else [f"rgb_{size_text(*size)}" for size in sizes]
        arrays = (FrameArray(name=n, height=h, width=w) for n, (h, w) in zip(names, sizes, strict=True))
        return StoreSchema(
            codec=self._codec,
            steps=sum(len(episode) for episode in episodes),
            cameras=self._spec.cameras,
            action_dim=self._spec.action_dim,
            frames=tuple(arrays),
            state=self._state,
        )

    def _encode(self, episode: Episode, schema: StoreSchema) -> _EpisodeBytes:
        views = len(self._spec.cameras)
        chunks: dict[tuple[int, int], list[Chunk]] = {}
        known = np.zeros((len(episode), views), np.bool_)
        for view, camera in enumerate(self._spec.cameras):
            if camera not in episode.frames:
                continue
            known[:, view] = True
            size = frame_size(episode.frames[camera])
            slots = chunks.setdefault(size, [None] * (len(episode) * views))
            # step by step, the views of a step side by side: what a sample needs of a step is one run of bytes
            slots[view::views] = _encode(episode, camera, self._codec)
        values: dict[str, NDArray[Any]] = {
            # where nothing is known the source may have had anything, also NaN
            "action": np.where(episode.action_mask[:, None], episode.action, np.float32(0)),
            "mask/action": episode.action_mask,
            "mask/view": known,
        }
        values |= {f"state/{name}": field for name, field in episode.state.items()}
        numbers = {name: values[name].astype(array.dtype, copy=False) for name, array in schema.numbers.items()}
        return _EpisodeBytes(chunks=chunks, numbers=numbers, checksum=checksum(chunks, list(numbers.values())))

    def _row(self, episode: Episode, start: int, check: int, run_id: str, now: datetime) -> EpisodeRow:
        meta = episode.meta
        sizes = [size_text(*frame_size(episode.frames[c])) if c in episode.frames else "" for c in self._spec.cameras]
        return EpisodeRow(
            episode_id=meta.episode_id,
            part=self._part,
            start=start,
            length=len(episode),
            fps=meta.fps,
            source_uri=meta.source_uri,
            source_format=meta.source_format,
            source_fingerprint=meta.source_fingerprint,
            collection=meta.collection,
            language=list(meta.language),
            success=meta.success,
            cameras=[camera for camera in self._spec.cameras if camera in episode.frames],
            frame_sizes=sizes,
            action_steps=int(episode.action_mask.sum()),
            split=split_of(meta.episode_id, self._spec.val_percent),
            statistics=episode_statistics(episode),
            run_id=run_id,
            ingested_at=now,
            checksum=check,
        )

    def _put_numbers(self, schema: StoreSchema, numbers: Mapping[str, list[NDArray[Any]]]) -> None:
        for name, array in schema.numbers.items():
            data = b"".join(values.tobytes() for values in numbers[name])
            if data:
                self._put(array.key, data, google_crc32c.value(data).to_bytes(4, "little"))

    def _put(self, key: str, *pieces: bytes) -> None:
        """Write one new file of these pieces; local files are synced together at the end."""
        self._bytes += sum(map(len, pieces))
        target = self._folder / key
        if not target.is_local:
            target.write_bytes(b"".join(pieces))
            return
        path = Path(target.path)
        make_folder(path.parent)
        with path.open("wb") as file:
            file.writelines(pieces)
        self._unsynced.append(path)

    def _sync(self) -> None:
        if not self._unsynced:
            return
        root = Path(self._folder.path)
        folders = {folder for path in self._unsynced for folder in path.parents if folder.is_relative_to(root)}
        # the folder of all parts and the dataset's too: a new part is a new name there
        with ThreadPoolExecutor(_SYNCS) as pool:  # the file system brings many to disk in the time of one
            list(pool.map(sync_folder, [*self._unsynced, *folders, root.parent, root.parent.parent]))


class _Pending:
    """Chunks on their way into shards; all sizes advance along the same step axis."""

    def __init__(self, schema: StoreSchema) -> None:
        self._views = len(schema.cameras)
        self._names = {(array.height, array.width): array.name for array in schema.frames}
        self._shard = schema.shard_steps * self._views
        self._slots: dict[tuple[int, int], list[Chunk]] = {size: [] for size in self._names}
        self._done = 0
        self.steps = 0

    def push(self, chunks: Mapping[tuple[int, int], list[Chunk]], length: int) -> list[tuple[str, list[bytes]]]:
        """Append an episode; returns key and pieces of the shards that are full."""
        for size, slots in self._slots.items():
            slots.extend(chunks.get(size) or [None] * (length * self._views))
        self.steps += length
        full: list[tuple[str, list[bytes]]] = []
        # any size tells: holes stand where an episode has no frames of a size, so all are equally long
        while next(iter(map(len, self._slots.values())), 0) >= self._shard:
            full.extend(self._take())
        return full

    def flush(self) -> list[tuple[str, list[bytes]]]:
        """Key and pieces of the last shards, filled up with holes."""
        for slots in self._slots.values():
            slots.extend([None] * (self._shard - len(slots)))
        return self._take()

    def _take(self) -> list[tuple[str, list[bytes]]]:
        """The next shard of every size; one without a frame is not written at all."""
        taken = []
        for size, slots in self._slots.items():
            head = slots[: self._shard]
            del slots[: self._shard]
            if any(chunk is not None for chunk in head):
                taken.append((shard_key(self._names[size], self._done), shard_pieces(head)))
        self._done += 1
        return taken


def checksum(
    chunks: Mapping[tuple[int, int], Sequence[bytes | memoryview | None]], numbers: Sequence[NDArray[Any]]
) -> int:
    """CRC-32C of an episode: its chunks by frame size, step and view, then its arrays of numbers."""
    value = 0
    for size in sorted(chunks):
        for chunk in chunks[size]:
            if chunk is not None:
                value = google_crc32c.extend(value, bytes(chunk))
    for values in numbers:
        value = google_crc32c.extend(value, values.tobytes())
    return int(value)
