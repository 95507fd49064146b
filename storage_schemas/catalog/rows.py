"""Rows of the episode table, and the table in memory."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage_schemas.catalog.statistics import FieldStatistics
from storage_schemas.schema import parse_size


@dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """One episode of a dataset version: where it lies, where it came from, what is known of it."""

    episode_id: str
    part: str
    start: int
    """First step of the episode in its part."""
    length: int
    fps: float
    source_uri: str
    source_format: str
    source_fingerprint: str
    collection: str
    language: list[str]
    success: bool | None
    cameras: list[str]
    """Cameras that the episode has, in canonical order."""
    frame_sizes: list[str]
    """For every canonical camera `HxW`, or the empty text when the episode lacks it."""
    action_steps: int
    """How many steps have a known action."""
    split: str
    statistics: str = "{}"
    """JSON of per-field statistics."""
    run_id: str
    ingested_at: datetime
    checksum: int
    """CRC-32C of all that the part holds of the episode."""
    part_bytes: int = 0
    """Size of the whole part."""
    ordinal: int = -1
    """Position in the order of ingestion; `commit` sets it."""


_TEXTS = pa.list_(pa.string())
# Older stores have a column `flags` besides, which nobody reads.
ROW_SCHEMA = pa.schema(
    [
        ("episode_id", pa.string()),
        ("part", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("fps", pa.float64()),
        ("source_uri", pa.string()),
        ("source_format", pa.string()),
        ("source_fingerprint", pa.string()),
        ("collection", pa.string()),
        ("language", _TEXTS),
        ("success", pa.bool_()),
        ("cameras", _TEXTS),
        ("frame_sizes", _TEXTS),
        ("action_steps", pa.int64()),
        ("split", pa.string()),
        ("statistics", pa.string()),
        ("run_id", pa.string()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
        ("checksum", pa.int64()),
        ("part_bytes", pa.int64()),
        ("ordinal", pa.int64()),
    ]
)


def split_of(episode_id: str, val_percent: int = 10) -> str:
    """`val` or `train`, by the episode's id alone: appending data never moves an episode."""
    # ids may come from the names of files, which need not be UTF-8
    digest = hashlib.sha256(episode_id.encode("utf-8", "surrogateescape")).digest()
    return "val" if int.from_bytes(digest[:8]) % 100 < val_percent else "train"


def rows_to_arrow(rows: Sequence[EpisodeRow]) -> pa.Table:
    """The rows as the episode table holds them."""
    names = [f.name for f in fields(EpisodeRow)]
    return pa.table({name: [getattr(row, name) for row in rows] for name in names}, schema=ROW_SCHEMA)


_CACHED = ("episode_ids", "collections", "splits")
"""Columns that a pickled table leaves behind: they are made again from the table where they are needed."""


class EpisodeTable:
    """The episodes of one dataset version in the order of ingestion; rows are numbered from 0.

    Holds no frames and no statistics: these are read from the log when asked for. What reading a sample
    needs is kept in arrays, so that forked workers share it and never touch the log.
    """

    def __init__(self, table: pa.Table, statistics: Callable[[], pa.Table]) -> None:
        """Take all columns but `statistics`, and a function that reads `ordinal` and `statistics`."""
        ordinals = table["ordinal"].to_numpy()
        # joined data files may lie in another order; sorting copies all columns, so only where it must be
        if (ordinals[1:] < ordinals[:-1]).any():
            table = table.sort_by("ordinal")
        self._table = table
        self._load = statistics
        self._statistics: list[str] | None = None
        self.lengths: NDArray[np.int64] = _numbers(table, "length")
        self.action_steps: NDArray[np.int64] = _numbers(table, "action_steps")
        self.starts: NDArray[np.int64] = _numbers(table, "start")
        self.checksums: NDArray[np.int64] = _numbers(table, "checksum")
        names = table["part"].combine_chunks().dictionary_encode()
        known = names.dictionary.to_pylist()
        self.parts: list[str] = [known[i] for i in names.indices.to_pylist()]
        """The part that each episode lies in."""
        self.sizes: NDArray[np.int32] = _sizes(table)
        """(N, V, 2): height and width of every canonical camera's frames, 0 when the episode lacks it."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in _CACHED}
        return kept | {"_statistics": None}

    @cached_property
    def episode_ids(self) -> list[str]:
        """Stable id of every episode."""
        return self.column("episode_id")

    @cached_property
    def collections(self) -> list[str]:
        """Collection of every episode."""
        return self.column("collection")

    @cached_property
    def splits(self) -> list[str]:
        """`train` or `val` of every episode."""
        return self.column("split")

    def column(self, name: str) -> list[Any]:
        """Any column but the statistics, as Python values."""
        values: list[Any] = self._table[name].to_pylist()
        return values

    def sources(self) -> set[tuple[str, str]]:
        """Source URI and fingerprint of every episode."""
        return set(zip(self.column("source_uri"), self.column("source_fingerprint"), strict=True))

    def row(self, i: int) -> EpisodeRow:
        """The whole row of episode `i`, with its statistics. Raises IndexError."""
        if not 0 <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}")
        values = self._table.slice(i, 1).to_pylist()[0]
        values["ingested_at"] = values["ingested_at"].astimezone(UTC)
        return EpisodeRow(**values, statistics=self._all_statistics()[i])

    def rows(self) -> Iterator[EpisodeRow]:
        """All rows, in the order of ingestion."""
        return (self.row(i) for i in range(len(self)))

    def select(self, *, split: str | None = None, collections: Sequence[str] = ()) -> NDArray[np.int64]:
        """Numbers of the rows of a split and of some collections; None and () take all."""
        chosen = np.ones(len(self), np.bool_)
        if split is not None:
            chosen &= _flags(pc.equal(self._table["split"], split))
        if collections:
            chosen &= _flags(pc.is_in(self._table["collection"], pa.array(list(collections), pa.string())))
        return np.flatnonzero(chosen)

    def statistics(self, field: str, rows: Sequence[int] | NDArray[np.int64] | None = None) -> FieldStatistics:
        """Statistics of `action` or `state/<field>` over all steps of some episodes; None takes all.

        Episodes without the field or without a known step count for nothing. No frame is read.
        """
        texts = self._all_statistics()
        chosen = range(len(self)) if rows is None else rows
        of_field = (json.loads(texts[i]).get(field) for i in chosen)
        return FieldStatistics.combine(value for value in of_field if value is not None)

    def fields(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, set[int]]:
        """The fields of the state that some episodes have, each with the numbers of dimensions that occur."""
        texts, found = self._all_statistics(), defaultdict[str, set[int]](set)
        for row in rows:
            for name, reductions in json.loads(texts[row]).items():
                if name.startswith("state/"):
                    found[name.removeprefix("state/")].add(len(reductions["min"]))
        return dict(found)

    def _all_statistics(self) -> list[str]:
        if self._statistics is None:
            self._statistics = self._load().sort_by("ordinal")["statistics"].to_pylist()
        return self._statistics


def _numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table[name].to_numpy(), np.int64)


def _flags(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(), np.bool_)


def _sizes(table: pa.Table) -> NDArray[np.int32]:
    texts = table["frame_sizes"].combine_chunks()
    names = texts.flatten().dictionary_encode()
    known = np.array([parse_size(text) for text in names.dictionary.to_pylist()], np.int32).reshape(-1, 2)
    sizes: NDArray[np.int32] = known[names.indices.to_numpy()]
    return sizes.reshape(len(texts), -1 if len(texts) else 0, 2)
