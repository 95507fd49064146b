"""Which shards of latents a dataset version needs, and how one is completed."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage_schemas.location import Location
from storage_schemas.schema import SHARD_STEPS
from storage_schemas.store.dataset import Dataset
from storage_schemas.store.latents import LatentSpec
from storage_schemas.store.shards import HOLE, encode_shard, index_bytes, parse_index


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard of one variant."""

    part: str
    variant: int
    shard: int
    rows: tuple[int, ...]
    """Episodes with steps in it."""
    size: int
    """Latents of these episodes in the shard."""


def shard_jobs(
    dataset: Dataset, spec: LatentSpec, rows: NDArray[np.int64], parts: Collection[str] | None
) -> Iterator[ShardJob]:
    """All shards of the episodes, part by part."""
    episodes = dataset.episodes
    shards: dict[tuple[str, int], list[int]] = {}
    for row in rows.tolist():
        if parts is not None and episodes.parts[row] not in parts:
            continue
        start, stop = int(episodes.starts[row]), int(episodes.starts[row] + episodes.lengths[row])
        for shard in range(start // SHARD_STEPS, (stop - 1) // SHARD_STEPS + 1):
            shards.setdefault((episodes.parts[row], shard), []).append(row)
    for (part, shard), members in sorted(shards.items()):
        size = sum(len(steps_inside(dataset, row, shard)) * len(known_views(dataset, spec, row)) for row in members)
        for variant in range(spec.variants):
            yield ShardJob(part=part, variant=variant, shard=shard, rows=tuple(members), size=size)


def steps_inside(dataset: Dataset, row: int, shard: int) -> NDArray[np.int64]:
    """Steps of an episode that lie in a shard of its part."""
    start, length = int(dataset.episodes.starts[row]), int(dataset.episodes.lengths[row])
    return np.arange(max(0, shard * SHARD_STEPS - start), min(length, (shard + 1) * SHARD_STEPS - start))


def known_views(dataset: Dataset, spec: LatentSpec, row: int) -> list[int]:
    """Views of an episode that are to be encoded."""
    return [
        view
        for view, camera in enumerate(spec.cameras)
        if camera in spec.encoded and dataset.episodes.sizes[row, view, 0]
    ]


def complete_shard(place: Location, new: Mapping[int, bytes], entries: int) -> None:
    """Replace a shard by one that also holds `new`, at once."""
    chunks: list[bytes | None] = [None] * entries
    if place.exists():
        data = place.read_bytes()
        index = parse_index(data[-index_bytes(entries) :], len(data)).tolist()
        chunks = [None if start == HOLE else data[start : start + size] for start, size in index]
    for number, chunk in new.items():
        chunks[number] = chunk
    place.write_bytes(encode_shard(chunks))
