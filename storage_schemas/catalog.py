"""The log of a dataset: a Delta Lake table with one row per episode, whose version is the dataset's.

A commit reads the newest version, leaves out what is there already, and appends. All commits carry the
same application transaction, so of two that started from one version Delta lets one through and the
other starts again from the new version: the same episode is never stored twice.
"""

import os
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa

from storage_schemas.errors import UserError
from storage_schemas.location import Location, locate
from storage_schemas.rows import ROW_SCHEMA, EpisodeRow, EpisodeTable, rows_to_arrow
from storage_schemas.schema import DatasetSpec

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

_SPEC_KEY = "uwm.spec"
_CONFIGURATION = {  # Delta's defaults forget old versions after 30 days, also those that a run has pinned
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
_ATTEMPTS = 100

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CommitResult:
    """What a commit did: `present` episodes were there already with the same fingerprint."""

    version: int
    added: int
    replaced: int
    present: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a dataset, read from the log."""

    version: int
    table_id: str
    spec: DatasetSpec
    episodes: EpisodeTable


def create_dataset(uri: str | os.PathLike[str], spec: DatasetSpec) -> None:
    """Create an empty dataset, version 0; does nothing when there is one with the same spec.

    Raises:
        UserError: when there is one with another spec, or the path can't hold a dataset.
    """
    location = locate(uri)
    if not is_table(location / "episodes"):
        create_table(location / "episodes", ROW_SCHEMA, {_SPEC_KEY: spec.to_json()})
    found = dataset_spec(location)
    if found != spec:
        raise UserError(f"{location.uri} exists with other settings: {found.to_json()}, not {spec.to_json()}")


def dataset_exists(uri: str | os.PathLike[str]) -> bool:
    """Whether there is a dataset."""
    return is_table(locate(uri) / "episodes")


def dataset_spec(location: Location) -> DatasetSpec:
    """The spec of the dataset. Raises UserError when there is none."""
    return _spec(location, _open(location))


def load(location: Location, version: int | None = None) -> Snapshot:
    """Read one version of a dataset, the newest when `version` is None.

    Raises:
        UserError: when there is no dataset or no such version.
    """
    table = _open(location, version)
    columns = [name for name in ROW_SCHEMA.names if name != "statistics"]
    return Snapshot(
        version=table.version(),
        table_id=str(table.metadata().id),
        spec=_spec(location, table),
        episodes=EpisodeTable(table.to_pyarrow_table(columns=columns), partial(_statistics, location, table.version())),
    )


def _statistics(location: Location, version: int) -> pa.Table:
    return _open(location, version).to_pyarrow_table(columns=["ordinal", "statistics"])


def commit(uri: str | os.PathLike[str], rows: Sequence[EpisodeRow], *, retire: Collection[str] = ()) -> CommitResult:
    """Make written episodes visible: all of them in one new version, or none.

    An episode that is there with the same fingerprint is left out; one with another fingerprint takes
    the place of the old, which older versions still show. So do the episodes with the ids `retire`: they
    leave this version, because the file that they came from has changed. When nothing is left to do there
    is no new version.
    Safe with any number of committers at once.

    Raises:
        UserError: when there is no dataset.
        TimeoutError: when other committers never left a gap.
    """
    location = locate(uri)
    return attempt(lambda: _commit_once(location, rows, frozenset(retire)))


def _commit_once(location: Location, rows: Sequence[EpisodeRow], retire: frozenset[str]) -> CommitResult:
    table = _open(location)
    held = table.to_pyarrow_table(columns=["episode_id", "source_fingerprint", "ordinal"])
    current = dict(zip(held["episode_id"].to_pylist(), held["source_fingerprint"].to_pylist(), strict=True))
    unique = {row.episode_id: row for row in rows}
    news = [row for row in unique.values() if current.get(row.episode_id) != row.source_fingerprint]
    gone = (retire & current.keys()) - unique.keys()
    updated = sum(row.episode_id in current for row in news)
    if news or gone:
        first = max(held["ordinal"].to_pylist(), default=-1) + 1
        data = rows_to_arrow([replace(row, ordinal=first + i) for i, row in enumerate(news)])
        _write(table, data, updated > 0, gone)
    replaced = updated + min(len(gone), len(news) - updated)
    return CommitResult(
        version=table.version(), added=len(news) - replaced, replaced=replaced, present=len(rows) - len(news)
    )


def _write(table: "DeltaTable", data: pa.Table, replaces: bool, gone: Collection[str]) -> None:
    if not replaces and not gone:
        append(table, data)
        return
    merge = table.merge(
        data,
        "held.episode_id = new.episode_id",
        source_alias="new",
        target_alias="held",
        commit_properties=exclusive(table),
    )
    merge = merge.when_matched_update_all().when_not_matched_insert_all()
    if gone:
        ids = ", ".join("'{}'".format(name.replace("'", "''")) for name in sorted(gone))
        merge = merge.when_not_matched_by_source_delete(f"held.episode_id IN ({ids})")
    merge.execute()


def known_sources(uri: str | os.PathLike[str]) -> set[tuple[str, str]]:
    """(source_uri, source_fingerprint) of all episodes of the newest version."""
    held = _open(locate(uri)).to_pyarrow_table(columns=["source_uri", "source_fingerprint"])
    return set(zip(held["source_uri"].to_pylist(), held["source_fingerprint"].to_pylist(), strict=True))


def is_table(location: Location) -> bool:
    """Whether there is a Delta table."""
    from deltalake import DeltaTable

    if location.is_local and not location.is_dir():
        return False
    return bool(DeltaTable.is_deltatable(location.delta_uri(), storage_options=location.delta_options() or None))


def create_table(location: Location, schema: pa.Schema, configuration: dict[str, str]) -> None:
    """Create a Delta table that keeps all its versions; another creator may have been faster.

    Raises:
        UserError: when the path can't hold a Delta table.
    """
    from deltalake import DeltaTable

    if location.is_local and unquote(location.path) != location.path:
        raise UserError(f"{location.uri}: Delta Lake can't write below a folder with a percent code in its name")
    DeltaTable.create(
        location.delta_uri(),
        schema,
        mode="ignore",
        configuration=_CONFIGURATION | configuration,
        storage_options=location.delta_options() or None,
        raise_if_key_not_exists=False,
    )


def open_table(location: Location, version: int | None = None) -> "DeltaTable":
    """Open a Delta table that exists."""
    from deltalake import DeltaTable

    return DeltaTable(location.delta_uri(), version=version, storage_options=location.delta_options() or None)


def append(table: "DeltaTable", data: pa.Table) -> None:
    """Append to the version that `table` has read; fails when another exclusive commit came between."""
    from deltalake import write_deltalake

    write_deltalake(table, data, mode="append", commit_properties=exclusive(table))


def exclusive(table: "DeltaTable") -> "CommitProperties":
    """Properties that make two commits from the same version conflict instead of both going through."""
    from deltalake import CommitProperties, Transaction

    return CommitProperties(app_transactions=[Transaction("uwm", table.version() + 1)], max_commit_retries=0)


def attempt(action: Callable[[], T]) -> T:
    """Repeat an optimistic commit until no other committer comes between.

    Raises:
        TimeoutError: when that never happens.
    """
    from deltalake.exceptions import CommitFailedError

    for tries in range(_ATTEMPTS):
        try:
            return action()
        except CommitFailedError:
            time.sleep(random.uniform(0, min(0.5, 0.01 * 2**tries)))  # noqa: S311
    raise TimeoutError(f"no commit after {_ATTEMPTS} attempts: too many others commit at once")


def _open(location: Location, version: int | None = None) -> "DeltaTable":
    episodes = location / "episodes"
    if not is_table(episodes):
        raise UserError(
            f"{location.uri} is not a dataset: it has no episode table"
            if location.exists()
            else f"{location.uri} does not exist"
        )
    table = open_table(episodes)
    newest = table.version()
    if version is None or version == newest:
        return table
    if not 0 <= version < newest:
        raise UserError(f"{location.uri} has no version {version}: its newest is {newest}")
    return open_table(episodes, version)


def _spec(location: Location, table: "DeltaTable") -> DatasetSpec:
    configuration: dict[str, Any] = table.metadata().configuration
    try:
        return DatasetSpec.from_json(configuration[_SPEC_KEY])
    except (KeyError, ValueError) as error:
        raise UserError(f"{location.uri} is not a dataset: its table was written by something else") from error
