"""Commits: whole sets of episodes enter or leave a dataset as one new version, or not at all.

A commit reads the newest version, leaves out what is there already, and writes. All commits carry the
same application transaction, so of two that started from one version Delta lets one through and the
other starts again from the new version: the same episode is never stored twice.

Every commit is one Delta write whatever it does. Rows are appended; rows that leave, and the small data
files of earlier commits once there are many, are rewritten by the same write, found through `ordinal`.
So the number of data files stays small, and what a commit costs does not depend on the size of the dataset.
"""

import os
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from storage_schemas.catalog.delta import (
    check_writable,
    data_files,
    exclusive,
    read_columns,
    read_rows,
    with_columns_of,
)
from storage_schemas.catalog.rows import EpisodeRow, rows_to_arrow
from storage_schemas.catalog.table import (
    Snapshot,
    create_dataset,
    dataset_exists,
    load,
    open_dataset_table,
    take_spec,
)
from storage_schemas.catalog.versions import load_version
from storage_schemas.errors import StorageError, UserError
from storage_schemas.location import Location, locate, storage_errors
from storage_schemas.schema import DatasetSpec

if TYPE_CHECKING:
    from deltalake import DeltaTable

_ATTEMPTS = 100
"""How often a commit that loses starts again: with its pauses, half a minute and more without a gap."""
_OUTAGES = 3
"""How often a commit starts again when the storage fails under it; each library has retried before."""
# Opening a table costs a request or a system call for each data file, joining costs writing its rows again: files are
# joined, many at once, until they have grown to a size at which their number no longer matters.
_SMALL_FILE = 8192
"""Rows from which on a data file is left alone."""
_SMALL_FILES = 64
"""Small data files that are joined into one."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CommitResult:
    """What a commit did: `present` episodes were there already with the same fingerprint."""

    version: int
    added: int
    replaced: int
    present: int
    removed: int = 0
    """Episodes that left without another in their place."""


def commit(
    dataset: "str | os.PathLike[str] | Committer", rows: Sequence[EpisodeRow], *, retire: Collection[str] = ()
) -> CommitResult:
    """Make written episodes visible: all of them in one new version, or none.

    An episode that is there with the same fingerprint is left out; one with another fingerprint takes
    the place of the old, which older versions still show. So do the episodes with the ids `retire`: they
    leave this version, because the file that they came from has changed. When nothing is left to do there
    is no new version. Safe with any number of committers at once, on any number of machines.

    Args:
        dataset: Where it is, or a `Committer` for many commits in a row.
        rows: As `write_part` returned them.
        retire: Ids of episodes that leave; ids that are not there count for nothing.

    Raises:
        UserError: when there is no dataset, a part is gone, or the storage fails.
        TimeoutError: when other committers never left a gap.
    """
    committer = dataset if isinstance(dataset, Committer) else Committer(dataset)
    return committer.commit(rows, retire=retire)


def start_dataset(uri: str | os.PathLike[str], spec: DatasetSpec) -> None:
    """Create a dataset for its first episodes; one that never had any takes the spec.

    One that has only episodes without actions, and never said what an action means, takes the declaration.

    Raises:
        UserError: when it had episodes of another spec.
        TimeoutError: when other committers never left a gap.
    """
    location = locate(uri)
    if dataset_exists(location.uri):
        attempt(location, lambda: take_spec(location, spec))
    else:
        create_dataset(location.uri, spec)


class Committer:
    """Commits to one dataset. Keeps what it has read of the log, so that each commit reads only what is new."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        """Opens nothing before the first commit."""
        self._location = locate(uri)
        self._table: DeltaTable | None = None
        self._known = _Known()

    def commit(self, rows: Sequence[EpisodeRow], *, retire: Collection[str] = ()) -> CommitResult:
        """See the function `commit`."""
        tried: set[str] = set()
        return attempt(self._location, lambda: self._once(rows, frozenset(retire), tried))

    def snapshot(self, version: int) -> Snapshot:
        """A version of the dataset; the one that the last commit made is not opened again. Raises UserError."""
        if self._table is None or self._table.version() != version:
            return load_version(self._location, version)
        return load(self._location, self._table)

    def _once(self, rows: Sequence[EpisodeRow], retire: frozenset[str], tried: set[str]) -> CommitResult:
        table = self._refreshed()
        stored = self._known.episodes
        unique = {row.episode_id: row for row in rows}
        new = [row for row in unique.values() if not _is_stored(row, stored.get(row.episode_id))]
        gone = (retire & stored.keys()) - unique.keys()
        updated = [row.episode_id for row in new if row.episode_id in stored]
        fresh = {row.episode_id for row in new}
        # committed by an earlier attempt whose answer was lost
        ours = sum(stored[name].part == unique[name].part for name in tried - fresh)
        if new or gone:
            tried |= fresh
            self._check_parts({row.part for row in new})
            numbered = [replace(row, ordinal=self._known.following + i) for i, row in enumerate(new)]
            self._write(table, rows_to_arrow(numbered), sorted(stored[name].ordinal for name in (*updated, *gone)))
        replaced = len(updated) + min(len(gone), len(new) - len(updated))
        return CommitResult(
            version=table.version(),
            added=len(new) - replaced + ours,
            replaced=replaced,
            present=len(rows) - len(new) - ours,
            removed=len(gone) - (replaced - len(updated)),
        )

    def _refreshed(self) -> "DeltaTable":
        if self._table is None:
            self._table = open_dataset_table(self._location)
        else:
            self._table.update_incremental()
        self._known.update(self._table, self._location / "episodes")
        return self._table

    def _check_parts(self, parts: Collection[str]) -> None:
        for part in parts:
            if not (self._location / "parts" / part / "zarr.json").exists():
                raise UserError(f"{self._location.uri}: part {part} is gone before its commit: run the ingestion again")

    def _write(self, table: "DeltaTable", data: pa.Table, gone: Sequence[int]) -> None:
        from deltalake import write_deltalake

        data, first = with_columns_of(table, data), self._known.tail()
        # the usual case: nothing that is there has to be read or written again
        if first is None and not gone:
            write_deltalake(table, data, mode="append", commit_properties=exclusive(table))
            return
        where = [f"ordinal IN ({', '.join(map(str, gone))})"] if gone else []
        if first is not None:
            files = [file for file in data_files(table) if file["max.ordinal"] >= first]
            tail = read_rows(self._location / "episodes", table, files=files).filter(pc.field("ordinal") >= first)
            stays = pc.invert(pc.is_in(tail["ordinal"], pa.array(gone, pa.int64())))
            data = pa.concat_tables([tail.filter(stays).sort_by("ordinal"), data])
            where.append(f"ordinal >= {first}")
        elif data.num_rows:
            # an overwrite takes only rows that its predicate matches: this one matches the new rows and no other
            where.append(f"ordinal >= {self._known.following}")
        if data.num_rows:
            condition = " OR ".join(where)
            write_deltalake(table, data, mode="overwrite", predicate=condition, commit_properties=exclusive(table))
        else:
            table.delete(" OR ".join(where), commit_properties=exclusive(table))


@dataclass(frozen=True, slots=True)
class _StoredEpisode:
    """What a committer must know of an episode that is there."""

    fingerprint: str
    part: str
    ordinal: int


def _is_stored(row: EpisodeRow, stored: _StoredEpisode | None) -> bool:
    return stored is not None and stored.fingerprint == row.source_fingerprint


@dataclass
class _Known:
    """The episodes of the version that a committer has read last; reads data files that are new to it."""

    episodes: dict[str, _StoredEpisode] = field(default_factory=dict)
    following: int = 0
    """The next free ordinal."""
    _files: dict[str, dict[str, _StoredEpisode]] = field(default_factory=dict)
    _lines: list[tuple[int, int]] = field(default_factory=list)

    def update(self, table: "DeltaTable", folder: Location) -> None:
        """Read what has come and drop what has gone since the last time."""
        files = data_files(table)
        paths = {file["path"] for file in files}
        if paths != self._files.keys():
            gone = [self._files.pop(path) for path in self._files.keys() - paths]
            new = _read_files(folder, paths - self._files.keys())
            self._files |= new
            for episodes in gone:
                for name, episode in episodes.items():
                    if self.episodes.get(name) == episode:
                        del self.episodes[name]
            for episodes in new.values():
                self.episodes |= episodes
                self.following = max([self.following, *(episode.ordinal + 1 for episode in episodes.values())])
        self._lines = [(file["min.ordinal"], file["num_records"]) for file in files]

    def tail(self) -> int | None:
        """The ordinal from which on the data files are small and many, so that they should be joined."""
        first, count = None, 0
        for ordinal, rows in reversed(self._lines):
            if rows >= _SMALL_FILE:
                break
            first, count = ordinal, count + 1
        return first if count >= _SMALL_FILES else None


def _read_files(folder: Location, paths: Collection[str]) -> dict[str, dict[str, _StoredEpisode]]:
    columns = ["episode_id", "source_fingerprint", "part", "ordinal"]
    files = {}
    for path in paths:
        values = [column.to_pylist() for column in read_columns(folder / path, columns).columns]
        files[path] = {name: _StoredEpisode(*rest) for name, *rest in zip(*values, strict=True)}
    return files


def attempt(location: Location, action: Callable[[], T]) -> T:
    """Repeat an optimistic commit until no other committer comes between.

    An action is started again, from reading the log on, also when a remote storage fails: whether it
    took effect is then unknown, and it finds out.

    Raises:
        TimeoutError: when others never leave a gap.
        StorageError: when the storage keeps failing.
    """
    from deltalake.exceptions import CommitFailedError

    check_writable(location)
    outages = 0
    for tries in range(_ATTEMPTS):
        try:
            with storage_errors(location):
                return action()
        except CommitFailedError:
            pass
        except StorageError:
            outages += 1
            if outages == _OUTAGES:
                raise
        # at random, so that two losers do not meet again; short at first, for most commits take some milliseconds
        time.sleep(random.uniform(0, min(0.5, 0.01 * 2**tries)))  # noqa: S311
    raise TimeoutError(f"{location.uri}: no commit after {_ATTEMPTS} attempts: too many others commit at once")
